"""Self-speculative decoding (Leviathan et al., arXiv 2211.17192): coarse streams draft, one forward verifies.

A coarse token at fine position `q` has learnt to predict the input tokens q+1 … q+c (the prophet loss; as Medusa's
heads do, arXiv 2401.10774). With `p` the last position seen, what it predicts beyond `p` is a draft that costs next
to nothing. For factor 8 and stride 8, at p = 9, with token 10 just chosen from the logits:

    coarse token at 8 predicts      9 10 11 12 13 14 15 16
    chunk to verify                   10|11 12 13 14 15 16      the logits at 10 … 16 judge 11 … 16 and give one more

Accepted tokens are kept, refused ones rewound. Greedy text is the same, token for token; sampled text has exactly the
distribution of sampling without drafts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .sampling import draw
from .state import DecodingState
from .writing import Decoder, Request, logprobs_of, not_finite, prefill

LEAST_CONFIDENCE = 0.2  # a draft ends where it is less likely than that to be right so far


class SpeculativeRun:
    """Write one row, several tokens per forward."""

    def __init__(self, model: Decoder, request: Request, state: DecodingState) -> None:
        self.model = model
        self.request = request
        self.state = state
        self.tokens: list[int] = []
        self.logprobs: list[Tensor] = []
        self.verifications = 0
        self.verified = 0  # tokens that they gave
        self.seen: Tensor | None = None
        if request.sampling.needs_seen:
            vocabulary = torch.arange(model.config.num_tokens, device=model.device)
            self.seen = torch.isin(vocabulary, request.prompts.ids)[None]

    @property
    def acceptance_length(self) -> float:
        """Mean number of tokens that one verifying forward gave; 1 where no draft was ever accepted."""
        return self.verified / self.verifications if self.verifications else 1.0

    def __iter__(self) -> Iterator[int]:
        request, state = self.request, self.state
        logits = prefill(self.model, request, state)
        if request.length:
            self.check_finite(logits)
            first = int(request.sampling.choose(logits, request.generator, self.seen))
            self.append([first], logits)
            yield 1
        while self.tokens and len(self.tokens) < request.length and self.tokens[-1] not in request.ends:
            drafted, proposal = self.draft(request.length - len(self.tokens) - 1)
            chunk = torch.cat((torch.tensor([self.tokens[-1]], device=drafted.device), drafted))
            logits = self.model(chunk[None], state=state, ablate_hierarchical_merge=request.ablate)[0]
            self.check_finite(logits)
            new = self.verify(logits, drafted, proposal)
            new = new[: next((i + 1 for i, token in enumerate(new) if token in request.ends), len(new))]
            state.rewind(len(chunk) - len(new))  # all that is written has been seen, but the last
            self.verifications += 1
            self.verified += len(new)
            self.append(new, logits)
            yield len(self.tokens)

    def draft(self, most: int) -> tuple[Tensor, Tensor]:
        """Tokens (k,) that may come after the last one, k at most `most`, and what they were drawn from (k, v).

        How long the draft is depends on distributions alone, never on what was drawn, so that refusing stays exact.
        """
        logits = self.model.draft(self.state)[0, :most]
        confidence = logits.softmax(dim=-1).amax(dim=-1).cumprod(dim=0)
        logits = logits[: int((confidence >= LEAST_CONFIDENCE).sum())]
        sampling = self.request.sampling
        seen = None if self.seen is None else self.seen.expand(len(logits), -1)
        if sampling.is_greedy:
            return sampling.choose(logits, seen=seen), logits
        proposal = sampling.probabilities(logits, seen)
        return draw(proposal, self.request.generator), proposal

    def verify(self, logits: Tensor, drafted: Tensor, proposal: Tensor) -> list[int]:
        """Of the logits (k + 1, v) behind the last token and each drafted one: what is accepted, and one token more."""
        sampling, generator = self.request.sampling, self.request.generator
        drafts: list[int] = drafted.tolist()
        if sampling.is_greedy and self.seen is None:
            choices: list[int] = logits.argmax(dim=-1).tolist()
            accepted = next((i for i, token in enumerate(drafts) if token != choices[i]), len(drafts))
            return choices[: accepted + 1]
        seen, luck = self.seen, torch.rand(len(drafts), device=logits.device, generator=generator).tolist()
        target = sampling.probabilities(logits) if seen is None else None
        for i, token in enumerate(drafts):
            wanted = target[i] if target is not None else sampling.probabilities(logits[i][None], seen)[0]
            if sampling.is_greedy:
                if wanted[token] == 0:
                    return [*drafts[:i], int(wanted.argmax())]
            elif luck[i] * proposal[i, token] >= wanted[token]:
                left = (wanted - proposal[i]).clamp(min=0)  # nothing is left of equals, but for rounding
                return [*drafts[:i], int(draw((left if left.any() else wanted)[None], generator))]
            if seen is not None:
                seen = seen.index_fill(1, drafted[i], True)
        return [*drafts, int(sampling.choose(logits[-1:], generator, seen))]

    def append(self, new: list[int], logits: Tensor) -> None:
        """Write `new` tokens, chosen from the first rows of logits (k + 1, v)."""
        self.tokens += new
        index = torch.tensor(new, device=logits.device)
        if self.seen is not None:
            self.seen = self.seen.index_fill(1, index, True)
        if self.request.logprobs:
            self.logprobs.append(logprobs_of(index, logits[: len(new)]))

    def check_finite(self, logits: Tensor) -> None:
        """Of logits (k, v), the last of which are for the position that comes next."""
        finite = logits.isfinite().all(dim=-1)
        if not finite.all():
            raise not_finite(self.state.position + 1 - len(logits) + int(finite.int().argmin()))

    def token(self, index: int) -> Tensor:
        return torch.tensor([self.tokens[index]], device=self.model.device)

    def result(self) -> tuple[Tensor, Tensor]:
        tokens = torch.tensor([self.tokens], dtype=torch.long, device=self.model.device)
        logprobs = torch.cat(self.logprobs) if self.logprobs else torch.zeros(0, device=self.model.device)
        return tokens, logprobs[None]
