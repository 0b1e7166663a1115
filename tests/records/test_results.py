import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from digits import paths
from digits.datasets import MNIST_SHAPE
from digits.errors import UserError
from digits.files import digest
from digits.learning import exporting, models, networks
from digits.learning.description import Description
from digits.records import results, runs
from digits.records.results import Answers, Result

from ..conftest import git
from .conftest import EPOCH, experiment, training_run

DESCRIPTION = Description(
    "mlp", ["a", "b"], {"hidden": [3], "dropout": 0.0}, {"seed": 4}, {"data/train": "1a2b"}, "3c4d"
)
FORMATS = ("safetensors", "onnx", "pt2")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = networks.build("mlp", 2, DESCRIPTION.knobs).eval()
    folder = tmp_path_factory.mktemp("exported")
    models.save(network, DESCRIPTION, folder / "model.safetensors")
    program = exporting.capture(network, MNIST_SHAPE)
    exporting.write_onnx(program, folder / "model.onnx", 18, DESCRIPTION)
    exporting.write_pt2(program, folder / "model.pt2", DESCRIPTION)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_every_model_file_says_what_determined_it(exported: Path, name: str) -> None:
    assert results.describe(exported / f"model.{name}") == DESCRIPTION


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
            assert results.describe(path) == DESCRIPTION
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
        results.describe(tmp_path / name)
    with pytest.raises(UserError, match=r"absent\.onnx: no such file"):
        results.describe(tmp_path / "absent.onnx")


def predicting(name: str, outputs: dict[str, str], tables: dict[str, bytes]) -> Result:
    """Return a result with nothing but these tables and the MD5s of its outputs."""

    def read(file: str) -> bytes:
        if file not in tables:
            raise FileNotFoundError(file)
        return tables[file]

    return Result(name, None, b"", {}, {}, {}, outputs, {}, read)


def test_answers_are_those_of_the_split_with_the_md5_of_its_images() -> None:
    tables = {
        paths.VALIDATION_TABLE.as_posix(): b"actual,predicted\na,b\nb,b\n",
        paths.CONFUSION_TABLE.as_posix(): b"actual,predicted\nb,b\na,a\na,b\n",
    }
    found = predicting("one", {paths.VALIDATION.as_posix(): "1" * 32, paths.TEST.as_posix(): "2" * 32}, tables)
    assert found.answers("validation") == Answers(["a", "b"], ["b", "b"], "1" * 32)
    assert found.answers("test") == Answers(["b", "a", "a"], ["b", "a", "b"], "2" * 32)
    assert found.answers("test").correct() == [True, True, False]


def test_result_without_predictions_has_no_answers() -> None:
    split, table = paths.VALIDATION.as_posix(), paths.VALIDATION_TABLE.as_posix()
    with pytest.raises(UserError, match=r"^old: has no plots/validation\.csv$"):
        predicting("old", {split: "1" * 32}, {}).answers("validation")
    with pytest.raises(UserError, match=r"^workspace: has no plots/validation\.csv; `dvc repro` writes it$"):
        predicting("workspace", {split: "1" * 32}, {}).answers("validation")
    for outputs, content in (({split: "1" * 32}, b"actual,predicted\n"), ({}, b"actual,predicted\na,a\n")):
        with pytest.raises(UserError, match=r"^new: has no predictions in plots/validation\.csv, or is not a finished"):
            predicting("new", outputs, {table: content}).answers("validation")


def test_of_several_experiments_of_one_name_the_one_on_the_current_commit_counts_or_the_newest(
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
    assert results.experiments("wide*") == {"wide": made["wide", "main"], "wide-2": made["wide-2", "main~"]}
    git("commit", "--quiet", "--allow-empty", "--message=three")
    assert results.experiments("wide") == {"wide": made["wide", "main~"]}  # neither is on this commit: the newest
    git("checkout", "--quiet", "--detach", bases["main"])
    assert results.experiments("wide") == {"wide": made["wide", "main"]}
    assert results.experiments("nothing") == results.experiments("wid") == {}


def test_revision_is_whatever_git_takes_for_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    git("init", "--quiet", "--initial-branch=main")
    (tmp_path / "dvc.lock").write_text("stages: {}\n")
    git("add", "dvc.lock")
    git("commit", "--quiet", "--message=about: wider networks")
    (tmp_path / "dvc.lock").write_text("broken")
    git("commit", "--quiet", "--all", "--message=two")
    git("tag", "--annotate", "--message=a tag", "v1", "main~")
    one = git("rev-parse", "main~").strip()
    for name in ("main~", "HEAD^", ":/wider", "HEAD^{/wider}", "v1", one, one[:8], "main@{1}"):
        assert results.load(name).commit == one
    for name in ("^HEAD", "main..HEAD", "--all", "-h", "HEAD:dvc.lock", "@{-9}", "*", "", "\x1b"):
        with pytest.raises(UserError, match=rf"^{re.escape(name)}: no MLflow run, DVC experiment, git revision"):
            results.load(name)
    with pytest.raises(UserError, match=r"^commit \w{7} \(two\): has a malformed dvc\.lock, so no result$"):
        results.load("HEAD")


def test_looking_a_run_up_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    assert results.runs_with("1" * 32) == []
    assert results.from_run("1" * 32) is None
    assert not list(tmp_path.iterdir())


def test_run_logged_under_old_names_is_found_and_read(client: MlflowClient) -> None:
    model, train = "7" * 32, {"validation_accuracy": 0.99, "parameters": 12}
    outputs = {"models/model.safetensors": model, "metrics/train.json": "8" * 32, paths.VALIDATION.as_posix(): "9" * 32}
    run_id = client.create_run(experiment(client), tags={"model_md5": model}, run_name="old").info.run_id
    for key, value in {"model.name": "mlp", "model.mlp.dropout": "0.1", "model.cnn.dropout": "0.2"}.items():
        client.log_param(run_id, key, value)
    for name, figure in {**train, "training_seconds": 31.5}.items():
        client.log_metric(run_id, name, figure)
    client.log_dict(run_id, train, "metrics/train.json")
    client.log_dict(run_id, {"commit": "c" * 40, "code": {}, "environment": {"threads": "2"}}, runs.RECORD)
    client.log_dict(run_id, outputs, runs.OUTPUTS)
    client.log_text(run_id, "actual,predicted\na,b\n", "plots/validation.csv")
    assert results.runs_with(model) == [run_id]
    found = results.load(run_id)
    assert found.metrics == train
    assert found.seconds == 31.5
    assert found.params == {"model.name": "mlp", "model.mlp.dropout": "0.1"}
    assert found.answers("validation").predicted == ["b"]


@pytest.mark.usefixtures("client")
def test_run_that_finished_no_stage_has_the_figures_that_were_logged() -> None:
    with contextlib.suppress(UserError), training_run() as live:
        live.log(EPOCH)
        raise UserError
    found = results.load(str(live._run_id))
    assert found.metrics["error/validation"] == 20
    assert found.seconds is not None


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ({"a": "20", "b": "x"}, {"a": "20.0", "b": "x"}, []),
        ({"a": str(2**62)}, {"a": str(2**62 + 1)}, ["a"]),
        ({"a": "0e1" * 8}, {"a": "0e2" * 8}, ["a"]),
        ({"a": "1", "b": "2"}, {"b": "2", "c": "3"}, ["a", "c"]),
        ({"model.name": "cnn", "model.cnn.crop": "2"}, {"model.name": "mlp", "model.mlp.hidden": "3"}, ["model.name"]),
        (
            {"model.name": "cnn", "model.cnn.crop": "2"},
            {"model.name": "cnn", "model.cnn.crop": "0"},
            ["model.cnn.crop"],
        ),
    ],
)
def test_values_are_compared_as_numbers_where_they_are_numbers(
    old: dict[str, Any], new: dict[str, Any], keys: list[str]
) -> None:
    assert results.changed(old, new) == keys


def test_what_a_model_says_of_its_training_is_compared_with_dvc_lock() -> None:
    code, data = {"digits/a.py": "2" * 32}, {"data/x": "1" * 32}
    knobs = {"members": 1, "tta_shift": 0, "hidden": [8], "dropout": 0.0}
    training = {"recipe": "quick", "seed": 0, "train": {"learning_rate": 0.1}, "runtime": {"precision": "bf16"}}
    said = Description("mlp", ["a", "b"], knobs, training, data, digest(code))

    def found(rate: float = 0.1, hidden: int = 8, image: str = "1", source: str = "2", seed: int = 0) -> list[str]:
        deps = [{"path": "digits/a.py", "md5": source * 32}, {"path": "data/x", "md5": image * 32}]
        model = {"name": "mlp", "members": 1, "tta_shift": 0, "mlp": {"hidden": [hidden], "dropout": 0.0}}
        train = {"learning_rate": {"quick": rate, "default": 0.3}}
        content = {"recipe": "quick", "seed": seed, "model": model, "train": train, "runtime": {"precision": "auto"}}
        return results.contradictions(said, {"train": {"deps": deps, "params": {"params.yaml": content}}})

    assert found() == []
    assert found(rate=0.2) == ["train.learning_rate: 0.1, but 0.2 in dvc.lock"]
    assert found(hidden=9, seed=1) == ["model.mlp.hidden: [8], but [9] in dvc.lock", "seed: 0, but 1 in dvc.lock"]
    assert found(image="3") == ["data/x: 11111111, but 33333333 in dvc.lock"]
    assert found(source="3")[0].startswith("code: ")
    assert results.contradictions(said, {}) == []
