"""Checks of what users pass to a call, before anything is computed."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .config import ModelConfig
from .state import DecodingState
from .validation import flag, shown, whole

INTEGER_TYPES = frozenset(
    {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64}
)

Ablation = bool | frozenset[int]  # all merges, or none, or what the streams of these compress factors contribute


def check_ids(ids: Tensor, *, name: str = "ids") -> Tensor:
    """`ids` as int64 (b, n), if they are a non-empty tensor of some integer type.

    Raises:
        TypeError: if it is no tensor, or not of an integer type.
        ValueError: if it isn't of shape (batch, length), or empty.
    """
    if isinstance(ids, (str, bytes)):
        to_bytes = ".encode()" if isinstance(ids, str) else ""
        raise TypeError(
            f"{name} must be a tensor of token ids, got {type(ids).__name__}: for a byte model, use "
            f"torch.tensor([list(text{to_bytes})]), else your tokenizer's ids"
        )
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
    least, most = ids.aminmax()
    if least >= 0 and most < num_tokens:  # two kernels less, for each token that is generated
        return
    wrong = ((ids < 0) | (ids >= num_tokens)) & (ids != ignore_index)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{name}[{row}, {column}] is {int(ids[row, column])}, but ids must be from 0 to {num_tokens - 1}, or "
            f"ignore_index={ignore_index} for padding: tokenise with the model's vocabulary, or raise num_tokens"
        )


def check_returns(config: ModelConfig, has_state: bool, *, has_logits_to_keep: bool, **returns: bool) -> None:
    """A call returns one thing, and logits only where it has a state.

    Raises:
        TypeError: if a switch is neither True nor False.
        ValueError: if several are on, or one that this model or a call with a state can't serve.
    """
    asked = [name for name, wanted in returns.items() if flag(name, wanted)]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} are True, but a call returns one thing: choose one of them")
    if asked and has_state:
        raise ValueError(
            f"{asked[0]}=True can't be combined with state, which is for decoding logits: call without a state"
        )
    if asked and has_logits_to_keep:
        raise ValueError(f"logits_to_keep has no effect with {asked[0]}=True, which returns no logits: leave it out")
    if returns["return_random_proj_quantize_ids"] and not config.prophet.use_quantized:
        raise ValueError(
            "return_random_proj_quantize_ids=True needs a model with prophet_loss_use_quantized=True, which this "
            "one has not: build it with that"
        )


def check_target_counts(counts: Any, return_loss: bool) -> None:
    """Sums of what `count_targets` returns, for a call that returns a loss.

    Raises:
        TypeError: if they are no tensor of whole numbers.
        ValueError: for a call that returns no loss.
    """
    if not isinstance(counts, Tensor) or counts.dtype not in INTEGER_TYPES:
        raise TypeError(
            f"target_counts must be a tensor of whole numbers, got {shown(counts)}: give the sum of what "
            "model.count_targets(ids) returns for each batch"
        )
    if not return_loss:
        raise ValueError("target_counts has no effect without return_loss=True: set that, or leave it out")


def check_ablation(ablate: Any, config: ModelConfig) -> Ablation:
    """What is left out of the merges: True, False, a compress factor, or several as a set of them.

    Raises:
        TypeError: if it is none of these.
        ValueError: if the model has no stream of such a factor.
    """
    if isinstance(ablate, bool):
        return ablate
    several = isinstance(ablate, (tuple, list, set, frozenset))
    if not several and not isinstance(ablate, Integral):
        raise TypeError(
            "ablate_hierarchical_merge must be True, False, a compress factor, or several of them, got "
            f"{shown(ablate)}: give True to leave all merges out"
        )
    factors = frozenset(
        whole("ablate_hierarchical_merge", factor, least=1) for factor in (ablate if several else (ablate,))
    )
    has = tuple(stream.compress_factor for stream in config.streams)
    if unknown := sorted(factors.difference(has)):
        raise ValueError(
            f"ablate_hierarchical_merge names the compress factor{'s' * (len(unknown) > 1)} "
            f"{', '.join(map(str, unknown))}, but this model's streams have {', '.join(map(str, has))}: choose among "
            "these, or give True to leave all merges out"
        )
    return factors or False


def merged_sources(ablated: Ablation, config: ModelConfig) -> bool | frozenset[int]:
    """Whether merges take part at all, or the indices of the streams that contribute to them."""
    if isinstance(ablated, bool):
        return not ablated
    return frozenset(i for i, stream in enumerate(config.streams) if stream.compress_factor not in ablated)


def check_can_draft(config: ModelConfig) -> None:
    """Drafts come from coarse tokens that have learnt to predict input tokens.

    Raises:
        ValueError: if the model has none.
    """
    if config.prophet.weight == 0 or config.prophet.use_quantized:
        reason = (
            "prophet_loss_weight is 0" if config.prophet.weight == 0
            else "prophet_loss_use_quantized=True: codes, not tokens, are predicted"
        )  # fmt: skip
        raise ValueError(
            f"speculative decoding drafts with the prophet heads of the coarse streams, which this model hasn't "
            f"({reason}): build and train it with prophet_loss_weight=0.1, say, or leave speculative out"
        )


def check_length(ids: Tensor, seq_len: int, return_loss: bool, has_state: bool) -> None:
    """A loss takes one token more than is seen, and without a state at most `seq_len` are seen.

    Raises:
        ValueError: for ids (b, n) that are too short or too long.
    """
    seen = ids.shape[1] - return_loss
    if seen < 1:
        raise ValueError(
            "ids of length 1 have no next token to predict: with return_loss=True give at least 2 tokens a row"
        )
    if seen > seq_len and not has_state:
        extra = " (plus one token, the last target)" if return_loss else ""
        raise ValueError(
            f"ids are {ids.shape[1]} tokens long, but seq_len={seq_len} is the most in one call{extra}: "
            "shorten them, build the model with a larger seq_len, or decode with a state"
        )


def check_state(
    state: DecodingState, config: ModelConfig, ids: Tensor, dtype: torch.dtype, device: torch.device, ablate: Ablation
) -> None:
    """A state must be of this model, batch size, type and device, and go on as it was begun.

    Raises:
        TypeError: if it is no decoding state.
        ValueError: if it doesn't fit.
    """
    if not isinstance(state, DecodingState):
        raise TypeError(f"state must come from model.init_state(batch_size), got {type(state).__name__}")
    if state.model_key is not config:
        raise ValueError("state was made by another model: make one with this model's init_state(batch_size)")
    for name, has, needs, when in (
        ("batch size", state.batch_size, ids.shape[0], ""),
        ("dtype", state.spec.dtype, dtype, ", after converting the model"),
        ("device", state.spec.device, device, ", after moving the model"),
    ):
        if has != needs:
            raise ValueError(
                f"state has {name} {has}, but this call needs {needs}: make one with "
                f"model.init_state({ids.shape[0]}){when}"
            )
    if state.position and state.ablated != ablate:
        now, before = (each if isinstance(each, bool) else sorted(each) for each in (ablate, state.ablated))
        raise ValueError(
            f"ablate_hierarchical_merge={now}, but the state was begun with {before}: keep it the same for all chunks "
            "of a text"
        )
