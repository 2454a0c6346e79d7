"""The shape of a model: its streams as rows of tokens over the input, and what one prediction reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config import ModelConfig, StreamConfig
from ..figures import BLUE, INK, ORANGE, PALE, new_figure
from ..model import HierarchicalTransformer
from ..validation import whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND, GAP = 1.0, 0.62  # of the height of a stream, and of the room between two
MOST_NUMBERED = 56  # input tokens whose positions are written out
MOST_ROWS = 8  # phases that a band has rows for; further ones share them
UNUSED, SEEN, USED = 0.13, 0.5, 1.0  # how strong the colour of a token is


def plot_architecture(model: HierarchicalTransformer, length: int | None = None) -> Figure:
    """Streams as rows of tokens over the input tokens that each of them summarises, with what one prediction reads.

    The prediction is that of the last input token that is shown. Of each stream, the token that it reads is dark, those
    which that token attends to within one layer are lighter, and all others pale; tokens of one row are of one phase.
    Arrows show the merges of a layer.

    Args:
        model: of any size; one on the meta device will do.
        length: input tokens that are shown; about three times the largest compress factor by default.

    Returns:
        The figure.

    Raises:
        TypeError, ValueError: unless length is a whole number from 2 to the model's `seq_len`; and where matplotlib
            isn't installed.
    """
    config = model.config
    length = usual_length(config) if length is None else whole("length", length, least=2, most=max(config.seq_len, 2))
    position = length - 2
    order = by_height(config)
    figure = new_figure(10, 1.5 + 1.25 * len(order))
    axis = figure.add_subplot()
    draw_input(axis, length, position)
    for row, index in enumerate(order):
        draw_stream(axis, config, index, bottom(row), length, position)
    draw_arrows(axis, config, order, position)
    lay_out(axis, config, order, length)
    return figure


def usual_length(config: ModelConfig) -> int:
    """A few tokens of the coarsest stream, and so many that these are as old as they often are, not new."""
    length = max(min(max(3 * max(s.compress_factor for s in config.streams), 24), config.seq_len), 2)
    longest = max(s.stride for s in config.streams)
    return length - 1 if longest > 1 and (length - 2) % longest == 0 and length > 2 else length


def by_height(config: ModelConfig) -> list[int]:
    """Indices of the streams from the input up: the predict stream first, then the finer before the coarser."""
    others = [i for i in range(len(config.streams)) if i != config.predict_index]
    return [config.predict_index, *sorted(others, key=lambda i: config.streams[i].compress_factor)]


def bottom(row: int) -> float:
    return 0.95 + row * (BAND + GAP)


def draw_input(axis: Axes, length: int, position: int) -> None:
    from matplotlib.patches import Rectangle

    for place in range(length):
        is_next = place == position + 1
        look: dict[str, Any] = (
            {"facecolor": "white", "edgecolor": ORANGE, "linestyle": "--", "linewidth": 1.4} if is_next else {}
        )
        shape: dict[str, Any] = {"facecolor": "#f2f2f2", "edgecolor": PALE, "linewidth": 0.5} | look
        axis.add_patch(Rectangle((place - 0.5, 0), 1, 0.42, zorder=3 if is_next else 2, **shape))
        if length <= MOST_NUMBERED:
            text = "?" if is_next else str(place)
            color = ORANGE if is_next else INK
            axis.text(place, 0.21, text, ha="center", va="center", fontsize=6.5, color=color, zorder=4)


def draw_stream(axis: Axes, config: ModelConfig, index: int, low: float, length: int, position: int) -> None:
    from matplotlib.patches import Rectangle

    s = config.streams[index]
    rows = min(s.phase_groups, MOST_ROWS)
    height = BAND / rows
    used = position // s.stride
    attended = set(attended_tokens(s, used, config.seq_len))
    for token in range(position // s.stride + 1):
        stands = token * s.stride
        first = max(stands - s.compress_factor + 1, 0)
        strength = USED if token == used else SEEN if token in attended else UNUSED
        pad = 0.06 if length <= MOST_NUMBERED else 0.02
        axis.add_patch(
            Rectangle(
                (first - 0.5 + pad, low + token % s.phase_groups % rows * height + 0.04),
                stands - first + 1 - 2 * pad,
                height - 0.08 * min(1, 3 / rows),
                facecolor=BLUE,
                alpha=strength,
                linewidth=0,
                zorder=2,
            )
        )


def attended_tokens(stream: StreamConfig, token: int, seq_len: int) -> list[int]:
    """Earlier tokens of its phase that a token attends to within one layer."""
    back = range(1, stream.reach(seq_len) + 1)
    return [earlier for k in back if (earlier := token - k * stream.phase_groups) >= 0]


def token_place(config: ModelConfig, order: list[int], row: int, position: int) -> tuple[float, float, float]:
    """Where the token that `position` reads stands, and the lower and upper edge of it."""
    s = config.streams[order[row]]
    rows = min(s.phase_groups, MOST_ROWS)
    token = position // s.stride
    low = bottom(row) + token % s.phase_groups % rows * BAND / rows
    return token * s.stride, low + 0.04, low + BAND / rows - 0.04


def draw_arrows(axis: Axes, config: ModelConfig, order: list[int], position: int) -> None:
    """From what each merge reads to the stream it is added to, and from what predicts to the next token."""
    targets = config.merge_targets(is_last=False) if len(order) > 1 else ()
    for target in (order.index(index) for index in targets):
        # a stream takes what stands at its own positions
        at = position // config.streams[order[target]].stride * config.streams[order[target]].stride
        for source in (row for row in range(len(order)) if row != target):
            x0, low0, high0 = token_place(config, order, source, at)
            x1, low1, high1 = token_place(config, order, target, position)
            start, end = (low0, high1) if source > target else (high0, low1)
            arrow(axis, (x0, start), (x1, end), ORANGE, bend=0.0 if x0 == x1 else 0.08)
    for row in range(len(order)) if config.predict_use_all else (0,):
        x, low, _ = token_place(config, order, row, position)
        arrow(axis, (x, low), (position + 1, 0.44), INK, bend=-0.15 if row else 0.0)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str, *, bend: float) -> None:
    shape = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=shape | {"connectionstyle": f"arc3,rad={bend}"}, zorder=5)


def lay_out(axis: Axes, config: ModelConfig, order: list[int], length: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axis.set_xlim(-0.6, length - 0.4)
    axis.set_ylim(-0.06, bottom(len(order)) - GAP + 0.1)
    axis.spines[:].set_visible(False)
    axis.set_xticks([])
    places = [0.21, *(bottom(row) + BAND / 2 for row in range(len(order)))]
    axis.set_yticks(places, ["input tokens", *(label(config, index) for index in order)], fontsize=9)
    axis.tick_params(length=0)
    axis.set_title(title(config), loc="left", fontsize=11)
    handles: list[Artist] = [
        Patch(facecolor=BLUE, alpha=USED),
        Patch(facecolor=BLUE, alpha=SEEN),
        Patch(facecolor=BLUE, alpha=UNUSED),
    ]
    names = ["read by the prediction of ?", "attended to by these in one layer", "other tokens"]
    if len(order) > 1:
        handles.append(Line2D([], [], color=ORANGE, linewidth=1.6, marker=">", markersize=5))
        names.append("merge")
    axis.legend(
        handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=4, frameon=False, fontsize=9
    )  # fmt: skip


def label(config: ModelConfig, index: int) -> str:
    """What a stream is, in a few words."""
    s = config.streams[index]
    window = {None: "sees all", 0: "no attention"}.get(s.window_size, f"window {s.window_size}")
    name = f"factor {s.compress_factor}, stride {s.stride}"
    return f"{name}\nwidth {s.dim}, {window}\n{counted(config.depth_of(index), 'layer')}"


def title(config: ModelConfig) -> str:
    streams = counted(len(config.streams), "stream")
    if len(config.streams) == 1:
        return f"{streams}, {counted(config.depth, 'layer')}: a plain transformer"
    into = "every stream" if config.merge_all else "the stream that predicts"
    alone = f", after {counted(config.compress_after, 'layer')} of that one alone" if config.compress_after else ""
    return f"{streams}, merged into {into} in each of {counted(config.shared_depth, 'layer')}{alone}"


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
