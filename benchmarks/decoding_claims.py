"""What is claimed about decoding, each measured within one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from decoding_report import print_cells
from peers import CONTENDERS, FIRST_EXAMPLE, WIDTHS
from processes import CannotMeasure

if TYPE_CHECKING:
    from decoding import Bench

OPEN_SECONDS = 300.0


def claim_reference(bench: Bench) -> dict[str, Any]:
    """Against the reference's first release of this model, at the length of its example."""
    ours = "ours, cuda graphs" if bench.options.device == "cuda" else "ours"
    cells = bench.measure(FIRST_EXAMPLE, 1, 1900, [ours, "reference 0.2.0"])
    print_cells([asdict(cell) for cell in cells])
    for cell in cells:
        if cell.skipped:
            raise CannotMeasure(f"{cell.contender}: {cell.skipped}")
    fast, slow = cells
    assert fast.floor is not None
    return {
        "context": 1900,
        "seconds_per_token": {cell.contender: cell.seconds_per_token for cell in cells},
        "speedup": slow.seconds_per_token / fast.seconds_per_token,
        "over_floor": fast.seconds_per_token / fast.floor["seconds"],
        "over_floor_by_torch_linear": fast.seconds_per_token / fast.floor["seconds_by_torch_linear"],
    }


def claim_position(bench: Bench) -> dict[str, Any]:
    """With finite windows, neither time nor memory depends on the position."""
    positions = (1024, 32768)
    seconds, sizes = interleave(bench, {str(p): ("finite windows", p) for p in positions})
    early, late = seconds.values()
    return {
        "seconds_per_token": {position: median(times) for position, times in seconds.items()},
        "ratio": median(b / a for a, b in zip(early, late, strict=True)),
        "state_bytes": sizes,
    }


def claim_stride(bench: Bench) -> dict[str, Any]:
    """What a coarse stream of stride 8 costs per token, against the same at stride 1.

    Beyond the fine stream alone, and, since that has no merge of its own, beyond a step at which the coarse stream
    isn't due.
    """
    return {widths: stride_costs(bench, widths) for widths in WIDTHS}


def stride_costs(bench: Bench, widths: str) -> dict[str, Any]:
    worker, limit = bench.workers["ours"], OPEN_SECONDS
    models = {key: f"{widths}, {key}" for key in ("fine stream only", "stride 1", "stride 8")}
    for model in models.values():
        worker.ask("open", limit, session=model, model=model, context=1024, batch=1)
        worker.ask("start", limit, session=model)
        worker.ask("advance", limit, session=model, tokens=16)
    seconds: dict[str, list[float]] = {key: [] for key in (*models, "stride 8, not due")}
    for _ in range(5 * bench.options.rounds):
        for key, model in models.items():  # the first of eight positions is due
            due, others = (worker.ask("advance", limit, session=model, tokens=n)["seconds"] for n in (1, 7))
            seconds[key].append((due + others) / 8)
            if key == "stride 8":
                seconds["stride 8, not due"].append(others / 7)
    for model in models.values():
        worker.ask("close", limit, session=model)

    def ratio(base: str) -> float:
        pairs = zip(seconds["stride 8"], seconds["stride 1"], seconds[base], strict=True)
        return median((eighth - b) / (every - b) for eighth, every, b in pairs)

    return {
        "seconds_per_token": {key: median(times) for key, times in seconds.items()},
        "ratio_beyond_fine_stream": ratio("fine stream only"),
        "ratio_beyond_a_step_without_it": ratio("stride 8, not due"),
    }


def interleave(bench: Bench, sessions: dict[str, tuple[str, int]]) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds per token of several of our models in one process, in turns, and bytes of their states.

    `sessions` gives model and context by name.
    """
    worker, tokens, limit = bench.workers["ours"], CONTENDERS["ours"].tokens, OPEN_SECONDS
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for name, (model, context) in sessions.items():
        worker.ask("open", limit, session=name, model=model, context=context, batch=1)
        worker.ask("start", limit, session=name)
        worker.ask("advance", limit, session=name, tokens=tokens)
    for _ in range(3 * bench.options.rounds):
        for name, times in seconds.items():
            times.append(worker.ask("advance", limit, session=name, tokens=tokens)["seconds"] / tokens)
    sizes = {name: worker.ask("state_bytes", limit, session=name)["bytes"] for name in sessions}
    for name in sessions:
        worker.ask("close", limit, session=name)
    return seconds, sizes


def attempt_claim(claim: Callable[[Bench], dict[str, Any]], bench: Bench) -> dict[str, Any]:
    try:
        return claim(bench)
    except CannotMeasure as reason:
        return {"skipped": str(reason)}


CLAIMS = {"reference": claim_reference, "position": claim_position, "stride": claim_stride}
