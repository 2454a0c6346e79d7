"""Checks of what users pass to a call, before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

INTEGER_TYPES = frozenset(
    {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64}
)


def check_ids(ids: Tensor, *, name: str = "ids") -> Tensor:
    """`ids` as int64 (b, n), if they are a non-empty tensor of some integer type.

    Raises:
        TypeError: if it is no tensor, or not of an integer type.
        ValueError: if it isn't of shape (batch, length), or empty.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor of token ids, got {type(ids).__name__}: use torch.tensor({name})")
    if ids.dtype not in INTEGER_TYPES:
        raise TypeError(f"{name} must be token ids of an integer type, got {ids.dtype}: convert with {name}.long()")
    if ids.ndim != 2:
        remedy = f"use {name}[None] for a batch of one" if ids.ndim == 1 else "one row per sequence"
        raise ValueError(f"{name} must have shape (batch, length), got {tuple(ids.shape)}: {remedy}")
    if ids.numel() == 0:
        raise ValueError(f"{name} is empty, of shape {tuple(ids.shape)}: give at least one sequence of one token")
    return ids.long()


def check_vocabulary(ids: Tensor, num_tokens: int, ignore_index: int, *, name: str = "ids") -> None:
    """Every id (b, n) must be in the vocabulary or padding; on an accelerator, this waits for the device.

    Raises:
        ValueError: naming the first other id and where it is.
    """
    wrong = ((ids < 0) | (ids >= num_tokens)) & (ids != ignore_index)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{name}[{row}, {column}] is {int(ids[row, column])}, but ids must be from 0 to {num_tokens - 1}, or "
            f"ignore_index={ignore_index} for padding: tokenise with the model's vocabulary, or raise num_tokens"
        )
