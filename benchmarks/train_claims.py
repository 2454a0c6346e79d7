"""What is claimed about training, read off as ratios from the cells of one run."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log
from typing import Any

from peers import FIRST_EXAMPLE, TRAINING_MODEL
from train_cases import EQUAL_PARAMETERS, EQUAL_SHAPE, SWEEP, THIRD_EXAMPLE

Cells = dict[tuple[str, str], dict[str, Any]]
OURS, OURS_HALF, PLAIN = "ours, float32", "ours, bfloat16 autocast", "x-transformers, float32"
REFERENCE, REFERENCE_HALF = "reference 0.2.0, float32", "reference 0.2.0, bfloat16 autocast"
SINGLE = {shape: f"our single stream, {shape}, float32" for shape in (EQUAL_PARAMETERS, EQUAL_SHAPE)}


def read_claims(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """By claim, ratios and what they are to be; a ratio for which something wasn't measured is left out."""
    measured = {(cell["case"], cell["contender"]): cell for cell in cells if not cell["skipped"]}
    sweep = {name: [c for c in cells if (c["family"], c["contender"]) == (SWEEP, name)] for name in (OURS, PLAIN)}
    claims = {
        FIRST_EXAMPLE: claim_first_example(measured),
        THIRD_EXAMPLE: claim_third_example(measured),
        TRAINING_MODEL: claim_training_model(measured),
        SWEEP: claim_linear(sweep[OURS]) | claim_ahead(sweep),
    }
    return {name: claim for name, claim in claims.items() if claim}


def claim_first_example(cells: Cells) -> dict[str, Any]:
    found = {}
    for name, limit in ((OURS, 1.35), (OURS_HALF, None)):
        cell = cells.get((FIRST_EXAMPLE, name))
        if cell is not None:
            found[f"step over floor: {name}"] = judged(cell["seconds_per_step"] / cell["floor_seconds"], most=limit)
    return found | {
        f"{verb}: {ours} / {reference}": judged(value, least=least, most=most)
        for verb, key, ours, reference, least, most in (
            ("speed", "tokens_per_second", OURS, REFERENCE, 2, None),
            ("speed", "tokens_per_second", OURS_HALF, REFERENCE, 5, None),
            ("speed", "tokens_per_second", OURS_HALF, REFERENCE_HALF, None, None),
            ("peak memory", "peak_bytes", OURS, REFERENCE, None, 1 / 5),
            ("peak memory", "peak_bytes", OURS_HALF, REFERENCE_HALF, None, None),
        )
        if (value := ratio(cells, FIRST_EXAMPLE, key, ours, reference)) is not None
    }


def claim_third_example(cells: Cells) -> dict[str, Any]:
    speed = ratio(cells, THIRD_EXAMPLE, "tokens_per_second", OURS, REFERENCE)
    memory = ratio(cells, THIRD_EXAMPLE, "peak_bytes", OURS, REFERENCE)
    if speed is None or memory is None:
        return {}
    return {
        f"speed: {OURS} / {REFERENCE}": judged(speed, least=6),
        f"peak memory: {OURS} / {REFERENCE}": judged(memory, most=1 / 2),
    }


def claim_training_model(cells: Cells) -> dict[str, Any]:
    """Against everyone, in the same precision; beside each speed stand the other's parameters, as a ratio to ours."""
    found = {}
    for case, other in cells:
        ours = OURS_HALF if other.endswith("autocast") else OURS
        speed = ratio(cells, case, "tokens_per_second", ours, other)
        if case == TRAINING_MODEL and other != ours and speed is not None:
            parameters = ratio(cells, case, "parameters", other, ours)
            found[f"speed: {ours} / {other}"] = {"ratio": speed, "parameters": parameters}
    return found


def claim_linear(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Eight times the length takes eight times the time and memory, about."""
    by_length = {cell["length"]: cell for cell in cells if not cell["skipped"]}
    if not {4096, 32768} <= by_length.keys():
        return {}
    long, short = by_length[32768], by_length[4096]
    return {
        "time of a step: 32,768 / 4,096 tokens": judged(long["seconds_per_step"] / short["seconds_per_step"], most=8.5),
        "peak memory: 32,768 / 4,096 tokens": judged(long["peak_bytes"] / short["peak_bytes"], most=8.5),
    }


def claim_ahead(sweep: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """At which length a plain decoder becomes slower, on a line through the logarithms."""
    speeds = [{c["length"]: c["tokens_per_second"] for c in cells if not c["skipped"]} for cells in sweep.values()]
    ratios = {n: speeds[0][n] / speeds[1][n] for n in sorted(speeds[0].keys() & speeds[1].keys())}
    name = "speed: " + " / ".join(sweep)
    found: dict[str, Any] = {
        f"{name}, {n:,} tokens": judged(value, least=1 if n >= 8192 else None) for n, value in ratios.items()
    }
    if ratios:
        found["ahead from, tokens"] = {"value": crossing(ratios)}
    return found


def crossing(ratios: dict[int, float]) -> float | None:
    """The length from which ratios are above 1: the first, where all are, and None where the last isn't."""
    if min(ratios.values()) >= 1:
        return min(ratios)
    found = None
    for (n, low), (m, high) in pairwise(ratios.items()):
        if low < 1 <= high:
            found = exp(log(n) + log(m / n) * log(1 / low) / log(high / low))
    return found if list(ratios.values())[-1] >= 1 else None


def ratio(cells: Cells, case: str, key: str, over: str, under: str) -> float | None:
    if (case, over) not in cells or (case, under) not in cells:
        return None
    value: float = cells[case, over][key] / cells[case, under][key]
    return value


def judged(value: float, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"ratio": value}
    if least is not None:
        found |= {"at least": least, "holds": value >= least}
    if most is not None:
        found |= {"at most": most, "holds": value <= most}
    return found
