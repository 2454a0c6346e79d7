"""One sitting of a run: from where it stands to its end, or to where it is stopped."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..files import FolderLock
from .checkpoints import Checkpoints
from .finish import finish
from .finite import NonFiniteError
from .metrics import MetricsLog, peak_memory
from .processes import MainProcessError, agreed_sums, from_main, on_main
from .progress import ProgressBar
from .run import Run
from .run_folder import MODEL_FOLDER, lock_run_folder, write_config
from .sample import write_sample
from .snapshot import checkpoint_files, restore
from .stopping import StopSignals
from .trackers import Trackers

Report = Callable[[str], None]


class CheckpointNotWrittenError(OSError):
    """The disk is full, say. The run has stopped, and the checkpoints before are as good as they were."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        folder: of the model: the run's `model/`, or where the run was stopped, its newest checkpoint
        steps: taken in all
        train_bits_per_byte: mean over the steps since the last line of metrics but one
        validation_bits_per_byte: of the last validation; none where the run was stopped before it
        sample: what the model wrote; none where that wasn't asked for
        interrupted: whether it was stopped before its end
    """

    folder: Path
    steps: int
    train_bits_per_byte: float | None
    validation_bits_per_byte: float | None
    sample: str | None
    interrupted: bool


class Session:
    """One sitting of a run: from where it stands to its end, or to where it is stopped."""

    def __init__(self, run: Run, report: Report, trackers: Trackers) -> None:
        self.run, self.config, self.accelerator = run, run.config, run.accelerator
        self.is_main = run.accelerator.is_main_process
        self.report = report
        self.trackers = trackers
        self.metrics = MetricsLog(run.config.out)
        self.checkpoints = Checkpoints(run.config.out, run.config.keep)
        self.saved_at = 0
        self.saved_when = time.perf_counter()
        self.in_steps = 0.0  # seconds spent in steps since the last line of metrics
        self.over: float | None = None  # the last validation of a run that has nothing left to do
        self.lock: FolderLock | None = None
        self.train_bits_per_byte: float | None = None
        self.averaged = 0  # steps that it is the mean of

    def open(self) -> None:
        """Make the folder of a new run, or go on with the one that is there."""
        config, run = self.config, self.run
        self.lock = on_main(self.accelerator, lambda: lock_run_folder(config, self.report))
        found = self.checkpoints.newest(config.resume_fallback) if config.resume else None
        if found is not None:
            changes = restore(run, found)
            if changes:
                self.report(f"the bits may differ from those of a run that wasn't stopped: {', '.join(changes)}")
        self.accelerator.wait_for_everyone()  # all have read before one writes
        is_over = run.is_over  # which all processes must ask
        over = on_main(self.accelerator, lambda: self.tidy(found, is_over))
        validation = from_main(self.accelerator, math.nan if over is None else over)
        self.over = None if math.isnan(validation) else validation
        self.saved_at = run.step

    def tidy(self, found: Path | None, is_over: bool) -> float | None:
        """Write the settings, and take away what came after the step to go on from.

        Of a run that is over, with its model and its last validation, this; nothing is taken away then.
        """
        write_config(self.config)
        if self.config.resume:
            last = self.metrics.final_validation(self.run.step)
            if found and last is not None and is_over and (self.config.out / MODEL_FOLDER).is_dir():
                return last
            self.checkpoints.sweep()
            self.checkpoints.set_aside(after=self.run.step, report=self.report)
            self.metrics.rewind(self.run.step)
            where = f"going on from {found}" if found else "there is no checkpoint yet: starting at the beginning"
            self.report(where)
        return None

    def train(self) -> TrainResult:
        run = self.run
        if self.over is not None:
            folder = self.config.out / MODEL_FOLDER
            self.report(
                f"the run is over: {folder} has learnt for {counted(run.step, 'step')}, and its validation was "
                f"{self.over:.3f} bits per byte; raise --steps, --tokens or --minutes to go on"
            )
            return TrainResult(folder, run.step, None, self.over, None, interrupted=False)
        self.trackers.start(self.config.as_json(), self.config.out, run.step)
        status = "failed"
        try:
            with StopSignals() as signals:
                stop = self.take_steps(signals)
                result = self.stopped(stop) if stop else self.finished(signals)
            status = "interrupted" if result.interrupted else "finished"
            return result
        except NonFiniteError as error:
            steps = self.checkpoints.steps()
            newest = f"the last good checkpoint is {self.checkpoints.path(steps[-1])}" if steps else None
            error.add_note(newest or "there is no checkpoint yet")
            raise
        except CheckpointNotWrittenError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            # in the middle of a step there is no state to save, and alone a process can't save that of all
            if run.is_between_steps and run.step > self.saved_at and self.accelerator.num_processes == 1:
                self.save_after(error)
            raise
        finally:
            self.trackers.finish(status)

    def close(self) -> None:
        """Leave the folder to other processes."""
        if self.lock is not None:
            self.lock.release()

    def take_steps(self, signals: StopSignals) -> str | None:
        """Train to the end of the budget, or until a signal comes; the name of the signal."""
        run, config = self.run, self.config
        with ProgressBar(self.report, run.progress(run.step), disable=not self.is_main) as bar:
            is_last = run.is_over
            # of a step that an error kept from being noted, in the sitting before
            self.measure(bar, is_last)
            while not is_last:
                start = time.perf_counter()
                run.take_step()
                self.in_steps += time.perf_counter() - start
                progress = run.progress(run.step)  # asked once: by the clock, it may be later the next time
                bar.update(progress)
                is_last = progress >= 1
                is_best = self.measure(bar, is_last)
                if config.sample_every and run.step % config.sample_every == 0 and not is_last:
                    self.show_sample(bar)
                stop, is_time = self.wanted_stop(signals), self.is_time_to_save()
                if run.step % config.checkpoint_every == 0 or is_best or is_last or stop or is_time:
                    self.save()
                if stop:
                    return stop
        return None

    def is_time_to_save(self) -> bool:
        """Whether the last checkpoint is longer ago than a user may want to lose."""
        if self.config.checkpoint_minutes is None:
            return False
        passed = from_main(self.accelerator, time.perf_counter() - self.saved_when)
        return passed >= 60 * self.config.checkpoint_minutes

    def measure(self, bar: ProgressBar, is_last: bool) -> bool:
        """Note what is due at this step and isn't noted yet; whether a validation is the best so far."""
        run = self.run
        if run.since_log.steps and (run.step % self.config.log_every == 0 or is_last):
            self.log_training(bar)
        if run.since_validation.steps and (run.step % self.config.validate_every == 0 or is_last):
            return self.validate(bar)
        return False

    def wanted_stop(self, signals: StopSignals) -> str | None:
        """The signal that some process has received, by which all stop at the same place."""
        if self.accelerator.num_processes == 1:
            return signals.received
        (stopped,) = agreed_sums(self.accelerator, [float(signals.received is not None)])
        return (signals.received or "a signal") if stopped else None

    # what is noted

    def log_training(self, bar: ProgressBar) -> None:
        run = self.run
        means = run.since_log.as_dict()
        bits_per_byte = run.bits_per_byte(run.since_log)
        memory = peak_memory(run.device)
        rate = run.since_log.steps * self.config.tokens_per_step / max(self.in_steps, 1e-9)
        bar.show(means["loss"], bits_per_byte, rate, memory)
        self.note(
            **means,
            train_bits_per_byte=bits_per_byte,
            learning_rate=run.optimizers[0].param_groups[0]["lr"],
            tokens_per_second=round(rate, 1),
            **({} if memory is None else {"memory_bytes": memory}),
        )
        self.train_bits_per_byte, self.averaged, self.in_steps = bits_per_byte, run.since_log.steps, 0.0
        run.since_log.clear()

    def validate(self, bar: ProgressBar) -> bool:
        """Validate on the fixed windows; whether it is the best so far."""
        run = self.run
        if run.since_log.steps:
            self.train_bits_per_byte, self.averaged = run.bits_per_byte(run.since_log), run.since_log.steps
        train = "" if self.train_bits_per_byte is None else f"train {self.train_bits_per_byte:.3f}, "
        bar.validation = validation = run.validate()
        self.note(validation_bits_per_byte=validation)
        run.since_validation.clear()
        bar.report(f"step {run.step}: {train}validation {validation:.3f} bits per byte")
        if run.best is not None and validation >= run.best[1]:
            return False
        run.best = (run.step, validation)
        return True

    def note(self, **figures: float) -> None:
        """Into metrics.jsonl, and to the trackers."""
        record = {"tokens": self.run.tokens, "seconds": round(self.run.seconds, 3), **figures}

        def write() -> None:
            self.metrics.append({"step": self.run.step, **record})
            self.trackers.log(self.run.step, record)

        on_main(self.accelerator, write)

    def show_sample(self, bar: ProgressBar) -> None:
        on_main(
            self.accelerator,
            lambda: bar.report(f"sample at step {self.run.step}:\n{write_sample(self.run, self.run.trained)}"),
        )

    # what is kept

    def save(self) -> Path:
        """Write a checkpoint, and take away those that aren't kept any more.

        Raises:
            CheckpointNotWrittenError: on all processes, if the one that writes can't
        """
        run = self.run
        files = checkpoint_files(run)
        best = run.best[0] if run.best else None
        try:
            on_main(self.accelerator, lambda: self.checkpoints.save(run.step, files, best))
        except (OSError, MainProcessError) as problem:
            raise CheckpointNotWrittenError(self.not_written(problem)) from problem
        self.saved_at, self.saved_when = run.step, time.perf_counter()
        return self.checkpoints.path(run.step)

    def not_written(self, problem: Exception) -> str:
        steps = [step for step in self.checkpoints.steps() if step < self.run.step]
        good = (
            f"the newest one before, {self.checkpoints.path(steps[-1])}, is as good as it was"
            if steps
            else ("there is none before it")
        )
        return (
            f"the checkpoint of step {self.run.step} can't be written to {self.checkpoints.folder} ({problem}): the "
            f"run stopped, and {good}; make room, and go on with {self.how_to_go_on()}"
        )

    def save_after(self, error: BaseException) -> None:
        """Say, in what stopped the run, which checkpoint is the last good one."""
        try:
            error.add_note(f"the last good checkpoint is {self.save()}: go on with {self.how_to_go_on()}")
        except CheckpointNotWrittenError as second:
            error.add_note(str(second))

    def how_to_go_on(self) -> str:
        if self.run.tokenizer.name != self.config.tokenizer:
            return "train(config, tokenizer=…), with resume=True in the configuration and the same tokenizer"
        return f"hierarchical-transformer train --resume --out {shlex.quote(str(self.config.out))}"

    # how it ends

    def stopped(self, signal: str) -> TrainResult:
        path = self.checkpoints.path(self.run.step)
        steps = counted(self.run.step, "step")
        self.report(f"stopped by {signal} after {steps}: {path} holds them; go on with {self.how_to_go_on()}")
        return TrainResult(path, self.run.step, self.train_bits_per_byte, None, None, interrupted=True)

    def finished(self, signals: StopSignals) -> TrainResult:
        done = finish(self.run, self.report, self.note, lambda: self.wanted_stop(signals) is not None)
        if done is None:
            return self.stopped(self.wanted_stop(signals) or "a signal")
        if self.train_bits_per_byte is not None:
            last = counted(self.averaged, "step")
            self.report(f"training: {self.train_bits_per_byte:.3f} bits per byte in the last {last}")
        done.show(self.run, self.report)
        return TrainResult(
            done.folder,
            self.run.step,
            self.train_bits_per_byte,
            done.validation_bits_per_byte,
            done.sample,
            interrupted=False,
        )


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
