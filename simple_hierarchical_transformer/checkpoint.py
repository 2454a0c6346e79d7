"""Save and load a model: `config.json` and `model.safetensors`, each carrying a checksum of itself.

Nothing is executed from a file: weights travel as safetensors, everything else as JSON. Files are written beside,
flushed to disk and renamed, so that a folder holds the old file or the new one, whole, whatever happens.

A file is believed in this order: its configuration is checked, the model is built without memory, its shapes are
compared with those in the header of the weights, and only then are the weights read, verified and loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .arguments import build_config
from .config import ModelConfig
from .files import Content, write_atomically
from .losses.quantized_prophet import FrozenQuantizer
from .model_card import CARD_FILE, is_ours, make_model_card
from .saved_config import (
    CONFIG_FILE,
    CUSTOM,
    KNOWN,
    OBJECTS,
    CheckpointError,
    model_config_json,
    read_config,
    shortened,
)
from .weights import (
    WEIGHTS_FILE,
    Stored,
    compare,
    read_header,
    read_weights,
    weights_file,
)

if TYPE_CHECKING:
    from .model import HierarchicalTransformer

__all__ = [
    "CONFIG_FILE",
    "CUSTOM",
    "OVERRIDES",
    "WEIGHTS_FILE",
    "CheckpointError",
    "load_model",
    "model_config_json",
    "model_files",
    "read_config",
    "read_header",
    "read_weights",
    "save_model",
]

OVERRIDES = ("seq_len", "window_sizes", "use_flash_attn", "use_xpos", "checkpoint_activations")
LONGEST = 1 << 40  # tokens of a sequence or a window, which no parameter counts
DERIVED_NUMBERS = 1 << 28  # that follow from a seed and lie in no file; and as many times the weights:
DERIVED_SHARE = 32


def model_files(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Content]:
    """The files of a saved model by their names: its weights, and its configuration.

    Args:
        config: of the model that the tensors belong to.
        tensors: its state dict, or another with the same names and shapes, such as averaged weights; on any device.

    Raises:
        ValueError: for tensors on the meta device, or of a type that the format doesn't have.
    """
    content = model_config_json(config)
    return {
        WEIGHTS_FILE: weights_file(tensors, content["sha256"]),
        CONFIG_FILE: json.dumps(content, indent=2).encode(),
    }


def save_model(model: HierarchicalTransformer, folder: str | os.PathLike[str], model_card: str | None = None) -> None:
    """Write the model's configuration, weights and card into `folder`, which is made where it isn't there.

    A card that stands there is replaced only as long as it is, unchanged, one that was made here.

    Raises:
        FileExistsError: if `folder` is a file.
        OSError: if it can't be written to; what stood there before still stands.
        TypeError: if the model card is no text.
    """
    folder = Path(folder)
    if model_card is not None and not isinstance(model_card, str):
        raise TypeError(f"model_card must be a text, or None for one about the model, got {type(model_card).__name__}")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, but a model is saved into a folder: choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    contents = model_files(model.config, model.state_dict())
    if is_ours(folder / CARD_FILE):
        if model_card is None:
            parameters = sum(parameter.numel() for parameter in model.parameters())
            model_card = make_model_card(model.config, title=folder.resolve().name, parameters=parameters)
        contents[CARD_FILE] = model_card.encode()
    write_atomically({folder / name: content for name, content in contents.items()})


def load_model(
    cls: type[HierarchicalTransformer], folder: str | os.PathLike[str], overrides: Mapping[str, Any]
) -> HierarchicalTransformer:
    """The model that was saved into `folder`, on the CPU, in the type that it was saved in.

    Random numbers are as they were before: nothing is drawn.

    Raises:
        CheckpointError: if a file is missing or damaged, or the weights don't fit the configuration.
        ValueError: for an override that would change parameters, or an object that is needed and isn't given.
    """
    folder = Path(folder)
    check_folder(folder)
    saved, config_checksum = read_config(folder / CONFIG_FILE)
    arguments = changed(saved, overrides)
    config = build_config(**arguments)
    check_lengths(folder / CONFIG_FILE, config, overrides)
    header = read_header(folder / WEIGHTS_FILE, config_checksum)
    check_count(folder, config, header)
    model = build_without_memory(cls, folder, arguments)
    if problems := compare(model.state_dict(), header):
        remedy = "give the objects that the model was built with" if set(overrides) & set(OBJECTS) else "save it again"
        raise CheckpointError(folder / WEIGHTS_FILE, f"the weights don't fit the model: {problems}", remedy)
    check_derived(folder / CONFIG_FILE, model, header)
    tensors = read_weights(folder / WEIGHTS_FILE, config_checksum)
    model.load_state_dict(tensors, strict=True, assign=True)
    for module in model.modules():
        if isinstance(module, FrozenQuantizer):  # the only memory that no file fills
            module.to_empty(device="cpu")
    return model


def check_folder(folder: Path) -> None:
    remedy = "give the folder that save_pretrained wrote"
    if folder.is_file():
        raise CheckpointError(folder, "it is a file, not a folder", remedy)
    if not folder.is_dir():
        raise CheckpointError(folder, "there is no such folder here", remedy)
    if (folder / "model" / WEIGHTS_FILE).exists() and not (folder / WEIGHTS_FILE).exists():
        raise CheckpointError(folder, "it is the folder of a training run", f"give {folder / 'model'}")


def changed(saved: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in the file, with those that change no parameter, and those that it can't hold, given anew."""
    for name in overrides:
        if name not in KNOWN:
            raise ValueError(
                f"from_pretrained takes no argument {name}: it takes the folder and, to change them, "
                f"{', '.join(OVERRIDES)}"
            )
        if name not in (*OVERRIDES, *OBJECTS):
            raise ValueError(
                f"{name} can't be changed when loading a model, only {', '.join(OVERRIDES)} can, since they change no "
                f"parameter: leave {name} out"
            )
    arguments = {**saved, **overrides}
    for name in OBJECTS:
        if arguments[name] == CUSTOM:
            raise ValueError(
                f"this model was built with its own {name}, which no file can hold: "
                f"pass it again, from_pretrained(folder, {name}=…)"
            )
    return arguments


def check_lengths(path: Path, config: ModelConfig, overrides: Mapping[str, Any]) -> None:
    """Refuse lengths for which no decoding state could be allocated, unless the user asks for them."""
    windows = max(stream.window_size or 0 for stream in config.streams)
    for name, length in (("seq_len", config.seq_len), ("window_sizes", windows)):
        if name not in overrides and length > LONGEST:
            raise CheckpointError(path, f"{name} is {length}, more than {LONGEST}", f"give another {name} when loading")


def check_count(folder: Path, config: ModelConfig, header: Mapping[str, Stored]) -> None:
    """Refuse a model of so many layers and streams that not even its modules are worth building."""
    if (least := fewest_tensors(config)) > len(header):
        raise CheckpointError(
            folder / CONFIG_FILE,
            f"a model of depth {config.depth} with {len(config.streams)} streams has at least {least} tensors, but "
            f"{WEIGHTS_FILE} holds {len(header)}",
            "copy the folder again, or save the model again",
        )


def fewest_tensors(config: ModelConfig) -> int:
    """What the layers and dynamics networks of a model have at least, counted without building any."""
    streams, latent = len(config.streams), config.next_latent
    layers = 2 * sum(config.depth_of(i) for i in range(streams))  # a feed-forward each
    if streams > 1:
        targets = [len(config.merge_targets(is_last=is_last)) for is_last in (False, True)]
        each = streams + 2 if config.merge_type == "mlp" else streams - 1
        layers += (targets[0] * (config.shared_depth - 1) + targets[1]) * each
    return layers + latent.num_layers * sum(weight > 0 for weight in latent.weights)


class WithoutDrawing(TorchFunctionMode):
    """Tensors on the meta device have no values, so none are drawn: torch would import its compiler for that."""

    DRAWS = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_, nn.init.xavier_normal_)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in self.DRAWS:
            tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **given)


def build_without_memory(
    cls: type[HierarchicalTransformer], folder: Path, arguments: Mapping[str, Any]
) -> HierarchicalTransformer:
    """The model with shapes and no weights, on the meta device."""
    try:
        with torch.device("meta"), WithoutDrawing():
            return cls(**arguments)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:  # of sizes that torch can't count
        reason = f"it describes a model that can't be built ({shortened(str(error).partition(chr(10))[0])})"
        raise CheckpointError(folder / CONFIG_FILE, reason, "save the model again") from None


def check_derived(path: Path, model: HierarchicalTransformer, header: Mapping[str, Stored]) -> None:
    """Refuse tables of random numbers that no weight answers for."""
    derived = sum(buffer.numel() for buffer in model.buffers() if buffer.is_meta)
    weights = sum(torch.Size(stored.shape).numel() for stored in header.values())
    if derived > max(DERIVED_NUMBERS, DERIVED_SHARE * weights):
        raise CheckpointError(
            path,
            f"rq_num_codebooks, rq_codebook_dim and rq_codebook_size ask for {derived:,} random numbers beside "
            f"{weights:,} weights",
            "save the model again, with smaller codebooks",
        )
