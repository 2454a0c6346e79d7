"""What the command `describe` is about: a model that is saved, or that isn't built, without its weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import HierarchicalTransformer
from .checkpoint import CONFIG_FILE, CUSTOM, OVERRIDES, read_config
from .description import Description
from .flags import DEFAULTS, split_options
from .text.printing import NUM_BYTES

DTYPES = ("float32", "bfloat16", "float16", "float64")


def describe(
    options: dict[str, Any], folder: Path | None = None, *, dtype: str = DTYPES[0], batch_size: int = 1
) -> Description:
    """Of the model in `folder`, or else of the default model, with what the options change.

    It is built on the meta device, where tensors have shapes and no memory, so its size doesn't matter.

    Args:
        options: `num_tokens`, `seq_len`, and the fields of `ModelArguments`; with a folder, only those that change no
            parameter.
        folder: the folder of a model.
        dtype: one of DTYPES, that activations and cache are counted in.
        batch_size: sequences whose activations are counted together.

    Raises:
        CheckpointError: if the folder holds no whole configuration.
        TypeError, ValueError: for options that aren't allowed.
    """
    if folder is None:
        model, others = split_options(options)
        arguments = {"num_tokens": NUM_BYTES, "seq_len": DEFAULTS["seq_len"], **asdict(model), **others}
    else:
        arguments = saved_arguments(folder, options)
    with torch.device("meta"):
        unbuilt = HierarchicalTransformer(**arguments).to(getattr(torch, dtype))
    return unbuilt.describe(batch_size=batch_size)


def saved_arguments(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments of the model in `folder`, with some that change no parameter given anew."""
    for name in options:
        if name not in OVERRIDES:
            # the name of the flag differs from that of the argument
            flag = "stride" if name == "hierarchical_stride" else name.replace("_", "-")
            raise ValueError(f"--{flag} would change the model that --model names: leave one of the two out")
    arguments, _ = read_config(folder / CONFIG_FILE)
    if arguments["chunk_summarizers"] == CUSTOM:
        raise ValueError(
            f"the model in {folder} was built with its own chunk_summarizers, which no file can hold: describe it in "
            "Python, from_pretrained(folder, chunk_summarizers=…).describe()"
        )
    if arguments["next_latent_loss_type"] == CUSTOM:  # which one it is costs nothing
        del arguments["next_latent_loss_type"]
    return arguments | options
