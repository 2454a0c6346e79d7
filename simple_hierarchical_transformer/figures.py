"""What all figures have in common: their colours, how an axis looks, and how a figure is made and written."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart too, without their yellow and black
BLUE, ORANGE, GREEN, PINK, SKY, AMBER = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER)
INK, PALE, GRID = "#222222", "#8c8c8c", "#e5e5e5"
FORMATS, PAGE = (".png", ".svg"), ".html"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, which no window and no global state knows of.

    Raises:
        ValueError: matplotlib isn't installed
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "figures need the package matplotlib, which isn't installed: "
            'pip install "simple-hierarchical-transformer[viz]"'
        ) from error

    class Picture(Figure):
        """A figure that a notebook shows by itself, without pyplot."""

        def _repr_png_(self) -> bytes:
            return drawn(self, ".png")

    return Picture(figsize=(width, height), layout="constrained")


def tidy(axis: Axes, *, grid: Literal["both", "x", "y"] = "both") -> None:
    """Pale lines behind what is drawn, and no frame where there is no scale."""
    axis.grid(axis=grid, color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)


def drawn(figure: Figure, suffix: str) -> bytes:
    """A figure as a file of this kind, `.png` or `.svg`; the same figure always gives the same bytes."""
    import matplotlib

    content = BytesIO()
    if suffix == ".svg":
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        with matplotlib.rc_context({"svg.hashsalt": "simple_hierarchical_transformer"}):
            figure.savefig(content, format="svg", metadata=nothing)
    else:
        figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def check_path(path: Path, suffixes: tuple[str, ...] = FORMATS) -> Path:
    """The path of a figure or a page that is to be written, before anything is computed for it.

    Raises:
        ValueError: it ends in none of the suffixes, or is a folder
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"out must end in {' or '.join(suffixes)}, got {str(path)!r}: choose such a name")
    if path.is_dir():
        raise ValueError(f"out: {path} is a folder: name a file in it, such as {path / ('figure' + suffixes[-1])}")
    return path


def write(content: Figure | str, path: Path) -> None:
    """A figure as a PNG or an SVG, by the end of the path, or a page; whole, or not at all."""
    suffixes = (PAGE,) if isinstance(content, str) else FORMATS
    check_path(path, suffixes).parent.mkdir(parents=True, exist_ok=True)
    write_atomically({path: content.encode() if isinstance(content, str) else drawn(content, path.suffix.lower())})
