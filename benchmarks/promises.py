"""What the library promises, and whether the tests behind it passed: `results/promises.json`, and docs/promises.md.

python benchmarks/promises.py           # a few minutes
python benchmarks/promises.py --slow    # with the long proofs: half an hour
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tables
import torch

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "promises.json"


@dataclass(frozen=True)
class Promise:
    """Something that users may count on, and the tests that hold it."""

    text: str
    tests: tuple[str, ...]


PROMISES = (
    Promise("No prediction sees what comes after it", ("test_causality.py", "test_checks.py")),
    Promise("A text in any chunks, with a state, gives the logits of the whole", ("test_segmentation.py",)),
    Promise("Time, memory and receptive fields are what `describe` says", ("test_cost.py",)),
    Promise("No option is silently ignored, and errors say what to do", ("test_options.py", "test_errors.py")),
    Promise("Every parameter learns", ("test_gradients.py",)),
    Promise(
        "Nothing is executed from a file, and what is damaged is refused",
        ("test_packaging.py", "test_checkpoint.py", "test_hostile_configurations.py"),
    ),
    Promise(
        "A run that is stopped or killed goes on to the same bits", ("training/test_resume.py", "training/test_kill.py")
    ),
    Promise("Several processes learn what one does", ("training/test_processes.py", "test_target_counts.py")),
    Promise(
        "Batched, cached and speculative texts are those that a row alone gets",
        ("test_generation.py", "test_speculation.py"),
    ),
    Promise("Bits per byte count every token once, after all it may see", ("evaluation/test_bits_per_byte.py",)),
    Promise("Scripts for the reference package run", ("test_reference_users.py",)),
    Promise("The code in README and docs runs", ("test_readme.py",)),
)


def outcomes(tests: tuple[str, ...], *, slow: bool) -> dict[str, int]:
    """How many of these tests passed, failed and were skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *(f"tests/{name}" for name in tests)]
        profile = {"HYPOTHESIS_PROFILE": "slow" if slow else "quick"}
        done = subprocess.run(
            [*command, *(["-m", "slow or not slow"] if slow else [])], cwd=ROOT, env=os.environ | profile
        )
        if done.returncode not in (0, 1):  # all passed, or some failed
            raise SystemExit(f"the tests of {', '.join(tests)} can't be run: see above")
        suites = list(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    }
    failed = counts["failures"] + counts["errors"]
    return {"passed": counts["tests"] - failed - counts["skipped"], "failed": failed, "skipped": counts["skipped"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slow", action="store_true", help="with the tests that are marked slow")
    slow = parser.parse_args().slow
    found: list[dict[str, Any]] = [
        {"promise": promise.text, "tests": promise.tests, **outcomes(promise.tests, slow=slow)} for promise in PROMISES
    ]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "slow": slow}
    RESULT.write_text(json.dumps({"versions": versions, "promises": found}, indent=1) + "\n")
    tables.main([])
    if any(row["failed"] for row in found):
        raise SystemExit("some promises don't hold: see above")


if __name__ == "__main__":
    main()
