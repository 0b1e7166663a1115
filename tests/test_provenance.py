import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from digits import exporting, models, provenance, tracking
from digits.command import UserError, run
from digits.lineage import State
from digits.models import Description

from .conftest import git

DESCRIPTION = Description(
    "mlp", ["a", "b"], {"hidden": [3], "dropout": 0.0}, {"seed": 4}, {"data/train": "1a2b"}, "3c4d"
)
FORMATS = ("safetensors", "onnx", "pt2")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = models.build("mlp", 2, DESCRIPTION.knobs).eval()
    folder = tmp_path_factory.mktemp("exported")
    models.save(network, DESCRIPTION, folder / "model.safetensors")
    exporting.write_onnx(network, folder / "model.onnx", 18, DESCRIPTION)
    exporting.write_pt2(network, folder / "model.pt2", DESCRIPTION)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_every_model_file_says_what_determined_it(exported: Path, name: str) -> None:
    said = provenance.describe(exported / f"model.{name}")
    assert Description(**said) == DESCRIPTION


@pytest.mark.parametrize("name", FORMATS)
def test_every_model_file_with_a_changed_byte_is_refused_or_says_the_truth(
    exported: Path, name: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model.{name}"
    sound = (exported / path.name).read_bytes()
    refused = []
    places = range(0, len(sound), max(1, len(sound) // 40))
    for place in places:
        damaged = bytearray(sound)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            assert Description(**provenance.describe(path)) == DESCRIPTION
        except UserError as error:
            refused.append(str(error))
    # The zip archive of a pt2 file has padding that nobody reads.
    assert len(refused) == len(places) if name != "pt2" else refused
    assert all(line.startswith(f"{path}: not a model of this project, or damaged (") for line in refused)
    assert not any("\n" in line for line in refused)


@pytest.mark.parametrize(
    ("name", "content"), [("a.safetensors", b"no"), ("a.onnx", b"no"), ("a.pt2", b"no"), ("a.txt", b"")]
)
def test_file_that_is_no_model_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"not a model of this project, or damaged \(.+\)$"):
        provenance.describe(tmp_path / name)
    with pytest.raises(UserError, match=r"absent\.onnx: no such file"):
        provenance.describe(tmp_path / "absent.onnx")


def state(name: str, **changes: Any) -> State:
    fields: dict[str, Any] = {
        "commit": "1" * 40, "patch": b"", "code": {"a.py": "1" * 32, "b.py": "2" * 32}, "params": {"seed": "0"},
        "environment": {"torch": "2.15.0"}, "outputs": {"data/x": "3" * 32}, "metrics": {"loss": 0.5},
        "read": Path.read_bytes,
    }  # fmt: skip
    return State(name, **fields | changes)


def test_difference_tells_causes_before_results(capsys: pytest.CaptureFixture[str]) -> None:
    other = {"code": {"a.py": "1" * 32, "c.py": "5" * 32}, "params": {"seed": "1"}, "metrics": {"loss": 0.25}}
    provenance.tell_difference(state("one"), state("two", **other))
    told = capsys.readouterr().out.split("\n\n")
    assert told == [
        "one\ntwo",
        "code\n  b.py  22222222 -> (none)\n  c.py  (none) -> 55555555",
        "params\n  seed  0 -> 1",
        "results\n  loss  0.5 -> 0.25",
        "the same: data, environment\n",
    ]


def test_difference_takes_params_as_numbers_and_checksums_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    big = 2**62
    first = {"params": {"timeout": "20", "seed": str(big)}, "code": {"a.py": "0e" + "1" * 30}}
    second = {"params": {"timeout": "20.0", "seed": str(big + 1)}, "code": {"a.py": "0e" + "2" * 30}}
    provenance.tell_difference(state("one", **first), state("two", **second))
    told = capsys.readouterr().out
    assert "timeout" not in told
    assert f"seed  {big} -> {big + 1}" in told
    assert "a.py  0e111111 -> 0e222222" in told


def test_difference_says_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    provenance.tell_difference(state("one", environment={}), state("two"))
    assert "environment\n  not known of one\n" in capsys.readouterr().out


def test_experiments_of_one_name_are_that_on_the_commit_here_or_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet", "--initial-branch=main")
    git("commit", "--quiet", "--allow-empty", "--message=one")
    git("commit", "--quiet", "--allow-empty", "--message=two")
    bases = {name: git("rev-parse", name).strip() for name in ("main~", "main")}
    made = {}
    for name, base, date in (("wide", "main~", 2), ("wide", "main", 1), ("wide-2", "main~", 4), ("deep", "main", 3)):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"{1_700_000_000 + date} +0000")
        made[name, base] = git("commit-tree", "-p", bases[base], "-m", name, f"{base}^{{tree}}").strip()
        git("update-ref", f"refs/exps/{bases[base][:2]}/{bases[base][2:]}/{name}", made[name, base])
    assert provenance.experiments("wide*") == {"wide": made["wide", "main"], "wide-2": made["wide-2", "main~"]}
    git("commit", "--quiet", "--allow-empty", "--message=three")
    assert provenance.experiments("wide") == {"wide": made["wide", "main~"]}  # neither is here: the newest
    git("checkout", "--quiet", "--detach", bases["main"])
    assert provenance.experiments("wide") == {"wide": made["wide", "main"]}
    assert provenance.experiments("nothing") == provenance.experiments("wid") == {}


def test_looking_a_run_up_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    assert tracking.runs_with("1" * 32) == []
    assert tracking.find("1" * 32) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["reproduce", "nothing"],
            "nothing: there is no MLflow run, DVC experiment, git revision or model file of this name",
        ),
        (["reproduce", "a" * 32], f"{'a' * 32}: MLflow has no run of this id"),
        (["diff", "HEAD", "nothing"], "nothing: there is no MLflow run"),
        (["of", "absent.onnx"], "absent.onnx: no such file"),
    ],
)
def test_name_of_nothing_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    monkeypatch.setattr(sys, "argv", ["provenance", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run(provenance.main)
    assert stopped.value.code == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(line)
    assert os.environ["MLFLOW_TRACKING_URI"]
