"""Settings from outside: what a TOML file may hold, how a run writes its own, and what wins over what.

Settings travel as a dictionary of the same shape as the file: the fields of `TrainConfig` by name, and the table
`model` with those of `ModelArguments`. Flags are read into such a dictionary too, so that there is one way in.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..text.extras import missing_extra
from ..validation import shown
from .config import NEAR_WINDOW, ModelArguments, TrainConfig

FORMAT = "format"
RUN_FORMAT = "simple-hierarchical-transformer run, version 1"
MODEL = "model"
NONE = "none"  # TOML has no word for it
HOW_IT_IS_STARTED = ("resume", "resume_fallback")  # not what a run is, so no file that a run writes holds them
WORDS = {int: "whole number", float: "number", str: "text", Path: "path", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The values that a setting takes: `int | tuple[int | None, ...] | None` is one or several, or none.

    Attributes:
        one: the type of a single value, where there may be one
        several: the type of each of several values, where there may be some
        none: whether it may be none
        none_within: whether each of several may be
    """

    one: type | None
    several: type | None
    none: bool
    none_within: bool

    @classmethod
    def of(cls, hint: Any) -> Kind:
        single, none = _members(hint)
        sequences = [member for member in single if get_origin(member) is tuple]
        within, none_within = _members(get_args(sequences[0])[0]) if sequences else ([], False)
        one = [member for member in single if member not in sequences]
        return cls(
            one=one[0] if one else None, several=within[0] if within else None, none=none, none_within=none_within
        )

    def __str__(self) -> str:
        parts = [WORDS[self.one] if self.one is bool else f"a {WORDS[self.one]}"] if self.one else []
        parts += [f"a list of {WORDS[self.several]}s"] if self.several else []
        return " or ".join(parts) + (f", or {NONE}" if self.none else "")

    def convert(self, name: str, value: Any) -> Any:
        """A value as TOML or a flag gives it, in the types of `TrainConfig`: lists as tuples, "none" as None or ().

        Raises:
            TypeError: it is of another type
        """
        try:
            if is_none(value) and (self.none or not self.one):
                return None if self.none else ()
            if self.several and isinstance(value, (list, tuple)):
                return tuple(
                    None if self.none_within and is_none(item) else _single(item, self.several) for item in value
                )
            return _single(value, self.one)
        except TypeError:
            within = f" (each may be {NONE})" if self.none_within else ""
            raise TypeError(f"{name} must be {self}{within}, got {shown(value)}: correct it, or leave it out") from None


def _members(hint: Any) -> tuple[list[Any], bool]:
    """The types of a union, and whether None is one of them."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [member for member in members if member is not NoneType], NoneType in members


def _single(value: Any, wanted: type | None) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is float and is_number:
        return value
    if wanted is int and is_number and value == value // 1:  # 5e6, say, but neither infinity nor nan
        return int(value)
    if wanted is Path and isinstance(value, (str, Path)):
        return Path(value) if str(value) else value  # an empty one is refused by name, not taken for "."
    if wanted in (str, bool) and isinstance(value, wanted):
        return value
    raise TypeError


def is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.lower() == NONE)


def kinds_of(settings: type) -> dict[str, Kind]:
    """What each field of one of the two dataclasses takes, but for the table of the model."""
    hints = get_type_hints(settings)
    return {field.name: Kind.of(hints[field.name]) for field in fields(settings) if field.name != MODEL}


RUN_KINDS = kinds_of(TrainConfig)
MODEL_KINDS = kinds_of(ModelArguments)


def nearest(word: str, known: Iterable[str], what: str) -> str:
    """Words that name those of the known ones that a wrong word may have meant."""
    bare = {name.removeprefix("--"): name for name in known}
    close = [bare[name] for name in difflib.get_close_matches(word.removeprefix("--"), bare, n=3)]
    if not close:
        return f"no {what} is like it"
    return f"the nearest {what}{'s are' if len(close) > 1 else ' is'} {', '.join(close)}"


def checked(values: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Settings whose names are known and whose types fit, in the types of `TrainConfig`.

    Where compress factors are given, strides and windows that aren't are those that fit them (`default_streams`).

    Args:
        values: settings, and the table `model`. The key `format`, with which a run marks its file, is left out.
        source: what they come from, for errors.

    Raises:
        TypeError: a value of the wrong type
        ValueError: an unknown name, or a file of another format
    """
    before = f"{source}: " if source else ""
    values = dict(values)
    if (version := values.pop(FORMAT, RUN_FORMAT)) != RUN_FORMAT:
        raise ValueError(
            f"{before}{FORMAT} is {shown(version)}, but {RUN_FORMAT!r} is the one that is known: install the version "
            f"of simple-hierarchical-transformer that wrote it, or leave {FORMAT} out of a file of your own"
        )
    model = values.pop(MODEL, {})
    if not isinstance(model, Mapping):
        raise TypeError(f"{before}{MODEL} must be a table, got {shown(model)}: write its settings under [{MODEL}]")
    model = _checked_table(model, MODEL_KINDS, before, f"{MODEL}.")
    if "hierarchies" in model:
        streams = default_streams(model["hierarchies"])
        model |= {name: value for name, value in streams.items() if name not in model}
    run = _checked_table(values, RUN_KINDS, before, "")
    return {**run, MODEL: model} if model else run


def _checked_table(values: Mapping[str, Any], kinds: Mapping[str, Kind], before: str, prefix: str) -> dict[str, Any]:
    for name in values:
        if name not in kinds:
            other = RUN_KINDS if prefix else MODEL_KINDS
            if name in other:
                remedy = f"write it {'above all tables' if prefix else f'under [{MODEL}]'}"
            else:
                remedy = f"{nearest(name, kinds, 'setting')}; correct it, or leave it out"
            raise ValueError(f"{before}there is no setting {prefix}{name}: {remedy}")
    return {name: kinds[name].convert(f"{before}{prefix}{name}", value) for name, value in values.items()}


def default_streams(hierarchies: int | tuple[int, ...]) -> dict[str, Any]:
    """Strides and windows of streams of these factors: the finest sees near tokens, one per input, the others all."""
    factors = hierarchies if isinstance(hierarchies, tuple) else (hierarchies,)
    finest = min(factors, default=1)
    return {
        "hierarchical_stride": tuple(1 if factor == finest else factor for factor in factors),
        "window_sizes": tuple(NEAR_WINDOW if factor == finest else None for factor in factors),
    }


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of several sources as one: a later one wins, setting by setting."""
    together: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for layer in layers:
        together |= layer
        model |= layer.get(MODEL, {})
    return {**together, MODEL: model} if model else together


def merge(base: TrainConfig, values: Mapping[str, Any], source: str = "") -> TrainConfig:
    """A configuration with some of its settings given anew.

    Args:
        base: what holds where `values` say nothing.
        values: settings by name, and the table `model`, as `read_toml` returns them.
        source: what they come from, such as the name of a file, for errors.

    Raises:
        TypeError: a value of the wrong type
        ValueError: an unknown name, a value out of range, or a file of another format
    """
    settings = checked(values, source)
    try:
        model = replace(base.model, **settings.pop(MODEL, {}))
        return replace(base, **settings, model=model)
    except (TypeError, ValueError) as error:
        if not source:
            raise
        raise type(error)(f"{source}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, as `checked` returns them. Paths are relative to the working directory.

    Raises:
        OSError: the file isn't there or can't be read
        TypeError: a value of the wrong type
        ValueError: it is no TOML, or holds a setting that isn't known
    """
    try:
        values = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"the configuration {path} doesn't exist: check the path") from None
    except OSError as error:
        raise type(error)(f"the configuration {path} can't be read ({error.strerror}): name a TOML file") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or lists within lists within …
        raise ValueError(f"the configuration {path} can't be read as TOML ({error}): correct it") from None
    return checked(values, str(path))


def write_toml(config: TrainConfig) -> str:
    """A configuration as TOML, all of it but whether a run is resumed: `read_toml` and `merge` give it again.

    Raises:
        ValueError: tomli_w isn't installed, or a path is one that TOML can't hold
    """
    try:
        import tomli_w
    except ModuleNotFoundError as error:
        raise missing_extra("tomli_w", "writing a configuration", extra="train") from error
    settings = {name: _written(value) for name, value in asdict(config).items() if name not in HOW_IT_IS_STARTED}
    written = tomli_w.dumps(settings)
    try:
        written.encode()
    except UnicodeEncodeError:
        name = next(name for name, value in settings.items() if not _is_unicode(value))
        raise ValueError(
            f"{name} holds a name that is no UTF-8, which no configuration can hold: rename the file or folder, "
            f"got {shown(settings[name])}"
        ) from None
    return written


def _written(value: Any) -> Any:
    if value is None:
        return NONE
    if isinstance(value, dict):
        return {name: _written(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(item) for item in value]
    if isinstance(value, Path):
        # a folder of this name isn't meant to be none
        return f"./{value}" if is_none(str(value)) else str(value)
    return value


def _is_unicode(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return not any("\ud800" <= letter <= "\udfff" for text in texts if isinstance(text, str) for letter in text)
