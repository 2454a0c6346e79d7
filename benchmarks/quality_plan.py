"""What quality.py trains: contenders, what they are tuned over, and the runs of every table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quality_runs import Run

SEEDS = (0, 1, 2)
SHORT_SECONDS, FULL_SECONDS, LONG_SECONDS = 60.0, 270.0, 2700.0
EQUAL_FLOPS = 2e13  # about what our single stream trains with in the full time
LENGTHS = {512: 4, 2048: 1, 8192: 1}  # bytes of a sequence, and sequences of a batch
TUNED: dict[str, Any] = {"optimizer": "muon", "lr": 0.01}  # as the grid has it for our models
GRID: tuple[dict[str, Any], ...] = (  # what each contender is tuned over
    {"optimizer": "adamw", "lr": 1e-3},
    {"optimizer": "adamw", "lr": 3e-3},
    {"optimizer": "muon", "lr": 0.005},
    {"optimizer": "muon", "lr": 0.01},
    {"optimizer": "muon", "lr": 0.02},
    {"optimizer": "muon", "lr": 0.04},
)

SMALL: dict[str, Any] = {"dim": 96, "depth": 2, "heads": 3, "dim_head": 32}
NGRAMS: dict[str, Any] = {"ngram_sizes": [2, 3, 4]}
NO_LOSSES: dict[str, Any] = {"recon_loss_weight": 0.0, "hierarchical_ar_loss_weight": 0.0}


def strided(*factors: int) -> dict[str, Any]:
    """Streams of these factors, each with a stride as large."""
    return {"hierarchies": list(factors), "hierarchical_stride": list(factors)}


SINGLE, FULL, HIERARCHICAL = "ours, one stream, window 64", "ours, one stream, full attention", "ours, hierarchical"
ONE = SMALL | NGRAMS | {"window_sizes": 64}
SEVERAL = (
    SMALL | NGRAMS | strided(1, 16) | NO_LOSSES
    | {"window_sizes": [64, None], "merge_type": "linear", "compress_after": 1}
)  # fmt: skip
REFERENCE = SMALL | strided(1, 8) | {"window_sizes": [64, None]}


@dataclass(frozen=True)
class Model:
    kind: str
    arguments: Mapping[str, Any]


MODELS: dict[str, Model] = {
    HIERARCHICAL: Model("ours", SEVERAL),
    SINGLE: Model("ours", ONE),
    FULL: Model("ours", ONE | {"window_sizes": None}),
    "reference 0.2.0": Model("reference 0.2.0", REFERENCE),
    "reference 0.4.0": Model("reference 0.4.0", REFERENCE),
    "x-transformers": Model("x-transformers", {"dim": 96, "depth": 2, "heads": 3, "attn_dim_head": 32}),
    "MEGABYTE": Model("MEGABYTE", {"dim": [192, 96], "depth": [3, 1], "heads": 6, "dim_head": 32, "patch": 8}),
    "hourglass": Model("hourglass", {"dim": 96, "heads": 3, "dim_head": 32, "depth": [1, 3, 1], "shorten_factor": 4}),
}
ALL = tuple(MODELS)


@dataclass(frozen=True)
class Table:
    """One table of docs/evidence.md.

    Attributes:
        title: what it is about.
        style: how the report lays it out: contest, ablation or grid.
        runs: that it shows; they may depend on what those that it `needs` have found.
        needs: runs that must be there before.
        base: the contender that an ablation's others are compared with.
        budgets: rows that are the base under other budgets. From them follows what it reaches in as many steps as
            another row took, and so what that row gives per step, whatever a step costs.
    """

    title: str
    style: str
    runs: Callable[[], Iterator[Run]]
    needs: Callable[[], Iterator[Run]] = field(default=lambda: iter(()))
    base: str | None = None
    budgets: tuple[str, ...] = ()


WHERE: dict[str, str] = {}  # the text and the device of all runs, if not the usual ones; the command sets it


def made(name: str, **settings: Any) -> Run:
    model = MODELS[name]
    return Run(contender=name, kind=model.kind, arguments=dict(model.arguments), **WHERE, **settings)


def grid() -> Iterator[Run]:
    for point in GRID:
        for name in ALL:
            yield made(name, seconds=SHORT_SECONDS, **point)


def best_point(name: str) -> dict[str, Any] | None:
    """The optimiser and the learning rate that were best for a contender in the grid, if all have been tried."""
    runs = [made(name, seconds=SHORT_SECONDS, **point) for point in GRID]
    results = [(result["bits_per_byte"], i) for i, run in enumerate(runs) if (result := run.result())]
    return GRID[min(results)[1]] if len(results) == len(GRID) else None


def contest(names: tuple[str, ...], **settings: Any) -> Callable[[], Iterator[Run]]:
    """All contenders of one seed, then all of the next; but for those whose grid isn't there yet."""

    def runs() -> Iterator[Run]:
        points = {name: best_point(name) for name in names}
        for seed in SEEDS:
            for name, point in points.items():
                if point is not None:
                    yield made(name, seed=seed, **point, **settings)

    return runs


def at_length(seq_len: int) -> dict[str, Any]:
    return {"seq_len": seq_len, "batch": LENGTHS[seq_len]}


# variants

# What a row is called, and what it changes of the base's run: some of the model's `arguments`, all of them (`instead`),
# or anything else that a run has
Change = tuple[str, dict[str, Any]]


def arguments(**changed: Any) -> dict[str, Any]:
    return {"arguments": changed}


def changes(*names: str, **changed: Any) -> dict[str, Any]:
    return {"kind": "variant", "arguments": {"changes": list(names), **changed}}


BASE = "base"
BUDGETS: tuple[Change, ...] = (("base, 45 s", {"seconds": 45.0}), ("base, 90 s", {"seconds": 90.0}))
DEEPER = {"depth": 3}  # than the contender, so that a merge is followed by a layer
THREE = arguments(**strided(1, 4, 16), window_sizes=[64, 64, None])
QUESTIONS: tuple[Change, ...] = (
    (BASE, {}),
    *BUDGETS,
    ("no coarse stream", {"instead": ONE | DEEPER}),
    ("no coarse stream, 2 layers", {"instead": ONE}),
    ("a. MLP merge", arguments(merge_type="mlp")),
    ("a. coarse streams hear the fine one", arguments(hierarchy_merge_all=True)),
    ("a. factors 4 and 16, all into all", {"arguments": THREE["arguments"] | {"hierarchy_merge_all": True}}),
    ("a. merge by attention", changes("merge by attention")),
    ("b. attention compressor", changes("attention compressor")),
    ("b. the state at its own position", changes("select")),
    ("c. shared attention", changes("shared attention")),
    ("c. shared attention and feed-forward", changes("shared blocks")),
    ("d. autoencoder, from embeddings", changes("autoencoder=0.1", compress_after=0)),
    ("e. a vector per position in the stride", changes("merge per position")),
    ("e. the delay filled with the fine stream's mean", changes("merge filled")),
    ("f. reconstruction", arguments(recon_loss_weight=0.1)),
    ("f. hierarchical autoregressive", arguments(hierarchical_ar_loss_weight=0.25)),
    ("f. both of these", arguments(recon_loss_weight=0.1, hierarchical_ar_loss_weight=0.25)),
    ("f. prophet", arguments(prophet_loss_weight=0.1)),
    ("f. quantised prophet", arguments(prophet_loss_weight=0.1, prophet_loss_use_quantized=True)),
    ("f. next latent", arguments(next_latent_loss_weight=[0.0, 0.1])),
    ("g. stride 1", arguments(hierarchical_stride=[1, 1])),
    ("g. factor 4", arguments(**strided(1, 4))),
    ("g. factor 8", arguments(**strided(1, 8))),
    ("g. factor 32", arguments(**strided(1, 32))),
    ("g. factors 4 and 16", THREE),
    ("g. coarse width 64", arguments(dim=[96, 64], heads=[3, 2])),
    ("g. coarse width 192", arguments(dim=[96, 192], heads=[3, 6])),
    ("g. fine window 16", arguments(window_sizes=[16, None])),
    ("g. 2 fine layers, 2 coarse", changes("fine idle=1")),
    ("g. 3 fine layers, 1 coarse", arguments(compress_after=2)),
    ("g. 2 fine layers, 1 coarse", arguments(depth=2)),
    ("h. from embeddings", arguments(compress_after=0)),
    ("half the learning rate for the coarse stream", {"coarse_lr": 0.5}),
)  # fmt: skip
RECIPE: tuple[Change, ...] = (
    (BASE, {}),
    *BUDGETS,
    ("no n-grams", arguments(ngram_sizes=[])),
    ("n-grams of 2 and 3", arguments(ngram_sizes=[2, 3])),
    ("n-grams of 2 to 6", arguments(ngram_sizes=[2, 3, 4, 5, 6])),
    ("4,096 rows for each size", arguments(ngram_table_size=4096)),
    ("65,536 rows for each size", arguments(ngram_table_size=65_536)),
    ("n-grams at 3e-3", {"ngram_lr": 3e-3}),
    ("n-grams at 3e-2", {"ngram_lr": 3e-2}),
    ("AdamW for all, 3e-3", {"optimizer": "adamw", "lr": 3e-3}),
    ("GELU instead of squared ReLU", changes("GELU")),
    ("no norm of queries and keys", changes("no QK norm")),
    ("zero-initialised output projections", changes("zero-initialised outputs")),
    ("initial matrices half as large", changes("initial scale=0.5")),
    ("value residual", changes("value residual")),
    ("skip from the embeddings to every block", changes("embedding skip")),
    ("logits capped at 15", changes("soft cap=15")),
    ("tied head", changes("tied head")),
    ("width 64", arguments(dim=64, heads=2)),
    ("width 128", arguments(dim=128, heads=4)),
    ("1 layer", arguments(depth=1)),
    ("3 layers", arguments(depth=3)),
    ("4 layers", arguments(depth=4)),
    ("window 16", arguments(window_sizes=16)),
    ("window 256", arguments(window_sizes=256)),
)
CLAIM: tuple[Change, ...] = (
    ("one stream, full attention", {"instead": ONE | {"window_sizes": None}}),
    ("one stream, window 64", {"instead": ONE}),
    (
        "(1, 2), windows 64, the second at half the rate",
        {"instead": SEVERAL | strided(1, 2) | {"window_sizes": [64, 64]}},
    ),
    (
        "(1, 2), windows 64 and all, from embeddings, MLP merges, all losses",
        {"instead": SMALL | NGRAMS | strided(1, 2) | {"window_sizes": [64, None]}},
    ),
)

SHAPES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(
        (f"one stream, {depth} × {dim}", SINGLE, arguments(depth=depth, dim=dim, heads=dim // 32))
        for depth, dim in ((4, 128), (3, 128), (2, 128), (1, 128), (3, 96), (2, 96), (2, 64))
    ),
    ("2 fine layers, 1 coarse × 128", HIERARCHICAL, arguments(depth=2, dim=128, heads=4)),
    ("2 fine layers, 2 coarse × 128", HIERARCHICAL, changes("fine idle=1", depth=3, dim=128, heads=4)),
    (
        "2 fine layers × 128, 2 coarse × 64",
        HIERARCHICAL,
        changes("fine idle=1", depth=3, dim=[128, 64], heads=[4, 2]),
    ),
    ("3 fine layers, 1 coarse × 128", HIERARCHICAL, arguments(depth=3, dim=128, heads=4, compress_after=2)),
    (
        "3 fine layers, 2 coarse × 128",
        HIERARCHICAL,
        changes("fine idle=1", depth=4, dim=128, heads=4, compress_after=2),
    ),
    ("2 fine layers, 1 coarse × 96", HIERARCHICAL, {}),
)


def varied(
    base: str, rows: tuple[Change, ...], more: Mapping[str, Any] | None = None, **settings: Any
) -> Callable[[], Iterator[Run]]:
    """Rows that differ from a contender by one thing, and all of them by `more` arguments of the model."""

    def runs() -> Iterator[Run]:
        for seed in SEEDS:
            for name, change in rows:
                run = made(base, seed=seed, **settings)
                rest = dict(change)
                changed = {**rest.pop("instead", {**run.arguments, **(more or {})}), **rest.pop("arguments", {})}
                yield replace(run, contender=name, arguments=changed, **rest)

    return runs


def shapes() -> Iterator[Run]:
    """How deep and wide to be, by one seed."""
    for name, base, change in SHAPES:
        run = made(base, seconds=FULL_SECONDS)
        rest = dict(change)
        yield replace(run, contender=name, arguments={**run.arguments, **rest.pop("arguments", {})}, **rest)


def long() -> Iterator[Run]:
    wide = {"depth": 6, "dim": 192, "heads": 6}
    for name in (HIERARCHICAL, SINGLE):
        run = made(name, seconds=LONG_SECONDS, **TUNED, **at_length(2048))
        yield replace(run, arguments={**run.arguments, **wide})


TABLES: dict[str, Table] = {
    "grid": Table("Learning rates, a minute each", "grid", grid),
    "wall_512": Table(
        "Equal time, 270 s, 512 bytes", "contest", contest(ALL, seconds=FULL_SECONDS, **at_length(512)), grid
    ),
    "wall_2048": Table(
        "Equal time, 270 s, 2,048 bytes", "contest", contest(ALL, seconds=FULL_SECONDS, **at_length(2048)), grid
    ),
    "wall_8192": Table(
        "Equal time, 270 s, 8,192 bytes", "contest", contest(ALL, seconds=FULL_SECONDS, **at_length(8192)), grid
    ),
    "flops_512": Table(
        "Equal training FLOPs, 512 bytes", "contest", contest(ALL, flops=EQUAL_FLOPS, **at_length(512)), grid
    ),
    "questions": Table(
        "The open questions, a minute each, 2,048 bytes",
        "ablation",
        varied(HIERARCHICAL, QUESTIONS, DEEPER, seconds=SHORT_SECONDS, **TUNED, **at_length(2048)),
        base=BASE,
        budgets=tuple(name for name, _ in BUDGETS),
    ),
    "recipe": Table(
        "The recipe, a minute each, 512 bytes",
        "ablation",
        varied(SINGLE, RECIPE, seconds=SHORT_SECONDS, **TUNED),
        base=BASE,
        budgets=tuple(name for name, _ in BUDGETS),
    ),
    "claim": Table(
        "The seed's claim, a minute each",
        "ablation",
        varied(SINGLE, CLAIM, seconds=SHORT_SECONDS, **TUNED),
        base=CLAIM[0][0],
    ),
    "shapes": Table("Shapes, 270 s, 512 bytes, one seed", "contest", shapes),
    "long": Table("45 minutes each, 2,048 bytes", "contest", long),
}
