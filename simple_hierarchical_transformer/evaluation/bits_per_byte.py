"""How well a model predicts a text: each token once, after at least as much of the text as a plain call would show.

The text is cut into segments that run side by side, each through its rows of one decoding state. Before a row scores
its segment, it reads the tokens in front of it; at the start of the text, where there are too few of them, a row of
its own reads on from the first token. For a text of 40 tokens, 8 of context and 2 rows:

    first    scores 0 … 7
    row 0    reads 0 … 7, scores 8 … 23
    row 1    reads 16 … 23, scores 24 … 38         the last token has nothing to predict

Positions are those of the token that predicts. All rows begin at multiples of the largest stride, so that a position
has the same phase in the model as in the text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..inputs import INTEGER_TYPES
from ..model import HierarchicalTransformer
from ..validation import shown, whole

CHUNK = 512  # tokens of a row that are read at once: as fast as longer ones, in less memory
MOST_LOGITS = 1 << 25  # that are held at once
LONG_PART, SHORT_PART = 64, 4  # sequences: with room for many rows side by side, and worth reading one before it
MOST_PARTS = 64
WORTH_A_ROW = 4  # contexts that a row must score, to be worth reading one


class Text(Protocol):
    """What is scored: token ids, of which windows (len(starts), length) can be read."""

    @property
    def bytes_per_token(self) -> float | None:
        """None where it isn't known."""
        ...

    def __len__(self) -> int: ...

    def windows(self, starts: Sequence[int], length: int) -> Tensor: ...


@dataclass(frozen=True)
class Score:
    """The cross-entropy of some tokens of a text; scores of different tokens can be added.

    Attributes:
        nats_by_phase: their sum, of the tokens that were predicted from each fine position modulo the largest stride
        tokens_by_phase: how many tokens that were
    """

    nats_by_phase: tuple[float, ...]
    tokens_by_phase: tuple[int, ...]

    @property
    def nats(self) -> float:
        """The cross-entropy of all tokens together."""
        return math.fsum(self.nats_by_phase)

    @property
    def tokens(self) -> int:
        return sum(self.tokens_by_phase)

    @property
    def bits_per_token(self) -> float:
        """Mean over the tokens; nan where there is none."""
        return mean_bits(self.nats, self.tokens)

    def bits_per_byte(self, bytes_per_token: float) -> float:
        return self.bits_per_token / bytes_per_token

    def __add__(self, other: Score) -> Score:
        if not isinstance(other, Score):
            return NotImplemented
        if len(self.nats_by_phase) != len(other.nats_by_phase):
            raise ValueError(
                f"scores of {len(self.nats_by_phase)} and {len(other.nats_by_phase)} phases can't be added: they are "
                "of different models"
            )
        return Score(
            tuple(a + b for a, b in zip(self.nats_by_phase, other.nats_by_phase, strict=True)),
            tuple(a + b for a, b in zip(self.tokens_by_phase, other.tokens_by_phase, strict=True)),
        )


def mean_bits(nats: float, tokens: int) -> float:
    return nats / tokens / math.log(2) if tokens else math.nan


class Segment(NamedTuple):
    """What one row does: read from position `begin` on, score what the positions `first … stop - 1` predict."""

    begin: int
    first: int
    stop: int


def score(
    model: HierarchicalTransformer,
    corpus: Text | Tensor,
    *,
    start: int = 0,
    stop: int | None = None,
    batch_size: int = 16,
    ablate: bool | int | Collection[int] = False,
) -> Score:
    """The cross-entropy of the tokens `start … stop - 1` of a text, each counted once.

    Every token is predicted after the `seq_len` tokens before it, or all that there are, and often after more: by the
    rules of a decoding state, under which a full window reaches over `seq_len` tokens in each layer. The first token
    of the text has nothing before it and isn't scored, and neither are ids that are `ignore_index`.

    Args:
        corpus: a text with `len(corpus)` and `corpus.windows(starts, length)`, or ids (n,) of an integer type.
        start: the first token that is scored; those before it are read, too.
        stop: one past the last; the end of the text by default.
        batch_size: rows that run side by side at most; a short text is cut into fewer.
        ablate: as `ablate_hierarchical_merge` of the model.

    Raises:
        TypeError, ValueError: for a range that isn't in the text or holds nothing to score, and for ids that the model
            doesn't know.
    """
    text = as_text(corpus)
    stop = len(text) if stop is None else whole("stop", stop, least=0)
    if whole("start", start, least=0) >= stop or stop > len(text) or stop < 2:
        raise ValueError(
            f"start={start} and stop={stop} must span tokens of the text, which has {len(text)} and whose first isn't "
            "scored: give a range within 0 to that, and at least two tokens of text"
        )
    stride = max(stream.stride for stream in model.config.streams)
    nats = torch.zeros(stride, dtype=torch.float64)
    tokens = torch.zeros(stride, dtype=torch.long)
    rows = whole("batch_size", batch_size, least=1)
    with evaluating(model):
        for segments in cut(max(start - 1, 0), stop - 1, model.seq_len, stride, rows):
            for positions, losses, counts in read(model, text, segments, ablate):
                phases = positions % stride
                nats.index_add_(0, phases, losses)
                tokens.index_add_(0, phases, counts)
    return Score(tuple(nats.tolist()), tuple(tokens.tolist()))


def cut(first: int, stop: int, seq_len: int, stride: int, rows: int) -> Iterator[list[Segment]]:
    """Groups of segments that run side by side and together score the positions `first … stop - 1`."""

    def rounded(count: int) -> int:
        return -(-count // stride) * stride

    context = rounded(seq_len - 1)  # before a position that sees seq_len tokens, with its own
    begin = first // stride * stride
    if begin < context:
        yield [Segment(0, first, min(context, stop))]
        first = begin = context
    if begin < stop:
        rows = max(min(rows, (stop - begin) // max(WORTH_A_ROW * context, 1)), 1)
        length = rounded(-(-(stop - begin) // rows))
        yield [Segment(own - context, max(own, first), min(own + length, stop)) for own in range(begin, stop, length)]


def read(
    model: HierarchicalTransformer, text: Text, segments: Sequence[Segment], ablate: bool | int | Collection[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each column of rows side by side: its position in the first row, and the nats and number of scored tokens."""
    state = model.init_state(len(segments), max_rewind=0)
    begin = torch.tensor([segment.begin for segment in segments])[:, None]
    first = torch.tensor([segment.first for segment in segments])[:, None]
    stop = torch.tensor([segment.stop for segment in segments])[:, None]
    length = max(segment.stop - segment.begin for segment in segments)
    unscored = min(segment.first - segment.begin for segment in segments)
    size = chunk_length(len(segments), model.num_tokens)
    edges = sorted({*range(0, unscored, CHUNK), *range(unscored, length, size), length})
    for low, high in pairwise(edges):
        ids = windows(text, [segment.begin + low for segment in segments], high - low + 1)
        check_known(ids, model)
        inputs, targets = ids[:, :-1].to(model.device), ids[:, 1:]
        if high <= unscored:
            model(inputs, state=state, ablate_hierarchical_merge=ablate, logits_to_keep=1)
            continue
        logits = model(inputs, state=state, ablate_hierarchical_merge=ablate)
        losses = cross_entropies(logits, targets.to(model.device)).cpu().double()
        positions = begin + torch.arange(low, high)
        scored = (positions >= first) & (positions < stop) & (targets != model.config.ignore_index)
        yield positions[0], losses.where(scored, 0).sum(dim=0), scored.sum(dim=0)


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy (b, n), in nats, of each target (b, n) under logits (b, n, v); of others than ids, anything."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    index = targets.clamp(0, logits.shape[-1] - 1)[..., None]
    return precise.logsumexp(dim=-1) - precise.gather(-1, index)[..., 0]


def chunk_length(rows: int, num_tokens: int) -> int:
    """How many tokens of each row are read at once, where the logits of all are asked for."""
    return min(max(MOST_LOGITS // (rows * num_tokens), 1), CHUNK)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients, and with all modules as in inference; afterwards each is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


class Ids:
    """Ids (n,) as a text: of bytes, if they are of uint8."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self.bytes_per_token = 1.0 if ids.dtype == torch.uint8 else None

    def __len__(self) -> int:
        return len(self.ids)

    def windows(self, starts: Sequence[int], length: int) -> Tensor:
        return torch.stack([self.ids[start : start + length] for start in starts])


def as_text(corpus: Text | Tensor) -> Text:
    if not isinstance(corpus, Tensor):
        if not hasattr(corpus, "windows"):
            raise TypeError(
                f"corpus must be a text of training, or a tensor of ids, got {shown(corpus)}: for bytes, use "
                "torch.frombuffer(bytearray(text), dtype=torch.uint8)"
            )
        return corpus
    if corpus.ndim != 1 or corpus.dtype not in INTEGER_TYPES:
        raise ValueError(
            f"corpus, as a tensor, must be ids of shape (length,) and of an integer type, got {tuple(corpus.shape)} of "
            f"{corpus.dtype}: use ids.flatten().long()"
        )
    return Ids(corpus)


def windows(text: Text, starts: Sequence[int], length: int) -> Tensor:
    """Windows (b, length) of int64, on the CPU; what would lie behind the end of the text is some ids of it."""
    shifted = [min(start, len(text) - length) for start in starts]
    ids = text.windows(shifted, length).long().cpu()
    for row, (start, own) in enumerate(zip(starts, shifted, strict=True)):
        if own < start:
            ids[row] = ids[row].roll(own - start)
    return ids


def check_known(ids: Tensor, model: HierarchicalTransformer) -> None:
    unknown = ((ids < 0) | (ids >= model.num_tokens)) & (ids != model.config.ignore_index)
    if unknown.any():
        raise ValueError(
            f"corpus holds the id {int(ids[unknown][0])}, but the model knows ids from 0 to {model.num_tokens - 1}: "
            "tokenise it with the model's vocabulary"
        )


def spread(length: int, limit: int | None, seq_len: int) -> list[tuple[int, int]]:
    """The ranges of a text that are scored: all of it in parts, or `limit` tokens in parts that are spread evenly.

    They depend on these numbers alone, so that any number of processes gives the same figure.
    """
    count = length if limit is None else min(limit, length)
    shortest = LONG_PART * seq_len if count == length else SHORT_PART * seq_len
    parts = min(max(count // shortest, 1), MOST_PARTS)
    sizes = [count * (i + 1) // parts - count * i // parts for i in range(parts)]
    gaps = [(length - count) * (i + 1) // (parts + 1) for i in range(parts)]
    starts = [gap + sum(sizes[:i]) for i, gap in enumerate(gaps)]
    # the first token of a text has nothing before it
    ranges = [(max(start, 1), start + size) for start, size in zip(starts, sizes, strict=True)]
    return [(start, stop) for start, stop in ranges if start < stop]
