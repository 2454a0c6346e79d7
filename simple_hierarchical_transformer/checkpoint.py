"""Save and load a model: `config.json` and `model.safetensors`, each carrying a checksum of itself.

Nothing is executed from a file: weights travel as safetensors, everything else as JSON. Files are written beside,
flushed to disk and renamed, so that a folder holds the old file or the new one, whole, whatever happens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .arguments import to_arguments
from .files import write_atomically

if TYPE_CHECKING:
    from .model import HierarchicalTransformer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = 1
CUSTOM = "<given when loading>"  # stands in the configuration for what JSON can't hold
OBJECTS = ("chunk_summarizers", "next_latent_loss_type")
OVERRIDES = ("seq_len", "window_sizes", "use_flash_attn", "use_xpos", "checkpoint_activations")


class CheckpointError(ValueError):
    """A file of a saved model is missing, damaged, or not what it should be."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{path}: {reason}: {remedy}")


def checksum_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checksum_of_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_model(model: HierarchicalTransformer, folder: str | os.PathLike[str]) -> None:
    """Write the model's configuration and weights into `folder`, which is made where it isn't there.

    Raises:
        FileExistsError: if `folder` is a file.
        OSError: if it can't be written to; what stood there before still stands.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, but a model is saved into a folder: choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    arguments = to_arguments(model.config)
    for name in OBJECTS:
        if arguments[name] is not None and not isinstance(arguments[name], str):
            arguments[name] = CUSTOM
    config = {"format_version": FORMAT_VERSION, "model": arguments}
    checksum = checksum_of_json(config)
    # copied, since tensors that share their memory can't be saved
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    metadata = {"sha256": checksum_of_tensors(tensors), "config_sha256": checksum}
    write_atomically(
        {
            folder / WEIGHTS_FILE: save(tensors, metadata=metadata),
            folder / CONFIG_FILE: json.dumps(config | {"sha256": checksum}, indent=2).encode(),
        }
    )


def load_model(
    cls: type[HierarchicalTransformer], folder: str | os.PathLike[str], overrides: Mapping[str, Any]
) -> HierarchicalTransformer:
    """The model that was saved into `folder`, on the CPU, in the type that it was saved in.

    Raises:
        CheckpointError: if a file is missing or damaged, or the weights don't fit the configuration.
        ValueError: for an override that would change parameters, or an object that is needed and isn't given.
    """
    folder = Path(folder)
    remedy = "give the folder that save_pretrained wrote"
    if folder.is_file():
        raise CheckpointError(folder, "it is a file, not a folder", remedy)
    if not folder.is_dir():
        raise CheckpointError(folder, "there is no such folder here", remedy)
    if (folder / "model" / WEIGHTS_FILE).exists() and not (folder / WEIGHTS_FILE).exists():
        raise CheckpointError(folder, "it is the folder of a training run", f"give {folder / 'model'}")
    arguments, config_checksum = read_config(folder / CONFIG_FILE)
    tensors = read_weights(folder / WEIGHTS_FILE, config_checksum)
    for name in overrides:
        if name not in (*arguments, *OVERRIDES):  # the file may be older than the argument
            raise ValueError(
                f"from_pretrained takes no argument {name}: it takes the folder and, to change them, "
                f"{', '.join(OVERRIDES)}"
            )
        if name not in (*OVERRIDES, *OBJECTS):
            raise ValueError(
                f"{name} can't be changed when loading a model, only {', '.join(OVERRIDES)} can, since they change no "
                f"parameter: leave {name} out"
            )
    arguments.update(overrides)
    for name in OBJECTS:
        if arguments[name] == CUSTOM:
            raise ValueError(
                f"this model was built with its own {name}, which no file can hold: "
                f"pass it again, from_pretrained(folder, {name}=…)"
            )
    try:
        model = cls(**arguments)
    except (TypeError, ValueError) as error:
        if overrides:
            raise
        raise CheckpointError(folder / CONFIG_FILE, str(error), "save the model again") from error
    expected = model.state_dict()
    if problems := compare(expected, tensors):
        remedy = "give the objects that the model was built with" if set(overrides) & set(OBJECTS) else "save it again"
        raise CheckpointError(folder / WEIGHTS_FILE, f"the weights don't fit the model: {problems}", remedy)
    # in the file tensors lie anywhere; in memory of their own, kernels compute the same bits as before they were saved
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, strict=True, assign=True)
    return model


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The constructor arguments in a configuration file, and its checksum."""
    remedy = "give the folder that save_pretrained wrote, or copy or save it again"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(path, "the file is missing", remedy) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"the file can't be read as JSON ({error})", remedy) from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(path, "the file holds no model configuration", remedy)
    version, checksum = content.get("format_version"), content.pop("sha256", None)
    if version != FORMAT_VERSION:
        newer = "install a newer version of simple-hierarchical-transformer"
        raise CheckpointError(path, f"format version {version!r} is not {FORMAT_VERSION}", newer)
    if not isinstance(checksum, str) or checksum != checksum_of_json(content):
        raise CheckpointError(path, "the checksum is wrong, so the file was changed or damaged", remedy)
    arguments: dict[str, Any] = content["model"]
    return arguments, checksum


def read_weights(path: Path, config_checksum: str) -> dict[str, Tensor]:
    """The tensors of a weights file, verified against its checksum and against that of its configuration."""
    remedy = "copy the folder again, or save the model again"
    if not path.is_file():
        raise CheckpointError(path, "the file is missing", remedy)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(path, f"the file is damaged ({error})", remedy) from None
    if metadata.get("sha256") != checksum_of_tensors(tensors):
        raise CheckpointError(path, "the checksum of the weights is wrong, so the file is damaged", remedy)
    if metadata.get("config_sha256") != config_checksum:
        raise CheckpointError(path, f"the weights are of another configuration than {CONFIG_FILE}", remedy)
    return tensors


def compare(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """In words, the first ways in which the tensors differ in name or shape; empty where they agree."""
    problems = [f"{name} is missing" for name in expected.keys() - given.keys()]
    problems += [f"{name} is unknown" for name in given.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(given[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected.keys() & given.keys()
        if given[name].shape != expected[name].shape
    ]
    return ", ".join(sorted(problems)[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
