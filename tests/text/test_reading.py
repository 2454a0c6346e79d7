from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer.text import reading
from simple_hierarchical_transformer.text.reading import read_chunks, read_documents
from simple_hierarchical_transformer.text.sources import FileSource

from .conftest import json_lines

NOISE = os.urandom(300_000)  # that hardly gets smaller, so that it is unpacked in many pieces


def documents(path: Path, text_field: str = "text") -> list[bytes]:
    """Each document whole; that pieces aren't empty and that the last one ends a document is seen on the way."""
    found, held = [], b""
    for text, ends in read_documents(FileSource(path, path.name, True), text_field):
        assert text
        held += text
        if ends:
            found.append(held)
            held = b""
    assert not held
    return found


def refused(message: str, path: Path, content: bytes, error: type[Exception] = ValueError) -> None:
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        documents(path)


def pack(name: str, text: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(text)
    return zstandard.compress(text) if name.endswith(".zst") else text


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.zst", "a.txt.GZ"])
@pytest.mark.parametrize("text", [b"", b"a", NOISE], ids=["empty", "short", "long"])
def test_a_file_is_one_document_packed_or_not(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(pack(name.lower(), text))
    assert documents(tmp_path / name) == ([text] if text else [])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_each_line_is_a_document_packed_or_not(tmp_path: Path, name: str) -> None:
    texts = ["größe\n\n", "", "日本語 \u2028 😀", "x" * 200_000]
    (tmp_path / name).write_bytes(pack(name, json_lines(texts)))
    assert documents(tmp_path / name) == [text.encode() for text in texts if text]


@given(texts=st.lists(st.text(max_size=30)), chunk=st.integers(1, 40), blank=st.sampled_from([b"", b"\n", b" \r\n"]))
def test_lines_are_the_same_however_the_file_is_read(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], chunk: int, blank: bytes
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    # surrogates can't be encoded; JSON in ASCII, as json.dumps writes it, brings them through
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
    path.write_bytes(b"\xef\xbb\xbf" + (b"\n" + blank).join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK", chunk)
        assert documents(path) == [text.encode() for text in texts if text]


def test_the_text_may_stand_in_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["text"], "body"))
    assert documents(tmp_path / "a.jsonl", "body") == [b"text"]


def test_zst_files_of_several_frames_are_read_to_the_end(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    empty = zstandard.compress(b"")
    packed = [zstandard.compress(text) for text in (b"one ", NOISE, b" two")]
    (tmp_path / "a.zst").write_bytes(packed[0] + skipped + packed[1] + empty + packed[2] + skipped)
    assert documents(tmp_path / "a.zst") == [b"one " + NOISE + b" two"]


def test_gz_files_of_several_members_are_read_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert documents(tmp_path / "a.gz") == [b"one two"]


# mistakes


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
@pytest.mark.parametrize("lost", [1, 20, 200_000])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, name: str, lost: int) -> None:
    message = f"{name} is cut off: it ends within its compressed text; fetch it again"
    refused(message, tmp_path / name, pack(name, NOISE)[:-lost])


@given(data=st.data())
def test_a_zst_file_that_is_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.zst"
    first, second = zstandard.compress(b"one " * 100), zstandard.compress(b"two " * 100)
    length = data.draw(st.integers(1, len(first) + len(second) - 1).filter(lambda length: length != len(first)))
    refused("a.zst is cut off", path, (first + second)[:length])


@pytest.mark.parametrize("damage", ["no gzip", "flipped"])
def test_a_damaged_gz_file_is_refused(tmp_path: Path, damage: str) -> None:
    packed = bytearray(gzip.compress(b"text" * 100))
    packed[-6] ^= 1
    content = b"plain text" if damage == "no gzip" else bytes(packed)
    refused("a.gz is no sound gzip file .*: fetch it again, or rename it", tmp_path / "a.gz", content)


@pytest.mark.parametrize("damage", ["no zstd", "flipped", "more behind it"])
def test_a_damaged_zst_file_is_refused(tmp_path: Path, damage: str) -> None:
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(NOISE))
    if damage == "flipped":
        packed[-1] ^= 1
    content = {"no zstd": b"plain text", "flipped": bytes(packed), "more behind it": bytes(packed) + b"garbage"}[damage]
    refused("a.zst is no sound zstd file .*: fetch it again, or rename it", tmp_path / "a.zst", content)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "\xff"}', r"isn't UTF-8 \(invalid start byte\): convert the file"),
        (b'{"text": "a"', "isn't JSON .*: correct it, or rename the file if it is text"),
        (b'{"text": ' * 100_000, "isn't JSON"),
        (b'{"text": "\\ud83d"}', "holds half of a surrogate pair"),
        (b'["a"]', "is no JSON object, got .* of type list"),
        (b'{"body": "a", "id": 1}', "has no field 'text', but body, id: name the text's with --text-field"),
        (b"{}", "has no field 'text', but none"),
        (b'{"text": 7}', "holds no text in 'text', got 7 of type int: name another with --text-field"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_without_text_is_refused_by_its_number(tmp_path: Path, name: str, line: bytes, message: str) -> None:
    content = json_lines(["one"]) + b"\n" + line + b"\n" + json_lines(["four"])
    refused(f"data: line 3 of .*{name} {message}", tmp_path / name, pack(name, content))


def test_a_line_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONGEST_LINE", 1000)
    monkeypatch.setattr(reading, "CHUNK", 100)
    message = "a.jsonl has a line of more than 1,000 bytes: put one document on a line, or rename the file"
    refused(message, tmp_path / "a.jsonl", b"x" * 1200)


def test_zst_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    message = r'a.zst needs the package zstandard.*: pip install "simple-hierarchical-transformer\[data\]"'
    refused(message, tmp_path / "a.zst", zstandard.compress(b"text"))


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the rights themselves can't be tested: whoever runs the tests may be allowed everything
    def forbid(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_bytes(b"text")
    monkeypatch.setattr("builtins.open", forbid)
    with pytest.raises(PermissionError, match=r"data: .*a.txt can't be read: make it readable, or leave it out"):
        next(read_chunks(tmp_path / "a.txt"))


def test_a_disk_that_fails_is_named_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "a.txt").write_bytes(b"text")
    monkeypatch.setattr(reading, "read_plain", fail)
    with pytest.raises(OSError, match=r"data: .*a.txt can't be read \(Input/output error\): copy it elsewhere"):
        next(read_chunks(tmp_path / "a.txt"))
