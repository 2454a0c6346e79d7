"""What a decoding state is made of.

A module that looks back keeps the last rows of what it has seen in a `Tail`, which it declares beside itself; the
model's state mirrors the tree of modules and holds one fine position. Tensors of a state are never written to, only
replaced: so `clone` copies no tensor, and a chunk that was taken back leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .validation import whole


@dataclass
class Tail:
    """The last rows of one stream of rows, with the rows along the second to last dimension.

    For example, a compressor of factor 4 has `stride=1, keep=3`; after five input tokens it holds the embeddings of
    the tokens 2, 3 and 4, and `count` is 5. With `spare=2` it holds those of 0 … 4, and two may be taken back.

    Args:
        stride: input tokens per row: row `j` stands at fine position `stride * j`.
        keep: how many rows the module looks back on.
        spare: how many rows more are held, so that `rewind` can take rows back.
    """

    stride: int
    keep: int
    spare: int
    count: int = 0  # rows seen so far, so the index of the next one
    rows: Tensor | None = None  # (..., at most keep + spare, d)

    def extend(self, new: Tensor) -> Tensor:
        """Take in `new` rows (..., m, d); return them behind the rows, at most `keep`, that came before."""
        held = new if self.rows is None else torch.cat((self.rows, new), dim=-2)
        length = held.shape[-2]
        seen = held[..., max(length - new.shape[-2] - self.keep, 0) :, :]
        excess = max(length - self.keep - self.spare, 0)
        rows = held[..., excess:, :].detach()
        # a view would keep the whole chunk alive, and what it was cut from
        self.rows = rows.clone() if excess or self.rows is None else rows
        self.count += new.shape[-2]
        return seen

    def rewind(self, position: int) -> None:
        """Go back to where `position` input tokens had been seen."""
        count = -(-position // self.stride)
        drop = self.count - count
        if drop and self.rows is not None:
            self.rows = self.rows[..., : self.rows.shape[-2] - drop, :]
        self.count = count

    @property
    def nbytes(self) -> int:
        return 0 if self.rows is None else self.rows.numel() * self.rows.element_size()


def extend_padded(state: Tail | None, new: Tensor, back: int) -> Tensor:
    """`new` rows (..., m, d) behind exactly `back` rows: those of the state, and zeros before the start."""
    seen = new if state is None else state.extend(new)
    missing = back + new.shape[-2] - seen.shape[-2]
    return F.pad(seen, (0, 0, missing, 0))


def _tails(node: Any) -> Iterator[Tail]:
    if isinstance(node, Tail):
        yield node
    elif isinstance(node, (tuple, list)):
        for child in node:
            yield from _tails(child)
    elif isinstance(node, StateNode):
        for entry in fields(node):
            yield from _tails(getattr(node, entry.name))


def _clone(node: Any) -> Any:
    if isinstance(node, Tail):
        return Tail(node.stride, node.keep, node.spare, node.count, node.rows)
    if isinstance(node, (tuple, list)):
        return tuple(_clone(child) for child in node)
    if isinstance(node, StateNode):
        return type(node)(**{entry.name: _clone(getattr(node, entry.name)) for entry in fields(node)})
    return node


@dataclass
class StateNode:
    """A part of the decoding state that mirrors one module."""


@dataclass
class DecodingState(StateNode):
    """All that a model remembers of the input tokens it has seen; made by `model.init_state(batch_size)`.

    `model(chunk, state=state)` advances it. No gradient flows through a state.
    """

    batch_size: int
    dtype: torch.dtype
    device: torch.device
    max_rewind: int
    model_key: object  # what the state was made for: states of other models are refused
    parts: StateNode
    position: int = 0  # fine position: input tokens seen so far
    rewindable: int = 0  # how many tokens can be taken back now
    ablated: bool = False  # whether the merges were left out

    def advance(self, length: int, parts: StateNode, ablated: bool) -> None:
        """Take over what the modules remember after `length` tokens more."""
        self.parts, self.ablated = parts, ablated
        self.position += length
        self.rewindable = min(self.rewindable + length, self.max_rewind)

    def clone(self) -> DecodingState:
        """An independent state at the same position: advancing or rewinding one leaves the other as it is."""
        copy = _clone(self)
        assert isinstance(copy, DecodingState)
        return copy

    def __deepcopy__(self, memo: object) -> DecodingState:
        return self.clone()

    def rewind(self, num_tokens: int) -> None:
        """Take the last `num_tokens` input tokens back, as if they had never been seen.

        Raises:
            TypeError: if `num_tokens` is no whole number.
            ValueError: if it is negative, or more than the state can take back: at most `max_rewind` of
                `model.init_state`, and at most what was seen.
        """
        num_tokens = whole("num_tokens", num_tokens, least=0)
        if num_tokens > self.position:
            raise ValueError(
                f"num_tokens must be at most {self.position}, the tokens seen so far, got {num_tokens}: take fewer back"
            )
        if num_tokens > self.rewindable:
            raise ValueError(
                f"num_tokens must be at most {self.rewindable} now (max_rewind is {self.max_rewind}), got "
                f"{num_tokens}: make the state with init_state(…, max_rewind={num_tokens}), or clone it before the "
                "tokens that may be refused"
            )
        self.position -= num_tokens
        self.rewindable -= num_tokens
        for tail in _tails(self.parts):
            tail.rewind(self.position)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows held now."""
        return sum(tail.nbytes for tail in _tails(self.parts))
