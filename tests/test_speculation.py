"""Speculative text is the text without speculation: token for token where it is greedy, else in distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from configurations import SEEDS, SLOW, VOCABULARY, build, examples, random_ids, stream_arguments
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from simple_hierarchical_transformer import DecodingState, HierarchicalTransformer
from simple_hierarchical_transformer.generation import GenerationMixin
from simple_hierarchical_transformer.sampling import Sampling
from simple_hierarchical_transformer.speculation import SpeculativeRun
from simple_hierarchical_transformer.state import StateNode, StateSpec

ARGUMENTS: dict[str, Any] = {
    "num_tokens": 11, "dim": (16, 16, 8), "depth": 1, "seq_len": 64, "dim_head": 8, "heads": 2,
    "hierarchies": (1, 4, 8), "hierarchical_stride": (1, 1, 8), "window_sizes": (8, None, None),
    "prophet_loss_weight": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> HierarchicalTransformer:
    """A model that knows a text of period 11 by heart."""
    torch.manual_seed(0)
    model = HierarchicalTransformer(**ARGUMENTS).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    text = torch.tensor([1, 2, 3, 4, 5, 1, 7, 8, 9, 10, 6]).repeat(20)
    for step in range(60):
        batch = torch.stack([text[start : start + 65] for start in torch.arange(8) + 8 * (step % 3)])
        loss, _ = model(batch, return_loss=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@examples(quick=30, slow=300)
@given(data=st.data(), arguments=stream_arguments(), seed=SEEDS)
def test_greedy_text_is_the_same_token_for_token(data: st.DataObject, arguments: dict[str, Any], seed: int) -> None:
    assume(max(arguments["hierarchies"]) > 1)
    model = build(arguments | {"prophet_loss_weight": 0.1}, seed=seed)
    prompt = random_ids(1, data.draw(st.integers(1, 20)), seed)
    options: dict[str, Any] = {
        "temperature": 0,
        "eos_token_id": data.draw(st.sampled_from([None, 3])),
        "repetition_penalty": data.draw(st.sampled_from([None, 1.5])),
        "return_logprobs": True,
    }
    length = data.draw(st.integers(0, 40))
    plain, speculative = (model.generate(prompt, length, speculative=s, **options) for s in (False, True))
    assert torch.equal(plain[0], speculative[0])
    assert plain[1].shape == speculative[1].shape
    assert length == 0 or (plain[1] - speculative[1]).abs().max() < 1e-10


def test_what_the_model_can_predict_is_accepted_several_tokens_at_a_time(trained: HierarchicalTransformer) -> None:
    prompt = torch.tensor([[1, 2, 3, 4, 5, 1, 7]])
    calls: list[int] = []
    handle = trained.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape[1]))
    options: dict[str, Any] = {"temperature": 0, "speculative": True, "return_acceptance_length": True}
    text, acceptance = trained.generate(prompt, 50, **options)
    handle.remove()
    assert torch.equal(text, trained.generate(prompt, 50, temperature=0))
    assert acceptance == pytest.approx(49 / (len(calls) - 1))
    assert acceptance > 4


def test_the_state_afterwards_continues_the_text(trained: HierarchicalTransformer) -> None:
    prompt = torch.tensor([[1, 2, 3, 4, 5, 1, 7]])
    whole = trained.generate(prompt, 60, temperature=0)
    for length in range(1, 40):
        options: dict[str, Any] = {"temperature": 0, "speculative": True, "return_state": True}
        first, state = trained.generate(prompt, length, **options)
        assert state.position == 7 + length - 1
        more = trained.generate(first[:, -1:], 60 - length, temperature=0, speculative=True, state=state)
        assert torch.equal(torch.cat((first, more), dim=1), whole)


def test_a_text_ends_in_the_middle_of_a_draft(trained: HierarchicalTransformer) -> None:
    prompt = torch.tensor([[1, 2, 3, 4, 5, 1, 7]])
    for end in (9, 4, 6):
        options: dict[str, Any] = {"temperature": 0, "eos_token_id": end}
        expected = trained.generate(prompt, 60, **options)
        text, state = trained.generate(prompt, 60, **options, speculative=True, return_state=True)
        assert torch.equal(text, expected) and text[0, -1] == end
        assert state.position == 7 + text.shape[1] - 1


class Chain(GenerationMixin):
    """Logits that depend on the last token alone, and a draft that is wrong about them."""

    device, dtype = torch.device("cpu"), torch.float64

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(5)
        self.config = HierarchicalTransformer(
            num_tokens=4, dim=2, depth=1, hierarchies=(1, 4), window_sizes=1, prophet_loss_weight=1.0
        ).config
        self.table = torch.randn(4, 4, generator=random, dtype=torch.float64) * 1.5
        self.drafts = torch.randn(3, 4, generator=random, dtype=torch.float64) * 2

    def init_state(self, batch_size: int, *, max_rewind: int = 16, drafts: bool = False) -> DecodingState:
        spec = StateSpec(
            batch_size=batch_size, max_rewind=max_rewind, dtype=self.dtype, device=self.device, drafts=drafts
        )
        return DecodingState(spec, self.config, StateNode())

    def draft(self, state: DecodingState) -> Tensor:
        return self.drafts[None, state.position % 2 :].log_softmax(dim=-1)

    def __call__(self, ids: Tensor, *, state: DecodingState, **options: Any) -> Tensor:
        state.begin(ids.shape[1])
        state.advance(ids.shape[1], ablated=False)
        return self.table[ids]


OPTIONS: list[dict[str, Any]] = [
    {"filter_thres": 0.0}, {"temperature": 0.7, "top_k": 3}, {"temperature": 2.0, "top_p": 0.9},
    {"filter_thres": 0.0, "repetition_penalty": 1.5},
]  # fmt: skip


def exact(chain: Chain, first: int, length: int, options: dict[str, Any]) -> dict[tuple[int, ...], float]:
    """The probability of every text of `length` tokens after the token `first`."""
    sampling, texts = Sampling(**options), {(first,): 1.0}
    for _ in range(length):
        longer: dict[tuple[int, ...], float] = {}
        for text, probability in texts.items():
            seen = torch.tensor([[token in text for token in range(4)]])
            for token, share in enumerate(sampling.probabilities(chain.table[text[-1]][None], seen)[0].tolist()):
                longer[(*text, token)] = probability * share
        texts = longer
    return {text[1:]: probability for text, probability in texts.items()}


def chi_squared(chain: Chain, options: dict[str, Any], draws: int, length: int = 3) -> tuple[float, int]:
    """The statistic of `draws` speculative texts against their exact distribution, and its degrees of freedom."""
    generator, counts = torch.Generator().manual_seed(0), dict.fromkeys(exact(chain, 1, length, options), 0)
    for _ in range(draws):
        text = chain.generate(torch.tensor([[1]]), length, speculative=True, generator=generator, **options)
        counts[tuple(text[0].tolist())] += 1
    expected = {text: draws * probability for text, probability in exact(chain, 1, length, options).items()}
    assert not [text for text, count in counts.items() if count and not expected[text]]
    kept = [text for text in counts if expected[text] >= 5]
    rest = sum(expected[text] for text in counts if text not in kept)
    statistic = sum((counts[text] - expected[text]) ** 2 / expected[text] for text in kept)
    if rest > 0:
        statistic += (sum(counts[text] for text in counts if text not in kept) - rest) ** 2 / rest
    return statistic, len(kept) - 1 + (rest > 0)


def exceeded_once_in_a_thousand_seeds(freedom: int) -> float:
    """The 0.999 quantile of chi-squared (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.0902 * (2 / (9 * freedom)) ** 0.5) ** 3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sampled_text_has_exactly_the_distribution_without_speculation(options: dict[str, Any]) -> None:
    statistic, freedom = chi_squared(Chain(), options, draws=100_000 if SLOW else 4_000)
    assert statistic < exceeded_once_in_a_thousand_seeds(freedom)


def test_a_real_model_samples_as_it_would_without_speculation(trained: HierarchicalTransformer) -> None:
    """With its own drafts, states and rewinding: the first tokens of many texts, against those of plain sampling."""
    prompt, draws = torch.tensor([[1, 2, 3, 4, 5, 1, 7, 8]]), 4_000 if SLOW else 400
    counts = torch.zeros(2, VOCABULARY * VOCABULARY)
    state = trained.init_state(1, max_rewind=8, drafts=True)
    with torch.no_grad():
        trained(prompt[:, :-1], state=state)
    for speculative in (0, 1):
        generator = torch.Generator().manual_seed(speculative)
        for _ in range(draws):
            text = trained.generate(
                prompt[:, -1:], 4, temperature=3.0, filter_thres=0.0, generator=generator,
                speculative=bool(speculative), state=state.clone(),
            )  # fmt: skip
            counts[speculative, text[0, 1] * VOCABULARY + text[0, 2]] += 1
    both = counts.sum(dim=0)
    kept = both >= 10
    table = torch.cat((counts[:, kept], counts[:, ~kept].sum(dim=1, keepdim=True)), dim=1)
    statistic = float(((table[0] - table[1]).square() / table.sum(dim=0).clamp(min=1)).sum())
    assert statistic < exceeded_once_in_a_thousand_seeds(int((table.sum(dim=0) > 0).sum()) - 1)


def always_accept(self: SpeculativeRun, logits: Tensor, drafted: Tensor, proposal: Tensor) -> list[int]:
    sampling = self.request.sampling
    return [*drafted.tolist(), int(sampling.choose(logits[-1:], self.request.generator, self.seen))]


def choose_anew_when_refused(self: SpeculativeRun, logits: Tensor, drafted: Tensor, proposal: Tensor) -> list[int]:
    """Not from what is left: what was refused gets a second chance."""
    accepted = verify(self, logits, drafted, proposal)
    if len(accepted) <= len(drafted):
        row = logits[len(accepted) - 1][None]
        accepted[-1] = int(self.request.sampling.choose(row, self.request.generator, self.seen))
    return accepted


verify = SpeculativeRun.verify


@pytest.mark.parametrize("fault", [always_accept, choose_anew_when_refused])
def test_a_planted_fault_is_caught(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpeculativeRun, "verify", fault)
    statistic, freedom = chi_squared(Chain(), OPTIONS[0], draws=4_000)
    assert statistic > exceeded_once_in_a_thousand_seeds(freedom)


def test_a_draft_is_what_the_prophet_heads_predict_beyond_the_next_token() -> None:
    """Followed by hand for factors 4 and 8: each position by the streams that reach it."""
    model, ids = build(ARGUMENTS), random_ids(1, 13, seed=0)
    for seen in range(1, 14):
        state = model.init_state(1, drafts=True)
        with torch.no_grad():
            model(ids[:, :seen], state=state)
            draft = model.draft(state)
            embeds = model(ids[:, :seen], return_hierarchical_embeds=True)
        expected: dict[int, list[Tensor]] = {}
        for stream, (factor, stride) in enumerate([(1, 1), (4, 1), (8, 8)]):
            if factor == 1:
                continue
            at = (seen - 1) // stride * stride
            vectors = model.objective.prophet[str(stream)].to_tokens(embeds[stream][0, at // stride]).view(factor, 16)
            for ahead, vector in enumerate(vectors, start=1):
                if at + ahead > seen:
                    expected.setdefault(at + ahead, []).append((model.to_logits.weight @ vector).softmax(dim=0))
        assert draft.shape[1] == len(expected)
        for position, probabilities in expected.items():
            difference = draft[0, position - seen - 1].exp() - torch.stack(probabilities).mean(dim=0)
            assert difference.abs().max() < 1e-6
