"""What a run costs beside its steps: the loop around them, and a checkpoint.

    python benchmarks/training_costs.py
    python benchmarks/training_costs.py --device cuda

- Share of a step of the README's model that isn't forward, backward, clipping or optimiser: reading the batch, the
  metrics (a line per step, which is more than the default of one in ten), the bar.
- Writing and verifying a checkpoint of 100 M parameters and what Muon and AdamW remember of them, beside the time of
  copying its bytes as durably, by turns. Writes benchmarks/results/training_costs.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peers import TRAINED

from simple_hierarchical_transformer.checkpoint import CONFIG_FILE
from simple_hierarchical_transformer.files import flush_folder
from simple_hierarchical_transformer.training import ModelArguments, TrainConfig, loop
from simple_hierarchical_transformer.training import run as run_module
from simple_hierarchical_transformer.training.checkpoints import Checkpoints
from simple_hierarchical_transformer.training.run import Run
from simple_hierarchical_transformer.training.snapshot import checkpoint_files

RESULTS = Path(__file__).parent / "results" / "training_costs.json"
LARGE = ModelArguments(
    **TRAINED | {"dim": (512, 1024), "depth": 8, "heads": (8, 16), "dim_head": 64, "prophet_loss_weight": 0.1}
)


class Timer:
    """Seconds spent in some calls, in each step."""

    def __init__(self) -> None:
        self.inside, self.steps = 0.0, list[float]()

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.inside += time.perf_counter() - start

        return timing


def loop_share(folder: Path, steps: int, device: str, workers: int) -> dict[str, float]:
    """Median seconds of a whole step, and of what in it is the loop's."""
    timer, whole, outside = Timer(), [], []
    take_step, last = Run.take_step, [0.0]

    def take(run: Run) -> dict[str, float]:
        # from the end of one step to the end of the next, so that what the loop does between them counts
        if run.step == 0:
            for optimizer in run.optimizers:
                optimizer.step = timer.timed(optimizer.step)  # type: ignore[method-assign]
            run.accelerator.clip_grad_norm_ = timer.timed(run.accelerator.clip_grad_norm_)
            run.accumulate_gradients = timer.timed(run.accumulate_gradients)  # type: ignore[method-assign]
        figures = take_step(run)
        now = time.perf_counter()
        if run.step > 5:
            whole.append(now - last[0])
            outside.append(now - last[0] - timer.inside)
        last[0], timer.inside = now, 0.0
        return figures

    run_module.Run.take_step = take  # type: ignore[method-assign]
    try:
        config = TrainConfig(
            out=folder / "run", steps=steps, log_every=1, validate_every=10**6, checkpoint_every=10**6, device=device,
            sample_length=0, final_validation_sequences=1, validation_sequences=1, workers=workers,
            model=ModelArguments(**TRAINED),
        )  # fmt: skip
        loop.train(config, report=lambda line: None)
    finally:
        run_module.Run.take_step = take_step  # type: ignore[method-assign]
    return {"step_seconds": median(whole), "loop_seconds": median(outside)}


def checkpoint_times(folder: Path, rounds: int, device: str) -> dict[str, float]:
    """Median seconds to write a checkpoint, to verify it, and to copy its bytes down to the disk."""
    (folder / "text.txt").write_bytes(bytes(range(256)) * 40)
    config = TrainConfig(
        data=(str(folder / "text.txt"),), out=folder / "large", steps=1, batch_size=1, seq_len=64, device=device,
        model=LARGE,
    )  # fmt: skip
    accelerator = loop.make_accelerator(config)
    tokenizer = loop.load_tokenizer("bytes")
    run = Run(config, accelerator, loop.load_split(config.data, config.seq_len, tokenizer=tokenizer), tokenizer)
    run.take_step()
    checkpoints = Checkpoints(config.out, keep=1)
    seconds: dict[str, list[float]] = {"write": [], "verify": [], "copy": []}
    for number in range(rounds + 1):
        run.step = number + 1
        start = time.perf_counter()
        path = checkpoints.save(run.step, checkpoint_files(run), None)
        written = time.perf_counter()
        checkpoints.verify(path)
        verified = time.perf_counter()
        copy_durably(path, folder / "copy")
        copied = time.perf_counter()
        shutil.rmtree(folder / "copy")
        for name, spent in zip(seconds, (written - start, verified - written, copied - verified), strict=True):
            seconds[name].append(spent)
    size = sum(file.stat().st_size for file in path.iterdir())
    assert (path / CONFIG_FILE).is_file()
    medians = {f"{name}_seconds": median(times[1:]) for name, times in seconds.items()}
    return {"parameters": run.num_parameters, "bytes": size, **medians}


def copy_durably(source: Path, target: Path) -> None:
    """Read and written by blocks: where files share their blocks, a copy by the system would write nothing."""
    target.mkdir()
    for file in source.iterdir():
        with open(file, "rb") as read, open(target / file.name, "wb") as write:
            shutil.copyfileobj(read, write, 1 << 22)
            write.flush()
            os.fsync(write.fileno())
    flush_folder(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for workers in (0, 1):
            found = loop_share(Path(folder), options.steps, options.device, workers)
            results[f"loop_with_{workers}_workers"] = found
            share = found["loop_seconds"] / found["step_seconds"]
            print(f"{workers} workers: a step {found['step_seconds']:.3f} s, of which the loop {100 * share:.2f} %")
        results["checkpoint"] = saved = checkpoint_times(Path(folder), options.rounds, options.device)
    ratio = (saved["write_seconds"] + saved["verify_seconds"]) / saved["copy_seconds"]
    print(
        f"checkpoint of {saved['parameters'] / 1e6:.0f} M parameters, {saved['bytes'] / 1e6:,.0f} MB: written in "
        f"{saved['write_seconds']:.2f} s, verified in {saved['verify_seconds']:.2f} s, copied in "
        f"{saved['copy_seconds']:.2f} s: {ratio:.2f}"
    )
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
