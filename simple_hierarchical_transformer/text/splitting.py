"""Which bytes of which source are trained on, validated on and tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .blocks import Share
from .sources import Source

TRAIN, VALIDATION, TEST = range(3)
PARTS = ("training", "validation", "test")
VALIDATION_SHARE = 20  # one file, or byte, in twenty
FEW_FILES = 20
UNSPLIT = (0, 0, 0)  # stands for a text that is one part, the first

Shares = list[list[Share]]  # of each source, in its order


def share_out(
    sources: Sequence[Source],
    sizes: Sequence[int],
    split: tuple[int, int, int] | None = None,
    window: int = 1,
) -> Shares:
    """The shares of sources that hold so many bytes of text.

    Of many files about one in twenty, chosen by a hash of its name, is validated on. Of few, or of ones that are too
    uneven for that or leave a part less than a window, it is the last twentieth of the text, or the last window.

    Raises:
        ValueError: a source that the user named is empty, or the text is shorter than the split
    """
    for source, size in zip(sources, sizes, strict=True):
        if not size and source.named_by_user:
            raise ValueError(f"data: {source.path} is empty: leave it out, or name a file that holds text")
    total = sum(sizes)
    if split == UNSPLIT:
        return share_by_position(sizes, (total, 0, 0))
    if split is not None:
        if sum(split) > total:
            raise ValueError(
                f"split takes {sum(split):,} bytes of text, but --data holds {total:,}: lower split, or add text"
            )
        return share_by_position(sizes, split)
    if sum(size > 0 for size in sizes) >= FEW_FILES:
        shares = share_by_name(sources, sizes)
        validation = sum(share.num_bytes for some in shares for share in some if share.part == VALIDATION)
        even = total / (4 * VALIDATION_SHARE) <= validation <= total * 4 / VALIDATION_SHARE
        if even and min(total - validation, validation) >= window:
            return shares
    validation = min(max(total // VALIDATION_SHARE, window), total)
    return share_by_position(sizes, (total - validation, validation))


def share_by_name(sources: Sequence[Source], sizes: Sequence[int]) -> Shares:
    return [
        [Share(VALIDATION if is_for_validation(source.name) else TRAIN, size)] if size else []
        for source, size in zip(sources, sizes, strict=True)
    ]


def share_by_position(sizes: Sequence[int], parts: Sequence[int]) -> Shares:
    """For example, sizes of 5 and 4 in parts of 3, 4 and 1:  3 + 2 of the first, 2 + 1 of the second, 1 left out."""
    shares: Shares = []
    part, left = 0, parts[0]
    for size in sizes:
        some = []
        while size and part < len(parts):
            taken = min(size, left)
            if taken:
                some.append(Share(part, taken))
            size, left = size - taken, left - taken
            if not left:
                part += 1
                left = parts[part] if part < len(parts) else 0
        shares.append(some)
    return shares


def is_for_validation(name: str) -> bool:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % VALIDATION_SHARE == 0
