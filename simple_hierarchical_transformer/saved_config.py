"""`config.json` of a saved model: the arguments that build it, and a checksum of them.

Whoever made the file may mean harm, and its checksum says nothing about that. So every key is known, every value is
what the constructor takes, and nothing is built or allocated by what the file says before it is checked.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from .arguments import NGRAM_TABLE_SIZE, build_config, to_arguments
from .config import ModelConfig

CONFIG_FILE = "config.json"
FORMAT_VERSION = 1
CUSTOM = "<given when loading>"  # stands in the configuration for what JSON can't hold
OBJECTS: dict[str, Any] = {"chunk_summarizers": None, "next_latent_loss_type": "mse"}  # and what goes for any of them
ADDED_LATER: dict[str, Any] = {  # arguments younger than the format, and what they were
    "checkpoint_activations": False,
    "merge_type": "mlp",
    "compress_after": 0,
    "ngram_sizes": (),
    "ngram_table_size": NGRAM_TABLE_SIZE,
}
KNOWN = tuple(inspect.signature(build_config).parameters)
MOST_BYTES = 1 << 20  # of a configuration; those that are written have two thousand
MOST_ROLLOUTS = 1 << 12  # each has a weight of its own
REMEDY = "give the folder that save_pretrained wrote, or copy or save it again"


class CheckpointError(ValueError):
    """A file of a saved model is missing, damaged, or not what it should be."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{path}: {reason}: {remedy}")
        self.path, self.reason = path, reason


def model_config_json(config: ModelConfig) -> dict[str, Any]:
    """What `config.json` holds: the format's version, the constructor's arguments, and the checksum of both."""
    arguments = to_arguments(config)
    for name in OBJECTS:
        if arguments[name] is not None and not isinstance(arguments[name], str):
            arguments[name] = CUSTOM
    content = {"format_version": FORMAT_VERSION, "model": arguments}
    return content | {"sha256": checksum_of_json(content)}


def checksum_of_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The constructor arguments in a configuration file, checked, and the file's checksum.

    CUSTOM stands there for an object that no file can hold.

    Raises:
        CheckpointError: if the file is missing, damaged, of another version, or holds what the constructor refuses.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(path, "the file holds no model configuration", REMEDY)
    version, checksum = content.get("format_version"), content.pop("sha256", None)
    if type(version) is not int or version != FORMAT_VERSION:
        newer = "install a newer version of simple-hierarchical-transformer"
        raise CheckpointError(path, f"format version {shortened(repr(version))} is not {FORMAT_VERSION}", newer)
    try:
        is_whole = checksum == checksum_of_json(content)
    except RecursionError:
        raise CheckpointError(path, "the file holds no model configuration, it is nested too deeply", REMEDY) from None
    if not is_whole:
        raise CheckpointError(path, "the checksum is wrong, so the file was changed or damaged", REMEDY)
    check_keys(path, content, required=("format_version", "model"), known=("format_version", "model"))
    arguments = ADDED_LATER | content["model"]
    check_keys(path, arguments, required=KNOWN, known=KNOWN)
    check_values(path, arguments)
    return arguments, checksum


def read_json(path: Path) -> Any:
    """Strict JSON: no key twice, no number that isn't one, and no more than a configuration needs."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise ValueError(f"the key {shortened(name)} stands there twice")
            names.add(name)
        return dict(pairs)

    def no_number(text: str) -> NoReturn:
        raise ValueError(f"{text} is no number of JSON")

    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise CheckpointError(path, f"the file is no configuration: it is larger than {MOST_BYTES:,} bytes", REMEDY)
        return json.loads(content, object_pairs_hook=once, parse_constant=no_number)
    except FileNotFoundError:
        raise CheckpointError(path, "the file is missing", REMEDY) from None
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(path, "the file can't be read as JSON (it is nested too deeply)", REMEDY) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"the file can't be read as JSON ({shortened(str(error))})", REMEDY) from None


def check_keys(path: Path, content: Mapping[str, Any], required: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Refuse a key that isn't known, with the nearest that is, and one that lacks."""
    for name in sorted(content.keys() - set(known)):
        nearest = get_close_matches(name[:60], known, n=1, cutoff=0)[0]
        raise CheckpointError(
            path,
            f"{shortened(name)} is no known key, the nearest is {nearest}",
            "install a newer version of simple-hierarchical-transformer, or save the model again",
        )
    missing = [name for name in required if name not in content]
    if missing:
        raise CheckpointError(path, f"the key {missing[0]} is missing", "save the model again")


def check_values(path: Path, arguments: Mapping[str, Any]) -> None:
    """Refuse values that the constructor would refuse, before anything is as large as they say."""
    rollouts = arguments["num_rollouts"]
    if isinstance(rollouts, int) and rollouts > MOST_ROLLOUTS:
        raise CheckpointError(path, f"num_rollouts must be at most {MOST_ROLLOUTS}", "save the model again")
    given = {name: value for name, value in OBJECTS.items() if arguments[name] == CUSTOM}
    try:
        build_config(**{**arguments, **given})
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(path, shortened(str(error)), "save the model again") from None


def shortened(text: str) -> str:
    """A file says what it likes, however long: enough of it to know it by."""
    line = " ".join(text[:1000].split())
    return line if len(line) <= 300 else f"{line[:300]}…"
