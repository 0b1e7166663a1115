"""What is edited while a stage runs is not recorded as what made its result."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from digits import paths, pipeline
from digits.errors import UserError
from digits.images import own, splits
from digits.learning import training
from digits.records import recorder

from .conftest import run_stage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("untracked")]


def edit_param(key: str, value: object) -> None:
    path = Path("params.yaml")
    content = yaml.safe_load(path.read_text())
    *sections, name = key.split(".")
    node = content
    for section in sections:
        node = node[section]
    node[name] = value
    path.write_text(yaml.safe_dump(content))


def rewrite(file: str) -> None:
    path = Path(file)
    path.write_bytes(path.read_bytes() + b"\0")


def during(monkeypatch: pytest.MonkeyPatch, stage: str, edit: Callable[[], object]) -> None:
    """Have something edited in the middle of a stage."""
    owner, name = {
        "download": (own, "copy"),
        "preprocess": (splits, "statistics"),
        "train": (training.Training, "metrics"),
        "evaluate": (recorder, "record"),
        "export": (recorder, "record"),
    }[stage]
    original = getattr(owner, name)
    done: list[int] = []

    def edited(*arguments: object, **more: object) -> object:
        if not done:
            done.append(1)
            edit()
        return original(*arguments, **more)

    monkeypatch.setattr(owner, name, edited)


STAGES = ("download", "preprocess", "train", "evaluate", "export")
EDITS: dict[tuple[str, str], Callable[[], object]] = {
    ("preprocess", r"params\.yaml: split\.seed: 0, now 1"): lambda: edit_param("split.seed", 1),
    ("preprocess", r"data/raw/dataset\.json"): lambda: rewrite("data/raw/dataset.json"),
    ("train", r"params\.yaml: train\.learning_rate: 0\.2, now 0\.3"): lambda: edit_param("train.learning_rate", 0.3),
    ("train", r"params\.yaml: recipe: 'default', now 'best'"): lambda: edit_param("recipe", "best"),
    ("train", r"params\.yaml: seed: 0, now None"): lambda: edit_param("seed", None),
    ("train", r"data/splits/validation\.safetensors"): lambda: rewrite(paths.VALIDATION.as_posix()),
    ("evaluate", r"params\.yaml: evaluate\.bins: 15, now 16"): lambda: edit_param("evaluate.bins", 16),
    ("evaluate", r"models/model\.safetensors"): lambda: rewrite(paths.MODEL.as_posix()),
    ("export", r"params\.yaml: export\.opset: 18, now 19"): lambda: edit_param("export.opset", 19),
    ("export", r"metrics/test\.json"): lambda: rewrite(paths.TEST_METRICS.as_posix()),
    ("download", r"data/own"): lambda: Path("data/own/new").touch(),
    ("download", r"params\.yaml: data\.label: 'auto', now 'last'"): lambda: edit_param("data.label", "last"),
}


@pytest.mark.usefixtures("miniature")
@pytest.mark.parametrize(("stage", "said"), EDITS)
def test_edited_while_a_stage_runs(stage: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STAGES[: STAGES.index(stage)]:
        run_stage(name)
    during(monkeypatch, stage, EDITS[stage, said])
    line = rf"^{said}: edited after {stage} had read it: its result is not kept; run `dvc repro` again$"
    with pytest.raises(UserError, match=line):
        run_stage(stage)


@pytest.mark.usefixtures("miniature")
def test_param_of_another_stage_may_be_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    run_stage("download")
    during(monkeypatch, "preprocess", lambda: edit_param("train.learning_rate", 0.3))
    run_stage("preprocess")


@pytest.mark.usefixtures("miniature")
def test_edited_code_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    run_stage("download")
    monkeypatch.setitem(pipeline._begun, "digits/images/splits.py", "0" * 32)  # what the process has imported
    with pytest.raises(UserError, match=r"^digits/images/splits\.py: edited after preprocess had read it"):
        run_stage("preprocess")
