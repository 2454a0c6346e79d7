"""What is asked for, and the text that is being written, column by column.

Shapes: `b` rows, `t` tokens of a prompt, `v` vocabulary. All rows stand at the same fine position: where prompts differ
in length, the model is fed from the start of all of them, and rows with a longer prompt are forced to it while shorter
ones are already being continued. A column is what all rows hold at one position after the shortest prompt:

    prompts        a b c        fed    a b | c x x x
                   d e                 d e | y y y .        column 0 is c y; row 0 is forced to c there
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .chunk import StreamChunk
from .config import ModelConfig
from .prompts import Prompts
from .sampling import Sampling
from .state import DecodingState


class Decoder(Protocol):
    """What generation knows of a model: it maps chunks of ids (b, n) to logits (b, n, v), and remembers in a state."""

    config: ModelConfig

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def init_state(self, batch_size: int, *, max_rewind: int = ..., drafts: bool = ...) -> DecodingState: ...

    def chunks(self, position: int, length: int, at: Tensor | None = ...) -> list[StreamChunk]: ...

    def decode(
        self,
        ids: Tensor,
        state: DecodingState,
        chunks: Sequence[StreamChunk],
        merge: bool = ...,
        logits_to_keep: int | None = ...,
    ) -> Tensor: ...

    def draft(self, state: DecodingState) -> Tensor: ...

    def __call__(
        self,
        ids: Tensor,
        *,
        state: DecodingState | None = ...,
        ablate_hierarchical_merge: bool = ...,
        logits_to_keep: int | None = ...,
    ) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be written, checked."""

    prompts: Prompts
    length: int  # tokens to write in each row
    sampling: Sampling
    ends: tuple[int, ...]
    generator: torch.Generator | None
    prefill_chunk: int
    ablate: bool
    logprobs: bool

    @property
    def columns(self) -> int:
        return max(self.prompts.lens) - self.prompts.shortest + self.length


class Writer:
    """The text that is being written, column by column.

    All that a column needs lies in tensors that keep their place, and no number is asked for, so that `choose` can be
    captured in a CUDA graph.
    """

    def __init__(self, request: Request, config: ModelConfig, dtype: torch.dtype) -> None:
        self.request = request
        self.padding = config.ignore_index
        ids, shortest = request.prompts.ids, request.prompts.shortest
        device, batch = ids.device, ids.shape[0]
        self.forced = ids[:, shortest:]
        self.offsets = torch.tensor(request.prompts.lens, device=device) - shortest  # first own column of each row
        self.ends = torch.tensor(request.ends, device=device, dtype=torch.long)
        self.tokens = torch.full((batch, request.columns), self.padding, device=device)
        self.logprobs = torch.zeros(
            (batch, request.columns if request.logprobs else 0), device=device, dtype=precise(dtype)
        )
        self.last = torch.empty(batch, dtype=torch.long, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.finished = torch.zeros(batch, dtype=torch.bool, device=device)
        self.vocabulary = torch.arange(config.num_tokens, device=device)
        self.seen: Tensor | None = None
        if request.sampling.needs_seen:
            is_token = (ids >= 0) & (ids < config.num_tokens)
            self.seen = torch.zeros(batch, config.num_tokens + 1, dtype=torch.bool, device=device)
            self.seen.scatter_(1, ids.where(is_token, config.num_tokens)[:, :shortest], True)
            self.seen = self.seen[:, :-1]
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.finite_columns = torch.zeros((), dtype=torch.long, device=device)

    def choose(self, logits: Tensor) -> None:
        """Write the next column, given its logits (b, v)."""
        request = self.request
        self.finite.logical_and_(logits.isfinite().all())
        self.finite_columns.add_(self.finite)
        token = request.sampling.choose(logits, request.generator, self.seen)
        if request.prompts.is_ragged:
            at = self.column.clamp(max=self.forced.shape[1] - 1)
            token = torch.where(self.column < self.offsets, self.forced.index_select(1, at)[:, 0], token)
        if request.ends:
            token = token.masked_fill(self.finished, self.padding)
            own = self.column >= self.offsets
            # `isin` may sort, for which a CUDA device has to be asked how much there is
            self.finished.logical_or_((token[:, None] == self.ends).any(dim=1) & own)
            self.finished.logical_or_(self.column + 1 >= self.offsets + request.length)
        if self.seen is not None:
            self.seen.logical_or_(token[:, None] == self.vocabulary)
        if request.logprobs:
            index = token.clamp(0, logits.shape[1] - 1)  # padding is no token
            self.logprobs.index_copy_(1, self.column, logprobs_of(index, logits)[:, None])
        self.tokens.index_copy_(1, self.column, token[:, None])
        self.last.copy_(token)
        self.column.add_(1)

    def check_finite(self, first: int) -> None:
        """Of the columns written so far; `first` is the fine position of the first."""
        if not self.finite:
            raise not_finite(first + int(self.finite_columns))

    def tensors(self) -> list[Tensor]:
        """All that `choose` changes."""
        changing = [self.tokens, self.logprobs, self.last, self.column, self.finished]
        return [*changing, self.finite, self.finite_columns, *([] if self.seen is None else [self.seen])]

    def new(self, rows: Tensor, first: int, count: int) -> Tensor:
        """The new tokens `first …` of each row, of what `rows` (b, columns) holds by column; (b, count)."""
        index = self.offsets[:, None] + torch.arange(first, first + count, device=rows.device)
        return rows.gather(1, index)

    def result(self) -> tuple[Tensor, Tensor]:
        """The new tokens of every row (b, n), as many as the longest has, and their log-probabilities."""
        length = self.request.length
        tokens = self.new(self.tokens, 0, length)
        ended = torch.isin(tokens, self.ends)
        before_end = ended.cumsum(dim=1) - ended.long() == 0  # its end counts
        longest = int(before_end.sum(dim=1).max())
        if self.request.logprobs:
            return tokens[:, :longest], self.new(self.logprobs, 0, longest) * before_end[:, :longest]
        return tokens[:, :longest], self.logprobs


def precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def logprobs_of(tokens: Tensor, logits: Tensor) -> Tensor:
    """Log-probabilities (k,) of tokens (k,) in the distributions of logits (k, v), in float32 or above."""
    return logits.to(precise(logits.dtype)).log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]


def not_finite(position: int) -> ValueError:
    return ValueError(
        f"the logits for fine position {position} hold NaN or infinite values, so no token can be chosen from them: "
        "the weights are damaged, training diverged, or their type is too narrow (try model.float())"
    )


def prefill(model: Decoder, request: Request, state: DecodingState) -> Tensor:
    """Feed what all prompts have, in chunks; the logits (b, v) of the first column."""
    ids = request.prompts.ids[:, : request.prompts.shortest]
    for chunk in torch.split(ids, request.prefill_chunk, dim=1):
        logits = model(chunk, state=state, ablate_hierarchical_merge=request.ablate, logits_to_keep=1)
    return logits[:, -1]


class Run(Protocol):
    """A text that is being written: iterating says how many new tokens all rows have by now."""

    request: Request
    state: DecodingState

    def __iter__(self) -> Iterator[int]: ...

    def token(self, index: int) -> Tensor:
        """The new token `index` of every row (b,), once it is there."""
        ...

    def result(self) -> tuple[Tensor, Tensor]:
        """The new tokens (b, n), as many as the longest row has, and their log-probabilities, at the end."""
        ...
