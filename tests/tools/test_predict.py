import re
from pathlib import Path

import pytest
from PIL import Image

from digits.__main__ import dispatch
from digits.errors import UserError

from ..conftest import drawing


def predict(*arguments: object) -> None:
    dispatch(["predict", *map(str, arguments)])


def test_each_image_gets_a_line_with_the_two_likeliest_classes(
    onnx_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [tmp_path / name for name in ("one.png", "two.jpg")]
    for image in images:
        drawing(0, 255).save(image)
    predict("--model", onnx_model, *images)
    lines = capsys.readouterr().out.splitlines()
    for line, image in zip(lines, images, strict=True):
        assert re.fullmatch(rf"{image}: [abc] \([\d.]+%\), then [abc] \([\d.]+%\)", line)


def test_all_bad_images_are_named_and_none_is_classified(
    onnx_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing(0, 255).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("L", (9, 9)).save(tmp_path / "empty.png")
    bad = [tmp_path / name for name in ("text.png", "empty.png", "absent.png")]
    with pytest.raises(UserError) as raised:
        predict("--model", onnx_model, tmp_path / "good.png", *bad)
    assert not capsys.readouterr().out
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == list(map(str, bad))


def test_without_a_model_of_your_own_the_exported_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawing(0, 255).save(tmp_path / "one.png")
    with pytest.raises(UserError, match=r"^models/export/model\.onnx: not a model .* `dvc repro` makes it$"):
        predict("one.png")
