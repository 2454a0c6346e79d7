"""Generate text with a decoding state; knows a protocol, not the model's class."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .sampling import keep_top, sample
from .state import DecodingState
from .validation import number, whole


class Decoder(Protocol):
    """Maps chunks of ids (b, n) to logits (b, n, v), and remembers in a state."""

    @property
    def seq_len(self) -> int: ...

    def init_state(self, batch_size: int, *, max_rewind: int = ...) -> DecodingState: ...

    def __call__(
        self, ids: Tensor, *, state: DecodingState | None = ..., ablate_hierarchical_merge: bool = ...
    ) -> Tensor: ...


def generate(
    model: Decoder,
    prompt: Tensor,
    length: int,
    *,
    temperature: float,
    filter_thres: float,
    generator: torch.Generator | None,
    ablate_hierarchical_merge: bool,
) -> Tensor:
    """Continue `prompt` (b, t) by `length` tokens (b, length); see `HierarchicalTransformer.generate`."""
    check_options(length, temperature, filter_thres)
    state = model.init_state(prompt.shape[0], max_rewind=0)
    for start in range(0, prompt.shape[1], model.seq_len):
        chunk = prompt[:, start : start + model.seq_len]
        logits = model(chunk, state=state, ablate_hierarchical_merge=ablate_hierarchical_merge)
    tokens: list[Tensor] = []
    while len(tokens) < length:
        last = logits[:, -1]
        # the most likely token stays the most likely one, and filtering may break ties another way
        tokens.append(sample(keep_top(last, filter_thres) if temperature else last, temperature, generator))
        if len(tokens) < length:  # the last token needs no successor
            logits = model(tokens[-1][:, None], state=state, ablate_hierarchical_merge=ablate_hierarchical_merge)
    return torch.stack(tokens, dim=1) if tokens else prompt[:, :0]


def check_options(length: int, temperature: float, filter_thres: float) -> None:
    whole("seq_len (the number of tokens to generate)", length, least=0)
    number("temperature (1: the model's own distribution, 0: always the most likely token)", temperature)
    if number("filter_thres", filter_thres) > 1:
        raise ValueError(
            f"filter_thres must be from 0 to 1, got {filter_thres}: 0.9 keeps the most likely tenth of the "
            "vocabulary, 0 all of it"
        )
