"""The end of a run: its weights are saved, validated on the whole text, and let write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..evaluation.bits_per_byte import score, spread
from ..model import HierarchicalTransformer
from ..model_card import make_model_card, write_card
from ..text.text_tokenizer import ObjectTokenizer
from ..text.tokenizer import save_tokenizer
from .metrics import FINAL_VALIDATION, bits
from .processes import agreed_sums, on_main
from .run import Run
from .run_folder import MODEL_FOLDER
from .sample import PROMPT_BYTES, write_sample
from .snapshot import weights_of


@dataclass(frozen=True)
class Finished:
    """Where the model is, and what it is worth."""

    folder: Path
    validation_bits_per_byte: float
    sample: str | None

    def show(self, run: Run, report: Callable[[str], None]) -> None:
        steps = f"{run.step} step{'s' * (run.step != 1)}"
        report(f"validation: {self.validation_bits_per_byte:.3f} bits per byte after {steps}")
        if self.sample is not None:
            report(f"sample, after the first {PROMPT_BYTES} bytes of the validation text:\n{self.sample}")


def finish(
    run: Run, report: Callable[[str], None], note: Callable[..., None], stop: Callable[[], bool]
) -> Finished | None:
    """On all processes: save the model, validate it on the whole text, and let it write; None: it was stopped."""
    config, folder = run.config, run.config.out / MODEL_FOLDER
    model = whole_model(run)
    # before the last figures are taken, since that may be interrupted
    on_main(run.accelerator, lambda: save(run, model, folder))
    report(f"saved: {folder}")
    report("validating on the whole text …" if config.final_validation_sequences is None else "validating …")
    validation = validate_whole(run, model, stop)
    if validation is None:
        return None
    note(**{FINAL_VALIDATION: validation})
    on_main(run.accelerator, lambda: write_card(folder, card(run, validation)))
    sample = None
    if config.sample_length:
        report(f"writing a sample of {config.sample_length} tokens …")
        sample = on_main(run.accelerator, lambda: None if model is None else write_sample(run, model))
    return Finished(folder, validation, sample)


def whole_model(run: Run) -> HierarchicalTransformer | None:
    """The trained model, not sharded; of a sharded one, a copy on the main process, and None on the others."""
    if not run.is_sharded:
        return run.trained
    weights = weights_of(run)
    if not run.accelerator.is_main_process:
        return None
    model = HierarchicalTransformer(**run.config.model_arguments(run.split.num_tokens))
    model.load_state_dict(weights, strict=True)
    return model.to(run.device)


def validate_whole(run: Run, model: HierarchicalTransformer | None, stop: Callable[[], bool]) -> float | None:
    """Bits per byte of the validation text, each token predicted after `seq_len` others where there are as many.

    None: it was asked to stop between two parts.
    """
    config, corpus = run.config, run.split.validation
    sequences = config.final_validation_sequences
    ranges = spread(len(corpus), None if sequences is None else sequences * config.seq_len, config.seq_len)
    # those that have the model share them
    processes = 1 if run.is_sharded else run.accelerator.num_processes
    nats, tokens = 0.0, 0
    rounds = range(0, len(ranges), processes)
    for first in tqdm(rounds, "validating", leave=False, disable=not run.accelerator.is_main_process):
        if stop():
            return None
        mine = first + run.accelerator.process_index % processes
        if model is not None and mine < len(ranges):
            start, end = ranges[mine]
            with run.autocast():
                scored = score(model, corpus, start=start, stop=end)
            nats, tokens = nats + scored.nats, tokens + scored.tokens
    nats, counted = agreed_sums(run.accelerator, [nats, tokens])
    return bits(nats / counted) / corpus.bytes_per_token


def save(run: Run, model: HierarchicalTransformer | None, folder: Path) -> None:
    assert model is not None  # on the main process
    model.save_pretrained(folder, model_card=card(run, None))
    save_tokenizer(run.tokenizer, folder)


def card(run: Run, validation: float | None) -> str:
    """The model card of a run, with the figure of its last validation once that is known."""
    figures: dict[str, str | float] = {"steps": run.step, "tokens": run.tokens}
    if validation is not None:
        figures["validation bits per byte"] = round(validation, 4)
    # whoever reads the card has nothing of the folders here
    named = [name if name.startswith("hf:") else Path(name).name for name in run.config.data]
    return make_model_card(
        run.model_config,
        title=run.config.out.name,
        parameters=run.num_parameters,
        data=named or run.split.description,
        figures=figures,
        tokenizer=None if isinstance(run.tokenizer, ObjectTokenizer) else run.tokenizer.name,
    )
