"""Where the figures of a run go beside `metrics.jsonl`: TensorBoard, Weights & Biases, trackio, or your own object."""

from __future__ import annotations

import json
import os
import re
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..files import write_atomically
from ..validation import shown
from .config import TRACKERS, choice, listed

PROJECT = "hierarchical-transformer"
TENSORBOARD_FOLDER = "tensorboard"
WANDB_ID_FILE = "wandb-id"
TRACKIO_NAME_FILE = "trackio-name"
EXIT_CODES = {"finished": 0, "interrupted": 255}  # those of a process, by which W&B tells how a run ended


@runtime_checkable
class Tracker(Protocol):
    """Takes the figures of a run while it trains. Any object with these three methods is one:

        class Printer:
            def start(self, config, folder, step):
                print(f"{folder} goes on after step {step}")

            def log(self, step, metrics):
                print(step, metrics)

            def finish(self, status):
                print(status)

        train(config, trackers=[Printer()])

    They are called in the main process alone. What `start` raises ends the run, before anything is trained. A tracker
    that raises later is left out from then on, with a warning, and the training goes on.
    """

    def start(self, config: Mapping[str, Any], folder: Path, step: int) -> None:
        """Called once, before the first step.

        Args:
            config: the settings of the run, in the words and nesting of its `config.toml`
            folder: the folder of the run, which is there
            step: steps that earlier sessions have done, 0 for a new run. Figures of later steps may have been logged
                before the run was interrupted; they come again, the same
        """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called every so often, with steps that never fall; training and validation come separately.

        Args:
            step: optimiser steps done so far
            metrics: figures by name: `tokens` and `seconds` so far, and either `validation_bits_per_byte` or those of
                training, such as `loss`, `train_bits_per_byte`, `learning_rate` and `tokens_per_second`
        """

    def finish(self, status: str) -> None:
        """Called once, at the end.

        Args:
            status: `finished`; `interrupted`, when the run was told to stop and can go on; `failed`, after an error
        """


class Trackers:
    """Several trackers in one, of which none can end a training once it runs.

    Raises:
        TypeError: something that isn't a tracker
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        for tracker in listed("trackers", trackers, "trackers"):
            if isinstance(tracker, type) or not isinstance(tracker, Tracker):
                raise TypeError(
                    f"trackers must be objects with the methods start, log and finish, got {shown(tracker)}: "
                    "see training.trackers.Tracker"
                )
        self.trackers = list(trackers)

    def start(self, config: Mapping[str, Any], folder: Path, step: int) -> None:
        """Start all; where one can't, those that were started are finished as failed, and its error goes on."""
        wanted, self.trackers = self.trackers, []
        try:
            for tracker in wanted:
                tracker.start(config, folder, step)
                self.trackers.append(tracker)
        except BaseException:
            self.finish("failed")
            raise

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in tuple(self.trackers):
            try:
                tracker.log(step, dict(metrics))  # its own, to do with as it likes
            except Exception as error:
                self.leave_out(tracker, error, f"at step {step}, and is left out from there on")

    def finish(self, status: str) -> None:
        for tracker in tuple(self.trackers):
            try:
                tracker.finish(status)
            except Exception as error:
                self.leave_out(tracker, error, "to finish")

    def leave_out(self, tracker: Tracker, error: Exception, when: str) -> None:
        self.trackers = [other for other in self.trackers if other is not tracker]
        name = type(tracker).__name__
        warnings.warn(f"{name} failed {when}: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=3)


class TensorBoardTracker:
    """Writes what TensorBoard shows into the folder `tensorboard` of the run: `tensorboard --logdir RUN`.

    After a resume, TensorBoard hides what had been logged beyond the step at which the run goes on.

    Raises:
        ValueError: tensorboard isn't installed
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise not_installed("tensorboard") from error
        self._make_writer = SummaryWriter

    def start(self, config: Mapping[str, Any], folder: Path, step: int) -> None:
        # what stands at `purge_step` is hidden too, and what stands at `step` is to stay
        events = folder / TENSORBOARD_FOLDER
        self._writer = self._make_writer(str(events), purge_step=step + 1 if events.exists() else None)
        text = json.dumps(plain(config), indent=2)
        self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        # so that a killed run lacks nothing of what came before its last checkpoint
        self._writer.flush()

    def finish(self, status: str) -> None:
        self._writer.close()


class WandbTracker:
    """Logs to Weights & Biases, under the name of the run's folder.

    The id of the W&B run is kept in the folder, as `wandb-id`, so that a resumed run goes on in the same one. Figures
    that W&B has already, of steps that are taken again, aren't sent twice. W&B's own settings hold, such as
    `WANDB_PROJECT`, `WANDB_ENTITY`, and `WANDB_MODE=offline`; its files are in `wandb` in the run's folder.

    Args:
        project: project in W&B; none: that of `WANDB_PROJECT`, or else hierarchical-transformer

    Raises:
        ValueError: wandb isn't installed; from `start`: W&B refuses the run, for want of a login, say
    """

    def __init__(self, project: str | None = None) -> None:
        try:
            from wandb import Error, init  # by name: a folder `wandb` in the working directory has none
        except ImportError as error:
            raise not_installed("wandb") from error
        self._init, self._error = init, Error
        self.project = project or os.environ.get("WANDB_PROJECT") or PROJECT

    def start(self, config: Mapping[str, Any], folder: Path, step: int) -> None:
        key = kept_name(folder / WANDB_ID_FILE, new=uuid.uuid4().hex)
        try:
            self._run = self._init(
                project=self.project,
                name=folder.resolve().name,
                id=key,
                resume="allow",
                dir=folder,
                config=plain(config),
            )
        except self._error as error:
            raise ValueError(
                f"log: W&B doesn't start: {error}: run `wandb login`, set WANDB_MODE=offline, or leave wandb out"
            ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step >= self._run.step:
            self._run.log(dict(metrics), step=step)

    def finish(self, status: str) -> None:
        self._run.finish(exit_code=EXIT_CODES.get(status, 1))


class TrackioTracker:
    """Logs to trackio, for `trackio show`; on this machine, unless `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` is set.

    The name of the trackio run is kept in the run's folder, as `trackio-name`, so that a resumed run goes on in the
    same one. Figures of steps that are taken again then stand there twice, the same.

    Args:
        project: project in trackio

    Raises:
        ValueError: trackio isn't installed
    """

    def __init__(self, project: str = PROJECT) -> None:
        try:
            from trackio import finish, init
        except ImportError as error:
            raise not_installed("trackio") from error
        self._init = init
        self._finish: Callable[[], None] = finish
        self.project = project

    def start(self, config: Mapping[str, Any], folder: Path, step: int) -> None:
        folder_name = re.sub(r"[^\w.-]", "-", folder.resolve().name, flags=re.ASCII)
        name = kept_name(folder / TRACKIO_NAME_FILE, new=f"{folder_name[:40]}-{uuid.uuid4().hex[:8]}")
        self._run = self._init(self.project, name=name, resume="allow", config=plain(config), embed=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, status: str) -> None:
        self._finish()  # and not that of the run, after which trackio would finish it again when the process ends


def make_trackers(names: Sequence[str]) -> list[Tracker]:
    """The trackers that `log` names: tensorboard, wandb, trackio; a name that is given twice counts once.

    Raises:
        ValueError: an unknown name, or a package that isn't installed
    """
    makers: dict[str, type[Tracker]] = {
        "tensorboard": TensorBoardTracker,
        "wandb": WandbTracker,
        "trackio": TrackioTracker,
    }
    return [makers[choice("log", name, TRACKERS)]() for name in dict.fromkeys(names)]


def not_installed(package: str) -> ValueError:
    return ValueError(
        f'log: {package} isn\'t installed: pip install "simple-hierarchical-transformer[log]", or leave {package} out'
    )


def kept_name(path: Path, new: str) -> str:
    """The name that a run has elsewhere, as an earlier session noted it, or a new one that is noted now.

    Raises:
        ValueError: the file holds something else
    """
    try:
        name = path.read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        write_atomically({path: f"{new}\n".encode()})
        return new
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise ValueError(f"{path} must hold the name of a run, got {shown(name)}: delete the file to begin a new one")
    return name


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings as JSON knows them: paths as text, tuples as lists."""
    settings: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return settings
