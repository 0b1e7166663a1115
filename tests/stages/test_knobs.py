"""dvc.yaml against the code: what a stage reads is what it declares, and every knob changes something."""

import hashlib
import http.server
import importlib
import itertools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import yaml
from pydantic import BaseModel

from digits import params
from digits.datasets import FILES
from digits.errors import UserError
from digits.files import flatten
from digits.images.idx import read_idx
from digits.learning import distributed, training
from digits.learning.checkpoints import Checkpoint
from digits.params.reading import choose
from stages import train

from .conftest import REPOSITORY, SHORT, run_stage, write_params

STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
KEYS = sorted(flatten(choose(yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8")))))


def declared(stage: str) -> set[str]:
    """Return the keys of params.yaml that dvc.yaml names for a stage, sections expanded."""
    names = STAGES[stage]["params"]
    return {key for key in KEYS if any(key == name or key.startswith(f"{name}.") for name in names)}


class Networks(dict[str, dict[str, Any]]):
    """The sections of networks; records the knobs of each that is read."""

    def __init__(self, sections: dict[str, dict[str, Any]], seen: set[str]) -> None:
        super().__init__(sections)
        self._seen = seen

    def __getitem__(self, name: str) -> dict[str, Any]:
        section = super().__getitem__(name)
        self._seen.update(f"model.{name}.{key}" for key in flatten(section))
        return section


class Recorder:
    """Stands in for params, and records which knobs are read."""

    def __init__(self, node: BaseModel, seen: set[str], prefix: str = "") -> None:
        self._node, self._seen, self._prefix = node, seen, prefix

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._node, name)
        if isinstance(value, BaseModel):
            return Recorder(value, self._seen, f"{self._prefix}{name}.")
        if callable(value):
            return value.__func__.__get__(self)
        if name == "__pydantic_extra__":
            return Networks(value, self._seen)
        self._seen.add(self._prefix + name)
        return value

    def model_dump(self, **arguments: Any) -> dict[str, Any]:
        dumped = self._node.model_dump(**arguments)
        self._seen.update(self._prefix + key for key in flatten(dumped))
        return dumped

    def flat(self) -> dict[str, Any]:
        raise AssertionError("only the record of a run may read all knobs at once")


@pytest.mark.usefixtures("miniature", "untracked")
def test_each_stage_reads_the_knobs_that_it_declares_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # So short a training may well end where guessing is as good, on one processor or another.
    monkeypatch.setattr(training.Training, "_is_guessing", lambda *_: False)
    seen: dict[str, set[str]] = {stage: set() for stage in STAGES}
    load = params.load
    others: tuple[dict[str, Any], ...] = ({"model.name": "mlp"}, {"model.name": "resnet"}, {})
    for changes in ({"data.name": "mnist", "data.sources": ["http://127.0.0.1:9"]}, *others):
        write_params(SHORT | changes)
        for stage in STAGES:
            monkeypatch.setattr(params, "load", lambda check, stage=stage: Recorder(load(check), seen[stage]))
            try:
                run_stage(stage)
            except UserError:
                assert stage == "download"
                break
    assert seen == {stage: declared(stage) for stage in STAGES}


def test_each_stage_has_a_description_and_its_own_script() -> None:
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"python -m stages.{name}"
        assert stage["desc"]


def outcome(stage: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return all that can be observed of a stage: what it prints, how it fails, its files, how it uses the machine."""
    batch_sizes: list[int] = []

    def record(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not module.training and type(inputs[0]) is torch.Tensor:  # not one that an exporter traces
            batch_sizes.append(len(inputs[0]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(record)
    error, saved = None, []
    save = Checkpoint.save
    Checkpoint.save = lambda *arguments: (saved.append(1), save(*arguments))[1]  # type: ignore[method-assign,func-returns-value]  # counts
    try:
        run_stage(stage)
    except UserError as fault:
        error = str(fault)
    finally:
        hook.remove()
        Checkpoint.save = save  # type: ignore[method-assign]  # as it was
    entry = STAGES[stage]
    outs = [
        next(iter(out)) if isinstance(out, dict) else out
        for kind in ("outs", "plots", "metrics")
        for out in entry.get(kind, [])
    ]
    files = [file for out in outs for file in sorted(Path(out).rglob("*") if Path(out).is_dir() else [Path(out)])]
    contents = [hashlib.md5(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    used = (torch.get_num_threads(), max(batch_sizes, default=0), len(saved))
    return contents, error, capsys.readouterr().out, used


class Silent(http.server.BaseHTTPRequestHandler):
    """Accepts requests and never answers."""

    def do_GET(self) -> None:  # the name that http.server looks for
        threading.Event().wait(2)


@pytest.fixture
def silent_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()


# For each knob: a stage that it changes, another value, and what else must be set for it to matter.
MLP, RESNET = {"model.name": "mlp"}, {"model.name": "resnet"}
DONE: dict[str, tuple[Path, Any]] = {}
CHANGES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "seed": ("train", 1, {}),
    "recipe": ("train", "best", {"train.epochs": {"default": 1, "best": 2}}),
    "data.name": ("download", "mnist", {"data.sources": ["http://127.0.0.1:9"]}),
    "data.folder": ("download", "nowhere", {}),
    "data.sources": ("download", ["http://127.0.0.1:9/other"], {"data.name": "mnist"}),
    "data.timeout": ("download", 0.2, {"data.name": "mnist"}),
    "data.format": ("download", "npz", {}),
    "data.label": ("download", "last", {"data.folder": "table.csv", "data.label": "first"}),
    "data.transpose": ("download", True, {}),
    "data.side": ("download", 20, {}),
    "data.ink": ("download", True, {}),
    "split.validation": ("preprocess", 50, {}),
    "split.test": ("preprocess", 0.3, {"data.folder": "undivided.npz"}),
    "split.seed": ("preprocess", 1, {}),
    "split.training_share": ("preprocess", 0.5, {}),
    "model.name": ("train", "mlp", {}),
    "model.members": ("train", 2, {}),
    "model.tta_shift": ("train", 2, {}),
    "model.cnn.crop": ("train", 1, {}),
    "model.cnn.channels": ("train", [4, 5], {}),
    "model.cnn.hidden": ("train", 9, {}),
    "model.cnn.dropout": ("train", 0.5, {}),
    "model.resnet.crop": ("train", 1, RESNET),
    "model.resnet.channels": ("train", [3], RESNET),
    "model.resnet.blocks": ("train", 2, RESNET),
    "model.resnet.dropout": ("train", 0.5, RESNET),
    "model.mlp.hidden": ("train", [9], MLP),
    "model.mlp.dropout": ("train", 0.5, MLP),
    "train.epochs": ("train", 1, {}),
    "train.batch_size": ("train", 16, {}),
    "train.optimizer": ("train", "adamw", {}),
    "train.learning_rate": ("train", 0.1, {}),
    "train.warmup": ("train", 0.5, {}),
    "train.schedule": ("train", "cosine", {}),
    "train.ema": ("train", 0.9, {}),
    "train.momentum": ("train", 0.5, {}),
    "train.weight_decay": ("train", 0.1, {}),
    "train.label_smoothing": ("train", 0.0, {}),
    "train.hard_examples": ("train", 0.3, {}),
    "train.keep": ("train", "best", {"train.epochs": 4, "augmentation.shift": 0.0}),
    "augmentation.rotation": ("train", 0.0, {}),
    "augmentation.scale": ("train", 0.0, {}),
    "augmentation.shift": ("train", 0.0, {}),
    "augmentation.shear": ("train", 0.0, {}),
    "runtime.device": ("train", "cuda", {"runtime.device": "cpu"}),
    "runtime.threads": ("train", 2, {}),
    "runtime.batch_size": ("evaluate", 7, {}),
    "runtime.processes": ("train", 2, {}),
    "runtime.precision": ("train", "bf16", {"runtime.precision": "fp32"}),
    "runtime.reproducibility": ("train", "portable", {"runtime.device": "cuda"}),
    "runtime.checkpoint": ("train", 1e-9, {"runtime.checkpoint": 0.0}),
    "evaluate.bins": ("evaluate", 3, {}),
    "evaluate.gallery": ("evaluate", 1, {}),
    "export.opset": ("export", 19, {}),
    "export.tolerance": ("export", 1e-12, {}),
}


def test_the_table_of_changes_has_every_knob() -> None:
    assert sorted(CHANGES) == KEYS


@pytest.mark.usefixtures("miniature", "untracked")
@pytest.mark.parametrize("key", KEYS)
def test_every_knob_changes_something(
    key: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, value, setting = CHANGES[key]
    # What this starts takes long, and is tested in pipeline/test_distributed.py.
    monkeypatch.setattr(distributed, "launch", lambda processes, _module: print(processes, "processes"))
    if stage == "train":  # drawing is half of its work, and its figures show what its other files hold
        monkeypatch.setattr(train, "figures", MagicMock())
    if key == "data.timeout":
        setting = setting | {"data.sources": [request.getfixturevalue("silent_server")], "data.timeout": 0.1}
    base = SHORT | setting
    images, labels = (read_idx(Path("data/own", FILES["train", kind])) for kind in ("images", "labels"))
    np.savez("undivided.npz", x=images, y=labels)
    np.savetxt("table.csv", np.column_stack([labels, images.reshape(len(images), -1)]), "%d", ",")
    before = run_up_to(stage, base, tmp_path_factory, capsys)
    write_params(base | {key: value})
    assert outcome(stage, capsys) != before


def run_up_to(
    stage: str, base: dict[str, Any], folders: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run all stages before `stage`, then `stage`, and return its outcome. What was run before is copied."""
    key = f"{stage} {base}"
    if key not in DONE:
        write_params(base)
        for earlier in itertools.takewhile(lambda name: name != stage, STAGES):
            run_stage(earlier)
        capsys.readouterr()
        found = outcome(stage, capsys)
        DONE[key] = shutil.copytree(Path.cwd(), folders.mktemp("done") / "project"), found
    folder, found = DONE[key]
    shutil.copytree(folder, Path.cwd(), dirs_exist_ok=True)
    return found


@pytest.mark.usefixtures("miniature", "untracked")
def test_every_stage_writes_the_same_files_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise any difference in the test above could be chance."""
    for stage in STAGES:
        assert outcome(stage, capsys) == outcome(stage, capsys)


def test_stages_are_importable_without_doing_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for stage in STAGES:
        importlib.reload(importlib.import_module(f"stages.{stage}"))
    assert not list(tmp_path.iterdir())
