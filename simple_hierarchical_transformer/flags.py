"""The flags that say what a model is made of, for every command that builds one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from .training.config import NEAR_WINDOW, ModelArguments, TrainConfig

DEFAULTS = {
    field.name: getattr(config, field.name) for config in (TrainConfig(), ModelArguments()) for field in fields(config)
}
MODEL_FIELDS = frozenset(field.name for field in fields(ModelArguments))


def flag_adder(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """A function that adds flags to a parser, and says their defaults, which stand in `DEFAULTS` alone."""

    def add(flag: str, help: str, **options: Any) -> None:
        name = options.get("dest", flag.removeprefix("--").replace("-", "_"))
        default = DEFAULTS[name]
        shown = " ".join(map(lower, default)) if isinstance(default, tuple) else lower(default)
        parser.add_argument(flag, help=f"{help} (default: {shown})" if shown != "none" and shown else help, **options)

    return add


def add_model_flags(add: Callable[..., None]) -> None:
    several = {"nargs": "+", "action": OneOrPerStream}
    add("--dim", "width, of all streams or of each", type=int, **several)
    add("--depth", "layers", type=int)
    add("--heads", "attention heads, of all streams or of each", type=int, **several)
    add("--dim-head", "width of a head, of all streams or of each", type=int, **several)
    add("--ff-mult", "hidden width of the feed-forward, as a multiple of --dim", type=float, **several)
    add(
        "--hierarchies",
        f"compress factor of each stream; with it, strides and windows that aren't given are 1 and {NEAR_WINDOW} for "
        "the finest stream, and the factor and none for the others",
        type=int,
        **several,
    )
    add("--stride", "stride of each stream", type=int, dest="hierarchical_stride", **several)
    add("--window-sizes", "previous tokens that are attended to, or none for all of them", type=window, **several)
    add("--prophet-loss-weight", "let coarse streams predict the next bytes, so that they can draft them", type=float)
    add(
        "--checkpoint-activations",
        "train in less memory and more time: compute the layers again instead of keeping their activations",
        action="store_true",
    )


def split_options(options: dict[str, Any]) -> tuple[ModelArguments, dict[str, Any]]:
    """The model that the options describe, and those that don't concern it."""
    if "hierarchies" in options:
        options = default_streams(options["hierarchies"]) | options
    model = {name: value for name, value in options.items() if name in MODEL_FIELDS}
    return ModelArguments(**model), {name: value for name, value in options.items() if name not in MODEL_FIELDS}


def default_streams(hierarchies: int | tuple[int, ...]) -> dict[str, Any]:
    """Strides and windows of streams of these factors: the finest sees near tokens, one per input, the others all."""
    factors = hierarchies if isinstance(hierarchies, tuple) else (hierarchies,)
    finest = min(factors)
    return {
        "hierarchical_stride": tuple(1 if factor == finest else factor for factor in factors),
        "window_sizes": tuple(NEAR_WINDOW if factor == finest else None for factor in factors),
    }


class OneOrPerStream(argparse.Action):
    """One value stands for all streams, several for one stream each."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


def window(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def lower(value: Any) -> str:
    return str(value).lower()
