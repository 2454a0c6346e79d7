"""How alike the tokens of a coarse stream are along a text, so that the borders of its segments show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.bits_per_byte import evaluating
from ..figures import BLUE, INK, ORANGE, new_figure, tidy
from ..inputs import check_ids
from ..model import HierarchicalTransformer
from ..validation import shown, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

REACH = 8  # tokens before and behind a place that are compared, at most
LEAST_TOKENS, MOST_TOKENS = 4, 4096  # of a stream that there is something to see of


def plot_streams(model: HierarchicalTransformer, ids: Tensor, borders: Sequence[int] = ()) -> Figure:
    """The similarity of each coarse stream's tokens along a text, and where it changes.

    A column per coarse stream that has at least four tokens. Above, the cosine similarity of each pair of its tokens
    after the layers, less the stream's mean: squares along the diagonal are stretches of text that the stream holds to
    be of one kind. Below, how much more alike the tokens before a place are to each other, and those behind it, than
    the ones to the others (Foote, "Automatic audio segmentation using a measure of audio novelty", 2000): peaks are
    borders of segments.

    Args:
        model: a built model; it stays as it is.
        ids: input tokens (n,) or (1, n), at most the model's `seq_len`.
        borders: input tokens at which segments are known to begin, drawn as thin lines to compare with.

    Returns:
        The figure.

    Raises:
        TypeError, ValueError: for ids that the model doesn't know, that are too many or of several rows; a border that
            isn't a whole number within them; a model without coarse streams or a text too short for them; and where
            matplotlib isn't installed.
    """
    ids = check_ids(ids[None] if isinstance(ids, Tensor) and ids.ndim == 1 else ids)
    if len(ids) != 1:
        raise ValueError(f"ids must be one text (n,) or (1, n), got {tuple(ids.shape)}: give one row of them")
    if isinstance(borders, (str, bytes)) or not isinstance(borders, Sequence):
        raise TypeError(f"borders must be a list of positions, got {shown(borders)}: give such as [128, 512]")
    borders = [whole("borders", border, least=0, most=ids.shape[1] - 1) for border in borders]
    with evaluating(model):
        embeds: list[Tensor] = model(ids.to(model.device), return_hierarchical_embeds=True)
    streams = [
        (s, tokens[0].float().cpu())
        for s, tokens in zip(model.config.streams, embeds, strict=True)
        if s.is_coarse and tokens.shape[1] >= LEAST_TOKENS
    ]
    if not streams:
        factors = [s.compress_factor for s in model.config.streams]
        raise ValueError(
            f"ids: of {ids.shape[1]} input tokens no coarse stream of hierarchies={factors} makes {LEAST_TOKENS} "
            "tokens: give a longer text, or a model that has coarse streams"
        )
    if (most := max(len(tokens) for _, tokens in streams)) > MOST_TOKENS:
        raise ValueError(
            f"ids: {ids.shape[1]} input tokens make {most:,} of a coarse stream, but a picture has room for "
            f"{MOST_TOKENS:,}: give fewer"
        )
    figure = new_figure(4.6 * len(streams) + 1, 6.4)
    axes = figure.subplots(2, len(streams), sharex="col", squeeze=False, height_ratios=[3, 1])
    for (above, below), (s, tokens) in zip(axes.T, streams, strict=True):
        similarity = similarities(tokens)
        places = [j * s.stride for j in range(len(tokens))]
        shown_as = draw_similarity(above, similarity, s.stride)
        draw_change(below, places, change(similarity), borders)
        above.set_title(f"stream of factor {s.compress_factor}, {len(tokens)} tokens", loc="left", fontsize=10)
        for border in borders:
            above.axvline(border, color=INK, linewidth=0.5, alpha=0.5)
    axes[0][0].set_ylabel("input token")
    axes[1][0].set_ylabel("change")
    figure.colorbar(shown_as, ax=axes[0], label="cosine similarity", shrink=0.8)
    return figure


def similarities(tokens: Tensor) -> Tensor:
    """The cosine similarity (m, m) of tokens (m, d), less their mean."""
    directions = F.normalize(tokens - tokens.mean(dim=0), dim=-1)
    return directions @ directions.mT


def change(similarity: Tensor) -> list[float]:
    """For each of the tokens, how much a new segment seems to begin at it; similarity (m, m).

    Of the few tokens before it and behind it, with weights that fall with the distance: the mean similarity within the
    two sides, less that across.
    """
    count = len(similarity)
    reach = min(REACH, count // 2)
    near = torch.exp(-0.5 * ((torch.arange(-reach, reach) + 0.5) / (0.5 * reach)) ** 2)
    weights = near[:, None] * near
    side = torch.arange(-reach, reach) < 0
    alike = side[:, None] == side
    values = []
    for place in range(count):
        low, high = max(place - reach, 0), min(place + reach, count)
        at = slice(low - place + reach, high - place + reach)
        square, weight, same = similarity[low:high, low:high], weights[at, at], alike[at, at]
        if same.all():  # the first token has nothing before it
            values.append(0.0)
            continue
        within = (square * weight)[same].sum() / weight[same].sum()
        across = (square * weight)[~same].sum() / weight[~same].sum()
        values.append(float(within - across))
    return values


def draw_similarity(axis: Axes, similarity: Tensor, stride: int) -> AxesImage:
    extent = (-0.5 * stride, (len(similarity) - 0.5) * stride, (len(similarity) - 0.5) * stride, -0.5 * stride)
    drawn = axis.imshow(
        similarity.numpy(), cmap="cividis", vmin=-1, vmax=1, extent=extent, interpolation="nearest", aspect="auto"
    )
    axis.tick_params(labelsize=9)
    return drawn


def draw_change(axis: Axes, places: list[int], values: list[float], borders: Sequence[int]) -> None:
    for border in borders:
        axis.axvline(border, color=ORANGE, linewidth=0.9, zorder=1)
    axis.plot(places, values, color=BLUE, linewidth=1.4, zorder=2)
    if borders:
        axis.plot([], [], color=ORANGE, linewidth=0.9, label="given borders")
        axis.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    axis.set_xlabel("input token")
    tidy(axis, grid="y")
