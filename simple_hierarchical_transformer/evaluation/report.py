"""What is told about a model on a text: the whole, by phase, and without the contribution of each stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor

from ..config import ModelConfig
from ..model import HierarchicalTransformer
from ..validation import flag, whole
from .bits_per_byte import Score, Text, as_text, score, spread


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
        score: of the model as it is
        ablated: scores without what some streams contribute to the merges, by the name of what is left out: a stream,
            as `stream 8`, or `all merges`; empty for a model of one stream
        bytes_per_token: of the text, or None where that isn't known
    """

    score: Score
    ablated: Mapping[str, Score]
    bytes_per_token: float | None

    @property
    def bits_per_token(self) -> float:
        return self.score.bits_per_token

    @property
    def bits_per_byte(self) -> float | None:
        return None if self.bytes_per_token is None else self.score.bits_per_byte(self.bytes_per_token)

    def as_dict(self) -> dict[str, Any]:
        """All figures under plain names, as JSON can hold them: None where there is nothing to take a mean of."""
        return {
            "tokens": self.score.tokens,
            "bytes_per_token": self.bytes_per_token,
            **self._figures(self.score),
            "by_phase": [
                {"phase": phase, "tokens": tokens, **self._figures(part)}
                for phase, (tokens, part) in enumerate(zip(self.score.tokens_by_phase, phases(self.score), strict=True))
            ],
            "ablated": {name: self._figures(part) for name, part in self.ablated.items()},
        }

    def _figures(self, part: Score) -> dict[str, float | None]:
        per_token = part.bits_per_token if part.tokens else None
        per_byte = None if per_token is None or self.bytes_per_token is None else per_token / self.bytes_per_token
        return {"bits_per_token": per_token, "bits_per_byte": per_byte}

    def table(self) -> str:
        """The same as lines of text, for a terminal: differences are those to the model as it is."""
        unit, scale = ("token", 1.0) if self.bytes_per_token is None else ("byte", self.bytes_per_token)
        whole_text = self.bits_per_token / scale

        def line(name: str, part: Score) -> str:
            value = part.bits_per_token / scale
            return f"{name:<24}{value:>12.4f}{value - whole_text:>+12.4f}{part.tokens:>14,}"

        lines = [f"{'':<24}{'bits/' + unit:>12}{'difference':>12}{'tokens':>14}", line("whole text", self.score)]
        if len(self.score.tokens_by_phase) > 1:
            lines += [line(f"position {phase}", part) for phase, part in enumerate(phases(self.score))]
        lines += [line(f"without {name}", part) for name, part in self.ablated.items()]
        if scale != 1 and self.bytes_per_token is not None:
            lines.append(f"{self.bits_per_token:.4f} bits per token, of {scale:.3f} bytes")
        return "\n".join(lines)


def phases(score: Score) -> Iterator[Score]:
    """The parts of a score, by phase."""
    for nats, tokens in zip(score.nats_by_phase, score.tokens_by_phase, strict=True):
        yield Score((nats,), (tokens,))


def ablations(config: ModelConfig) -> dict[str, bool | int]:
    """What `ablate_hierarchical_merge` can leave out of a model, by the names under which it is told."""
    if len(config.streams) == 1:
        return {}
    others = [s.compress_factor for s in config.streams if s is not config.predict_stream]
    return {**{f"stream {factor}": factor for factor in others}, "all merges": True}


def evaluate(
    model: HierarchicalTransformer,
    corpus: Text | Tensor,
    *,
    batch_size: int = 16,
    limit: int | None = None,
    ablate: bool = True,
) -> Evaluation:
    """Score a text: as a whole, by the position of the predicting token modulo the largest stride, and ablated.

    Coarse streams with a stride s emit a token every s input tokens, so what they know is the older the further a
    position is from the last multiple of s; the figures by position show what that costs. Each ablation is a pass of
    its own: one for each stream but the predict stream, and one without all merges.

    Args:
        corpus: a text, as of training, or ids (n,); those of type uint8 count as bytes, others have no bits per byte.
        batch_size: rows that run side by side.
        limit: score so many tokens at most, in parts that are spread over the text; all by default.
        ablate: whether to score with merges ablated, too.

    Raises:
        TypeError, ValueError: for a text that holds nothing to score or ids that the model doesn't know, and arguments
            out of range.
    """
    text = as_text(corpus)
    ranges = spread(len(text), None if limit is None else whole("limit", limit, least=1), model.seq_len)

    def score_all(ablate: bool | int) -> Score:
        scores = [score(model, text, start=a, stop=b, batch_size=batch_size, ablate=ablate) for a, b in ranges]
        if not scores:
            raise ValueError(f"the text has {len(text)} tokens, and the first isn't scored: give at least two")
        return reduce(add, scores)

    names = ablations(model.config) if flag("ablate", ablate) else {}
    ablated = {name: score_all(what) for name, what in names.items()}
    return Evaluation(score_all(False), ablated, text.bytes_per_token)
