import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from digits import exporting, models, predict
from digits.command import UserError, run


def drawing(ink: int, paper: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Give a picture of a thick upright bar, far from the middle."""
    image = Image.new("L", size, paper)
    ImageDraw.Draw(image).rectangle((10, 15, 25, 75), fill=ink)
    return image


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = models.build("mlp", 3, {"hidden": [8], "dropout": 0.0}).eval()
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    exporting.write_onnx(network, path, 18, models.Description("mlp", ["a", "b", "c"], {}, {}, {}, ""))
    return path


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (40, 200), (255, 0), (180, 60)])
def test_character_is_scaled_to_20_pixels_and_centred_whatever_its_colours(ink: int, paper: int) -> None:
    image = predict.prepare(drawing(ink, paper))
    assert image.shape == (1, 28, 28)
    assert image.dtype == np.float32
    rows, columns = np.nonzero(image[0] > 0.5)
    assert rows.max() - rows.min() + 1 == 20
    assert rows.mean() == pytest.approx(13.5, abs=0.6)
    assert columns.mean() == pytest.approx(13.5, abs=0.6)
    assert image.min() == 0
    assert image.max() > 0.95


def test_image_of_mnist_is_taken_as_it_is() -> None:
    digit = drawing(255, 0, (28, 28))
    np.testing.assert_array_equal(predict.prepare(digit)[0], np.asarray(digit, np.float32) / 255)


def test_empty_image_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to be seen"):
        predict.prepare(Image.new("L", (50, 50), 255))


def test_transparent_background_is_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((15, 5, 20, 35), fill=(0, 0, 0, 255))
    picture.save(tmp_path / "clear.png")
    image = predict.read_image(tmp_path / "clear.png")
    assert image.getpixel((0, 0)) == 255
    assert image.getpixel((17, 20)) == 0


def test_classes_come_with_probabilities_in_falling_order(model: Path) -> None:
    images = np.random.default_rng(0).random((4, 1, 28, 28), dtype=np.float32)
    for ranking in predict.predict(model, images):
        names, shares = zip(*ranking, strict=True)
        assert sorted(names) == ["a", "b", "c"]
        assert list(shares) == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    run(predict.main)


def test_each_image_gets_a_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one.png", "two.jpg"):
        drawing(0, 255).save(tmp_path / name)
    call(monkeypatch, "--model", model, tmp_path / "one.png", tmp_path / "two.jpg")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'one.png'}: ")
    assert second.startswith(f"{tmp_path / 'two.jpg'}: ")


def test_all_bad_images_are_named_and_nothing_is_guessed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("L", (9, 9)).save(tmp_path / "empty.png")
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, "--model", model, *(tmp_path / name for name in ("text.png", "empty.png", "absent.png")))
    assert stopped.value.code == 1
    told = capsys.readouterr()
    assert not told.out
    assert [line.split(":")[0] for line in told.err.splitlines()] == [
        str(tmp_path / name) for name in ("text.png", "empty.png", "absent.png")
    ]


def test_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("no")
    with pytest.raises(UserError, match=r"model\.onnx: not a model of this project") as error:
        predict.predict(tmp_path / "model.onnx", np.zeros((1, 1, 28, 28), np.float32))
    assert len(str(error.value).splitlines()) == 1


def test_model_with_a_changed_byte_is_refused(model: Path, tmp_path: Path) -> None:
    sound = model.read_bytes()
    for place in range(0, len(sound), 997):
        damaged = bytearray(sound)
        damaged[place] ^= 1
        (tmp_path / "model.onnx").write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.onnx: not a model of this project \("):
            predict.predict(tmp_path / "model.onnx", np.zeros((1, 1, 28, 28), np.float32))
