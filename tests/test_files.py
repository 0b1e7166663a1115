import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from digits import files

from .conftest import ROOT


def test_file_appears_with_its_folders_and_nothing_else_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    with files.atomic(target) as partial:
        partial.write_bytes(b"new")
        assert partial.parent == target.parent  # a rename within one folder is atomic
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_failed_writer_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_bytes(b"old")

    def write() -> None:
        with files.atomic(target) as partial:
            partial.write_bytes(b"half of the n")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_killed_writer_leaves_the_old_file_whole_and_the_next_one_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_bytes(b"old")
    script = (
        "import os, signal; from pathlib import Path; from digits.files import atomic\n"
        f"with atomic(Path({str(target)!r})) as partial:\n"
        "    partial.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == -9
    assert target.read_bytes() == b"old"
    files.write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_partial_file_keeps_the_suffix_that_tells_its_format(tmp_path: Path) -> None:
    with files.atomic(tmp_path / "picture.png") as partial:
        assert partial.suffix == ".png"
        partial.touch()


def test_text_is_written_as_utf_8_with_unix_line_ends(tmp_path: Path) -> None:
    files.write_text(tmp_path / "file.txt", "0 … 1\n")
    assert (tmp_path / "file.txt").read_bytes() == b"0 \xe2\x80\xa6 1\n"


def test_json_comes_back_with_its_keys_in_the_order_given(tmp_path: Path) -> None:
    value = {"b": 0.1, "a": {"1": [1, 2]}}
    files.write_json(tmp_path / "file.json", value)
    text = (tmp_path / "file.json").read_text()
    assert files.read_json(tmp_path / "file.json") == value
    assert text == json.dumps(value, indent=2) + "\n"
    assert list(files.read_json(tmp_path / "file.json")) == ["b", "a"]


def test_nested_keys_are_joined_by_dots() -> None:
    assert files.flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_md5_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert files.md5(tmp_path / "file") == files.md5_of(content) == hashlib.md5(content).hexdigest()


def test_digest_of_a_value_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert files.digest({"a": 1, "b": {"c": 2, "d": 3}}) == files.digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert files.digest({"a": [1, 2]}) != files.digest({"a": [2, 1]})


def test_sealed_content_proves_itself_until_a_byte_changes() -> None:
    sealed = files.seal(f"head {files.SEAL} tail".encode())
    checksum = sealed.split()[1].decode()
    assert files.is_intact(sealed, checksum)
    for place in (0, len(sealed) - 1):
        damaged = bytearray(sealed)
        damaged[place] ^= 1
        assert not files.is_intact(bytes(damaged), checksum)


@pytest.mark.parametrize("in_order", [True, False])
def test_mapped_file_is_read_whole_and_writing_to_the_map_never_reaches_it(tmp_path: Path, *, in_order: bool) -> None:
    content = bytes(range(256)) * 50
    (tmp_path / "file").write_bytes(content)
    mapped = files.map_bytes(tmp_path / "file", in_order=in_order)
    assert mapped.dtype == np.uint8
    assert mapped.tobytes() == content
    mapped[:100] = 7
    assert mapped[99] == 7
    assert (tmp_path / "file").read_bytes() == content


@dataclass(frozen=True)
class Part:
    count: int


@dataclass(frozen=True)
class Whole:
    part: Part
    shares: dict[str, float]


def test_dataclass_comes_back_from_the_json_it_was_written_as(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    files.write_json(path, {"part": {"count": 3}, "shares": {"a": 0.5}})
    assert files.read_as(Whole, path) == Whole(Part(3), {"a": 0.5})


@pytest.mark.parametrize("value", [{"part": {"count": 3}}, {"part": {"count": "many"}, "shares": {}}, [1]])
def test_json_of_another_shape_is_not_read_as_a_dataclass(tmp_path: Path, value: object) -> None:
    files.write_json(tmp_path / "file.json", value)
    with pytest.raises(ValidationError):
        files.read_as(Whole, tmp_path / "file.json")


def test_table_has_a_header_and_unix_line_ends_and_comes_back_as_text(tmp_path: Path) -> None:
    rows = [{"label": "a, b", "count": 2}, {"label": "…", "count": 0.5}]
    files.write_table(tmp_path / "file.csv", ["label", "count"], rows)
    content = (tmp_path / "file.csv").read_bytes()
    assert content == 'label,count\n"a, b",2\n…,0.5\n'.encode()
    assert files.read_table(tmp_path / "file.csv") == files.parse_table(content)
    assert files.parse_table(content) == [{"label": "a, b", "count": "2"}, {"label": "…", "count": "0.5"}]


def test_row_with_an_unknown_column_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="typo"):
        files.write_table(tmp_path / "file.csv", ["count"], [{"count": 1, "typo": 2}])
    assert not list(tmp_path.iterdir())
