"""Text that goes on until one of some words comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..model import HierarchicalTransformer
from ..text.tokenizer import TextTokenizer
from ..validation import shown, whole
from .bits_per_byte import evaluating

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
FILTERS = ("top_k", "top_p", "min_p")
MOST_APART = 32  # tokens by which prompts that are continued side by side may differ in length


@dataclass(frozen=True)
class Until:
    """How texts are continued.

    Attributes:
        stops: where one of these comes, the text ends before it
        length: tokens at most
        sampling: arguments of `model.stream`
    """

    stops: tuple[bytes, ...]
    length: int
    sampling: Mapping[str, Any]

    @staticmethod
    def of(arguments: Mapping[str, Any], length: int) -> Until:
        """From the arguments that tasks of lm-eval give, and how many tokens are written where they don't say it.

        Without `do_sample` and a temperature above 0 the likeliest token is always taken.

        Raises:
            TypeError, ValueError: for an argument that isn't known, or a value that isn't allowed.
        """
        known = {"until", "do_sample", "temperature", "repetition_penalty", *LENGTHS, *FILTERS}
        if unknown := sorted(set(arguments) - known):
            raise ValueError(
                f"generation_kwargs holds {', '.join(unknown)}, which isn't offered: leave it out; there are "
                f"{', '.join(sorted(known))}"
            )
        until = arguments.get("until") or []
        stops = [until] if isinstance(until, str) else until
        if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) for stop in stops):
            raise TypeError(f"until must be a text or a list of texts, got {shown(until)}: put each in quotes")
        length = next((arguments[name] for name in LENGTHS if arguments.get(name) is not None), length)
        temperature = arguments.get("temperature")
        samples = arguments.get("do_sample")
        if samples is None:
            samples = bool(temperature)
        sampling: dict[str, Any] = {"temperature": (1.0 if temperature is None else temperature) if samples else 0.0}
        if samples:
            filters = {name: arguments[name] for name in FILTERS if arguments.get(name)}
            sampling |= filters or {"filter_thres": 0.0}  # a share that is dropped, unlike `top_p`
        if arguments.get("repetition_penalty") is not None:
            sampling["repetition_penalty"] = arguments["repetition_penalty"]
        return Until(tuple(stop.encode() for stop in stops if stop), whole("max_gen_toks", length, least=1), sampling)


def write_until(
    model: HierarchicalTransformer,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    until: Until,
    *,
    end: int | None = None,
    batch_size: int = 16,
) -> list[bytes]:
    """The continuation of each prompt, in their order, without the stop that ends it.

    Args:
        prompts: ids, at least one each.
        end: an id that ends a text, too.
    """
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    texts = [b""] * len(prompts)
    with evaluating(model):
        while order:
            shortest = len(prompts[order[0]])
            numbers = [number for number in order[:batch_size] if len(prompts[number]) <= shortest + MOST_APART]
            order = order[len(numbers) :]
            written = write_side_by_side(model, tokenizer, [prompts[number] for number in numbers], until, end)
            for number, text in zip(numbers, written, strict=True):
                texts[number] = text
    return texts


class Text:
    """One row's text."""

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[bytes]) -> None:
        self.stream = tokenizer.stream()
        self.stops = stops
        self.text = b""
        self.has_ended = False

    def add(self, token: int, end: int | None) -> None:
        if token == end:
            self.has_ended = True
        else:
            self._extend(self.stream.feed([token]))

    def finish(self) -> bytes:
        self._extend(self.stream.finish())
        ends = [self.text.find(stop) for stop in self.stops]
        return self.text[: min((at for at in ends if at >= 0), default=None)]

    def _extend(self, new: bytes) -> None:
        # a stop may have begun before what is new
        back = max(map(len, self.stops), default=1) - 1
        tail = self.text[len(self.text) - min(back, len(self.text)) :] + new
        self.text += new
        self.has_ended |= any(stop in tail for stop in self.stops)


def write_side_by_side(
    model: HierarchicalTransformer,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    until: Until,
    end: int | None,
) -> list[bytes]:
    texts = [Text(tokenizer, until.stops) for _ in prompts]
    rows = [torch.tensor(prompt, device=model.device) for prompt in prompts]
    for column in model.stream(rows, until.length, eos_token_id=end, **until.sampling):
        for text, token in zip(texts, column.tolist(), strict=True):
            if not text.has_ended:
                text.add(token, end)
        if all(text.has_ended for text in texts):
            break
    return [text.finish() for text in texts]
