"""What a model costs, as curves over the length of the sequence and as bars by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..breakdown import Breakdown
from ..config import ModelConfig
from ..cost import activation_bytes, multiply_adds
from ..figures import COLORS, INK, PALE, new_figure, tidy
from ..model import HierarchicalTransformer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHORTEST = 64  # input tokens of a sequence
PLAIN = "one stream, full attention"


def plot_cost(model: HierarchicalTransformer) -> Figure:
    """Multiply-adds and memory of training against the length of the sequence, and parameters by part.

    The model is drawn beside a plain transformer: its predict stream alone, as deep and as wide, with full attention.
    The figures are those of `describe`.

    Args:
        model: of any size; one on the meta device will do.

    Returns:
        The figure.

    Raises:
        ValueError: matplotlib isn't installed.
    """
    config = model.config
    figure = new_figure(11, 3.9)
    forward, kept, parameters = figure.subplots(1, 3)
    lengths = lengths_of(config)
    size = model.dtype.itemsize
    draw_curves(forward, config, lengths, lambda own, n: multiply_adds(own, n).total / n / 1e6)
    forward.set_ylabel("multiply-adds per input token, millions")
    forward.set_title("forward", loc="left", fontsize=10)
    draw_curves(kept, config, lengths, lambda own, n: activation_bytes(own, n, size).total / 1e6)
    kept.set_ylabel("activations of one sequence, MB")
    kept.set_title(f"training, {str(model.dtype).removeprefix('torch.')}", loc="left", fontsize=10)
    draw_parameters(parameters, config, model.num_parameters())
    for axis in (forward, kept):
        axis.set_xlabel("input tokens of a sequence")
    return figure


def lengths_of(config: ModelConfig) -> list[int]:
    """Powers of two up to the longest sequence, and that one."""
    powers = (1 << k for k in range(SHORTEST.bit_length() - 1, config.seq_len.bit_length()))
    return sorted({*(n for n in powers if n < config.seq_len), config.seq_len})


def alone(config: ModelConfig, *, see_all: bool) -> ModelConfig:
    """The predict stream without the others, with its own window or full attention."""
    stream = replace(config.predict_stream, window_size=None) if see_all else config.predict_stream
    latent = replace(config.next_latent, weights=(0.0,), chunk_summarizers=(None,))
    return replace(
        config,
        streams=(stream,),
        predict_index=0,
        merge_all=False,
        compress_after=0,
        predict_use_all=False,
        next_latent=latent,
    )


def draw_curves(
    axis: Axes, config: ModelConfig, lengths: list[int], measure: Callable[[ModelConfig, int], float]
) -> None:
    several = len(config.streams) > 1 or config.predict_stream.window_size is not None
    marker = "o" if len(lengths) < 3 else ""
    axis.plot(lengths, [measure(config, n) for n in lengths], color=COLORS[0], marker=marker, label="this model")
    if several:
        plain = alone(config, see_all=True)
        values = [measure(plain, n) for n in lengths]
        axis.plot(lengths, values, color=PALE, linestyle="--", marker=marker, label=PLAIN)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8.5, loc="upper left")
    tidy(axis)


def draw_parameters(axis: Axes, config: ModelConfig, parameters: Breakdown) -> None:
    """Bars by part, each in pieces by stream."""
    parts = list(parameters.by_part())
    factors: list[int | None] = [*(s.compress_factor for s in config.streams), None]
    reached = dict.fromkeys(parts, 0.0)
    for index, factor in enumerate(factors):
        amounts = {share.part: share.amount / 1e6 for share in parameters if share.stream == factor}
        if not amounts:
            continue
        color = PALE if factor is None else COLORS[index % len(COLORS)]
        name = "shared" if factor is None else f"stream {factor}"
        lefts = [reached[part] for part in parts]
        widths = [amounts.get(part, 0.0) for part in parts]
        axis.barh(parts, widths, left=lefts, color=color, label=name, height=0.7)
        for part, amount in amounts.items():
            reached[part] += amount
    axis.invert_yaxis()
    axis.set_xlabel("parameters, millions")
    axis.set_title(f"{parameters.total / 1e6:,.2f} M parameters", loc="left", fontsize=10, color=INK)
    axis.legend(frameon=False, fontsize=8.5, loc="best")
    tidy(axis, grid="x")
