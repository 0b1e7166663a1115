from pathlib import Path

import pytest

from digits.__main__ import dispatch
from digits.errors import UserError
from digits.tools import provenance

from .conftest import result


def test_difference_shows_causes_before_results(capsys: pytest.CaptureFixture[str]) -> None:
    other = {"code": {"a.py": "1" * 32, "c.py": "5" * 32}, "params": {"seed": "1"}, "metrics": {"loss": 0.25}}
    provenance.tell_difference(result("one"), result("two", **other))
    assert capsys.readouterr().out.split("\n\n") == [
        "one\ntwo",
        "code\n  b.py  22222222 -> (none)\n  c.py  (none) -> 55555555",
        "params\n  seed  0 -> 1",
        "metrics\n  loss  0.5 -> 0.25",
        "the same: data, environment\n",
    ]


def test_difference_takes_params_as_numbers_and_checksums_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    big = 2**62
    first = {"params": {"timeout": "20", "seed": str(big)}, "code": {"a.py": "0e" + "1" * 30}}
    second = {"params": {"timeout": "20.0", "seed": str(big + 1)}, "code": {"a.py": "0e" + "2" * 30}}
    provenance.tell_difference(result("one", **first), result("two", **second))
    printed = capsys.readouterr().out
    assert "timeout" not in printed
    assert f"seed  {big} -> {big + 1}" in printed
    assert "a.py  0e111111 -> 0e222222" in printed


def test_difference_says_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    provenance.tell_difference(result("one", environment={}), result("two"))
    assert "environment\n  not known of one\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["reproduce", "nothing"], "nothing: no MLflow run, DVC experiment, git revision or model file of this name"),
        (["reproduce", "a" * 32], f"{'a' * 32}: MLflow has no run of this id"),
        (["diff", "HEAD", "nothing"], "nothing: no MLflow run"),
        (["of", "absent.onnx"], "absent.onnx: no such file"),
    ],
)
def test_name_of_nothing_is_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    with pytest.raises(UserError) as refusal:
        dispatch(words)
    (said,) = str(refusal.value).splitlines()
    assert said.startswith(line)
