"""From flags to the configuration of a run: preset < the run that is resumed < file < flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from .flags import Sources
from .training.config import TrainConfig
from .training.presets import DEFAULT_PRESET, ENWIK8_SPLIT, find_preset
from .training.run_folder import CONFIG_FILE
from .training.settings import HOW_IT_IS_STARTED, checked, layered, merge, read_toml

PLACES = ("data", "out", "cache")  # where a run finds and leaves things, which may have moved


def configure(given: Mapping[str, Any]) -> TrainConfig:
    """The configuration that flags describe.

    Args:
        given: settings by name, with the table `model`, and `preset` and `config`, as `read_flags` returns them.

    Raises:
        OSError: the file isn't there or can't be read
        TypeError: a value of the wrong type
        ValueError: a value out of range, an unknown setting or preset
    """
    flags = dict(given)
    preset, path = Sources.taken_from(flags)
    values = layered(read_toml(path) if path else {}, checked(flags))
    try:
        out = Path(values.get("out", TrainConfig.out))
        started = out / CONFIG_FILE
        if values.get("resume") and started.is_file():
            return resumed(started, values, preset)
        return merge(find_preset(DEFAULT_PRESET if preset is None else preset), values)
    except (TypeError, ValueError) as error:
        if path:
            error.add_note(f"some of the settings are those of {path}")
        raise


def check_data(config: TrainConfig) -> None:
    """Refuse to cut the library of Python, which stands for data that isn't given, as if it were enwik8.

    Raises:
        ValueError: a preset for enwik8, without data
    """
    if config.split == ENWIK8_SPLIT and not config.data:
        raise ValueError(
            "split is that of enwik8, 90e6,5e6,5e6, and no data is given: name the file, such as --data enwik8 (from "
            "mattmahoney.net/dc/enwik8.zip, unpacked), or give --split none"
        )


def resumed(started: Path, values: Mapping[str, Any], preset: str | None) -> TrainConfig:
    """The configuration of a run that goes on, with what is given anew."""
    base = merge(TrainConfig(), read_toml(started), str(started))
    config = merge(replace(base, out=started.parent), values)
    if preset is not None:
        other = merge(find_preset(preset), values)
        ignored = (*PLACES, *HOW_IT_IS_STARTED)
        names = [field.name for field in fields(TrainConfig) if field.name not in ignored]
        if changed := [name for name in names if getattr(config, name) != getattr(other, name)]:
            raise ValueError(
                f"--preset {preset} would change the run in {started.parent}, which is resumed, in its "
                f"{', '.join(changed)}: leave --preset out, since a run goes on with its own settings"
            )
    return config
