import shutil
from pathlib import Path

import pytest

from digits.__main__ import dispatch
from digits.errors import UserError
from digits.files import read_json

from ..conftest import ROOT


def test_summary_tells_the_result_in_a_few_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    dispatch(["summary"])
    lines = capsys.readouterr().out.strip().splitlines()
    test = read_json(ROOT / "metrics/test.json")
    assert lines[0].startswith(f"test accuracy {test['accuracy']:.2%} (95 % interval {test['accuracy_low']:.2%} to ")
    assert lines[0].endswith(f", {test['errors']} errors in 10,000")
    assert any("models/export/" in line for line in lines)
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 80


def test_summary_of_an_unfinished_result_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "metrics", tmp_path / "metrics")
    (tmp_path / "metrics/test.json").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^metrics/test\.json: not found; `dvc repro` makes it$"):
        dispatch(["summary"])
