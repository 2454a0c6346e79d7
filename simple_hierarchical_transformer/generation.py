"""What a model offers for writing text: `generate` and `stream`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .inputs import check_can_draft, check_state
from .naming import names_its_arguments
from .prompts import read_prompts
from .sampling import Sampling
from .speculation import SpeculativeRun
from .state import DecodingState
from .stepping import LEAST_BLOCKS, CompiledSteps, EagerSteps, GraphedSteps, PlainRun, Stepper, block_size, cycle_of
from .validation import flag, shown, whole
from .writing import Decoder, Request, Run

BACKENDS: dict[str, Callable[..., Stepper]] = {
    "eager": EagerSteps, "compile": CompiledSteps, "cuda_graphs": GraphedSteps,
}  # fmt: skip
# what transformers calls our arguments
ELSEWHERE = {
    "max_new_tokens": "seq_len", "max_length": "seq_len", "length": "seq_len", "input_ids": "prompt",
    "prompts": "prompt", "do_sample": "temperature", "filter_kwargs": "filter_thres", "eos_token": "eos_token_id",
    "stop_token": "eos_token_id", "past_key_values": "state", "cache": "state", "seed": "generator",
}  # fmt: skip
EXAMPLES = {"seq_len": 100}


class GenerationMixin:
    """Text from any `Decoder`."""

    @names_its_arguments("model.generate", elsewhere=ELSEWHERE, examples=EXAMPLES)
    def generate(
        self: Decoder,
        prompt: Tensor | Sequence[Tensor],
        seq_len: int,
        temperature: float = 1.0,
        filter_thres: float | None = None,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        prompt_lens: Tensor | Sequence[int] | None = None,
        state: DecodingState | None = None,
        prefill_chunk: int | None = None,
        speculative: bool = False,
        backend: str = "auto",
        ablate_hierarchical_merge: bool = False,
        return_logprobs: bool = False,
        return_state: bool = False,
        return_acceptance_length: bool = False,
    ) -> Any:
        """Continue each prompt by `seq_len` tokens; returns the new ones (b, n).

        Each row gets exactly what it would get alone, whatever the lengths of the prompts. Prompt and text may be
        longer than the model's own `seq_len`: a full window then reaches over the last so many input tokens.

        What a token is chosen by, in this order: `repetition_penalty`, `temperature`, then `filter_thres` or `top_k`,
        `top_p`, `min_p`, each acting on what the one before has left. Where none of the filters is given,
        `filter_thres` is 0.9.

        Args:
            prompt: token ids (b, t) of any integer type, or a list of rows (t,) of different lengths.
            seq_len: how many tokens to generate in each row.
            temperature: above 0; lower is closer to the most likely token, 0 always takes it.
            filter_thres: keep only the most likely `1 - filter_thres` of the vocabulary, at least one token.
            top_k: keep the `k` most likely tokens.
            top_p: keep the fewest of the likeliest tokens whose probability reaches `p` (arXiv 1904.09751).
            min_p: keep the tokens at least `min_p` times as likely as the likeliest (arXiv 2407.01082).
            repetition_penalty: above 1 makes tokens of prompt and text less likely (arXiv 1909.05858). What a given
                `state` has seen before doesn't count.
            eos_token_id: a row ends behind this token, or any of several; what follows is `ignore_index`, and once
                all rows have ended, generation does.
            generator: source of random numbers, on the model's device; the default one otherwise.
            prompt_lens: how many ids of each row of `prompt` count (b,); what is behind them is ignored.
            state: of `init_state`: prompts continue what it has seen, and it is advanced. In the end it has seen all
                but the last token of the text; after prompts of different lengths it is good for nothing.
            prefill_chunk: take prompts in by so many tokens at once, to bound memory; `seq_len` of the model
                otherwise.
            speculative: let coarse streams draft and one forward verify several tokens. The text is distributed as
                without, and greedy text is the same. For one prompt, and a model trained with a prophet loss.
            backend: how single tokens are computed: "eager"; "compile", by `torch.compile`, which compiles one step
                for each phase first; "cuda_graphs", several tokens per launch; "auto": graphs on CUDA for texts that
                are worth it, else eager.
            ablate_hierarchical_merge: leave the merges out.
            return_logprobs: also return the log-probability of each new token (b, n) in the model's own distribution,
                in nats, before temperature and filters; 0 behind the end of a row.
            return_state: also return the state.
            return_acceptance_length: also return how many tokens a verifying forward gave on average.

        Returns:
            Tokens (b, n), int64; n is `seq_len`, or less where all rows have ended before. With any of the `return_…`
            a tuple of them and what was asked for, in the order above.

        Raises:
            TypeError, ValueError: for an argument that isn't allowed, or that contradicts another; and where the
                model's logits aren't finite.
        """
        for name, value in (("return_logprobs", return_logprobs), ("return_state", return_state)):
            flag(name, value)
        if flag("return_acceptance_length", return_acceptance_length) and not speculative:
            raise ValueError("return_acceptance_length=True has no effect without speculative=True: set that, too")
        sampling = Sampling(
            temperature=temperature, filter_thres=filter_thres, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty,
        )  # fmt: skip
        run = start(
            self, prompt, seq_len, sampling, eos_token_id=eos_token_id, generator=generator, prompt_lens=prompt_lens,
            state=state, prefill_chunk=prefill_chunk, speculative=speculative, backend=backend,
            ablate=ablate_hierarchical_merge, logprobs=return_logprobs,
        )  # fmt: skip
        if return_state and run.request.prompts.is_ragged:
            raise ValueError(
                "return_state=True needs prompts of one length, since a state stands at one position for all rows: "
                "generate from each prompt alone, or leave return_state out"
            )
        with torch.no_grad():
            for _ in run:
                pass
            tokens, logprobs = run.result()
        extras: list[Any] = [logprobs] if return_logprobs else []
        extras += [run.state] if return_state else []
        extras += [run.acceptance_length] if isinstance(run, SpeculativeRun) and return_acceptance_length else []
        return (tokens, *extras) if extras else tokens

    @names_its_arguments("model.stream", elsewhere=ELSEWHERE, examples=EXAMPLES)
    def stream(
        self: Decoder,
        prompt: Tensor | Sequence[Tensor],
        seq_len: int,
        temperature: float = 1.0,
        filter_thres: float | None = None,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        prompt_lens: Tensor | Sequence[int] | None = None,
        state: DecodingState | None = None,
        prefill_chunk: int | None = None,
        speculative: bool = False,
        backend: str = "auto",
        ablate_hierarchical_merge: bool = False,
    ) -> Iterator[Tensor]:
        """The new tokens of `generate`, one (b,) after the other, as soon as all rows have theirs.

        `torch.stack(list(model.stream(…)), dim=1)` is what `generate` returns for the same arguments and the same
        state of the generator. Where several tokens are computed at once (CUDA graphs, speculation) they come at
        once, and a state that was given may be ahead of a text that is broken off. Memory is 8 bytes per row and token.

        Raises:
            TypeError, ValueError: as `generate`; for arguments at once, before the first token is asked for.
        """
        sampling = Sampling(
            temperature=temperature, filter_thres=filter_thres, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty,
        )  # fmt: skip
        run = start(
            self, prompt, seq_len, sampling, eos_token_id=eos_token_id, generator=generator, prompt_lens=prompt_lens,
            state=state, prefill_chunk=prefill_chunk, speculative=speculative, backend=backend,
            ablate=ablate_hierarchical_merge, logprobs=False,
        )  # fmt: skip
        return tokens_of(run)


@torch.no_grad()
def tokens_of(run: Run) -> Iterator[Tensor]:
    given = 0
    for available in run:
        for index in range(given, available):
            yield run.token(index)
        given = max(given, available)
    yield from run.result()[0][:, given:].unbind(dim=1)  # how many there are is known only at the end


def start(
    model: Decoder,
    prompt: Tensor | Sequence[Tensor],
    length: int,
    sampling: Sampling,
    *,
    eos_token_id: int | Sequence[int] | None,
    generator: torch.Generator | None,
    prompt_lens: Tensor | Sequence[int] | None,
    state: DecodingState | None,
    prefill_chunk: int | None,
    speculative: bool,
    backend: str,
    ablate: bool,
    logprobs: bool,
) -> PlainRun | SpeculativeRun:
    """Check what was asked for, and make ready to write."""
    config = model.config
    prompts = read_prompts(
        prompt, prompt_lens, num_tokens=config.num_tokens, ignore_index=config.ignore_index, device=model.device
    )
    check_generator(generator, model.device)
    request = Request(
        prompts=prompts,
        length=whole("seq_len (the number of tokens to generate)", length, least=0),
        sampling=sampling,
        ends=read_ends(eos_token_id, config.num_tokens),
        generator=generator,
        prefill_chunk=config.seq_len if prefill_chunk is None else whole("prefill_chunk", prefill_chunk, least=1),
        ablate=flag("ablate_hierarchical_merge", ablate),
        logprobs=logprobs,
    )
    if flag("speculative", speculative):
        check_can_draft(config)
        if len(prompts.lens) > 1:
            raise ValueError(
                f"speculative=True writes one text at a time, since rows would accept drafts of different lengths, got "
                f"{len(prompts.lens)} prompts: generate from each alone, or leave speculative out"
            )
    backend = choose_backend(backend, model, request, speculative, state)
    needed = rewind_needed(model, backend, speculative)
    if state is None:
        state = model.init_state(len(prompts.lens), max_rewind=max(needed, 1), drafts=speculative)
    else:
        check_state(state, config, prompts.ids, model.dtype, model.device, ablate)
        if state.max_rewind < needed or (speculative and not state.spec.drafts):
            wanted = f"max_rewind={needed}{', drafts=True' * speculative}"
            has = f"max_rewind={state.max_rewind}, drafts={state.spec.drafts}"
            raise ValueError(
                f"state has {has}, but {'speculative=True' if speculative else f'backend={backend!r}'} needs {wanted}: "
                f"make it with init_state({len(prompts.lens)}, {wanted})"
            )
    if speculative:
        return SpeculativeRun(model, request, state)
    return PlainRun(model, request, state, BACKENDS[backend])


def choose_backend(
    backend: str, model: Decoder, request: Request, speculative: bool, state: DecodingState | None
) -> str:
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, got {shown(backend)}: choose one of them")
    if speculative and backend not in ("auto", "eager"):
        raise ValueError(
            f"backend={backend!r} computes single tokens, but speculative=True verifies several at once: choose one, "
            "and leave the other out"
        )
    on_cuda = model.device.type == "cuda"
    if backend == "cuda_graphs" and not on_cuda:
        raise ValueError(
            f"backend='cuda_graphs' needs a CUDA device, but the model is on {model.device}: use model.cuda()"
        )
    if backend != "auto":
        return backend
    is_worth_it = request.columns >= LEAST_BLOCKS * block_size(model)
    can_serve = state is None or state.max_rewind >= block_size(model)
    return "cuda_graphs" if on_cuda and is_worth_it and can_serve and not speculative else "eager"


def rewind_needed(model: Decoder, backend: str, speculative: bool) -> int:
    """How many tokens the state must be able to take back."""
    if speculative:
        return cycle_of(model)  # the longest draft and the token before it, which are then written in place
    if backend == "cuda_graphs":
        return block_size(model)  # what a block has written behind the end of a text
    return 1 if backend == "compile" else 0  # a token is then written in place


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {shown(generator)}: use torch.Generator()")
    if generator.device.type != device.type or generator.device.index not in (None, device.index):
        raise ValueError(
            f"generator is on {generator.device}, but the model is on {device}: use torch.Generator(model.device)"
        )


def read_ends(eos_token_id: int | Sequence[int] | None, num_tokens: int) -> tuple[int, ...]:
    if eos_token_id is None:
        return ()
    ids = eos_token_id if isinstance(eos_token_id, (tuple, list)) else (eos_token_id,)
    if not all(isinstance(token, Integral) for token in ids):
        raise TypeError(
            f"eos_token_id must be a token id, or a tuple or list of several, got {shown(eos_token_id)}: give ids from "
            f"0 to {num_tokens - 1}"
        )
    return tuple(whole("eos_token_id", token, least=0, most=num_tokens - 1) for token in ids)
