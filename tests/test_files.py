import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert files.md5(tmp_path / "file") == hashlib.md5(content).hexdigest()
