"""The harness behind docs/evidence.md: what it calls a variant is one, and what it calls a run happened."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import quality_plan  # noqa: E402
import quality_report  # noqa: E402
import quality_runs  # noqa: E402
import quality_worker  # noqa: E402
from quality_contenders import KINDS, Contender, optimizers, trained_parameters  # noqa: E402
from quality_plan import GRID, SEVERAL, TABLES, Table, made  # noqa: E402
from quality_runs import Run  # noqa: E402

LENGTH = 64
SMALL = {"dim": 16, "heads": 2, "dim_head": 8, "ngram_table_size": 32}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are written, instead of the repository."""
    monkeypatch.setattr(quality_runs, "FOLDER", tmp_path)
    return tmp_path


def small(run: Run) -> Run:
    """The same model, so much narrower that a test can take a step of it."""
    arguments = dict(run.arguments)
    count = len(arguments.get("hierarchies", [1]))
    for name, value in SMALL.items():
        if name != "ngram_table_size":
            arguments[name] = [value] * count if isinstance(arguments[name], list) else value
        elif arguments["ngram_sizes"]:
            arguments[name] = value
    return replace(run, arguments=arguments, seq_len=LENGTH, batch=2)


def built(run: Run) -> Contender:
    torch.manual_seed(0)
    return KINDS[run.kind].make(run.arguments, run.seq_len)


def rows() -> Iterator[tuple[str, Run]]:
    for table in ("questions", "recipe", "claim"):
        for run in TABLES[table].runs():
            if run.seed == 0:
                yield table, run


ROWS = [pytest.param(run, id=f"{table}: {run.contender}") for table, run in rows()]
IDS = torch.randint(0, 256, (2, LENGTH + 1), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("run", ROWS)
def test_every_row_learns_with_all_its_parameters_and_sees_nothing_ahead(run: Run) -> None:
    contender = built(small(run))
    with torch.no_grad():  # so that what begins at zero shows
        for parameter in contender.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    loss, next_byte = contender.losses(IDS)
    loss.backward()
    assert next_byte.isfinite()
    without = [
        n for n, p in contender.model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not without
    assert contender.logits is not None
    other = IDS[:, :-1].clone()
    other[:, 40:] = (other[:, 40:] + 1) % 256
    before, after = (contender.logits(ids)[:, :40] for ids in (IDS[:, :-1], other))
    assert (before - after).abs().max() < 1e-4 * before.abs().max()


def outcome(run: Run) -> tuple[float, ...]:
    """Of a few steps at a rate so high that what differs shows."""
    contender = built(run)
    made_by = optimizers(contender.model, run)
    losses = []
    for _ in range(4):
        loss, next_byte = contender.losses(IDS)
        loss.backward()
        for optimizer in made_by:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(next_byte.item())
    return (*losses, float(trained_parameters(contender.model)))


@pytest.mark.parametrize("table", ["questions", "recipe"])
def test_no_two_rows_of_a_table_are_the_same(table: str) -> None:
    same_but_for_its_time = TABLES[table].budgets
    runs = [small(run) for of, run in rows() if of == table and run.contender not in same_but_for_its_time]
    same_when_small = {
        "width 64",
        "width 128",
        "window 256",
        "g. coarse width 64",
        "g. coarse width 192",
        "4,096 rows for each size",
        "65,536 rows for each size",
    }
    outcomes: dict[tuple[float, ...], str] = {}
    for run in runs:
        if run.contender not in same_when_small:
            found = outcome(run)
            assert found not in outcomes, f"{run.contender} is {outcomes[found]}"
            outcomes[found] = run.contender


def test_an_equal_seed_gives_all_contenders_the_same_batches_and_each_step_another(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(range(256)) * 20)
    first, second = quality_worker.Text(tmp_path / "train.bin"), quality_worker.Text(tmp_path / "train.bin")
    assert torch.equal(first.batch(0, 3, 2, 16), second.batch(0, 3, 2, 16))
    assert not torch.equal(first.batch(0, 3, 2, 16), first.batch(0, 4, 2, 16))
    assert not torch.equal(first.batch(0, 3, 2, 16), first.batch(1, 3, 2, 16))


def trained(run: Run, tmp_path: Path) -> dict[str, Any]:
    """By a process of its own, as the command does it."""
    text = (Path(__file__).read_bytes() * 3)[:20_000]
    for name in ("train.bin", "validation.bin"):
        (tmp_path / name).write_bytes(text)
    what, answer = tmp_path / "run.json", tmp_path / "answer.json"
    what.write_text(json.dumps(asdict(run)))
    subprocess.run(
        [sys.executable, ROOT / "benchmarks/quality_worker.py", what, tmp_path, tmp_path, answer], check=True
    )
    result: dict[str, Any] = json.loads(answer.read_text())
    return result


def test_a_run_is_trained_scored_and_the_same_again(tmp_path: Path) -> None:
    run = small(made(quality_plan.HIERARCHICAL, steps=5))
    first, second = trained(run, tmp_path), trained(run, tmp_path)
    assert first["bits_per_byte"] == second["bits_per_byte"]
    assert (first["steps"], first["tokens"]) == (5, 5 * 2 * LENGTH)
    assert 4 < first["bits_per_byte"] < 9
    assert set(first["ablated"]) == {"16"}
    assert len(first["by_phase"]) == quality_worker.PHASES
    by_flops = replace(run, steps=None, flops=3.2 * first["flops_per_step"])
    assert trained(by_flops, tmp_path)["steps"] == 3


def test_a_run_is_known_by_all_that_decides_it(folder: Path) -> None:
    run = made(quality_plan.SINGLE, seconds=1.0)
    assert run.result() is None
    run.save({"bits_per_byte": 1.5})
    assert run.result() == {"bits_per_byte": 1.5}
    assert Run.of(json.loads(run.path.read_text())["run"]).path == run.path
    for change in ({"seed": 1}, {"lr": 0.5}, {"seconds": 2.0}, {"arguments": {"dim": 8}}, {"text": "other"}):
        assert replace(run, **change).result() is None, change
    assert not list(folder.glob("*.part"))


def fake(bits: float, **more: Any) -> dict[str, Any]:
    return {
        "bits_per_byte": bits, "parameters": 10**6, "steps": 100, "seconds": 10.0, "tokens": 10**5,
        "flops_per_step": 10**9, "peak_bytes": 10**8, "curve": [[1.0, 10, 3.0], [10.0, 100, bits]], **more,
    }  # fmt: skip


def test_contenders_train_with_what_was_best_for_them_in_the_grid(folder: Path) -> None:
    assert quality_plan.best_point("MEGABYTE") is None
    assert not list(TABLES["wall_512"].runs())
    for i, point in enumerate(GRID):
        made("MEGABYTE", seconds=quality_plan.SHORT_SECONDS, **point).save(fake(2.0 + abs(i - 4)))
    runs = list(TABLES["wall_512"].runs())
    assert {(run.contender, run.optimizer, run.lr) for run in runs} == {("MEGABYTE", "muon", 0.02)}
    assert [run.seed for run in runs] == [0, 1, 2]
    assert "**2.000**" in quality_report.written("grid")
    assert "Open: 42 of 48 runs." in quality_report.written("grid")


def test_tables_rank_contenders_and_show_the_spread_of_seeds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [Run(contender=name, kind="ours", seed=seed, steps=1) for name in ("worse", "better") for seed in range(3)]
    for run, bits in zip(runs, (2.0, 2.1, 2.2, 1.5, 1.6, 1.4), strict=True):
        run.save(fake(bits))
    monkeypatch.setitem(TABLES, "contest", Table("", "contest", lambda: iter(runs)))
    monkeypatch.setitem(TABLES, "ablation", Table("", "ablation", lambda: iter(runs), base="worse"))
    lines = quality_report.written("contest").splitlines()
    assert lines[2].startswith("| better | **1.500 ± 0.100** |")
    assert lines[3].startswith("| worse | 2.100 ± 0.100 | +0.600 |")
    assert "| better | 1.500 ± 0.100 | -0.600 |" in quality_report.written("ablation")
    runs.append(Run(contender="late", kind="ours", steps=1))
    assert "Open: 1 of 7 runs." in quality_report.written("contest")


def test_what_a_row_gives_per_step_is_told_beside_the_base_of_as_many_steps(folder: Path) -> None:
    runs = {
        name: Run(contender=name, kind="ours", steps=1)
        for name in ("base", "less", "more", "slow", "much slower", "fast")
    }
    for name, bits, steps in (
        ("less", 2.0, 100), ("base", 1.8, 200), ("more", 1.7, 400),
        ("slow", 1.85, 100), ("much slower", 2.3, 50), ("fast", 1.6, 800),
    ):  # fmt: skip
        runs[name].save(fake(bits, steps=steps))
    plan = Table("", "ablation", lambda: iter(runs.values()), base="base", budgets=("less", "more"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TABLES, "own", plan)
        found = quality_report.per_step("own", quality_report.found(plan.runs()))
        # the base falls by 0.2 and then by 0.1 for twice the steps
        assert found == {"slow": pytest.approx(-0.15), "much slower": pytest.approx(0.1), "fast": pytest.approx(0.0)}
        assert "| slow | 1.850 | +0.050 | -0.150 |" in quality_report.written("own")


def test_all_figures_can_be_drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"by_phase": [1.0] * 64, "by_distance": {"0-16": 2.0, "16-32": 1.5}, "ablated": {}}
    for name in ("wall_512", "questions"):
        runs = [
            Run(contender=contender, kind="ours", seed=seed, steps=1)
            for contender in (quality_plan.BASE, "ours, other")
            for seed in range(2)
        ]
        for run in runs:
            run.save(fake(1.5 + run.seed / 10, **places))
        monkeypatch.setitem(TABLES, name, replace(TABLES[name], runs=lambda runs=runs: iter(runs)))
    quality_report.draw(folder)
    assert {path.name for path in folder.glob("*.svg")} == {
        "evidence-curves.svg", "evidence-questions.svg", "evidence-places.svg",
    }  # fmt: skip


def test_the_hierarchical_contender_is_what_the_readme_trains() -> None:
    from simple_hierarchical_transformer.training import ModelArguments

    arguments = quality_plan.made(quality_plan.HIERARCHICAL).arguments
    assert arguments == SEVERAL
    model = ModelArguments().resolved()
    for name, value in arguments.items():
        own = model[name]
        count = len(arguments["hierarchies"])
        expected = tuple(value) if isinstance(value, list) else value
        assert own == expected or own == (expected,) * count, name
