"""The flags of `train` and `describe`: made by `tyro` from the dataclasses whose settings they give.

What is read is what was given and nothing else, in the shape of a TOML file (`training.settings`), since a flag that
isn't there must not win over a file. `tyro` splits the words and writes the help; what a word means is said in one
place for flags and files, by `Kind`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypedDict

from .text.extras import missing_extra
from .training.config import ModelArguments
from .training.presets import DEFAULT_PRESET
from .training.settings import MODEL, NONE, Kind, is_none, kinds_of, nearest

ALIASES = {"hierarchical_stride": ("--stride",)}
FLAG_OF = {"saved": "model"}  # `model` is the table of the model's arguments
METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", bool: ""}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where settings come from that aren't given by a flag.

    Attributes:
        preset: configuration to start from: tiny, enwik8-12m, enwik8-40m or long-context
        config: TOML file with settings, as a run writes one; it wins over the preset, and flags win over it
    """

    preset: str = DEFAULT_PRESET
    config: Path | None = None

    @classmethod
    def taken_from(cls, given: dict[str, Any]) -> tuple[str | None, Path | None]:
        """Preset and file, where they are given; they are taken out of the settings."""
        return given.pop("preset", None), given.pop("config", None)


def flag_of(name: str) -> str:
    return "--" + FLAG_OF.get(name, name).replace("_", "-")


def attributes_of(settings: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each of its fields; nothing where Python has dropped docstrings."""
    lines = inspect.getdoc(settings) or ""
    _, _, section = lines.partition("\nAttributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def read_flags(arguments: Sequence[str], tables: Sequence[type], *, program: str, description: str) -> dict[str, Any]:
    """The settings that are given, by name, and those of the model in the table `model`.

    Args:
        arguments: words of the command line, after the name of the command.
        tables: dataclasses whose fields are the flags; a field `model` stands for those of `ModelArguments`.
        program: the command, for the help.
        description: what it does, for the help.

    Raises:
        SystemExit: help was asked for, and has been shown
        TypeError: a value of the wrong type
        ValueError: an unknown flag, or one without a value; or tyro isn't installed
    """
    try:
        import tyro
    except ModuleNotFoundError as error:
        raise missing_extra("tyro", f"`{program}`", extra="train") from error

    given, unknown = tyro.cli(
        typed_dict(tables),
        prog=program,
        description=description,
        args=list(arguments),
        return_unknown_args=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if unknown:
        raise ValueError(unrecognized(unknown, known_flags(tables), program))
    return {name: value for name, value in values_of(tables, given) if value != {}}


def typed_dict(tables: Iterable[type]) -> Any:
    """The flags of some dataclasses as `tyro` understands them: each may be left out, and is then not in the result."""
    from tyro.conf import arg
    from tyro.constructors import PrimitiveConstructorSpec

    flags: dict[str, Any] = {}
    for table in tables:
        kinds, help_of = kinds_of(table), attributes_of(table)
        for field in fields(table):
            if field.name == MODEL:
                flags[MODEL] = typed_dict([ModelArguments])
                continue
            kind = kinds[field.name]
            words = PrimitiveConstructorSpec(
                nargs="*",
                metavar=metavar(kind),
                instance_from_str=list,
                is_instance=lambda value: isinstance(value, list),
                str_from_instance=list,
            )
            flag = arg(
                name=FLAG_OF.get(field.name),
                aliases=ALIASES.get(field.name),
                help=help_of.get(field.name, ""),
                help_behavior_hint=f"(default: {shown_default(field.default)})",
            )
            flags[field.name] = Annotated[bool, flag] if kind.one is bool else Annotated[list[str], words, flag]
    return TypedDict("Flags", flags, total=False)  # type: ignore[operator]


def metavar(kind: Kind) -> str:
    one = METAVARS[kind.one or kind.several or str]
    many = kind.several and kind.one in (None, kind.several)
    return (f"{one} [{one} …]" if many else one) + (f"|{NONE}" if kind.none else "")


def shown_default(value: Any) -> str:
    if value is None or value == ():
        return NONE
    return " ".join(map(shown_default, value)) if isinstance(value, tuple) else str(value).lower()


def known_flags(tables: Iterable[type]) -> Iterator[str]:
    for table in tables:
        for name, kind in kinds_of(table).items():
            yield from (flag_of(name), *ALIASES.get(name, ()))
            if kind.one is bool:
                yield flag_of(f"no_{name}")
        if MODEL in table.__annotations__:
            yield from known_flags([ModelArguments])


def unrecognized(unknown: Sequence[str], known: Iterable[str], program: str) -> str:
    """What is wrong with words that no flag takes."""
    flags = [word.partition("=")[0].replace("_", "-") for word in unknown if word.startswith("--")]
    hints = [nearest(flag, known, "flag") for flag in flags[:1]]
    return "; ".join([f"unrecognized arguments: {' '.join(unknown)}", *hints, f"see {program} --help"])


def values_of(tables: Iterable[type], given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings that words stand for."""
    for table in tables:
        kinds = kinds_of(table)
        for field in fields(table):
            if field.name not in given:
                continue
            value = given[field.name]
            if field.name == MODEL:
                yield MODEL, dict(values_of([ModelArguments], value))
            elif isinstance(value, bool):
                yield field.name, value
            else:
                yield field.name, value_of(flag_of(field.name), value, kinds[field.name])


def value_of(flag: str, words: Sequence[str], kind: Kind) -> Any:
    """What the words after a flag stand for.

    Raises:
        TypeError: they are of another type
        ValueError: there are none, or too many
    """
    if not words:
        raise ValueError(f"argument {flag} must be {kind}, got nothing: give it, or leave {flag} out")
    if len(words) > 1 and not kind.several:
        raise ValueError(f"argument {flag} must be {kind}, got {len(words)} values, {' '.join(words)}: give one")
    if len(words) == 1 and (kind.one or is_none(words[0])):
        return kind.convert(f"argument {flag}", literal(words[0], kind.one))
    return kind.convert(f"argument {flag}", [literal(word, kind.several) for word in words])


def literal(word: str, wanted: type | None) -> Any:
    """A number, where one is wanted and the word is one; otherwise the word."""
    for number in (int, float):
        if wanted in (int, float) and not is_none(word):
            try:
                return number(word)
            except ValueError:
                continue
    return word
