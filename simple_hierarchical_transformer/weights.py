"""`model.safetensors` of a saved model: its tensors, and a checksum of them and of the configuration that they fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .saved_config import CONFIG_FILE, CheckpointError, shortened

WEIGHTS_FILE = "model.safetensors"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
MOST_HEADER = 1 << 23  # bytes of a header: room for the names of 50,000 tensors and more
REMEDY = "copy the folder again, or save the model again"


class Stored(NamedTuple):
    """What the header of a weights file says about one tensor."""

    dtype: str  # as the format writes it: F32, BF16, I64
    shape: tuple[int, ...]


def checksum_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(values(tensor))
    return digest.hexdigest()


def values(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, where they lie; copied only where they have holes."""
    array: memoryview = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return array


def weights_file(tensors: Mapping[str, Tensor], config_checksum: str) -> list[bytes | memoryview]:
    """The weights file of these tensors, with its checksum and that of the configuration that they fit, in pieces.

    Raises:
        ValueError: for tensors on the meta device, or of a type that the format doesn't have.
    """
    on_cpu = {name: movable(name, tensor) for name, tensor in tensors.items()}
    return as_safetensors(on_cpu, {"sha256": checksum_of_tensors(on_cpu), "config_sha256": config_checksum})


def as_safetensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """The safetensors file of these tensors, in pieces. Its bytes follow from its arguments alone.

    All pieces but the first are the tensors' own memory, of which no copy is made: a checkpoint of billions of numbers
    is written from where they lie.

    The `safetensors` package writes its metadata in an order that is another each time, and refuses tensors that share
    their memory. The format is a header of JSON, padded to 8 bytes and behind its length, and then the values, those
    of larger types first, so that all are aligned.

    Raises:
        ValueError: for tensors on the meta device, or of a type that the format doesn't have.
    """
    on_cpu = {name: movable(name, tensor) for name, tensor in tensors.items()}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    order, end = sorted(on_cpu.items(), key=lambda item: (-item[1].element_size(), item[0])), 0
    for name, tensor in order:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *(values(tensor) for _, tensor in order)]


def movable(name: str, tensor: Tensor) -> Tensor:
    """The tensor on the CPU, if it can be saved at all."""
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values to save: give the model its weights first")
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"{name} is of type {tensor.dtype}, which can't be saved: convert it, such as by model.float()"
        )
    return tensor.detach().cpu()


def read_header(path: Path, config_checksum: str) -> dict[str, Stored]:
    """Type and shape of each tensor in a weights file, of which nothing else is read.

    Raises:
        CheckpointError: if the file is missing or damaged, or is of another configuration.
    """
    if not path.is_file():
        raise CheckpointError(path, "the file is missing", REMEDY)
    try:
        with open(path, "rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
        if size > MOST_HEADER:
            raise ValueError(f"its header is larger than {MOST_HEADER:,} bytes")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            header = {name: Stored(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(path, f"the file is damaged ({shortened(str(error))})", REMEDY) from None
    if metadata.get("config_sha256") != config_checksum:
        raise CheckpointError(path, f"the weights are of another configuration than {CONFIG_FILE}", REMEDY)
    return header


def read_weights(path: Path, config_checksum: str) -> dict[str, Tensor]:
    """The tensors of a weights file, verified against its checksum and against that of its configuration.

    They are in memory of their own, where kernels compute the same bits as before they were saved; in the file they
    lie anywhere, and whoever writes to the file would change them after they were verified.

    Raises:
        CheckpointError: if the file is missing or damaged, or is of another configuration.
    """
    header = read_header(path, config_checksum)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in header}
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(path, f"the file is damaged ({shortened(str(error))})", REMEDY) from None
    if metadata.get("sha256") != checksum_of_tensors(tensors):
        raise CheckpointError(path, "the checksum of the weights is wrong, so the file is damaged", REMEDY)
    return tensors


def compare(expected: Mapping[str, Tensor], given: Mapping[str, Stored]) -> str:
    """In words, the first ways in which the tensors differ in name, shape or kind; empty where they agree."""
    problems = [f"{name} is missing" for name in expected.keys() - given.keys()]
    problems += [f"{shortened(name)} is unknown" for name in given.keys() - expected.keys()]
    for name in expected.keys() & given.keys():
        (dtype, shape), tensor = given[name], expected[name]
        if shape != tuple(tensor.shape):
            problems.append(f"{name} has shape {shape} for {tuple(tensor.shape)}")
        elif dtype.startswith(("F", "BF")) != tensor.is_floating_point():
            problems.append(f"{name} is of type {dtype}")
    return ", ".join(sorted(problems)[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
