"""Pictures of models: their shape, what they see, what surprises them, how they cut a text, what they cost.

Each `plot_…` returns a matplotlib figure, which is yours to change, save and show, or, for `plot_surprise`, a page.
Figures need the extra `viz`, the page doesn't. The command is `hierarchical-transformer visualize`.
"""

from .architecture import plot_architecture
from .cost import plot_cost
from .receptive_field import plot_receptive_field
from .runs import plot_runs
from .streams import plot_streams
from .surprise import LONGEST as LONGEST_PAGE
from .surprise import plot_surprise

__all__ = [
    "LONGEST_PAGE",
    "plot_architecture",
    "plot_cost",
    "plot_receptive_field",
    "plot_runs",
    "plot_streams",
    "plot_surprise",
]
