"""What a run shows while it trains: a bar with its figures, and the time it has left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from shutil import get_terminal_size
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

BAR = "{percentage:3.0f}%|{bar}| {remaining} left{postfix}"
WIDTH = 79  # some terminals begin a new line when the 80th column is full
SECONDS_IN_A_TERMINAL = 0.2  # between two states of the bar
SECONDS_IN_A_FILE = 10.0


class ProgressBar:
    """How far a run is, the time it has left, and its figures; lines that are reported go above it.

    In a terminal it is one line of at most 79 columns that moves. In a log file it is a new line every ten seconds.

    Args:
        report: what writes a line
        start: share of the run that earlier sessions have done. The time left is reckoned from what this one did
        disable: show nothing, as in all processes but the main one; lines are reported all the same
    """

    def __init__(self, report: Callable[[str], None], start: float = 0.0, disable: bool = False) -> None:
        self.write = report
        self.validation: float | None = None
        self.moves = sys.stderr.isatty()
        self.bar = tqdm(
            total=1.0,
            initial=min(start, 1.0),
            bar_format=BAR,
            file=sys.stderr if self.moves else Lines(sys.stderr),
            ncols=min(WIDTH, get_terminal_size().columns - 1) if self.moves else WIDTH,
            mininterval=SECONDS_IN_A_TERMINAL if self.moves else SECONDS_IN_A_FILE,
            miniters=0,  # time alone says when it is drawn
            smoothing=0,  # the mean speed, which validations and checkpoints are part of
            disable=disable,
        )

    def show(self, loss: float, bits_per_byte: float, tokens_per_second: float, memory: int | None = None) -> None:
        """Set the figures that stand behind the bar from now on, beside `validation` where that was set.

        Args:
            loss: all that the training lowers, in nats per token
            bits_per_byte: of the training text, shown as `bpb`
            tokens_per_second: that are trained on
            memory: the most bytes that were needed, `metrics.peak_memory`
        """
        if self.bar.disable:
            return
        figures = [f"loss {shortened(loss)}", f"{shortened(bits_per_byte)} bpb"]
        if self.validation is not None:
            figures.append(f"val {shortened(self.validation)}")
        figures.append(f"{tqdm.format_sizeof(tokens_per_second)} tok/s")
        if memory is not None:
            figures.append(f"{tqdm.format_sizeof(memory)}B")
        self.bar.set_postfix_str(", ".join(figures), refresh=False)

    def update(self, progress: float) -> None:
        """Move to a share of the run from 0 to 1; more than 1 is 1. Costs next to nothing where nothing is drawn."""
        self.bar.update(min(progress, 1.0) - self.bar.n)

    def report(self, line: str) -> None:
        if self.moves:
            self.bar.clear()
        self.write(line)
        if self.moves:
            self.bar.refresh()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()


class Lines:
    """A text stream in which each state of a bar is a line of its own, rather than written over the last one."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.encoding = stream.encoding  # tells tqdm which letters a bar may be drawn of

    def write(self, text: str) -> None:
        if text.strip():
            self.stream.write(f"{text.strip()}\n")

    def flush(self) -> None:
        self.stream.flush()


def shortened(figure: float) -> str:
    """A figure in five columns: 1.234, 12.34."""
    return f"{figure:.3f}" if abs(figure) < 10 else f"{figure:.2f}"
