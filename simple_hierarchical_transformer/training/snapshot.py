"""What a run is made of, as the files of a checkpoint, and back: weights, what the optimisers remember, numbers."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from .. import __version__
from ..checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointError, model_files, read_config, read_weights
from ..files import Content
from ..saved_config import model_config_json
from ..text.tokenizer import tokenizer_files
from ..weights import as_safetensors
from .checkpoint_folder import REMEDY
from .checkpoints import TRAIN_FILE
from .metrics import Means
from .optimizer import WHOLE, optimizer_tensors, set_optimizer_tensors
from .random_state import random_state, set_random_state
from .run import Run
from .run_state import STATE_FILE, RunState, read_state

# settings that may differ when a run goes on; all others decide what it computes
FREE = frozenset(
    {
        "data", "cache", "out", "resume", "resume_fallback", "steps", "tokens", "minutes", "accumulate", "compile",
        "device", "workers", "validate_every", "validation_sequences", "final_validation_sequences", "sample_every",
        "sample_length", "checkpoint_every", "checkpoint_minutes", "keep", "log_every", "log",
    }
)  # fmt: skip
FREE_BUT_FOR_BITS = ("steps", "tokens", "minutes", "accumulate", "compile")
FREE_OF_MODEL = frozenset({"checkpoint_activations"})
OPTIMIZER, WEIGHTS, RANDOM, SEEN = "optimizer/", "weights/", "random/", "averaged_steps"


def weights_of(run: Run) -> dict[str, Tensor]:
    """The trained weights; of a sharded model, gathered on the first process."""
    return dict(get_model_state_dict(run.accelerator.unwrap_model(run.model), options=WHOLE))  # type: ignore[arg-type]


def checkpoint_files(run: Run) -> dict[str, Content]:
    """All files of a checkpoint but its manifest. Every process takes part; only on the first they are whole.

    Where weights are averaged, the averaged ones are the model that is shared, and the trained ones stand beside what
    the optimisers remember.
    """
    weights = weights_of(run)
    tensors = {f"{OPTIMIZER}{key}": value for key, value in optimizer_tensors(run.model, run.optimizers).items()}
    tensors |= {f"{RANDOM}{key}": value for key, value in random_state().items()}
    if run.average is not None:
        tensors |= {f"{WEIGHTS}{key}": value for key, value in weights.items()}
        tensors[SEEN] = run.average.n_averaged
        weights = run.trained.state_dict()
    if not run.accelerator.is_main_process:
        return {}
    return {
        **model_files(run.model_config, weights),
        TRAIN_FILE: as_safetensors(tensors),
        STATE_FILE: state_of(run).as_bytes(),
        **tokenizer_files(run.tokenizer),
    }


def state_of(run: Run) -> RunState:
    return RunState(
        step=run.step,
        tokens=run.tokens,
        sequences=run.step * run.config.batch_size,
        seconds=run.seconds,
        data=run.split.fingerprint,
        best=run.best,
        since_log=run.since_log.sums,
        since_validation=run.since_validation.sums,
        settings=run.settings,
        environment=environment(run),
    )


def environment(run: Run) -> dict[str, str | int]:
    """What the exact bits of a run depend on beside its settings."""
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else platform.machine()
    return {
        "simple_hierarchical_transformer": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{run.device.type} {device}",
        "processes": run.accelerator.num_processes,
        "threads": torch.get_num_threads() if run.device.type == "cpu" else 0,
    }


def restore(run: Run, folder: Path) -> list[str]:
    """Bring a new run to where a verified checkpoint stands; in words, what may change its bits from there on.

    Raises:
        CheckpointError: a file isn't what it should be
        ValueError: the checkpoint is of a run with another model, other settings or other data
    """
    state = read_state(folder / STATE_FILE)
    saved, checksum = read_config(folder / CONFIG_FILE)
    check_fits(run, folder, state, saved)
    expected = expected_tensors(run)
    # gathered on the first process, which speaks for all
    tensors = read_train_tensors(folder / TRAIN_FILE, expected if run.accelerator.is_main_process else None)
    shared = read_weights(folder / WEIGHTS_FILE, checksum)
    weights = part(tensors, WEIGHTS) if run.average is not None else shared
    if run.average is not None:
        run.trained.load_state_dict(shared, strict=True)
        run.average.n_averaged.copy_(tensors[SEEN])
    set_model_state_dict(run.accelerator.unwrap_model(run.model), weights, options=WHOLE)  # type: ignore[arg-type]
    set_optimizer_tensors(run.model, run.optimizers, part(tensors, OPTIMIZER))
    run.best, run.since_log, run.since_validation = state.best, Means(state.since_log), Means(state.since_validation)
    run.begin_at(state.step, state.seconds)
    try:
        set_random_state(part(tensors, RANDOM))  # last, since setting the rest may draw numbers
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(folder / TRAIN_FILE, str(error), REMEDY) from None
    was = {**state.environment, **{name: state.settings.get(name) for name in FREE_BUT_FOR_BITS}}
    now = {**environment(run), **{name: run.settings[name] for name in FREE_BUT_FOR_BITS}}
    return [f"{name} {was[name]} → {now[name]}" for name in now if name in was and was[name] != now[name]]


def check_fits(run: Run, folder: Path, state: RunState, saved: Mapping[str, Any]) -> None:
    """Whether a checkpoint is of this run: its place, its settings, its model, its data.

    Args:
        run: that is to go on
        folder: of the checkpoint
        state: what its state file holds, and
        saved: the arguments of its model

    Raises:
        CheckpointError: it stands where another should
        ValueError: it is of a run with another model, other settings or other data
    """
    if folder.name != f"step-{state.step:08d}":
        raise CheckpointError(folder / STATE_FILE, f"it is the state of step {state.step}", REMEDY)
    start = "start a run of its own with another --out"
    if others := list(differing(state.settings, run.settings)):
        listed = " and ".join(f"{name} = {was}, not {now}" for name, was, now in others)
        raise ValueError(
            f"resume: the run in {run.config.out} was started with {listed}: leave that as it was, or {start}"
        )
    own = json.loads(json.dumps(model_config_json(run.model_config)["model"]))
    for name in own:
        if name not in FREE_OF_MODEL and saved[name] != own[name]:
            raise ValueError(
                f"resume: the model in {folder} has {name} = {saved[name]}, and that of this run {own[name]}: leave "
                f"the model as it was, or {start}"
            )
    if state.data != run.split.fingerprint:
        raise ValueError(
            f"resume: the data aren't those of the run in {run.config.out} (their fingerprint was {state.data[:12]}… "
            f"and is {run.split.fingerprint[:12]}…): give the same --data, unchanged, or {start}"
        )


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The settings in which a run differs from what it was started with, but for those that are free."""
    for name, value in now.items():
        if name == "model":
            yield from (d for d in differing(was.get("model", {}), value) if d[0] not in FREE_OF_MODEL)
        elif name not in FREE and was.get(name) != value:
            yield name, was.get(name), value


def expected_tensors(run: Run) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what TRAIN_FILE must hold, but for random-number states."""
    remembered = optimizer_tensors(run.model, run.optimizers)
    expected = {f"{OPTIMIZER}{key}": tuple(value.shape) for key, value in remembered.items()}
    if run.average is not None:
        expected |= {f"{WEIGHTS}{key}": tuple(value.shape) for key, value in run.trained.state_dict().items()}
        expected[SEEN] = ()
    return expected


def read_train_tensors(path: Path, expected: Mapping[str, tuple[int, ...]] | None) -> dict[str, Tensor]:
    """The tensors of a TRAIN_FILE, whose names and shapes are compared before any is read, if these are given.

    Raises:
        CheckpointError: it holds others
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if expected is not None:
                others = [name for name, shape in expected.items() if shapes.get(name) != shape]
                others += [name for name in shapes if name not in expected and not name.startswith(RANDOM)]
                if others:
                    raise CheckpointError(path, f"{others[0]} is missing, unknown, or of another shape", REMEDY)
            return {name: file.get_tensor(name).clone() for name in shapes}
    except (OSError, SafetensorError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(path, f"the file is damaged ({error})", REMEDY) from None


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
