"""Calls with arguments that a function doesn't have, or without some that it needs: errors that name the right ones."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from .validation import shown

P = ParamSpec("P")
R = TypeVar("R")


def names_its_arguments(
    what: str, *, elsewhere: Mapping[str, str], examples: Mapping[str, Any]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a method tell, of a call that doesn't fit it, what would.

    Args:
        what: how users call it, such as "model.generate".
        elsewhere: names that others have for arguments, and ours.
        examples: values of arguments that must be given.
    """

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(method)

        @wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError:
                raise misfit(what, signature, args[1:], kwargs, elsewhere, examples) from None
            return method(*args, **kwargs)

        return call

    return decorate


def misfit(
    what: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    elsewhere: Mapping[str, str],
    examples: Mapping[str, Any],
) -> TypeError:
    """Why a call doesn't fit a method's signature, of which `self` comes first."""
    parameters = list(signature.parameters.values())[1:]
    names = [parameter.name for parameter in parameters]
    positional = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    given = dict(zip(names, args, strict=False))
    if len(args) > len(positional):
        written = ", ".join(f"{name}={shown(value).rpartition(' of type ')[0]}" for name, value in given.items())
        count = f"at most {len(positional)} arguments" if positional else "no argument"
        return TypeError(f"{what} takes {count} without a name, got {len(args)}: write {what}({written})")
    for name, value in kwargs.items():
        if name not in names:
            nearest = [elsewhere[name]] if name in elsewhere else difflib.get_close_matches(name, names, 1)
            remedy = f"did you mean {nearest[0]}?" if nearest else f"leave it out; there are {', '.join(names)}"
            return TypeError(f"{what} has no argument {name}, got {shown(value)}: {remedy}")
        if name in given:
            return TypeError(f"{what} got {name} twice, {shown(given[name])} and {shown(value)}: leave one of them out")
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in (given | dict(kwargs))]
    written = ", ".join(f"{name}={examples[name]!r}" if name in examples else f"{name}=…" for name in missing)
    return TypeError(f"{what} can't do without {', '.join(missing)}, which it wasn't given: add {written}")
