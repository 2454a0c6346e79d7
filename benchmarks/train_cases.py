"""What train_speed.py trains: models, lengths and batches, and the peers' shapes of as many parameters.

All shapes are within 5 % of the parameters of our model, its training heads included, or have 9 % more (third example).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from peers import FIRST_EXAMPLE, MODELS, TRAINING_MODEL

SECOND_EXAMPLE = "second README example"
THIRD_EXAMPLE = "third README example"
EQUAL_PARAMETERS = "equal parameters"
EQUAL_SHAPE = "equal width and depth"
SWEEP = "finite windows"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
QUICK_LENGTH = 128  # tokens of a sequence under --quick
QUICK_LONGEST = 2048  # of the sweep
OTHERS = ("our single stream, equal parameters", "x-transformers", "reference 0.2.0", "MEGABYTE", "hourglass")
SWEPT = ("ours, float32", *(f"{name}, float32" for name in OTHERS))
BOTH = ("ours, float32", "ours, bfloat16 autocast", "reference 0.2.0, float32", "reference 0.2.0, bfloat16 autocast")

THIRD_MODEL: dict[str, Any] = {
    **{"num_tokens": 256, "dim": (128, 256, 512, 1024), "depth": 8, "ff_mult": (2, 2, 4, 4)},
    **{"dim_head": (16, 32, 64, 64), "heads": (2, 4, 8, 8), "window_sizes": (16, 32, 64, None)},
    **{"hierarchies": (1, 2, 4, 16), "hierarchical_stride": (1, 1, 1, 8)},
}
LARGE: dict[str, Any] = {"num_tokens": 20000, "dim": 512, "heads": 8, "dim_head": 64}
BYTES: dict[str, Any] = {"num_tokens": 256, "dim": 1024, "heads": 16, "dim_head": 64}
SMALL: dict[str, Any] = {"num_tokens": 256, "dim": 192, "heads": 6, "dim_head": 32}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model on one batch; contenders without a shape here don't take part."""

    model: dict[str, Any]  # arguments of ours and of the reference
    length: int  # tokens that each sequence predicts
    batch: int = 1
    shapes: dict[str, dict[str, Any]] = field(default_factory=dict)  # of others, by name
    only: tuple[str, ...] = ()  # contenders, where not all take part unasked, or
    without: tuple[str, ...] = ()  # those that don't
    alone: bool = False  # no two models are held at a time: each is built anew for each step
    family: str | None = None  # of cases that differ in length alone
    device: str = "cpu"

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def is_quick(self) -> bool:
        """Whether it belongs to --quick."""
        return self.length <= QUICK_LONGEST if self.family else not self.only

    def quick(self) -> Case:
        length = self.length if self.family else min(self.length, QUICK_LENGTH)
        return replace(self, length=length, batch=min(self.batch, 2))


FIRST_SHAPES: dict[str, dict[str, Any]] = {
    EQUAL_PARAMETERS: LARGE | {"depth": 24},
    EQUAL_SHAPE: LARGE | {"depth": 6},
    "x-transformers": LARGE | {"depth": 24},
    "MEGABYTE": {"num_tokens": 20000, "dim": (1024, 512), "depth": (4, 2), "heads": 16, "dim_head": 64, "patch": 8},
    "hourglass": LARGE | {"depth": (4, 14, 4), "shorten_factor": 4},
}
SECOND_SHAPES: dict[str, dict[str, Any]] = {
    "x-transformers": LARGE | {"depth": 8},
    "MEGABYTE": {"num_tokens": 20000, "dim": (768, 256), "depth": (4, 2), "heads": 8, "dim_head": 64, "patch": 8},
    "hourglass": LARGE | {"depth": (2, 2, 2), "shorten_factor": 4},
}
THIRD_SHAPES: dict[str, dict[str, Any]] = {
    EQUAL_PARAMETERS: BYTES | {"depth": 11},
    "x-transformers": BYTES | {"depth": 11},
    "MEGABYTE": {"num_tokens": 256, "dim": (1024, 512), "depth": (9, 4), "heads": 16, "dim_head": 64, "patch": 8},
    "hourglass": BYTES | {"depth": (2, 5, 2), "shorten_factor": 4},
}
SMALL_SHAPES: dict[str, dict[str, Any]] = {
    EQUAL_PARAMETERS: SMALL | {"depth": 11, "window_sizes": 64},
    EQUAL_SHAPE: SMALL | {"depth": 4, "window_sizes": 64},
    "x-transformers": SMALL | {"depth": 11},
    "MEGABYTE": {"num_tokens": 256, "dim": (256, 128), "depth": (5, 2), "heads": 8, "dim_head": 32, "patch": 8},
    "hourglass": SMALL | {"depth": (2, 5, 2), "shorten_factor": 4},
}


def two_streams(dim: int, batch: int) -> Case:
    """A fine and a coarse stream of one width, for a large device."""
    width = {"num_tokens": 256, "dim": dim, "heads": dim // 64, "dim_head": 64}
    model = width | {"depth": 8, "hierarchies": (1, 8), "hierarchical_stride": (1, 8), "window_sizes": (64, None)}
    shapes = {EQUAL_PARAMETERS: width | {"depth": 21, "window_sizes": 64}, "x-transformers": width | {"depth": 21}}
    return Case(model=model, length=2048, batch=batch, shapes=shapes, device="cuda")


FIRST = Case(model=MODELS[FIRST_EXAMPLE], length=2048, alone=True, shapes=FIRST_SHAPES)
SECOND = Case(model=LARGE | {"depth": 8}, length=2048, alone=True, shapes=SECOND_SHAPES)
THIRD = Case(model=THIRD_MODEL, length=1024, alone=True, shapes=THIRD_SHAPES)


def on_cuda(case: Case, batch: int) -> Case:
    return replace(case, batch=batch, alone=False, device="cuda")


def swept(length: int) -> Case:
    return Case(model=MODELS[SWEEP], length=length, shapes=SMALL_SHAPES, only=SWEPT, family=SWEEP)


CASES: dict[str, Case] = {
    FIRST_EXAMPLE: replace(FIRST, only=BOTH),
    THIRD_EXAMPLE: replace(THIRD, only=BOTH[:3]),
    # so that no peer takes minutes
    f"{FIRST_EXAMPLE}, cut short": replace(FIRST, length=512, without=BOTH[3:]),
    f"{SECOND_EXAMPLE}, cut short": replace(SECOND, length=1024),
    f"{THIRD_EXAMPLE}, cut short": replace(THIRD, length=256, without=BOTH[3:]),
    TRAINING_MODEL: Case(model=MODELS[TRAINING_MODEL], length=512, batch=4, shapes=SMALL_SHAPES),
    **{f"{SWEEP}, {length} tokens": swept(length) for length in LENGTHS},
    f"{FIRST_EXAMPLE}, batch 8": on_cuda(FIRST, 8),
    **{f"{THIRD_EXAMPLE}, batch {batch}": on_cuda(THIRD, batch) for batch in (16, 64, 128)},
    **{f"two streams of width {dim}": two_streams(dim, 8192 // dim) for dim in (128, 256, 512, 1024)},
}


def chosen(name: str, quick: bool) -> Case:
    return CASES[name].quick() if quick else CASES[name]
