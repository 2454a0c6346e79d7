from __future__ import annotations

import re
from io import StringIO
from types import SimpleNamespace

import pytest

from simple_hierarchical_transformer.training import progress
from simple_hierarchical_transformer.training.progress import ProgressBar


class Terminal(StringIO):
    """Looks like a terminal, and keeps what it was sent."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def states(self) -> list[str]:
        """What stood on a line at some time."""
        return [state for state in re.split(r"[\r\n]", self.getvalue()) if state.strip()]


class LogFile(Terminal):
    def isatty(self) -> bool:
        return False


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Of 80 columns, in which every state of the bar is drawn."""
    terminal = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=terminal))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(progress, "SECONDS_IN_A_TERMINAL", 0)
    return terminal


@pytest.fixture
def log_file(monkeypatch: pytest.MonkeyPatch) -> LogFile:
    log_file = LogFile()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=log_file))
    return log_file


def ignore(line: str) -> None:
    pass


def test_the_bar_shows_the_figures_and_the_time_left(terminal: Terminal) -> None:
    with ProgressBar(ignore) as bar:
        bar.validation = 2.25
        bar.show(loss=1.9, bits_per_byte=2.5, tokens_per_second=12345, memory=3_210_000_000)
        bar.update(0.5)
    assert re.search(
        r" 50%\|.+\| 00:0\d left, loss 1\.900, 2\.500 bpb, val 2\.250, 12\.3k tok/s, 3\.21GB$", terminal.states()[-1]
    )


def test_what_is_not_known_is_not_shown(terminal: Terminal) -> None:
    with ProgressBar(ignore) as bar:
        bar.show(loss=1.9, bits_per_byte=2.5, tokens_per_second=12345)
        bar.update(0.5)
    assert terminal.states()[-1].endswith("loss 1.900, 2.500 bpb, 12.3k tok/s")


def test_the_bar_fits_80_columns_even_with_the_longest_figures(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    with ProgressBar(ignore) as bar:
        monkeypatch.setattr(bar.bar, "_time", lambda: clock[0])
        bar.bar.start_t = bar.bar.last_print_t = 0.0
        bar.validation = 12.345678
        bar.show(loss=99.87654, bits_per_byte=12.345678, tokens_per_second=1_234_567, memory=123_456_789_012)
        clock[0] = 3600.0
        bar.update(1 / 200)  # 199 hours left
        longest = terminal.states()[-1]
        bar.update(2)
    assert "199:00:00 left, loss 99.88, 12.35 bpb, val 12.35, 1.23M tok/s, 123GB" in longest
    assert all(len(state) <= 79 for state in terminal.states())


def test_a_narrow_terminal_is_not_overrun(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    with ProgressBar(ignore) as bar:
        bar.show(loss=1.9, bits_per_byte=2.5, tokens_per_second=12345, memory=3_210_000_000)
        bar.update(0.5)
    assert all(len(state) <= 49 for state in terminal.states())


def test_a_resumed_run_starts_where_it_was_and_reckons_from_its_own_speed(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    with ProgressBar(ignore, start=0.5) as bar:
        monkeypatch.setattr(bar.bar, "_time", lambda: clock[0])
        bar.bar.start_t = bar.bar.last_print_t = 0.0
        clock[0] = 60.0
        bar.update(0.625)
        # were the first half taken to be of this session too, there would be 36 seconds left
        assert " 62%|" in terminal.states()[-1]
        assert "03:00 left" in terminal.states()[-1]
    assert " 50%|" in terminal.states()[0]


def test_a_finished_run_is_at_100_percent_however_far_it_went(terminal: Terminal) -> None:
    with ProgressBar(ignore, start=1.2) as bar:
        bar.update(1.5)
        bar.update(1.5)
    assert all(state.startswith("100%|") for state in terminal.states())


def test_lines_that_are_reported_stand_above_the_bar(terminal: Terminal) -> None:
    with ProgressBar(lambda line: print(line, file=terminal)) as bar:
        bar.update(0.5)
        bar.report("step 5: a line")
        # the bar was wiped away before it, and is drawn again behind it
        assert re.search(r"\r +\rstep 5: a line\n\r? 50%\|", terminal.getvalue())


def test_a_log_file_gets_a_line_now_and_then(log_file: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    lines: list[str] = []
    with ProgressBar(lines.append) as bar:
        monkeypatch.setattr(bar.bar, "_time", lambda: clock[0])
        bar.bar.start_t = bar.bar.last_print_t = 0.0
        bar.show(loss=1.9, bits_per_byte=2.5, tokens_per_second=12345)
        for second in range(1, 31):
            clock[0] = float(second)
            bar.update(second / 100)
            bar.report("a line")
    assert lines == ["a line"] * 30
    assert "\r" not in log_file.getvalue()
    starts = [state.split("%")[0].strip() for state in log_file.getvalue().splitlines()]
    assert starts == ["0", "10", "20", "30", "30"]  # the last one when the bar is closed


def test_a_disabled_bar_shows_nothing_and_reports_all_the_same(log_file: LogFile) -> None:
    lines: list[str] = []
    with ProgressBar(lines.append, disable=True) as bar:
        bar.show(loss=1.9, bits_per_byte=2.5, tokens_per_second=12345)
        bar.update(0.5)
        bar.report("a line")
    assert lines == ["a line"]
    assert log_file.getvalue() == ""
