"""The end of a run: its weights are saved, validated on the whole text, and let write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..evaluation.bits_per_byte import score
from ..model import HierarchicalTransformer
from ..model_card import make_model_card
from ..text.text_tokenizer import ObjectTokenizer
from ..text.tokenizer import save_tokenizer
from .metrics import FINAL_VALIDATION, bits
from .processes import agreed_sums
from .run import Run
from .run_folder import MODEL_FOLDER
from .sample import PROMPT_BYTES, write_sample
from .snapshot import weights_of

PART_LENGTH = 64  # in sequences: long enough for many rows side by side
MOST_PARTS = 64


@dataclass(frozen=True)
class Finished:
    """Where the model is, and what it is worth."""

    folder: Path
    validation_bits_per_byte: float
    sample: str | None


def finish(
    run: Run, report: Callable[[str], None], note: Callable[..., None], train_bits_per_byte: float | None
) -> Finished:
    """On all processes: save the model, validate it on the whole text, and let it write."""
    config, folder = run.config, run.config.out / MODEL_FOLDER
    model = whole_model(run)
    # before the last figures are taken, since that may be interrupted
    if model is not None and run.accelerator.is_main_process:
        save(run, model, folder, None)
    report(f"saved: {folder}")
    report("validating, which takes some seconds more …")
    validation = validate_whole(run, model)
    note(**{FINAL_VALIDATION: validation})
    sample = None
    if model is not None and run.accelerator.is_main_process:
        save(run, model, folder, validation)  # its card has the figure now
        if config.sample_length:
            report(f"writing a sample of {config.sample_length} tokens …")
            sample = write_sample(run, model)
    if train_bits_per_byte is not None:
        report(f"training: {train_bits_per_byte:.3f} bits per byte since the validation before the last")
    report(f"validation: {validation:.3f} bits per byte after {run.step} step{'s' * (run.step != 1)}")
    if sample is not None:
        report(f"sample, after the first {PROMPT_BYTES} bytes of the validation text:\n{sample}")
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


def validate_whole(run: Run, model: HierarchicalTransformer | None) -> float:
    """Bits per byte of the validation text, each token predicted after `seq_len` others where there are as many."""
    config, corpus = run.config, run.split.validation
    sequences = config.final_validation_sequences
    stop = len(corpus) if sequences is None else min(len(corpus), sequences * config.seq_len + 1)
    # parts that depend on the text alone, so that any number of processes gives the same figure
    parts = min(max(stop // (PART_LENGTH * config.seq_len), 1), MOST_PARTS)
    edges = [max(stop * i // parts, 1) for i in range(parts + 1)]
    # those that have the model share them
    processes = 1 if run.is_sharded else run.accelerator.num_processes
    own = range(run.accelerator.process_index % processes, parts, processes)
    nats, tokens = 0.0, 0
    if model is not None:
        with run.autocast():
            scores = [score(model, corpus, start=edges[i], stop=edges[i + 1]) for i in own]
        nats, tokens = sum(scored.nats for scored in scores), sum(scored.tokens for scored in scores)
    nats, counted = agreed_sums(run.accelerator, [nats, tokens])
    return bits(nats / counted) / corpus.bytes_per_token


def save(run: Run, model: HierarchicalTransformer, folder: Path, validation: float | None) -> None:
    figures: dict[str, str | float] = {"steps": run.step, "tokens": run.tokens}
    if validation is not None:
        figures["validation bits per byte"] = round(validation, 4)
    card = make_model_card(
        run.model_config,
        title=run.config.out.name,
        parameters=run.num_parameters,
        data=run.split.description,
        figures=figures,
        tokenizer=None if isinstance(run.tokenizer, ObjectTokenizer) else run.tokenizer.name,
    )
    model.save_pretrained(folder, model_card=card)
    save_tokenizer(run.tokenizer, folder)
