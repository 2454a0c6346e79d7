"""Packages that the benchmarks compare with, each installed into a folder of its own beside the environment.

Without their dependencies, so that torch is the same for all and versions don't collide.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

UTILS = "torch-einops-utils==0.2.0"
PACKAGING = "packaging==26.3"
PACKAGES: dict[str, tuple[str, ...]] = {
    "reference 0.2.0": ("simple-hierarchical-transformer==0.2.0",),
    "reference 0.4.0": ("simple-hierarchical-transformer==0.4.0", "rotary-embedding-torch==0.9.1", UTILS),
    "x-transformers": ("x-transformers==2.31.10", "einx==0.4.3", "loguru==0.7.3", PACKAGING, UTILS),
    "MEGABYTE": ("MEGABYTE-pytorch==0.3.6", "beartype==0.23.1", "tqdm==4.70.1", PACKAGING),
    "hourglass": ("hourglass-transformer-pytorch==0.0.6",),
}


def install(package: str, cache: Path) -> None:
    """Put what is asked for, and what it needs that the environment lacks, into the cache, unless it is there."""
    folder, content = cache / package, "\n".join(PACKAGES[package])
    stamp = folder / "requirements"
    if not (stamp.exists() and stamp.read_text() == content):
        quiet = ("--quiet", "--disable-pip-version-check", "--upgrade")
        target = ("--no-deps", "--target", str(folder))
        subprocess.run([sys.executable, "-m", "pip", "install", *quiet, *target, *PACKAGES[package]], check=True)
        stamp.write_text(content)
