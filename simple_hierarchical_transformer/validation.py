"""Checks of single arguments: each returns the value, or raises an error that names argument, value and remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

T = TypeVar("T")


def shown(value: Any) -> str:
    """What the user gave, in one short line, and its type."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:60] + '…'} of type {type(value).__name__}"


def whole(name: str, value: Any, *, least: int, most: int = 2**63 - 1) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {shown(value)}: give one such as {max(least, 1)}")
    number = int(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}: raise it")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}: lower it")
    return number


def number(name: str, value: Any, *, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {shown(value)}: give one such as 0.5")
    try:
        number = float(value)
    except OverflowError:  # of a whole number that no float can hold
        number = math.inf
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(
            f"{name} must be a finite number {'above' if positive else 'of at least'} 0, got {value}: raise or lower it"
        )
    return number


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}: give one of the two")
    return value


def power_of_two(name: str, value: Any) -> int:
    power = whole(name, value, least=1)
    if power & (power - 1):
        below = 1 << (power.bit_length() - 1)
        raise ValueError(
            f"{name} must be a positive power of two, got {power}; the nearest are {below} and {2 * below}"
        )
    return power


def per_stream(name: str, value: T | Sequence[T], count: int) -> tuple[T, ...]:
    """A plain value for every stream, or one per stream."""
    if not isinstance(value, (tuple, list)):
        return (value,) * count  # type: ignore[return-value]
    if len(value) != count:
        raise ValueError(
            f"{name} has {len(value)} values {tuple(value)!r} for {count} stream{'s' * (count != 1)}: give one value "
            f"for all streams, or a tuple of {count}, in the order of hierarchies"
        )
    return tuple(value)


def only_with(condition: bool, needs: str, **options: tuple[Any, Any]) -> None:
    """Refuse options that were changed from their default although what they set up is switched off."""
    for name, (value, default) in options.items():
        is_default = value is default or (isinstance(value, (Real, str)) and value == default)
        if not condition and not is_default:
            raise ValueError(f"{name}={value!r} has no effect without {needs}: change that, or leave {name} out")
