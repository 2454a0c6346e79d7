"""A model through lm-evaluation-harness, on tasks of its list or on one of your own.

    python examples/lm_eval_run.py runs/default/model --tasks lambada_openai
    python examples/lm_eval_run.py runs/default/model --documents mine.jsonl

With --documents, each line is {"question": …, "choices": [… ], "answer": 0}, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.evaluation.lm_eval import HierarchicalLM

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="folder of a model that was trained on bytes, or user/name")
parser.add_argument("--tasks", nargs="+", default=[], help="of lm-eval's list")
parser.add_argument("--documents", type=Path, help="a task of your own, as JSON lines")
parser.add_argument("--limit", type=int, help="documents of each task")


def own_task(documents: Path) -> dict[str, Any]:
    return {
        "task": documents.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents)}},
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }


def main() -> None:
    options = parser.parse_args()
    tasks: list[Any] = [*options.tasks, *([own_task(options.documents)] if options.documents else [])]
    if not tasks:
        parser.error("nothing to do: name --tasks, or --documents")
    model = HierarchicalTransformer.from_pretrained(options.model)
    found = lm_eval.simple_evaluate(
        model=HierarchicalLM(model),
        tasks=tasks,
        task_manager=TaskManager(include_defaults=bool(options.tasks)),  # listing lm-eval's own takes seconds
        limit=options.limit,
    )
    print(json.dumps(found["results"], indent=2, default=str))


if __name__ == "__main__":
    main()
