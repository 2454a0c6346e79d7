"""What the pictures show is what the model does; how they look is judged by eye."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from configurations import VOCABULARY, examples, stream_arguments
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer, cli, figures
from simple_hierarchical_transformer.config import StreamConfig
from simple_hierarchical_transformer.cost import earliest_inputs
from simple_hierarchical_transformer.visualize import (
    plot_architecture,
    plot_cost,
    plot_receptive_field,
    plot_runs,
    plot_streams,
    plot_surprise,
)
from simple_hierarchical_transformer.visualize.architecture import attended_tokens
from simple_hierarchical_transformer.visualize.cost import alone
from simple_hierarchical_transformer.visualize.receptive_field import in_double, measured, rows_of
from simple_hierarchical_transformer.visualize.streams import change, similarities
from simple_hierarchical_transformer.visualize.surprise import surprise

pytest.importorskip("matplotlib")

SMALL = {"num_tokens": 256, "dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "seq_len": 64}
TWO = SMALL | {"hierarchies": (1, 4), "hierarchical_stride": (1, 4), "window_sizes": (4, None)}


@pytest.fixture
def model() -> HierarchicalTransformer:
    torch.manual_seed(0)
    built = HierarchicalTransformer(**TWO)
    with torch.no_grad():  # so that the streams have something to say
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return built


def ids_of(length: int, most: int = 256) -> Tensor:
    return torch.randint(0, most, (1, length), generator=torch.Generator().manual_seed(1))


# receptive field


@examples(quick=15, slow=200)
@given(arguments=stream_arguments(), data=st.data())
def test_what_is_measured_lies_in_the_theoretical_field_and_begins_where_that_does(
    arguments: dict[str, Any], data: st.DataObject
) -> None:
    torch.manual_seed(0)
    # a norm of two features has next to no gradient, and none of one
    wide = {"dim": 6, "dim_head": 4, "ff_mult": 2}
    arguments |= {name: tuple(max(value, least) for value in arguments[name]) for name, least in wide.items()}
    built = in_double(HierarchicalTransformer(**arguments))
    n = data.draw(st.integers(1, min(built.seq_len, 40)))
    position = data.draw(st.integers(0, n - 1))
    ids = torch.randint(0, VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n))
    ids[ids == built.config.ignore_index] = (built.config.ignore_index + 1) % VOCABULARY  # padding reaches nothing
    strength = measured(built, ids, position)
    config = built.config
    reads = range(len(config.streams)) if config.predict_use_all else [config.predict_index]
    outputs = {i: torch.tensor([position // config.streams[i].stride * config.streams[i].stride]) for i in reads}
    earliest = int(earliest_inputs(config, outputs))
    reached = strength.nonzero()[:, 0]
    assert reached.min() == earliest
    assert reached.max() == position
    for row in rows_of(built, ids, position):
        reached = row.strength.nonzero()[:, 0]
        assert (reached.min(), reached.max()) == (row.earliest, row.last), row.name


def test_a_field_that_is_drawn_leaves_the_model_as_it_was(model: HierarchicalTransformer) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.train()
    plot_receptive_field(model, position=20)
    assert model.training and model.dtype == torch.float32
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_titles_tell_how_many_tokens_reach(model: HierarchicalTransformer) -> None:
    figure = plot_receptive_field(model, position=21, ids=ids_of(40))
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert len(titles) == 3
    assert re.fullmatch(r"the prediction after position 21: reached by 22 input tokens, of 22 that could.*", titles[0])
    assert "factor 4: reached by 21 input tokens, of 21" in titles[2]  # its token stands at 20


# architecture


@given(arguments=stream_arguments())
def test_every_legal_shape_is_drawn(arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        built = HierarchicalTransformer(**arguments)
    if built.seq_len < 2:
        return
    figure = plot_architecture(built)
    (axis,) = figure.axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(labels) == 1 + len(built.config.streams)
    for stream in built.config.streams:
        assert any(f"factor {stream.compress_factor}, stride {stream.stride}\n" in label for label in labels)


def test_lighter_tokens_are_those_that_attention_reaches() -> None:
    stream = StreamConfig(compress_factor=8, stride=2, dim=4, dim_head=2, heads=1, ff_mult=1, window_size=2)
    assert attended_tokens(stream, 9, 64) == [5, 1]  # of the same phase, which every fourth token is of
    assert attended_tokens(replace(stream, window_size=0), 9, 64) == []
    assert attended_tokens(replace(stream, window_size=None), 12, 64) == [8, 4, 0]


# streams


def test_change_is_largest_where_a_segment_begins() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 8, generator=generator)
    tokens = kinds[torch.tensor([0] * 10 + [1] * 14 + [2] * 8)] + 0.3 * torch.randn(32, 8, generator=generator)
    values = change(similarities(tokens))
    assert sorted(sorted(range(32), key=values.__getitem__)[-2:]) == [10, 24]


def test_a_text_too_short_for_coarse_tokens_is_refused(model: HierarchicalTransformer) -> None:
    with pytest.raises(ValueError, match="give a longer text"):
        plot_streams(model, ids_of(8))
    assert len(plot_streams(model, ids_of(64), borders=[3, 17]).axes) == 3  # with the scale of the colours


# surprise


class Spans(HTMLParser):
    """The text of a page, and the figures of its tokens."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text, self.figures, self.inside = "", [], False
        self.feed(content.replace("\r", "&#13;"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = self.inside or ("id", "text") in attrs
        figures = dict(attrs).get("data-b")
        if figures is not None:
            self.figures.append([float(value) for value in figures.split()])

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""


def test_a_page_holds_the_text_and_the_bits_of_the_whole_forward(model: HierarchicalTransformer) -> None:
    text = 'if a < "b" & c > d: <!--NAMES--> </pre><script>alert(1)</script>'[:60]
    content = plot_surprise(model, text, title="a < b")
    assert "<title>a &lt; b</title>" in content and "<h1>a &lt; b</h1>" in content
    spans = Spans(content)
    assert spans.text == text
    ids = torch.tensor([list(text.encode())])
    with torch.no_grad():
        for ablate, column in ((False, 0), (4, 1)):
            nats = model(ids, ablate_hierarchical_merge=ablate)[0, :-1].log_softmax(dim=-1)
            bits = -nats.gather(-1, ids[0, 1:, None])[:, 0] / torch.tensor(2.0).log()
            found = torch.tensor([figures[column] + (figures[0] if column else 0) for figures in spans.figures])
            assert (found - bits).abs().max() < 0.02  # figures have two decimals


def test_bits_of_a_text_longer_than_a_chunk_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    built = HierarchicalTransformer(**TWO | {"seq_len": 2048}).double()
    ids = ids_of(1300)
    with torch.no_grad():
        nats = built(ids)[0, :-1].log_softmax(dim=-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert (surprise(built, ids) + nats / torch.tensor(2.0).double().log()).abs().max() < 1e-5


def test_the_bytes_of_a_character_are_one_piece(model: HierarchicalTransformer) -> None:
    spans = Spans(plot_surprise(model, "größer 日本"))
    assert spans.text == "größer 日本"
    assert len(spans.figures) == len("größer 日本") - 1


def test_a_page_needs_nothing_else(model: HierarchicalTransformer) -> None:
    content = plot_surprise(model, "def f(x):")
    assert not re.search(r"<link|<img|src=|@import|url\(|https?://", content)


def test_texts_that_are_none_are_refused(model: HierarchicalTransformer) -> None:
    with pytest.raises(TypeError, match="text must be a str or bytes, got 3 of type int"):
        plot_surprise(model, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 to 50,000 tokens, got 1: lengthen it"):
        plot_surprise(model, "a")


# cost


def test_the_plain_model_beside_the_curve_is_the_predict_stream_alone() -> None:
    with torch.device("meta"):
        built = HierarchicalTransformer(**TWO | {"next_latent_loss_weight": 0.1, "ngram_sizes": (2,)})
        plain = HierarchicalTransformer(**SMALL | {"ngram_sizes": (2,)})
    own, other = alone(built.config, see_all=True).streams, plain.config.streams
    assert own == other
    assert len(plot_cost(built).axes) == 3


# runs, and files


def test_runs_are_drawn(tmp_path: Path) -> None:
    records = [{"step": step, "train_bits_per_byte": 8 / step} for step in range(1, 20)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert len(plot_runs([tmp_path]).axes) == 1


@pytest.mark.parametrize("picture", ["architecture", "cost", "receptive-field", "streams", "surprise"])
def test_each_picture_has_a_command(
    picture: str, model: HierarchicalTransformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    for suffix in [".html"] if picture == "surprise" else [".svg", ".png"]:
        out = tmp_path / "new" / f"picture{suffix}"
        assert cli.main(["visualize", picture, "--model", str(tmp_path / "model"), "--out", str(out)]) == 0
        assert capsys.readouterr().out.strip() == str(out)
        assert out.read_bytes().startswith({".html": b"<!DOCTYPE", ".svg": b"<?xml", ".png": b"\x89PNG"}[suffix])


def test_the_same_figure_gives_the_same_file(model: HierarchicalTransformer) -> None:
    first, second = (figures.drawn(plot_architecture(model), ".svg") for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["architecture", "--position", "3"], "--position has no effect on architecture, which takes --length"),
        (["cost", "--length", "3"], "--length has no effect on cost, which takes none of them"),
        (["cost", "--out", "cost.jpg"], "out must end in .png or .svg, got 'cost.jpg'"),
        (["surprise", "--out", "page.svg"], "out must end in .html, got 'page.svg'"),
        (["receptive-field", "--position", "64"], "position must be at most 63, got 64"),
        (["surprise", "--length", "0"], "--length must be at least 2, got 0"),
        (["streams", "--length", "65"], "--length must be at most 64, got 65"),
        (["streams", "--borders", "("], "--borders '(' is no regular expression"),
        (["streams", "--text", "absent.txt"], "--text: absent.txt isn't a file: name one, or leave --text out"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str],
    message: str,
    model: HierarchicalTransformer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model.save_pretrained(tmp_path)
    assert cli.main(["visualize", *arguments, "--model", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
