"""A model through lm-eval itself, on tasks of our own, without a network."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from configurations import build

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, hash_args
from lm_eval.tasks import TaskManager

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.evaluation.lm_eval import HierarchicalLM
from simple_hierarchical_transformer.evaluation.until import Until, write_until
from simple_hierarchical_transformer.text.tokenizer import BYTES

from .plain import log_probabilities, small

SMALL = {
    "num_tokens": 257, "dim": (8, 6), "depth": 2, "seq_len": 32, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 8), "hierarchical_stride": (1, 4), "window_sizes": (3, None),
}  # fmt: skip
DOCUMENTS = [
    {"question": "Two and two are", "choices": [" three", " four", " five"], "answer": 1, "text": "Two and two."},
    {"question": "A question that is longer than what the model sees at once is", "choices": [" x", " why", " z"],
     "answer": 2, "text": "Ein längerer Text, länger als was das Modell auf einmal sieht, mit Umlauten."},
    {"question": "", "choices": ["a", "é", "the"], "answer": 0, "text": "x"},
]  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "choose": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "write": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 9, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> HierarchicalTransformer:
    return small(SMALL)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    file = tmp_path / "test.json"
    file.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS), encoding="utf-8")
    source = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path)},
        "test_split": "test", "num_fewshot": 0,
    }  # fmt: skip
    return [{"task": name, **source, **task} for name, task in TASKS.items()]


def plain(model: HierarchicalTransformer, context: bytes, continuation: bytes) -> tuple[float, bool]:
    """Byte by byte, by one plain call on the text alone."""
    text = torch.tensor(list((context or b"\n") + continuation))
    log_p = log_probabilities(model, text)
    asked = range(len(text) - len(continuation), len(text))
    greedy = all(int(log_p[position - 1].argmax()) == int(text[position]) for position in asked)
    return sum(float(log_p[position - 1, text[position]]) for position in asked), greedy


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def test_lm_eval_runs_every_kind_of_task(model: HierarchicalTransformer, tasks: list[dict[str, Any]]) -> None:
    alone = TaskManager(include_defaults=False)  # lm-eval's own tasks take seconds to list
    found = lm_eval.simple_evaluate(
        model=HierarchicalLM(model, batch_size=2), tasks=tasks, task_manager=alone, bootstrap_iters=0
    )
    results = found["results"]
    right, nats, size = 0, 0.0, 0
    for document in DOCUMENTS:
        context = document["question"].encode()
        scores = [plain(model, context, choice.encode())[0] for choice in document["choices"]]
        right += max(range(3), key=scores.__getitem__) == document["answer"]
        nats -= plain(model, b"", document["text"].encode())[0]
        size += len(document["text"].encode())
    assert results["choose"]["acc,none"] == pytest.approx(right / 3)
    assert results["perplexity"]["bits_per_byte,none"] == pytest.approx(nats / size / math.log(2))
    until = Until((b"e", b"\n"), 9, {"temperature": 0.0})
    for sample in found["samples"]["write"]:
        prompt = sample["doc"]["question"].encode() or b"\n"
        (text,) = write_until(model, BYTES, [list(prompt)], until)
        assert sample["resps"] == [[text.decode("utf-8", "replace")]]


def test_answers_are_those_of_plain_calls(model: HierarchicalTransformer) -> None:
    pairs = [(d["question"], choice) for d in DOCUMENTS for choice in d["choices"]] + [("Space ", "behind"), ("a", "")]
    answers = HierarchicalLM(model, batch_size=3).loglikelihood(requests("loglikelihood", *pairs))
    for (context, continuation), (logprob, is_greedy) in zip(pairs, answers, strict=True):
        expected, greedy = plain(model, context.encode(), continuation.encode())
        assert logprob == pytest.approx(expected, rel=1e-10)
        assert is_greedy is greedy


def test_a_separator_stands_before_what_has_no_context_and_ends_texts() -> None:
    model = small(SMALL)
    adapter = HierarchicalLM(model, separator=256)
    (answer,) = adapter.loglikelihood_rolling(requests("loglikelihood_rolling", ("ab",)))
    log_p = log_probabilities(model, torch.tensor([256, 97, 98]))
    assert answer == pytest.approx(float(log_p[0, 97] + log_p[1, 98]), rel=1e-10)
    with torch.no_grad():
        model.to_logits.weight[256] += 100 * model.to_logits.weight[256].sign()
    texts = adapter.generate_until(requests("generate_until", *[(word, {}) for word in ("", "ab", "abc", "z")]))
    assert any(len(text) < 256 for text in texts)


def test_generation_arguments_differ_from_request_to_request(model: HierarchicalTransformer) -> None:
    adapter = HierarchicalLM(model, max_gen_toks=5)
    whole, three, other = adapter.generate_until(
        requests("generate_until", ("ab", {}), ("ab", {"max_gen_toks": 3}), ("cd", {"max_gen_toks": 3}))
    )
    for prompt, length, text in (("ab", 5, whole), ("ab", 3, three), ("cd", 3, other)):
        tokens = model.generate(torch.tensor([list(prompt.encode())]), length, temperature=0)[0].tolist()
        assert text == BYTES.decode(tokens).decode("utf-8", "replace")


class Pairs:
    """Bytes, and one id for each pair `ab`, so that context and continuation may grow together."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode().replace(b"ab", b"\0"))

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).replace(b"\0", b"ab").decode("utf-8", "replace")


def test_a_token_over_the_border_of_context_and_continuation_counts_as_continuation(
    model: HierarchicalTransformer,
) -> None:
    adapter = HierarchicalLM(model, Pairs())
    answers = adapter.loglikelihood(requests("loglikelihood", ("xa", "bc"), ("xa", "c"), ("a", "b")))
    for (logprob, _), (context, continuation) in zip(
        answers, ((b"x", b"\0c"), (b"xa", b"c"), (b"", b"\0")), strict=True
    ):
        assert logprob == pytest.approx(plain(model, context, continuation)[0], rel=1e-10)


def test_results_reach_lm_evals_cache(model: HierarchicalTransformer) -> None:
    adapter, hook = HierarchicalLM(model), CacheHook(None)
    hook.dbdict = {}
    adapter.set_cache_hook(hook)
    for kind, arguments in (
        ("loglikelihood", ("ab", "c")), ("loglikelihood_rolling", ("abc",)), ("generate_until", ("ab", {})),
    ):  # fmt: skip
        (result,) = getattr(adapter, kind)(requests(kind, arguments))
        assert hook.dbdict.pop(hash_args(kind, arguments)) == result


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tokenizer bytes has 256 ids, but the model knows 11: give the tokenizer"):
        HierarchicalLM(build(SMALL | {"num_tokens": 11}))


def test_arguments_out_of_range_are_refused(model: HierarchicalTransformer) -> None:
    for arguments in ({"batch_size": 0}, {"separator": 257}, {"max_gen_toks": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be at"):
            HierarchicalLM(model, **arguments)


def test_where_lm_eval_is_missing_the_remedy_is_named() -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "import simple_hierarchical_transformer.evaluation\n"
        "try:\n    import simple_hierarchical_transformer.evaluation.lm_eval\n"
        "except ValueError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "simple-hierarchical-transformer[eval]"' in run.stdout


def test_the_evaluation_of_bits_per_byte_does_not_import_lm_eval() -> None:
    code = "import sys, simple_hierarchical_transformer.evaluation; print('lm_eval' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
