"""What is said where a package of the extra `data` is missing."""

from __future__ import annotations


def missing_extra(package: str, what: str, *, extra: str = "data") -> ValueError:
    return ValueError(
        f"{what} needs the package {package}, which isn't installed: "
        f'pip install "simple-hierarchical-transformer[{extra}]"'
    )
