"""From logits to tokens: pure functions of logits (b, v)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .validation import number, whole


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive logits of the ids in `seen` (b, v; booleans) by `penalty`, and multiply the negative ones.

    CTRL, Keskar et al., arXiv 1909.05858. Above 1 makes what stands in the text less likely, below 1 more.
    """
    scaled = torch.where(logits > 0, logits / penalty, logits * penalty)
    limits = torch.finfo(logits.dtype)
    # an extreme penalty leaves logits finite: were a whole row -inf, nothing could be drawn from it
    return torch.where(seen & (logits > -torch.inf), scaled.clamp(limits.min, limits.max), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the `k` highest logits of each row to -inf; exactly `k` stay, also where some are equal."""
    if k >= logits.shape[-1]:
        return logits
    values, indices = logits.topk(k, dim=-1, sorted=False)
    return torch.full_like(logits, -torch.inf).scatter(-1, indices, values)


def keep_top(logits: Tensor, filter_thres: float) -> Tensor:
    """Set all but the `1 - filter_thres` of the vocabulary with the highest logits, at least one, to -inf."""
    return keep_top_k(logits, max(int((1 - filter_thres) * logits.shape[-1]), 1))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Set all logits to -inf but the fewest of the likeliest tokens whose probability reaches `p`, at least one.

    The nucleus of Holtzman et al., arXiv 1904.09751: a token stays where those before it, in descending order, have
    a probability below `p` in total. Of tokens that are equally likely it may keep some and drop others.
    """
    if p >= 1:  # those before an unlikely token may round to 1
        return logits
    ordered, indices = logits.sort(dim=-1, descending=True)
    reached = _widened(ordered).softmax(dim=-1).cumsum(dim=-1)
    ordered[..., 1:].masked_fill_(reached[..., :-1] >= p, -torch.inf)
    return torch.empty_like(logits).scatter(-1, indices, ordered)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Set the logits of all tokens to -inf that are less than `min_p` times as likely as the likeliest.

    Min-p, Nguyen et al., arXiv 2407.01082.
    """
    if min_p <= 0:
        return logits
    wide = _widened(logits)
    return logits.masked_fill(wide < wide.amax(dim=-1, keepdim=True) + math.log(min_p), -torch.inf)


def draw(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one index (b,) from each row of `probabilities` (b, v), never one whose probability is 0.

    Every index runs for a time that is exponential at the rate of its probability, and the first to arrive wins,
    which it does with just that probability. Unlike `torch.multinomial`, which checks its input on the host, this
    never waits for the device, so that it can be captured in a CUDA graph.
    """
    probabilities = _widened(probabilities)
    times = torch.empty_like(probabilities).exponential_(generator=generator)
    # at a time of exactly 0, a probability of 0 would become nan, which argmax takes for the highest
    return (probabilities / times.clamp_min_(torch.finfo(times.dtype).tiny)).argmax(dim=-1)


SHARES = {
    "filter_thres": "from 0 to 1, got {}: 0.9 keeps the most likely tenth of the vocabulary, 0 all of it",
    "top_p": "above 0 and at most 1, got {}: 0.9 keeps the likeliest tokens that together reach 0.9, 1 keeps all",
    "min_p": "from 0 to 1, got {}: 0.1 keeps the tokens at least a tenth as likely as the likeliest, 0 all",
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen from logits (b, v).

    In this order, each step seeing what the one before left: `repetition_penalty`, `temperature` (0: always the
    likeliest token), `filter_thres` or `top_k`, `top_p`, `min_p`. `filter_thres` goes with no other filter. Where no
    filter is given it is 0.9, as in the reference package; 0 keeps the whole vocabulary. None switches a step off.

    Raises TypeError or ValueError for a value that is not allowed.
    """

    temperature: float = 1.0
    filter_thres: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        name = "temperature (1: the model's own distribution, 0: always the most likely token)"
        object.__setattr__(self, "temperature", number(name, self.temperature))
        if self.top_k is not None:
            object.__setattr__(self, "top_k", whole("top_k", self.top_k, least=1))
        if self.repetition_penalty is not None:
            name = "repetition_penalty (1: none, 1.2: tokens of the text become less likely)"
            object.__setattr__(self, "repetition_penalty", number(name, self.repetition_penalty, positive=True))
        for name, allowed in SHARES.items():
            if (value := getattr(self, name)) is not None:
                if (share := number(name, value, positive=name == "top_p")) > 1:
                    raise ValueError(f"{name} must be {allowed.format(value)}")
                object.__setattr__(self, name, share)
        given = {name: getattr(self, name) for name in ("top_k", "top_p", "min_p")}
        others = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        if self.filter_thres is not None and others:
            raise ValueError(
                f"filter_thres must stand alone, and filter_thres={self.filter_thres} contradicts {others}: choose "
                "one, and leave filter_thres or the others out"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self.temperature == 0

    @property
    def needs_seen(self) -> bool:
        """Whether `seen` has to be given."""
        return self.repetition_penalty not in (None, 1)

    @property
    def effective_filter_thres(self) -> float | None:
        """`filter_thres`, or its default where no filter is given."""
        unfiltered = all(value is None for value in (self.filter_thres, self.top_k, self.top_p, self.min_p))
        return 0.9 if unfiltered else self.filter_thres

    def logits(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """The float64 logits (b, v) that are drawn from: -inf where a token is dropped, 0 for the likeliest.

        `seen` (b, v) tells which ids stand in the text so far. (On mps, which has no float64, float32.)
        """
        logits = _widened(self._penalised(logits, seen))
        if self.is_greedy:  # whatever the filters are, they keep the likeliest token
            return torch.full_like(logits, -torch.inf).scatter(-1, logits.argmax(dim=-1, keepdim=True), 0.0)
        # CUDA divides by multiplying with the inverse, and 0 times the infinite inverse of 1e-310 would be nan
        tiny = torch.finfo(logits.dtype).tiny
        temperature = min(max(self.temperature, tiny), 1 / tiny)
        # the highest logit becomes 0 first, so that no temperature is too low
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
        if (filter_thres := self.effective_filter_thres) is not None:
            logits = keep_top(logits, filter_thres)
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits

    def probabilities(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """The probabilities (b, v), float64, of every token to be chosen; see `logits`."""
        return self.logits(logits, seen).softmax(dim=-1)

    def choose(self, logits: Tensor, generator: torch.Generator | None = None, seen: Tensor | None = None) -> Tensor:
        """Choose one id (b,) for each row of `logits` (b, v); `generator` is of their device, `seen` as in `logits`."""
        if self.is_greedy:
            return self._penalised(logits, seen).argmax(dim=-1)
        return draw(self.probabilities(logits, seen), generator)

    def _penalised(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        if self.repetition_penalty is None or not self.needs_seen:
            return logits
        if seen is None:
            raise ValueError(
                f"seen must be booleans (b, v) with repetition_penalty={self.repetition_penalty}, got None: give "
                "True for the ids that stand in the text so far, or leave repetition_penalty out"
            )
        return penalise_repetition(_widened(logits), seen, self.repetition_penalty)


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)
