from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from digits.errors import UserError
from digits.serving.reading import Model


def test_classes_come_with_the_probabilities_of_their_logits_in_falling_order(onnx_model: Path) -> None:
    images = np.random.default_rng(0).random((4, 1, 28, 28), dtype=np.float32)
    (logits,) = onnxruntime.InferenceSession(onnx_model).run(None, {"images": images})
    for ranking, row in zip(Model(onnx_model).classify(images), np.exp(logits), strict=True):
        names, shares = zip(*ranking, strict=True)
        assert sorted(names) == ["a", "b", "c"]
        assert list(shares) == sorted(shares, reverse=True)
        assert dict(ranking) == pytest.approx(dict(zip("abc", row / row.sum(), strict=True)))


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
