"""How likely a model finds given continuations of given contexts, many at a time.

What several continuations have in common, their context, is read once: each continuation then goes on from a clone of
the decoding state. Contexts of similar length are read side by side, as far as the shortest reaches; what the others
have more is read with each of their continuations. For two contexts with two continuations each:

    once            a b c        for each continuation    | c  x x x
                    d e f                                 | f g h  y y

The last token that is read once predicts nothing that is asked for. Rows are padded behind their end, which no token
before it sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from ..model import HierarchicalTransformer
from ..state import DecodingState
from . import bits_per_byte
from .bits_per_byte import chunk_length, cross_entropies, evaluating

SLACK = 32  # tokens by which rows that are read side by side may differ in length, besides a quarter


class Question(NamedTuple):
    """How likely is this continuation of this context, of at least one token?"""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Answer(NamedTuple):
    logprob: float  # of the whole continuation, in nats
    is_greedy: bool  # whether each of its tokens is the likeliest


class Group(NamedTuple):
    """Continuations of one context, with the number of the question that each belongs to."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def sizes(self) -> tuple[int, int]:
        """Lengths of the context, and of the whole with its longest continuation."""
        return len(self.context), len(self.context) + max(len(ids) for _, ids in self.continuations)


def loglikelihoods(
    model: HierarchicalTransformer, questions: Sequence[Question], *, batch_size: int = 16
) -> list[Answer]:
    """The answers, in the order of the questions.

    Texts may be of any length: nothing is cut off. Past `seq_len` tokens, full windows reach over that many in each
    layer, as everywhere with a decoding state. Of an empty continuation the log-probability is 0.
    """
    answers: dict[int, Answer] = {}
    with evaluating(model):
        for batch in batches(groups(questions), batch_size):
            answers.update(answered(model, batch))
    return [answers[i] for i in range(len(questions))]


def groups(questions: Sequence[Question]) -> list[Group]:
    """Questions by their contexts, in order of length; those whose context isn't worth sharing, by themselves."""
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, question in enumerate(questions):
        numbers.setdefault(question.context, []).append(number)
    found = []
    for context, own in numbers.items():
        group = Group(context, tuple((number, questions[number].continuation) for number in own))
        length, whole = group.sizes
        # rows side by side are faster than one after the other, unless they would read much more
        is_shared = length > whole - length
        found += [group] if is_shared else [Group(context, (each,)) for each in group.continuations]
    return sorted(found, key=lambda group: group.sizes)


def batches(ordered: Iterable[Group], batch_size: int) -> Iterator[list[Group]]:
    batch: list[Group] = []
    for group in ordered:
        if batch and (len(batch) == batch_size or not are_similar(batch[0].sizes, group.sizes)):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def are_similar(sizes: Sequence[int], others: Sequence[int]) -> bool:
    return all(4 * abs(a - b) <= min(a, b) + 4 * SLACK for a, b in zip(sizes, others, strict=True))


def answered(model: HierarchicalTransformer, batch: Sequence[Group]) -> Iterator[tuple[int, Answer]]:
    common = min(len(group.context) for group in batch) - 1
    state = model.init_state(len(batch), max_rewind=0)
    shared = torch.tensor([group.context[:common] for group in batch], dtype=torch.long, device=model.device)
    for chunk in torch.split(shared, bits_per_byte.CHUNK, dim=1) if common else ():
        model(chunk, state=state, logits_to_keep=1)
    most = max(len(group.continuations) for group in batch)
    for index in range(most):
        # the last one needs no clone
        own_state = state if index == most - 1 else state.clone()
        asked = [group.continuations[index] if index < len(group.continuations) else (-1, ()) for group in batch]
        questions = [Question(group.context[common:], ids) for group, (_, ids) in zip(batch, asked, strict=True)]
        for (number, _), answer in zip(asked, continued(model, own_state, questions), strict=True):
            if number >= 0:
                yield number, answer


def continued(model: HierarchicalTransformer, state: DecodingState, questions: Sequence[Question]) -> list[Answer]:
    """The answers to a row of questions each, whose contexts go on from what the state has seen."""
    rows = [torch.tensor(question.context + question.continuation) for question in questions]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    column = torch.arange(1, ids.shape[1])
    first = torch.tensor([len(question.context) for question in questions])[:, None]
    stop = torch.tensor([len(row) for row in rows])[:, None]
    asked = (column >= first) & (column < stop)
    logprobs = torch.zeros(len(rows), dtype=torch.float64)
    greedy = torch.ones(len(rows), dtype=torch.bool)
    size = chunk_length(len(rows), model.num_tokens)
    for low in range(0, ids.shape[1] - 1, size):
        own = asked[:, low : low + size]
        targets = ids[:, low + 1 : low + 1 + size].to(model.device)
        logits = model(ids[:, low : low + size][:, : own.shape[1]].to(model.device), state=state)
        losses = cross_entropies(logits, targets).cpu().double()
        logprobs -= losses.where(own, 0).sum(dim=1)
        greedy &= ((logits.argmax(dim=-1) == targets).cpu() | ~own).all(dim=1)
    return [Answer(*values) for values in zip(logprobs.tolist(), greedy.tolist(), strict=True)]
