"""Whoever wrote the files of a model may mean harm: what they ask for is refused before anything is as large as that.

The checksums of these files are right: who writes a configuration can compute them.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simple_hierarchical_transformer import CheckpointError, HierarchicalTransformer
from simple_hierarchical_transformer.arguments import to_arguments
from simple_hierarchical_transformer.saved_config import ADDED_LATER, MOST_BYTES, checksum_of_json

MEGABYTE = 1 << 20
ARGUMENTS: dict[str, Any] = {
    "num_tokens": 11, "dim": (8, 6), "depth": 2, "seq_len": 16, "dim_head": 2, "heads": 2, "hierarchies": (1, 4),
    "hierarchical_stride": (1, 2), "window_sizes": (3, 5), "prophet_loss_weight": 0.1,
    "prophet_loss_use_quantized": True, "rq_num_codebooks": 2, "rq_codebook_dim": 3, "rq_codebook_size": 5,
    "next_latent_loss_weight": (0.0, 0.5), "num_rollouts": 2, "dynamics_hidden_dim": 3, "dynamics_num_layers": 2,
    "rollout_weights": (0.75, 0.25), "ngram_sizes": (2, 3), "ngram_table_size": 7,
}  # fmt: skip
WHOLE = [
    "num_tokens", "dim", "depth", "seq_len", "dim_head", "heads", "hierarchies", "window_sizes", "hierarchical_stride",
    "predict_hierarchy", "rq_num_codebooks", "rq_codebook_dim", "rq_codebook_size", "num_rollouts",
    "dynamics_hidden_dim", "dynamics_num_layers", "ngram_table_size",
    "compress_after",
]  # fmt: skip
REAL = [
    "ff_mult", "recon_loss_weight", "hierarchical_ar_loss_weight", "prophet_loss_weight", "next_latent_loss_weight",
    "dynamic_loss_decay", "rollout_weights",
]  # fmt: skip
FLAGS = [
    "hierarchy_merge_all", "predict_use_all_hierarchy", "prophet_loss_use_quantized", "prophet_quantized_use_embed",
    "detach_summaries", "dynamic_rollout_loss_weight", "use_xpos", "checkpoint_activations",
]  # fmt: skip
LENGTHS = ("seq_len", "window_sizes")  # of which a machine may be asked for millions


def saved_arguments() -> dict[str, Any]:
    """As JSON has them, with one value per stream."""
    config = HierarchicalTransformer(**ARGUMENTS).config
    arguments: dict[str, Any] = json.loads(json.dumps(to_arguments(config)))
    return arguments


HONEST = saved_arguments()
CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = []


def ask(name: str, *values: Any) -> None:
    """Add configurations that are honest but for one argument; of one per stream, but for that of one stream."""
    for value in values:
        shown = repr(value)[:30]
        CONFIGURATIONS.append((f"{name}={shown}", HONEST | {name: value}))
        if (
            isinstance(HONEST[name], list)
            and value not in ("8", "0.5")
            and not isinstance(value, (list, dict, type(None)))
        ):
            for i in range(len(HONEST[name])):
                changed = [value if i == j else each for j, each in enumerate(HONEST[name])]
                CONFIGURATIONS.append((f"{name}[{i}]={shown}", HONEST | {name: changed}))


for name in WHOLE:
    ask(name, 2**41 if name in LENGTHS else 2**30, 2**62, 10**4000, -1, 1e300, "8", [], [[8]], {}, [8] * 1000)
for name in REAL:
    ask(name, -1, 10**4000, "0.5", [], [[0.5]], {}, [0.5] * 1000)
for name in FLAGS:
    ask(name, 1, None, "true", [True, True], {})
ask("merge_type", "attention", "os.system", 1, None, [], {}, [["mlp"]])
ask("ngram_sizes", 2**30, 10**4000, -1, 1, 1e300, "8", [], [[8]], {}, [8] * 1000, list(range(2, 50)), [2, 2])
ask("ff_mult", 1e9, 1e300, 2**62)
ask("ignore_index", 2**63, -(2**64), 0.5, None, "0", [], {})
ask("use_flash_attn", 0, "true", [], {})
ask("chunk_summarizers", "torch.nn.Linear", 1, [1, 2], [None], {}, [None] * 1000)
ask("next_latent_loss_type", "os.system", "eval", None, 1, [], {})
CONFIGURATIONS += [
    (f"without {name}", {key: value for key, value in HONEST.items() if key != name})
    for name in HONEST
    if name not in ADDED_LATER
]
CONFIGURATIONS += [(f"with {name!r}", HONEST | {name: 1}) for name in ("depht", "", "__class__", "self", "x" * 10_000)]
CONFIGURATIONS += [
    ("many streams", HONEST | {name: [2**i for i in range(40)] for name in ("hierarchies", "hierarchical_stride")}),
    ("layers without attention", HONEST | {"depth": 10**6, "window_sizes": [0, 0]}),
    ("tables without weights", HONEST | {"prophet_loss_weight": 0, "rq_num_codebooks": 2**12}),
    ("everything", HONEST | {name: 2**40 for name in ("dim", "depth", "heads", "dim_head", "num_tokens")}),
]

GOOD = json.dumps({"format_version": 1, "model": HONEST, "sha256": "0" * 64})
FILES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"\x80\x04\x95\x00",
    "not UTF-8": b'{"model": "\xff"}',
    "null": b"null",
    "a number": b"1",
    "nested lists": b"[" * 500_000,
    "nested lists that end": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "an argument of nested lists": GOOD.replace('"depth": 2', '"depth": ' + "[" * 900 + "]" * 900).encode(),
    "a digit for each atom": GOOD.replace('"depth": 2', '"depth": ' + "9" * 100_000).encode(),
    "a key twice": GOOD.replace('"depth": 2', '"depth": 2, "depth": 2').encode(),
    "a model twice": GOOD.replace('"sha256"', '"model": {}, "sha256"').encode(),
    "larger than a configuration": GOOD.encode() + b" " * MOST_BYTES,
    "many megabytes": b"{" + b" " * (50 * MEGABYTE),
    "a checksum that is a number": GOOD.replace('"' + "0" * 64 + '"', "0").encode(),
    "a wrong checksum": GOOD.encode(),
}
for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999"):
    for name in ("depth", "dim", "recon_loss_weight", "ignore_index"):
        content = json.dumps({"format_version": 1, "model": HONEST | {name: "HERE"}})
        FILES[f"{name} {text}"] = content.replace('"HERE"', text).encode()


class Allocations(TorchDispatchMode):
    """Bytes of the largest tensor that is made, other than on the meta device."""

    largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return made


def check_it_is_refused_without_memory(folder: Path, name: str) -> str:
    message = ""
    tracemalloc.start()
    try:
        with Allocations() as allocations:
            HierarchicalTransformer.from_pretrained(folder)
    except CheckpointError as error:
        message = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert message, f"{name} was loaded"
    assert allocations.largest < MEGABYTE, name
    assert peak < 10 * MEGABYTE, name
    assert len(message) < 2000, name
    return message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    HierarchicalTransformer(**ARGUMENTS).save_pretrained(path)
    return path


@pytest.fixture
def rewrite(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write a configuration as its author would: with checksums that are right, in both files."""
    good = {path: path.read_bytes() for path in folder.iterdir()}
    tensors = load_file(folder / "model.safetensors")

    def write(arguments: dict[str, Any], **others: Any) -> None:
        content = {"format_version": 1, "model": arguments} | others
        checksum = checksum_of_json(content)
        (folder / "config.json").write_text(json.dumps(content | {"sha256": checksum}))
        save_file(tensors, folder / "model.safetensors", metadata={"config_sha256": checksum})

    yield write
    for path, content in good.items():
        path.write_bytes(content)


def test_the_honest_configuration_is_written_so_that_only_the_weights_checksum_is_missing(
    folder: Path, rewrite: Callable[..., None]
) -> None:
    """Else all others would be refused for another reason than they should."""
    HierarchicalTransformer.from_pretrained(folder)
    rewrite(HONEST)
    with pytest.raises(CheckpointError, match="the checksum of the weights is wrong"):
        HierarchicalTransformer.from_pretrained(folder)


def test_hostile_configurations_are_refused_without_memory(folder: Path, rewrite: Callable[..., None]) -> None:
    for name, arguments in CONFIGURATIONS:
        rewrite(arguments)
        message = check_it_is_refused_without_memory(folder, name)
        assert "the checksum" not in message, name


def test_files_that_are_no_configuration_are_refused_without_memory(folder: Path, rewrite: Callable[..., None]) -> None:
    for name, content in FILES.items():
        (folder / "config.json").write_bytes(content)
        assert "config.json" in check_it_is_refused_without_memory(folder, name)


def test_two_hundred_and_more_are_tried_and_every_argument_among_them() -> None:
    assert len(CONFIGURATIONS) + len(FILES) >= 200
    tried = {name for _, each in CONFIGURATIONS for name in HONEST if name in each and each[name] != HONEST[name]}
    assert tried == HONEST.keys()


def test_what_would_be_built_is_noticed() -> None:
    """The proof above can fail: so large a model is seen, and so is so long a list."""
    with Allocations() as allocations:
        HierarchicalTransformer(num_tokens=2**16, dim=64, depth=1)
    assert allocations.largest > MEGABYTE
    tracemalloc.start()
    shares = (1.0,) * 2**22
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak > 10 * MEGABYTE and shares


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"format_version": True}, "format version True is not 1"),
        ({"format_version": 1.0}, r"format version 1\.0 is not 1"),
        ({"format_version": 2}, "format version 2 is not 1.*newer version"),
        ({"code": "import os"}, "code is no known key, the nearest is model"),
    ],
)
def test_what_stands_beside_the_model_is_known_too(
    folder: Path, rewrite: Callable[..., None], others: dict[str, Any], words: str
) -> None:
    rewrite(HONEST, **others)
    with pytest.raises(CheckpointError, match=words):
        HierarchicalTransformer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 10**9}, r"depth 1000000000 with 2 streams has at least 8000000002 tensors, but .* holds \d+:"),
        ({"depht": 2}, "depht is no known key, the nearest is depth: install a newer version"),
        ({"num_rollouts": 10**9}, "num_rollouts must be at most 4096"),
        ({"dim": [2**40, 6]}, r"can't be built|shape \(.*\) for \(.*1099511627776.*\)"),
        ({"rq_codebook_dim": 2**20}, r"rq_codebook_dim .* random numbers beside [\d,]+ weights: .*smaller codebooks"),
        ({"seq_len": 2**41}, "seq_len is 2199023255552, more than 1099511627776: give another seq_len when loading"),
        ({"heads": [2, "2"]}, "heads of the stream with compress factor 4 must be a whole number, got '2' of type str"),
    ],
)
def test_the_refusal_says_what_is_wrong(
    folder: Path, rewrite: Callable[..., None], changes: dict[str, Any], words: str
) -> None:
    rewrite(HONEST | changes)
    with pytest.raises(CheckpointError, match=words):
        HierarchicalTransformer.from_pretrained(folder)


def test_a_length_that_no_machine_has_may_be_given_anew(tmp_path: Path) -> None:
    """Whoever trained with one can still load the model."""
    HierarchicalTransformer(**ARGUMENTS | {"seq_len": 2**50, "window_sizes": 2**60}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="give another seq_len when loading"):
        HierarchicalTransformer.from_pretrained(tmp_path)
    loaded = HierarchicalTransformer.from_pretrained(tmp_path, seq_len=32, window_sizes=(3, None))
    assert loaded(torch.zeros(1, 32, dtype=torch.long)).shape == (1, 32, 11)


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def tensor(shape: list[Any], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


WEIGHTS: dict[str, bytes] = {
    "a header of 2**63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header of a gigabyte": (2**30).to_bytes(8, "little") + b"{}",
    "a header of nine megabytes": (9 * MEGABYTE).to_bytes(8, "little") + b"{}" + b" " * 9 * MEGABYTE,
    "a header of nested lists": (10_000).to_bytes(8, "little") + b"[" * 10_000,
    "data that isn't there": header(a=tensor([2**20], 2**22)),
    "a shape of 2**80 numbers": header(a=tensor([2**40, 2**40], 2**62)),
    "a shape of 2**64 numbers and no data": header(a=tensor([2**32, 2**32], 0)),
    "a shape below 0": header(a=tensor([-1], 0)),
    "a type that doesn't exist": header(a=tensor([0], 0, "object")),
    "no tensors": header(),
}


def test_weights_whose_header_lies_are_refused_without_memory(folder: Path, rewrite: Callable[..., None]) -> None:
    for name, content in WEIGHTS.items():
        (folder / "model.safetensors").write_bytes(content)
        assert "model.safetensors" in check_it_is_refused_without_memory(folder, name)


def test_weights_of_whole_numbers_are_refused(folder: Path, rewrite: Callable[..., None]) -> None:
    path = folder / "model.safetensors"
    checksum = json.loads((folder / "config.json").read_text())["sha256"]
    tensors = {name: tensor.to(torch.int32) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"config_sha256": checksum})
    with pytest.raises(CheckpointError, match="is of type I32"):
        HierarchicalTransformer.from_pretrained(folder)
