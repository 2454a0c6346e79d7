"""What the page asks for, checked, and the text as it is written: token by token, with the bits that each took."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..evaluation.bits_per_byte import chunk_length, cross_entropies, evaluating
from ..model import HierarchicalTransformer
from ..sampling import Sampling
from ..text.printing import TextStream
from ..text.tokenizer import TextTokenizer
from ..validation import number, shown, whole

LONGEST_PROMPT = 20_000  # characters
LONGEST_TEXT = 4_000  # tokens that are written
FIELDS = ("prompt", "length", "temperature", "top_p", "seed", "without")


@dataclass(frozen=True)
class Wish:
    """What is to be written."""

    prompt: str
    length: int
    sampling: Sampling
    seed: int
    without: frozenset[int]  # compress factors of the streams whose merges are left out

    @staticmethod
    def of(given: Any, model: HierarchicalTransformer) -> Wish:
        """From what came as JSON.

        Raises:
            TypeError, ValueError: for a field that is missing, unknown or out of range
        """
        if not isinstance(given, Mapping):
            raise TypeError(f"the request must be an object with {', '.join(FIELDS)}, got {shown(given)}: send one")
        if unknown := sorted(set(given) - set(FIELDS)):
            raise ValueError(
                f"{unknown[0]!r} is no field of a request: leave it out, or use one of {', '.join(FIELDS)}"
            )
        prompt = given.get("prompt")
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be text, got {shown(prompt)}: write something to continue")
        if not prompt:
            raise ValueError("prompt is empty, but the model continues a text: write at least one character")
        if len(prompt) > LONGEST_PROMPT:
            raise ValueError(f"prompt must have at most {LONGEST_PROMPT:,} characters, got {len(prompt):,}: shorten it")
        factors = {s.compress_factor for s in model.config.streams if s is not model.config.predict_stream}
        without = given.get("without", [])
        if not isinstance(without, list) or not all(isinstance(f, int) and f in factors for f in without):
            raise ValueError(
                f"without must be a list of compress factors from {sorted(factors)}, got {shown(without)}: name "
                "streams that this model merges"
            )
        top_p = number("top_p", given.get("top_p", 1.0), positive=True)
        return Wish(
            prompt=prompt,
            length=whole("length", given.get("length", 300), least=1, most=LONGEST_TEXT),
            sampling=Sampling(temperature=number("temperature", given.get("temperature", 1.0)), top_p=top_p),
            seed=whole("seed", given.get("seed", 0), least=0),
            without=frozenset(without),
        )


def written(model: HierarchicalTransformer, tokenizer: TextTokenizer, wish: Wish) -> Iterator[dict[str, Any]]:
    """The prompt and then what is written, in pieces of whole characters with their bits, tokens, and whose they are.

    Bits are those that the model needs for a piece, in its own distribution, before temperature and filters; null for
    the first token, which nothing predicts.

    Raises:
        ValueError: the prompt has no token
    """
    ids = tokenizer.encode(wish.prompt.encode("utf-8", "replace"))
    if not ids:
        raise ValueError(f"prompt {shown(wish.prompt)} has no token: write something else")
    generator = torch.Generator(model.device).manual_seed(wish.seed)
    pieces = Pieces(tokenizer)
    merge_without = wish.without or False
    state = model.init_state(1)
    prompt = torch.tensor([ids], device=model.device)
    bits: list[float | None] = [None]
    logits = torch.empty(0)
    for chunk in torch.split(prompt, chunk_length(1, model.num_tokens), dim=1):
        with evaluating(model):
            if logits.numel():
                bits += bits_of(logits[:, -1:], chunk[:, :1])
            logits = model(chunk, state=state, ablate_hierarchical_merge=merge_without)
            bits += bits_of(logits[:, :-1], chunk[:, 1:])
    for token, value in zip(ids, bits, strict=True):
        yield from pieces.feed(token, value, prompt=True)
    for left in reversed(range(wish.length)):
        with evaluating(model):
            chosen = wish.sampling.choose(logits[:, -1], generator)[:, None]
            (value,) = bits_of(logits[:, -1:], chosen)
            if left:
                logits = model(chosen, state=state, ablate_hierarchical_merge=merge_without)
        yield from pieces.feed(int(chosen), value, prompt=False)
    yield from pieces.finish()


def bits_of(logits: Tensor, ids: Tensor) -> list[float | None]:
    """Of each of ids (1, n) under logits (1, n, v)."""
    return [nats / math.log(2) for nats in cross_entropies(logits, ids)[0].tolist()]


class Pieces:
    """Tokens that come one after the other, as pieces of whole characters with the bits of all their tokens."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.stream, self.shown = tokenizer.stream(), TextStream()
        self.bits: float | None = None
        self.tokens = 0
        self.prompt = True

    def feed(self, token: int, bits: float | None, *, prompt: bool) -> Iterator[dict[str, Any]]:
        if bits is not None:
            self.bits = (self.bits or 0.0) + bits
        self.tokens += 1
        self.prompt = prompt
        yield from self._shown(self.shown.feed(self.stream.feed([token])))

    def finish(self) -> Iterator[dict[str, Any]]:
        yield from self._shown(self.shown.feed(self.stream.finish()) + self.shown.finish())

    def _shown(self, text: str) -> Iterator[dict[str, Any]]:
        if text:
            bits = None if self.bits is None else round(self.bits, 3)
            yield {"text": text, "bits": bits, "tokens": self.tokens, "prompt": self.prompt}
            self.bits, self.tokens = None, 0
