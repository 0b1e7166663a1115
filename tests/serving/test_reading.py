import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml

from digits import paths
from digits.errors import UserError
from digits.files import md5
from digits.serving.reading import INCLUDED, Model

from ..conftest import ROOT
from .conftest import answer, png, samples, written


def test_probabilities_are_those_of_the_logits(onnx_model: Path) -> None:
    images = np.random.default_rng(0).random((4, 1, 28, 28), dtype=np.float32)
    (logits,) = onnxruntime.InferenceSession(onnx_model).run(None, {"images": images})
    model = Model(onnx_model)
    np.testing.assert_array_equal(model.logits(images), logits)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.probabilities(images), expected, rtol=1e-5)


def test_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("no")
    with pytest.raises(UserError, match=r"model\.onnx: not a model of this project") as raised:
        Model(tmp_path / "model.onnx")
    assert len(str(raised.value).splitlines()) == 1


def test_model_with_a_changed_byte_is_rejected(onnx_model: Path, tmp_path: Path) -> None:
    sound = onnx_model.read_bytes()
    for place in range(0, len(sound), 997):
        damaged = bytearray(sound)
        damaged[place] ^= 1
        (tmp_path / "model.onnx").write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.onnx: not a model of this project \("):
            Model(tmp_path / "model.onnx")


def test_model_says_what_images_it_takes(onnx_model: Path) -> None:
    model = Model(onnx_model)
    assert (model.classes, model.channels, model.side, model.ink) == (["a", "b", "c"], 1, 28, True)


def test_answers_come_in_order_and_each_has_its_own_digits(model: Model) -> None:
    texts = ["23", "5", "", "4\n7", "8"]
    sources: list[tuple[str, Path | bytes]] = [
        (str(number), png(written(text or " "))) for number, text in enumerate(texts)
    ]
    found = list(model.read(sources))
    assert [one.file for one in found] == list("01234")
    assert [one.text for one in found] == texts
    assert found[2].error == "nothing to read"
    assert [digit.line for digit in found[3].digits] == [0, 1]


def test_as_dictionary_it_is_what_json_shows(model: Model) -> None:
    shown = answer(model, written("23\n5")).as_dict()
    assert list(shown) == ["file", "text", "digits", "unsure"]
    assert shown["text"] == "23\n5"
    assert [list(digit) for digit in shown["digits"]] == [["label", "probability", "box", "line"]] * 3
    assert answer(model, written(" ")).as_dict() == {"file": "picture", "error": "nothing to read"}


def test_what_is_no_file_is_not_opened(model: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, expected in (
        (tmp_path / "absent.png", "no such file"),
        (tmp_path / "pipe", "not a file"),
        (Path("/dev/zero"), "not a file"),
        (tmp_path, "not a file"),
    ):
        assert answer(model, path).error == expected


def test_included_model_is_the_one_that_the_changelog_names_and_the_default_one(model: Model) -> None:
    assert md5(INCLUDED) in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    images: Any = samples()[:, np.newaxis] / np.float32(255)
    logits = model.logits(images)
    assert (logits.argmax(axis=1) == np.arange(10).repeat(10)).sum() >= 98
    exported = ROOT / paths.ONNX
    locked = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]["export"]["outs"]
    if exported.exists() and md5(exported) in {out["md5"] for out in locked}:
        assert np.abs(Model(exported, threads=1).logits(images) - logits).max() < 1e-5
