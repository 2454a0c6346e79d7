from __future__ import annotations

import json
import math
import os
import re
import sys
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer.training import curves
from simple_hierarchical_transformer.training.curves import Run, draw, finite, settled, smoothed, thinned
from simple_hierarchical_transformer.training.plot import clock, plot, unique_names

matplotlib = pytest.importorskip("matplotlib")


def make_run(folder: Path, floor: float = 2.0, steps: int = 60) -> Path:
    """A run that learns: training every step, validation every tenth one, each with twice as many tokens."""
    folder.mkdir(parents=True)
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            record = {"step": step, "tokens": 2 * step, "seconds": 120.0 * step}
            value = floor + 6 * math.exp(-step / 10)
            print(json.dumps({**record, "train_bits_per_byte": value, "loss": 1.0}), file=file)
            if step % 10 == 0:
                print(json.dumps({**record, "validation_bits_per_byte": value + 0.5}), file=file)
    return folder


def lines_of(figure: Any, label: str) -> list[tuple[list[float], list[float]]]:
    """What is drawn under a label, run by run: where, and how high."""
    lines = [line for line in figure.axes[0].lines if line.get_label() == label]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def loaded(folder: Path, name: str = "run") -> Run:
    return Run(name, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])


class Page(HTMLParser):
    """The tags of a page, what they refer to, and the cells of its table."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        names = ("href", "src", "xlink:href", "data", "srcset")
        self.references += [value or "" for name, value in attrs if name in names]
        if tag == "tr":
            self.rows.append([])
        self.in_cell = tag in ("td", "th")
        if self.in_cell:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = False


def test_a_picture_and_a_page_are_written_into_the_first_run(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    written = plot([first, second])
    assert written == [first / "curves.png", first / "curves.html"]
    assert written[0].read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(os.listdir(second)) == ["metrics.jsonl"]
    assert plot([first], out=tmp_path / "new" / "folder") == [
        tmp_path / "new" / "folder" / name for name in ("curves.png", "curves.html")
    ]


def test_the_page_needs_no_other_file_and_runs_no_script(tmp_path: Path) -> None:
    name = "<script>alert(1)--&"
    _, path = plot([make_run(tmp_path / "one"), make_run(tmp_path / name)], out=tmp_path)
    content = path.read_text(encoding="utf-8")
    page = Page(content)
    assert {"svg", "table"} <= page.tags
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)|@import", content)
    assert page.rows[2][0] == name
    drawing = content[content.index("<svg") : content.index("</svg>") + len("</svg>")]
    xml.etree.ElementTree.fromstring(drawing)
    ids = re.findall(r'\bid="([^"]*)"', content)
    assert len(ids) == len(set(ids))


def test_the_table_gives_the_last_and_the_best_figures(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    records = [
        {"step": 1000, "tokens": 5000, "seconds": 3599.6, "train_bits_per_byte": 2.0},
        {"step": 1000, "tokens": 5000, "seconds": 3599.6, "validation_bits_per_byte": 2.125},
        {"step": 2000, "tokens": 10000, "seconds": 36061, "train_bits_per_byte": 1.75},
        {"step": 2000, "tokens": 10000, "seconds": 36061, "validation_bits_per_byte": 2.25},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    page = Page(plot([folder])[1].read_text(encoding="utf-8"))
    assert page.rows == [
        ["run", "steps", "tokens", "time", "training, last", "validation, last", "validation, best", "at step"],
        ["run", "2,000", "10,000", "10:01:01", "1.750", "2.250", "2.125", "1,000"],
    ]


def test_a_run_that_knows_less_has_dashes_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "train_bits_per_byte": 2.5, "tokens": null}\n')
    page = Page(plot([tmp_path])[1].read_text(encoding="utf-8"))
    assert page.rows[1][1:] == ["3", "–", "–", "2.500", "–", "–", "–"]


@pytest.mark.parametrize(
    ("by", "label", "last"),
    [("step", "optimiser steps", 60), ("tokens", "tokens", 120), ("time", "training time, minutes", 120)],
)
def test_curves_are_drawn_against_steps_tokens_or_time(tmp_path: Path, by: str, label: str, last: float) -> None:
    figure = draw([loaded(make_run(tmp_path / "run"))], by)
    assert figure.axes[0].get_xlabel() == label
    assert figure.axes[0].get_ylabel() == "bits per byte"
    ((where, height),) = lines_of(figure, "validation")
    assert where == pytest.approx([last * part / 6 for part in range(1, 7)])
    assert height == pytest.approx([2.5 + 6 * math.exp(-step / 10) for step in range(10, 61, 10)])
    ((where, height),) = lines_of(figure, "training")
    assert (len(where), where[-1]) == (60, last)


def test_every_run_has_its_curves_and_its_name_as_it_is(tmp_path: Path) -> None:
    names = ["_hidden", "$x^2$", "n" * 200]
    runs = [loaded(make_run(tmp_path / str(index), 2.0 + index), name) for index, name in enumerate(names)]
    figure = draw(runs, "step")
    assert len(lines_of(figure, "training")) == len(lines_of(figure, "validation")) == 3
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["training, smoothed", "validation", "_hidden", "$x^2$", "n" * 17 + "…" + "n" * 18]
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())
    colors = {line.get_color() for line in figure.axes[0].lines}
    assert len(colors) == 3


def test_runs_of_the_same_colour_have_other_markers() -> None:
    looks = [curves.look(index) for index in range(len(curves.COLORS) * len(curves.MARKERS))]
    assert len(set(looks)) == len(looks)


def test_a_log_of_one_figure_is_drawn_as_a_dot(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "train_bits_per_byte": 2.5}\n')
    plot([tmp_path])
    (line,) = draw([loaded(tmp_path)], "step").axes[0].lines
    assert line.get_marker() == "."


def test_what_a_killed_run_left_behind_is_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 70, "train_bi')
    assert len(plot([folder])) == 2


def test_a_figure_that_cannot_be_drawn_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    before = lines_of(draw([loaded(folder)], "step"), "training")
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        for figure in ("NaN", "Infinity", "1e400", "1" + "0" * 400, '"2.5"', "true", "null", "[2.5]"):
            file.write(f'{{"step": 61, "train_bits_per_byte": {figure}}}\n')
    plot([folder])
    assert lines_of(draw([loaded(folder)], "step"), "training") == before


def test_wrong_folders_are_refused_by_name(tmp_path: Path) -> None:
    run, file, empty = make_run(tmp_path / "run"), tmp_path / "file", tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").write_text('not of a run\n{"step": 1, "learning_rate": 1.0}\n')
    file.write_text("text")
    for wrong in (tmp_path / "absent", tmp_path, file):
        with pytest.raises(ValueError, match=rf"runs: {re.escape(str(wrong))} isn't the folder of a run"):
            plot([run, wrong])
    with pytest.raises(ValueError, match=rf"{re.escape(str(empty))}.*holds no bits per byte by step yet"):
        plot([run, empty])
    with pytest.raises(ValueError, match=r"out: .*file is not a folder"):
        plot([run], out=file)
    assert os.listdir(run) == ["metrics.jsonl"]


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match="by must be one of step, tokens, time, got 'epoch'"):
        plot([run], by="epoch")
    with pytest.raises(ValueError, match="runs is empty"):
        plot([])
    with pytest.raises(TypeError, match="runs must be a list of folders"):
        plot(run)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="runs must be a path"):
        plot([3])  # type: ignore[list-item]


def test_a_run_without_tokens_cannot_be_drawn_by_tokens(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "train_bits_per_byte": 2.5}\n')
    with pytest.raises(ValueError, match="holds no bits per byte by tokens yet"):
        plot([tmp_path], by="tokens")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r'pip install "simple-hierarchical-transformer\[viz\]"'):
        plot([make_run(tmp_path / "run")])


def test_drawing_leaves_the_state_of_matplotlib_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # to import it would be an error
    before = matplotlib.rcParams.copy()
    plot([make_run(tmp_path / "run")])
    assert matplotlib.rcParams.copy() == before


def test_the_same_run_counts_once_and_names_are_as_short_as_can_be(tmp_path: Path) -> None:
    paths = [Path("/runs/a/deep"), Path("/runs/b/deep"), Path("/runs/b/wide"), Path("/deep"), Path("/")]
    assert unique_names(paths) == ["a/deep", "b/deep", "wide", "/deep", "/"]
    run = make_run(tmp_path / "run")
    page = Page(plot([run, tmp_path / "other" / ".." / "run"])[1].read_text(encoding="utf-8"))
    assert [row[0] for row in page.rows] == ["run", "run"]  # the heading, and one run


def test_a_name_that_is_not_text_is_shown_as_far_as_it_is() -> None:
    assert unique_names([Path(os.fsdecode(b"/runs/caf\xe9"))]) == ["caf\N{REPLACEMENT CHARACTER}"]


points = st.lists(st.floats(0, 10), min_size=1, max_size=300).map(lambda ys: [(float(x), y) for x, y in enumerate(ys)])


@given(points=points)
def test_a_smoothed_curve_stays_where_it_is_and_within_its_figures(points: curves.Points) -> None:
    means = smoothed(points)
    heights = [y for _, y in points]
    assert [x for x, _ in means] == [x for x, _ in points]
    assert all(min(heights) - 1e-9 <= y <= max(heights) + 1e-9 for _, y in means)


@given(length=st.integers(1, 400))
def test_smoothing_does_not_lag_behind_a_straight_line(length: int) -> None:
    line = [3.0 * x for x in range(length)]
    means = [y for _, y in smoothed([(float(x), y) for x, y in enumerate(line)])]
    straight = length - round(curves.SMOOTHED_SHARE * length / 2)
    assert means[:straight] == pytest.approx(line[:straight])


@given(count=st.integers(1, 5000))
def test_a_thinned_curve_has_few_points_and_the_same_ends(count: int) -> None:
    thin = thinned([(float(x), 1.0) for x in range(count)])
    assert len(thin) <= curves.MOST_POINTS
    assert (thin == [(float(x), 1.0) for x in range(count)]) is (count <= curves.MOST_POINTS)
    step = math.ceil(count / curves.MOST_POINTS)
    assert thin[0][0] < step
    assert thin[-1][0] >= count - step


def test_of_many_validations_the_last_one_is_drawn(tmp_path: Path) -> None:
    records = [{"step": step, "validation_bits_per_byte": 2.0} for step in range(1, 1234)]
    ((where, _),) = lines_of(draw([Run("run", records)], "step"), "validation")
    assert where[-1] == 1233
    assert len(where) <= curves.MOST_MARKERS
    assert where == sorted(where)


def test_the_steep_beginning_does_not_press_the_rest_flat(tmp_path: Path) -> None:
    figure = draw([loaded(make_run(tmp_path / "run", steps=200))], "step")
    low, high = figure.axes[0].get_ylim()
    assert 1.8 < low < 2
    assert 2.5 < high < 6  # of figures up to 7.4


def test_few_figures_are_all_shown() -> None:
    assert settled([(0.0, 8.0), (1.0, 2.0)]) == [8.0, 2.0]


def test_times_and_numbers_are_read_as_people_do() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3600, 360_000)] == ["0:00:00", "0:01:00", "1:00:00", "100:00:00"]
    assert [finite(value) for value in (1, 2.5, True, "1", None, math.nan, -math.inf)] == [1.0, 2.5, *[None] * 5]
