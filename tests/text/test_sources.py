from __future__ import annotations

import os
from pathlib import Path

import pytest

from simple_hierarchical_transformer.text.sources import (
    NOT_LIBRARY,
    DatasetSource,
    FileSource,
    list_sources,
    standard_library,
)


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"text")


def names(*paths: str | Path) -> list[str]:
    return [source.name for source in list_sources(paths)]


def test_the_standard_library_is_sorted_source_without_tests_and_installed_packages() -> None:
    found = [source.name for source in standard_library()]
    assert found == sorted(found)
    assert "argparse.py" in found
    assert "json/decoder.py" in found
    assert all(name.endswith(".py") for name in found)
    assert NOT_LIBRARY.isdisjoint(part for name in found for part in name.split("/")[:-1])


def test_a_folder_gives_its_files_in_sorted_order_without_hidden_ones(tmp_path: Path) -> None:
    make(tmp_path, "b.txt", "a/z.txt", "a.txt", ".hidden", ".git/config", "a/.cache/c.txt")
    assert names(tmp_path) == ["a.txt", "a/z.txt", "b.txt"]


def test_a_glob_gives_the_files_that_it_matches_under_the_same_names_everywhere(tmp_path: Path) -> None:
    for root in ("here", "there"):
        make(tmp_path / root, "b.txt", "a/z.txt", "a/c.py", ".hidden.txt", ".git/y.txt")
        assert names(tmp_path / root / "*.txt") == ["b.txt"]
        assert names(tmp_path / root / "**" / "*.txt") == ["a/z.txt", "b.txt"]
        assert names(tmp_path / root / "**") == ["a/c.py", "a/z.txt", "b.txt"]


def test_a_relative_glob_is_seen_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.txt", "b.txt")
    monkeypatch.chdir(tmp_path)
    assert names("[ab].txt") == ["a.txt", "b.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    make(tmp_path, "a[1].txt", "a1.txt")
    assert names(tmp_path / "a[1].txt") == ["a[1].txt"]


def test_a_file_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    assert len(list_sources([tmp_path, tmp_path / "a.txt", tmp_path / ".." / tmp_path.name, tmp_path / "*"])) == 1


@pytest.mark.parametrize(
    ("name", "plain", "lines"),
    [
        ("a.txt", True, False),
        ("a", True, False),
        ("a.GZ", False, False),
        ("a.txt.zst", False, False),
        ("a.jsonl", False, True),
        ("a.jsonl.gz", False, True),
        ("a.JSONL.zst", False, True),
        ("a.jsonl.txt", True, False),
        (".jsonl", True, False),
    ],
)
def test_the_end_of_a_name_says_what_a_file_holds(name: str, plain: bool, lines: bool) -> None:
    source = FileSource(Path(name), name, True)
    assert (source.is_plain, source.holds_json_lines) == (plain, lines)


@pytest.mark.parametrize(
    ("text", "dataset"),
    [
        ("hf:user/name", DatasetSource("user/name", None, "train")),
        ("hf:user/name:test", DatasetSource("user/name", None, "test")),
        ("hf:user/name:plain:test", DatasetSource("user/name", "plain", "test")),
    ],
)
def test_a_dataset_is_named_with_its_split(text: str, dataset: DatasetSource) -> None:
    assert list_sources([text, text]) == [dataset]


def test_a_local_dataset_has_the_same_name_everywhere(tmp_path: Path) -> None:
    make(tmp_path, "here/data/a.jsonl", "there/data/a.jsonl")
    assert {DatasetSource(str(tmp_path / place / "data"), None, "train").name for place in ("here", "there")} == {
        "data:train"
    }


# mistakes


def refused(message: str, path: str | Path, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        list_sources([path])


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    refused(r"data: .*none\.txt doesn't exist: check the path, seen from", tmp_path / "none.txt", FileNotFoundError)


def test_a_glob_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    make(tmp_path, ".hidden.txt", "folder/a.py")
    for pattern in ("*.txt", "f*"):
        refused(r"data: the glob .* matches no file that isn't hidden", tmp_path / pattern, FileNotFoundError)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    make(tmp_path, ".hidden")
    refused("the folder .* holds no files that aren't hidden: name one that holds text", tmp_path)


def test_what_is_neither_file_nor_folder_is_refused() -> None:
    refused("/dev/null is neither a file nor a folder: copy its text", os.devnull)


@pytest.mark.parametrize("text", ["hf:", "hf::test", "hf:name:", "hf:a:b:c:d"])
def test_a_dataset_without_a_name_is_refused(text: str) -> None:
    refused(f"data: {text} names no dataset: write hf:NAME, hf:NAME:SPLIT", text)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the rights themselves can't be tested: whoever runs the tests may be allowed everything
    def forbid(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", forbid)
    refused("the folder .* can't be read: make it readable, or leave it out", tmp_path, PermissionError)
