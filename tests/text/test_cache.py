from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from simple_hierarchical_transformer.files import name_beside
from simple_hierarchical_transformer.text import cache as cache_module
from simple_hierarchical_transformer.text import prepare
from simple_hierarchical_transformer.text.data import Split, load_split

from .conftest import json_lines
from .test_corpus import whole

TEXT = b"some text that is packed\n" * 20


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "text" / "a.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(TEXT))
    return path


def load(path: Path, cache: Path, **options: Any) -> tuple[Split, list[str]]:
    said: list[str] = []
    split = load_split([path], 16, cache=cache, report=said.append, **options)
    return split, said


def entries(cache: Path) -> list[str]:
    """All but locks, which have to stay for those who wait for them."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_text_is_prepared_once(packed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    split, said = load(packed, cache)
    assert len(said) == 2 and said[0].startswith(f"preparing text, once: it is kept in {cache}")
    assert said[1] == "prepared: 0.00 MB of text in 1 document, 500 tokens"
    assert [Path(name).suffix for name in entries(cache)] == [".bin", ".json"]
    again, said = load(packed, cache, split=(300, 200, 0))
    assert said == []
    assert whole(split.train) + whole(split.validation) == whole(again.train) + whole(again.validation) == TEXT


def test_the_users_cache_is_used_unless_another_is_named(packed: Path, own_cache: Path) -> None:
    load_split([packed], 16)
    assert len(entries(own_cache)) == 2


def test_without_a_setting_the_cache_stands_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_module.default_cache() == Path.home() / ".cache" / "simple-hierarchical-transformer"


@pytest.mark.parametrize("options", [{}, {"separator": 0}])
def test_a_source_that_changed_is_prepared_again(packed: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    load(packed, tmp_path / "cache", **options)
    other = TEXT.swapcase()
    packed.write_bytes(gzip.compress(other))
    os.utime(packed, ns=(1, 1))  # in less than a tick of the clock, with the same size
    split, said = load(packed, tmp_path / "cache", **options)
    assert said
    assert (whole(split.train) + whole(split.validation)).replace(b"\0", b"") == other


def test_each_setting_has_an_entry_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        json_lines(["text " * 20] * 20).replace(b'"id"', b'"id": 0, "body": "other text that is longer", "id"')
    )
    settings: list[dict[str, Any]] = [{}, {"text_field": "body"}, {"separator": 0}, {"separator": 1}]
    settings += [{"separator": 0, "split": (100, 100, 0)}, {"separator": 0, "text_field": "body"}]
    for count, options in enumerate(settings, start=1):
        _, said = load(path, tmp_path / "cache", **options)
        assert said and len(entries(tmp_path / "cache")) == 2 * count
    for options in settings:
        assert load(path, tmp_path / "cache", **options)[1] == []


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
        return
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"shorter": content[:-1], "longer": content + b"0", "flipped": flipped, "empty": b""}[how])


@pytest.mark.parametrize("options", [{}, {"separator": 0}])
@pytest.mark.parametrize("suffix", [".bin", ".json"])
@pytest.mark.parametrize("how", ["gone", "shorter", "longer", "flipped", "empty"])
def test_a_damaged_entry_is_made_again(
    packed: Path, tmp_path: Path, suffix: str, how: str, options: dict[str, Any]
) -> None:
    cache = tmp_path / "cache"
    before, _ = load(packed, cache, **options)
    (file,) = cache.glob(f"*{suffix}")
    content = file.read_bytes()
    damage(file, how)
    after, said = load(packed, cache, **options)
    assert any("preparing" in line for line in said)
    assert file.read_bytes() == content
    assert after.fingerprint == before.fingerprint
    assert whole(after.train) == whole(before.train)


def test_every_flipped_bit_of_the_description_is_noticed(packed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load(packed, cache)
    (file,) = cache.glob("*.json")
    content = file.read_bytes()
    for index in range(0, len(content) - 1, 7):
        file.write_bytes(content[:index] + bytes([content[index] ^ 4]) + content[index + 1 :])
        _, said = load(packed, cache)
        assert said or content[index : index + 1].isspace(), index


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["text"] * 100) + b"{")
    for options in ({}, {"separator": 0}):
        with pytest.raises(ValueError, match="line 101"):
            load(path, tmp_path / "cache", **options)
        assert entries(tmp_path / "cache") == []


def test_a_source_that_changes_while_it_is_read_is_refused(packed: Path, tmp_path: Path) -> None:
    read = prepare.read_documents

    def write_meanwhile(*arguments: Any) -> Any:
        yield from read(*arguments)
        packed.write_bytes(gzip.compress(b"something else"))

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ValueError, match=r"a\.gz changed while it was read: use"),
    ):
        patch.setattr(prepare, "read_documents", write_meanwhile)
        load(packed, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("options", [{}, {"separator": 0}])
def test_a_full_disk_is_named_and_leaves_nothing_behind(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, options: dict[str, Any]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=r"cache: .*cache can't take the prepared text \(No space left .*--cache"):
        load(packed, tmp_path / "cache", **options)
    assert entries(tmp_path / "cache") == []


def test_a_cache_that_is_a_file_is_refused(packed: Path) -> None:
    with pytest.raises(OSError, match=r"cache: .*a\.gz can't take the prepared text"):
        load(packed, packed)


def test_what_an_ended_process_left_is_taken_away_and_what_a_running_one_writes_is_not(
    packed: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    old, folder, new = (name_beside(cache / name) for name in ("a.bin", "datasets", "b.bin"))
    folder.mkdir()
    for path in (old, folder / "0.jsonl", new):
        path.write_bytes(b"text")
    for path in (old, folder / "0.jsonl", folder):
        os.utime(path, (0, 0))
    (cache / "mine.txt").touch()
    load(packed, cache)
    left = entries(cache)
    assert new.name in left and "mine.txt" in left
    assert old.name not in left and folder.name not in left
