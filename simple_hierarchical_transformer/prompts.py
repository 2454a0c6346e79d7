"""Prompts of one length or of several, as one padded tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .inputs import check_ids, check_vocabulary
from .validation import shown, whole


@dataclass(frozen=True)
class Prompts:
    """Rows of token ids (b, t), of which the first `lens[row]` count; the rest is padding."""

    ids: Tensor
    lens: tuple[int, ...]

    @property
    def shortest(self) -> int:
        return min(self.lens)

    @property
    def is_ragged(self) -> bool:
        return min(self.lens) < max(self.lens)


def read_prompts(
    prompt: Tensor | Sequence[Tensor],
    prompt_lens: Tensor | Sequence[int] | None,
    *,
    num_tokens: int,
    ignore_index: int,
    device: torch.device,
) -> Prompts:
    """Check and pad what a user gave: ids (b, t), with the lengths of the rows or without, or a list of rows (t,).

    Raises:
        TypeError: for prompts or lengths of another type.
        ValueError: for empty prompts, lengths that don't fit, ids outside the vocabulary, or another device.
    """
    if isinstance(prompt, (list, tuple)):
        if prompt_lens is not None:
            raise ValueError(
                "prompt_lens was given beside a list of prompts, whose lengths are known: leave prompt_lens out"
            )
        ids, lens = pad_rows(prompt)
    else:
        ids = check_ids(prompt, name="prompt")  # type: ignore[arg-type]
        lens = read_lens(prompt_lens, *ids.shape) if prompt_lens is not None else (ids.shape[1],) * ids.shape[0]
    if ids.device != device:
        raise ValueError(f"prompt is on {ids.device}, but the model is on {device}: use prompt.to(model.device)")
    ids = ids[:, : max(lens)]
    inside = torch.arange(ids.shape[1], device=device) < torch.tensor(lens, device=device)[:, None]
    check_vocabulary(ids.where(inside, 0), num_tokens, ignore_index, name="prompt")
    return Prompts(ids.where(inside, ignore_index), lens)


def pad_rows(rows: Sequence[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    if not rows:
        raise ValueError("prompt is an empty list: give at least one prompt")
    for i, row in enumerate(rows):
        name = f"prompt[{i}]"
        if isinstance(row, Tensor) and row.ndim != 1:
            raise ValueError(
                f"{name} must be a row of ids of shape (length,), got {tuple(row.shape)}: use list(prompt) or "
                "prompt.flatten() to make rows of it"
            )
        check_ids(row[None] if isinstance(row, Tensor) else row, name=name)
        if row.device != rows[0].device:
            raise ValueError(
                f"{name} is on {row.device}, but prompt[0] on {rows[0].device}: bring all of them to model.device"
            )
    padded = torch.nn.utils.rnn.pad_sequence([row.long() for row in rows], batch_first=True)
    return padded, tuple(len(row) for row in rows)


def read_lens(prompt_lens: Tensor | Sequence[int], batch: int, length: int) -> tuple[int, ...]:
    values = prompt_lens.tolist() if isinstance(prompt_lens, Tensor) else prompt_lens
    if not isinstance(values, (list, tuple)):
        raise TypeError(
            f"prompt_lens must be a tensor or list of one length per prompt, got {shown(prompt_lens)}: "
            f"give {batch} whole numbers"
        )
    if len(values) != batch:
        raise ValueError(
            f"prompt_lens has {len(values)} lengths for {batch} prompt{'s' * (batch != 1)}: give one length for each"
        )
    return tuple(whole(f"prompt_lens[{i}]", value, least=1, most=length) for i, value in enumerate(values))
