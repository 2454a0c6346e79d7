"""Tasks of lm-eval on a model of this package.

    lm_eval.simple_evaluate(model=HierarchicalLM(model), tasks=["lambada_openai"])

It needs the extra `eval`, and is imported by those alone who use it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
except ModuleNotFoundError as error:
    raise ValueError(
        "simple_hierarchical_transformer.evaluation.lm_eval needs the package lm_eval, which isn't installed: "
        'pip install "simple-hierarchical-transformer[eval]"'
    ) from error

from ..model import HierarchicalTransformer
from ..text.tokenizer import TextTokenizer, Tokenizer, load_fitting
from ..validation import whole
from .loglikelihood import Answer, Question, loglikelihoods
from .until import Until, write_until


class HierarchicalLM(LM):  # type: ignore[misc]
    """A model as lm-eval asks it.

    Nothing is cut off: contexts, documents and texts may be longer than the model's `seq_len`, and are then seen as by
    a decoding state. Of a continuation counts what the tokens of context and continuation together have behind what
    they share with those of the context alone; with bytes, that is the continuation.

    Args:
        model: on its device, in its type; it runs under the caller's autocast.
        tokenizer: what its ids stand for: "bytes", a `tokenizers` JSON file, the name of a tiktoken encoding, or an
            object with `encode`, `decode` and `vocab_size`.
        batch_size: texts that run side by side.
        separator: the id between two documents in training. It stands before what has no context, that is documents of
            `loglikelihood_rolling` and continuations of nothing, and it ends a text that is generated. Where there is
            none, a newline stands there.
        max_gen_toks: tokens that are generated at most, where a task doesn't say it.

    Raises:
        TypeError, ValueError, OSError: for a tokenizer that can't be had or isn't the model's, and for other arguments
            out of range.
    """

    def __init__(
        self,
        model: HierarchicalTransformer,
        tokenizer: str | Path | Tokenizer | TextTokenizer = "bytes",
        *,
        batch_size: int = 16,
        separator: int | None = None,
        max_gen_toks: int = 256,
    ) -> None:
        super().__init__()
        self.model = model
        self.text_tokenizer = load_fitting(tokenizer, model.num_tokens)
        self.batch_size = whole("batch_size", batch_size, least=1)
        self.max_gen_toks = whole("max_gen_toks", max_gen_toks, least=1)
        if separator is not None:
            separator = whole("separator", separator, least=0, most=model.num_tokens - 1)
        self.separator = separator
        self.before = tuple(self.text_tokenizer.encode(b"\n")) if separator is None else (separator,)
        if not self.before:
            raise ValueError(
                f"tokenizer {self.text_tokenizer.name} has no id for a newline, which stands before what has no "
                "context: give the separator of the training"
            )

    @property
    def device(self) -> Any:
        return self.model.device

    @property
    def tokenizer_name(self) -> str:
        return self.text_tokenizer.name

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The log-probability, in nats, of each continuation, and whether greedy decoding gives it."""
        pairs = [request.args for request in requests]
        contexts = self._encoded([context for context, _ in pairs])
        wholes = self._encoded([context + continuation for context, continuation in pairs])
        answers = self._answered([self._question(*ids) for ids in zip(contexts, wholes, strict=True)])
        return self._noted("loglikelihood", requests, [tuple(answer) for answer in answers])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-probability, in nats, of each whole document."""
        documents = self._encoded([request.args[0] for request in requests])
        answers = self._answered([self._question([], document) for document in documents])
        return self._noted("loglikelihood_rolling", requests, [answer.logprob for answer in answers])

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The continuation of each context, up to the first of the words that end it.

        Raises:
            TypeError, ValueError: for generation arguments that aren't offered.
        """
        alike: dict[str, list[int]] = {}  # requests with the same arguments
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=repr), []).append(number)
        texts = [""] * len(requests)
        for numbers in alike.values():
            until = Until.of(requests[numbers[0]].args[1], self.max_gen_toks)
            prompts = [ids or self.before for ids in self._encoded([requests[number].args[0] for number in numbers])]
            written = write_until(
                self.model, self.text_tokenizer, prompts, until, end=self.separator, batch_size=self.batch_size
            )
            for number, text in zip(numbers, written, strict=True):
                texts[number] = text.decode("utf-8", "replace")
        return self._noted("generate_until", requests, texts)

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        return self.text_tokenizer.encode_batch([text.encode("utf-8", "replace") for text in texts])

    def _question(self, context: Sequence[int], whole: Sequence[int]) -> Question:
        shared = 0
        while shared < min(len(context), len(whole)) and context[shared] == whole[shared]:
            shared += 1
        return Question(tuple(whole[:shared]) or self.before, tuple(whole[shared:]))

    def _answered(self, questions: Sequence[Question]) -> list[Answer]:
        return loglikelihoods(self.model, questions, batch_size=self.batch_size)

    def _noted(self, kind: str, requests: Sequence[Instance], results: list[Any]) -> list[Any]:
        """Results, known to lm-eval's cache from now on."""
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial(kind, request.args, result)
        return results
