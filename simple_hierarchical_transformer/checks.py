"""Checks of a causal language model, yours or ours: no look into the future, and any chunks give the whole.

They know no model class. A model is whatever maps token ids (b, n) to logits (b, n, v): `b` sequences, `n` tokens,
`v` entries of the vocabulary. Float64 tells a fault from rounding best, so check `model.double()` where you can.
"""

from __future__ import annotations

import bisect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .inputs import check_ids
from .validation import number, shown, whole

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2}
COARSE_TOLERANCE = 5e-2  # of bfloat16 and whatever else there is
ALL_POSITIONS = 64  # up to so many positions are all tried
RANDOM_CHUNKINGS = 3
SEED = 0


class CausalModel(Protocol):
    """Maps ids (b, n) to logits (b, n, v)."""

    def __call__(self, ids: Tensor, /) -> Tensor: ...


class StatefulModel(Protocol):
    """Maps ids (b, n) to logits (b, n, v), the whole sequence or chunks of it, and advances the state it is given."""

    def __call__(self, ids: Tensor, /, *, state: Any = ...) -> Tensor: ...


def assert_causal(
    model: CausalModel,
    ids: Tensor,
    *,
    positions: Iterable[int] | None = None,
    num_tokens: int | None = None,
    tolerance: float | None = None,
) -> None:
    """Assert that no logits depend on ids that come after them.

    For each position `t` all of `ids[:, t:]` are changed to other ids, and the logits before `t` must stay as they
    were. A module is called in eval mode, without gradients, and is left in the mode it was in.

    Args:
        model: maps ids (b, n) to logits (b, n, v).
        ids: token ids (b, n) of an integer type, n at least 2, that the model accepts.
        positions: the `t` to try, each from 1 to n - 1. Each costs a call. None: all of them where they are at most
            64, else 1, n - 1, the neighbours of powers of two, and some in between; a leak at one other position
            only then goes unseen.
        num_tokens: the changed ids are any from 0 to num_tokens - 1. None: those that occur in `ids`.
        tolerance: how much logits may change, as a fraction of the largest one's magnitude; entries of the vocabulary
            whose logit is the same everywhere, such as masked ones, don't count for that. None: by the logits' type,
            1e-10 for float64, 1e-4 for float32, 1e-2 for float16, 5e-2 for bfloat16.

    Raises:
        AssertionError: logits change, and it names the first that do; or are NaN; or aren't the same in two calls.
        TypeError, ValueError: for an argument that isn't as described, or a model that returns something else.

    Warns:
        UserWarning: no logits change at all, so nothing could leak, as with an output layer of zeros.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from simple_hierarchical_transformer.checks import assert_causal
        >>> model = nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 256))
        >>> ids = torch.tensor([list(b"any text of the model's vocabulary")])
        >>> assert_causal(model, ids)
        >>> assert_causal(lambda ids: model(ids.roll(-1, dims=1)), ids)
        Traceback (most recent call last):
        AssertionError: logits at 0 change by ... when ids[:, 1:] change: the model sees the future ...
    """
    _check_model(model)
    known = _check_ids(ids)
    cuts = _cuts(positions, ids.shape[1])
    others = _other_ids(known, num_tokens).to(ids)
    tolerance = None if tolerance is None else number("tolerance", tolerance)

    with _evaluating(model):
        expected = _logits(model(ids.clone()), ids)
        _assert_no_nan(expected, "")
        limit = _limit(expected, tolerance)
        anything_changed = False
        for cut in cuts:
            changed = torch.cat((ids[:, :cut], others[:, cut:]), dim=1)
            actual = _logits(model(changed), ids, vocabulary=expected.shape[2])
            _assert_no_nan(actual, f" when ids[:, {cut}:] change")
            anything_changed |= not torch.equal(actual, expected)
            leak = _first_difference(expected[:, :cut], actual[:, :cut], limit)
            if leak is not None:
                _assert_repeatable(model, ids, expected, limit)
                position, amount = leak
                raise AssertionError(
                    f"logits at {position} change by {amount:.3g} when ids[:, {cut}:] change: the model sees the "
                    f"future (up to {limit:.3g} is taken for rounding)"
                )
    if not anything_changed:
        warnings.warn(
            "no logits changed, whatever ids did, so a leak couldn't show either: is the output layer all zeros? "
            "Check the model with random weights",
            stacklevel=2,
        )


def assert_chunks_equal_whole(
    model: StatefulModel,
    ids: Tensor,
    *,
    init_state: Callable[[int], Any] | None = None,
    chunks: Sequence[int] | None = None,
    tolerance: float | None = None,
) -> None:
    """Assert that a sequence that is fed in chunks, with a state, has the logits of the whole sequence at once.

    Compares `model(ids)` with what `model(chunk, state=state)` returns for one chunk after the other. A module is
    called in eval mode, without gradients, and is left in the mode it was in.

    Args:
        model: maps ids (b, n) to logits (b, n, v), and with a state a chunk (b, m) to its logits (b, m, v). It
            advances the state in place.
        ids: token ids (b, n) of an integer type, n at least 2, that the model accepts.
        init_state: makes an empty state from the batch size. None: `model.init_state`.
        chunks: lengths of the chunks, each positive, n in all. None: several ways are tried, one chunk, two halves,
            single tokens, and random lengths that are the same in every call.
        tolerance: how much logits may differ, as in `assert_causal`.

    Raises:
        AssertionError: logits differ, and it names the first that do; or are NaN; or aren't the same in two calls.
        TypeError, ValueError: for an argument that isn't as described, or a model that returns something else.

    Example: a module that returns its new state beside its output, as all recurrent ones of PyTorch do.
        >>> import torch
        >>> from torch import nn
        >>> from simple_hierarchical_transformer.checks import assert_chunks_equal_whole
        >>> gru = nn.GRU(4, 8, batch_first=True)
        >>> def model(ids, state=None):
        ...     state = {"hidden": None} if state is None else state
        ...     logits, state["hidden"] = gru(nn.functional.one_hot(ids, 4).float(), state["hidden"])
        ...     return logits
        >>> ids = torch.tensor([[0, 3, 1, 1, 2, 0, 3]])
        >>> assert_chunks_equal_whole(model, ids, init_state=lambda batch_size: {"hidden": None})
        >>> assert_chunks_equal_whole(model, ids, init_state=lambda batch_size: {"hidden": None}, chunks=(4, 2, 1))
    """
    _check_model(model)
    _check_ids(ids)
    length = ids.shape[1]
    ways = _chunkings(length) if chunks is None else [_check_chunks(chunks, length)]
    tolerance = None if tolerance is None else number("tolerance", tolerance)
    make_state = _state_maker(model, init_state)

    with _evaluating(model):
        expected = _logits(model(ids.clone()), ids)
        _assert_no_nan(expected, "")
        limit = _limit(expected, tolerance)
        for way in ways:
            state = make_state(ids.shape[0])
            pieces = [
                _logits(model(piece.clone(), state=state), piece, vocabulary=expected.shape[2])
                for piece in torch.split(ids, list(way), dim=1)
            ]
            actual = torch.cat(pieces, dim=1)
            _assert_no_nan(actual, f" when ids are fed in chunks of {_shown_lengths(way)}")
            difference = _first_difference(expected, actual, limit)
            if difference is not None:
                _assert_repeatable(model, ids, expected, limit)
                position, amount = difference
                ends = list(itertools.accumulate(way))
                chunk = bisect.bisect_right(ends, position)
                end, start = ends[chunk], ends[chunk] - way[chunk]
                raise AssertionError(
                    f"logits at {position} differ by {amount:.3g} from those of the whole sequence when ids are fed "
                    f"in chunks of {_shown_lengths(way)}: position {position - start} of the chunk ids[:, {start}:"
                    f"{end}] is the first wrong one (up to {limit:.3g} is taken for rounding)"
                )


def _check_model(model: object) -> None:
    if not callable(model):
        raise TypeError(f"model must be a module or function of ids, got {shown(model)}: give one that can be called")


def _check_ids(ids: Tensor) -> Tensor:
    """`ids` as int64 (b, n), n at least 2."""
    known = check_ids(ids)
    if known.shape[1] < 2:
        raise ValueError(
            f"ids must be at least 2 tokens long, got shape {tuple(ids.shape)}: one token has no future and no parts"
        )
    return known


def _cuts(positions: Iterable[int] | None, length: int) -> list[int]:
    """Where to cut, in ascending order: the first cut that shows a leak then shows the first position that leaks."""
    if positions is None:
        return list(range(1, length)) if length - 1 <= ALL_POSITIONS else _spread(length)
    if not isinstance(positions, Iterable):
        raise TypeError(f"positions must be whole numbers, got {shown(positions)}: give several, such as (1, 2)")
    cuts = sorted({whole("each of positions", position, least=1) for position in positions})
    if not cuts:
        raise ValueError("positions are empty, so nothing would be checked: give some, or None for a choice of them")
    if cuts[-1] >= length:
        raise ValueError(
            f"each of positions must be from 1 to {length - 1} for ids of length {length}, got {cuts[-1]}: leave it "
            "out, or give longer ids"
        )
    return cuts


def _spread(length: int) -> list[int]:
    """Both ends, where windows, blocks and strides of powers of two begin and end, and some in between."""
    powers = [2**k for k in range(1, length.bit_length())]
    between = [length * i // 17 for i in range(1, 17)]  # 17, so that they don't fall on the powers again
    cuts = {1, length - 1, *between, *(power + side for power in powers for side in (-1, 0, 1))}
    return sorted(cut for cut in cuts if 0 < cut < length)


def _other_ids(known: Tensor, num_tokens: int | None) -> Tensor:
    """Ids (b, n), on the CPU, each of them another than that of `known` (b, n) at its place."""
    known = known.cpu()
    if num_tokens is not None:
        pool = torch.arange(whole("num_tokens", num_tokens, least=2))
    else:
        pool = torch.unique(known)
        if len(pool) < 2:
            raise ValueError(
                f"ids are all {int(pool[0])}, so there is no other id to change them to: give ids of at least two "
                "kinds, or num_tokens, the size of the vocabulary"
            )
    # at random: a rule such as "the next id of the pool" can keep their sum or their kinds, and so hide a leak
    generator = torch.Generator().manual_seed(SEED)
    steps = torch.randint(1, len(pool), known.shape, generator=generator)
    return pool[(torch.searchsorted(pool, known) + steps) % len(pool)]


def _check_chunks(chunks: Sequence[int], length: int) -> tuple[int, ...]:
    if not isinstance(chunks, Sequence) or isinstance(chunks, (str, bytes)):
        raise TypeError(f"chunks must be a tuple or list of lengths, got {shown(chunks)}: give one such as (1, 2)")
    lengths = tuple(whole("each of chunks", chunk, least=1) for chunk in chunks)
    if sum(lengths) != length:
        raise ValueError(
            f"chunks must be lengths with a sum of {length}, as ids are so long, got {_shown_lengths(lengths)} with a "
            f"sum of {sum(lengths)}: change them, or give None for several ways"
        )
    return lengths


def _state_maker(model: object, init_state: Callable[[int], Any] | None) -> Callable[[int], Any]:
    makes = getattr(model, "init_state", None) if init_state is None else init_state
    if not callable(makes):
        raise TypeError(
            "init_state must be a function from the batch size to an empty state, or None where the model has such "
            f"a method, got init_state={shown(init_state)} and a model of type {type(model).__name__}: give a function"
        )
    found: Callable[[int], Any] = makes
    return found


def _chunkings(length: int) -> list[tuple[int, ...]]:
    """From the simplest on, so that the error tells the most: (5,), (2, 3), (1, 1, 1, 1, 1), (2, 1, 2), …"""
    ways = [(length,), (length // 2, length - length // 2), (1,) * length]
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(RANDOM_CHUNKINGS):
        lengths: list[int] = []
        while (left := length - sum(lengths)) > 0:
            # short and long ones alike: half of them are at most the square root of the longest
            draw = left ** float(torch.rand((), generator=generator))
            lengths.append(min(round(draw), left))
        ways.append(tuple(lengths))
    return list(dict.fromkeys(ways))


def _shown_lengths(lengths: Sequence[int]) -> str:
    if len(lengths) > 12:
        return f"({', '.join(map(str, lengths[:12]))}, …)"
    return str(tuple(lengths))


@contextmanager
def _evaluating(model: object) -> Iterator[None]:
    """Without gradients and in eval mode; afterwards each submodule is in its own mode again."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, was_training in zip(modules, training, strict=True):
            module.training = was_training


def _logits(output: object, ids: Tensor, *, vocabulary: int | None = None) -> Tensor:
    """A copy of what the model returned for `ids` (b, n), if it is logits (b, n, v)."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"model must return a tensor of logits (b, n, v), got {type(output).__name__}: wrap it in a function or "
            "module that returns the logits alone"
        )
    if not output.is_floating_point():
        raise TypeError(f"model must return logits of a floating-point type, got {output.dtype}: not ids or a mask")
    b, n = ids.shape
    if output.ndim != 3 or output.shape[:2] != (b, n) or output.shape[2] != (vocabulary or max(output.shape[2], 1)):
        raise ValueError(
            f"model must return logits of shape ({b}, {n}, {vocabulary or 'v'}) for ids of shape ({b}, {n}), got "
            f"{tuple(output.shape)}: return one row of logits per token, batch first"
        )
    # a model may write its next output into the same memory, as CUDA graphs do
    return output.detach().clone()


def _limit(logits: Tensor, tolerance: float | None) -> float:
    """How far logits may be off: a fraction of the largest one (b, n, v) that says something about their size.

    An entry of the vocabulary that is masked with -1e9 everywhere would make any leak look small.
    """
    if tolerance is None:
        tolerance = TOLERANCE.get(logits.dtype, COARSE_TOLERANCE)
    varies = (logits != logits[:1, :1]).any(dim=0).any(dim=0)
    counts = logits[..., varies] if varies.any() else logits
    return tolerance * float(counts.abs().masked_fill(counts.isinf(), 0).max())


def _first_difference(expected: Tensor, actual: Tensor, limit: float) -> tuple[int, float] | None:
    """The first position where logits (b, n, v) differ by more than `limit`, and by how much."""
    same = expected == actual  # infinities too, whose difference would be NaN
    wide = torch.promote_types(expected.dtype, torch.float32)
    difference = (expected.to(wide) - actual.to(wide)).abs().masked_fill(same, 0).amax(dim=(0, 2))
    wrong = (difference > limit).nonzero()
    if not len(wrong):
        return None
    position = int(wrong[0])
    return position, float(difference[position])


def _assert_no_nan(logits: Tensor, when: str) -> None:
    wrong = logits.isnan().any(dim=2).any(dim=0).nonzero()
    if len(wrong):
        raise AssertionError(f"logits at {int(wrong[0])} are NaN{when}: nothing can be said about them")


def _assert_repeatable(model: CausalModel, ids: Tensor, expected: Tensor, limit: float) -> None:
    """A difference means something only where the same ids give the same logits."""
    difference = _first_difference(expected, _logits(model(ids.clone()), ids, vocabulary=expected.shape[2]), limit)
    if difference is not None:
        position, amount = difference
        raise AssertionError(
            f"logits at {position} change by {amount:.3g} when the model is called with the same ids again: it draws "
            "random numbers or remembers its calls. Put a module that a function wraps into eval mode first"
        )
