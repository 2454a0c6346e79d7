"""What the command `describe` is about: a model that is saved, or that isn't built, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import HierarchicalTransformer
from .arguments import build_config
from .checkpoint import CONFIG_FILE, OVERRIDES, WEIGHTS_FILE, check_count, read_config, read_header
from .description import Description
from .saved_config import CUSTOM, OBJECTS
from .text.printing import NUM_BYTES
from .training.config import ModelArguments, TrainConfig, choice

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, kw_only=True)
class DescribeArguments:
    """What is described, and how.

    Attributes:
        saved: folder of a run, or of a model; none: the flags say what is described
        json: as JSON, not as a table
        batch_size: sequences whose activations are counted
        dtype: type of activations and cache: float32, bfloat16, float16 or float64
        num_tokens: size of the vocabulary
        seq_len: input tokens per sequence; that of a saved model is its own unless given
        model: the model's arguments
    """

    saved: Path | None = None
    json: bool = False
    batch_size: int = 1
    dtype: str = DTYPES[0]
    num_tokens: int = NUM_BYTES
    seq_len: int = TrainConfig.seq_len
    model: ModelArguments = field(default_factory=ModelArguments)


def describe(arguments: Mapping[str, Any], *, dtype: str = DTYPES[0], batch_size: int = 1) -> Description:
    """Of the model that is built from these arguments.

    It is built on the meta device, where tensors have shapes and no memory, so its size doesn't matter.

    Args:
        arguments: those of `HierarchicalTransformer`.
        dtype: one of DTYPES, that activations and cache are counted in.
        batch_size: sequences whose activations are counted together.

    Raises:
        TypeError, ValueError: for arguments that aren't allowed.
    """
    choice("dtype", dtype, DTYPES)
    with torch.device("meta"):
        unbuilt = HierarchicalTransformer(**arguments).to(getattr(torch, dtype))
    return unbuilt.describe(batch_size=batch_size)


def saved_arguments(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments of the model in `folder`, with some that change no parameter given anew.

    Raises:
        CheckpointError: the folder holds no whole configuration
        ValueError: an option that would change parameters, or a model that no file can hold
    """
    for name in options:
        if name not in OVERRIDES:
            # the name of the flag differs from that of the argument
            flag = "stride" if name == "hierarchical_stride" else name.replace("_", "-")
            raise ValueError(f"--{flag} would change the model that --model names: leave one of the two out")
    arguments, checksum = read_config(folder / CONFIG_FILE)
    if (folder / WEIGHTS_FILE).exists():
        # a file may name a depth for which not even modules without memory are built in a lifetime
        given = {name: value for name, value in OBJECTS.items() if arguments[name] == CUSTOM}
        check_count(folder, build_config(**{**arguments, **given}), read_header(folder / WEIGHTS_FILE, checksum))
    if arguments["chunk_summarizers"] == CUSTOM:
        raise ValueError(
            f"the model in {folder} was built with its own chunk_summarizers, which no file can hold: describe it in "
            "Python, from_pretrained(folder, chunk_summarizers=…).describe()"
        )
    if arguments["next_latent_loss_type"] == CUSTOM:  # which one it is costs nothing
        del arguments["next_latent_loss_type"]
    return {**arguments, **options}
