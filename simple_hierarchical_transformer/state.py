"""What a decoding state is made of.

A module that looks back keeps what it needs in a leaf, which it declares beside itself; the model's state mirrors the
tree of modules and holds one fine position. All tensors are allocated when the state is made and keep their size and
place: with finite windows a text can go on for ever.

A call first computes, and its leaves note what is to be remembered; only when it has succeeded is that taken over, so
that a call that fails leaves the state where it was, and only less of it may be taken back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .validation import whole


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """What the leaves of one state have in common."""

    batch_size: int
    max_rewind: int  # input tokens that `rewind` can take back
    dtype: torch.dtype
    device: torch.device
    drafts: bool = False  # whether what speculative decoding drafts from is held, too

    def spare(self, stride: int) -> int:
        """How many tokens of a stream are due at most in `max_rewind` input tokens."""
        return -(-self.max_rewind // stride)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Memory that isn't even touched before it is used, of the model's type unless another is given."""
        with torch.inference_mode(False):  # what is made in it can't be changed outside of it
            return torch.empty(self.batch_size, *shape, dtype=dtype or self.dtype, device=self.device)


class Leaf:
    """What one module remembers."""

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by the name of its attribute."""
        raise NotImplementedError

    def noted(self) -> list[tuple[Tensor, Tensor]]:
        """What the last call wants remembered: where it belongs, and what is to be copied there."""
        raise NotImplementedError

    def forget_noted(self) -> None:
        raise NotImplementedError

    def rewound(self, before: int, after: int) -> list[tuple[Tensor, Tensor]]:
        """What is to be copied where, to go from `before` input tokens back to `after`."""
        raise NotImplementedError

    def blank_unseen(self, position: int) -> None:
        """Zero what has never been written, at `position`, for those who look at it and count it as nothing."""

    def clone(self) -> Leaf:
        twin = copy.copy(self)
        with torch.inference_mode(False):
            for name, tensor in self.tensors().items():
                setattr(twin, name, tensor.clone())
        twin.forget_noted()
        return twin


class Register(Leaf):
    """The last rows of one stream of rows, in order, with zeros before the start of the text.

    For example, a compressor of factor 4 keeps 3 rows of stride 1. After two input tokens, a and b, it holds 0 a b;
    the next chunk, c d, is seen as 0 a b c d, and what stays is b c d.

    Args:
        stride: input tokens per row: row `j` stands at fine position `stride * j`.
        keep: how many rows the module looks back on. `max_rewind` more are held before them, so that rows can be
            taken back.
        dim: width of a row.
        dtype: of its numbers; the model's, unless another is given.
    """

    def __init__(self, spec: StateSpec, *, stride: int, keep: int, dim: int, dtype: torch.dtype | None = None) -> None:
        self.stride = stride
        self.keep = keep
        self.rows = spec.empty(spec.spare(stride) + keep, dim, dtype=dtype).zero_()
        self.pending: Tensor | None = None

    def extend(self, new: Tensor) -> Tensor:
        """Note `new` rows (b, m, dim); return them behind the `keep` rows that came before."""
        size = self.rows.shape[1]
        held = torch.cat((self.rows.to(new.dtype), new), dim=1)
        self.pending = held[:, held.shape[1] - size :].detach()
        return held[:, size - self.keep :]

    @property
    def held(self) -> Tensor:
        """The last `keep` rows (b, keep, dim)."""
        return self.rows[:, self.rows.shape[1] - self.keep :]

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": self.rows}

    def noted(self) -> list[tuple[Tensor, Tensor]]:
        return [] if self.pending is None else [(self.rows, self.pending)]

    def forget_noted(self) -> None:
        self.pending = None

    def rewound(self, before: int, after: int) -> list[tuple[Tensor, Tensor]]:
        drop = -(-before // self.stride) - -(-after // self.stride)
        return [(self.rows, self.rows.roll(drop, dims=1))] if drop else []


def extend_padded(state: Register | None, new: Tensor, back: int) -> Tensor:
    """`new` rows (b, m, d) behind exactly `back` rows: those of the state, or zeros before the start."""
    if state is not None:
        return state.extend(new)
    return torch.nn.functional.pad(new, (0, 0, back, 0))


@dataclass
class StateNode:
    """A part of the decoding state that mirrors one module: leaves, nodes, tuples of them, and None."""


def _leaves(node: Any) -> Iterator[Leaf]:
    if isinstance(node, Leaf):
        yield node
    elif isinstance(node, tuple):
        for child in node:
            yield from _leaves(child)
    elif isinstance(node, StateNode):
        for entry in fields(node):
            yield from _leaves(getattr(node, entry.name))


def _clone(node: Any) -> Any:
    if isinstance(node, Leaf):
        return node.clone()
    if isinstance(node, tuple):
        return tuple(_clone(child) for child in node)
    if isinstance(node, StateNode):
        return type(node)(**{entry.name: _clone(getattr(node, entry.name)) for entry in fields(node)})
    return node


def copy_all(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy every second tensor into the first beside it."""
    if pairs:
        with torch.no_grad():
            torch._foreach_copy_([to for to, _ in pairs], [source for _, source in pairs])


class DecodingState:
    """All that a model remembers of the input tokens it has seen; made by `model.init_state(batch_size)`.

    `model(chunk, state=state)` advances it. No gradient flows through a state.

    Attributes:
        position: input tokens seen so far; the next one has this fine position.
        batch_size: sequences that are decoded together.
        max_rewind: how many tokens `rewind` can take back at most.
        rewindable: how many it can take back now.
        nbytes: bytes of all that is remembered. They are allocated at once, and stay as many.
    """

    def __init__(self, spec: StateSpec, model_key: object, parts: StateNode) -> None:
        self.spec = spec
        self.model_key = model_key  # what the state was made for: states of other models are refused
        self.parts = parts
        self.leaves = tuple(_leaves(parts))
        self.position = 0
        self.rewindable = 0
        self.ablated: bool | frozenset[int] = False  # what the merges left out: all, nothing, or these factors

    @property
    def batch_size(self) -> int:
        return self.spec.batch_size

    @property
    def max_rewind(self) -> int:
        return self.spec.max_rewind

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """All that is remembered, in the place where it stays."""
        return [tensor for leaf in self.leaves for tensor in leaf.tensors().values()]

    def begin(self, length: int) -> None:
        """Before a call on `length` tokens: it may overwrite what only `rewind` would have needed."""
        self.rewindable = min(self.rewindable, max(self.max_rewind - length, 0))
        self.forget_noted()  # what a call that failed has left

    def take_over(self) -> None:
        """Remember what the leaves have noted."""
        copy_all([pair for leaf in self.leaves for pair in leaf.noted()])
        self.forget_noted()

    def forget_noted(self) -> None:
        for leaf in self.leaves:
            leaf.forget_noted()

    def blank_unseen(self) -> None:
        """Zero what has never been written, for steps that look at whole rings and mask what isn't there yet."""
        for leaf in self.leaves:
            leaf.blank_unseen(self.position)

    def advance(self, length: int, ablated: bool | frozenset[int]) -> None:
        """After a call on `length` tokens that has succeeded."""
        self.take_over()
        self.ablated = ablated
        self.position += length
        self.rewindable = min(self.rewindable + length, self.max_rewind)

    def clone(self) -> DecodingState:
        """An independent state at the same position: advancing or rewinding one leaves the other as it is."""
        twin = DecodingState(self.spec, self.model_key, _clone(self.parts))
        twin.position, twin.rewindable, twin.ablated = self.position, self.rewindable, self.ablated
        return twin

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
        after = self.position - num_tokens
        copy_all([pair for leaf in self.leaves for pair in leaf.rewound(self.position, after)])
        self.position = after
        self.rewindable -= num_tokens
