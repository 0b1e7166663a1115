from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from digits.errors import UserError
from digits.serving.preprocessing import prepare, read_image

from ..conftest import drawing

ORIENTATION = 0x0112  # the EXIF tag in which a camera says how it was held


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (40, 200), (255, 0), (180, 60)])
def test_character_is_scaled_to_20_pixels_and_centered_whatever_its_colors(ink: int, paper: int) -> None:
    image = prepare(drawing(ink, paper))
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
    np.testing.assert_array_equal(prepare(digit)[0], np.asarray(digit, np.float32) / 255)


def test_blank_image_is_rejected() -> None:
    with pytest.raises(UserError, match="nothing to see"):
        prepare(Image.new("L", (50, 50), 255))


def test_transparent_background_is_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((15, 5, 20, 35), fill=(0, 0, 0, 255))
    picture.save(tmp_path / "clear.png")
    image = read_image(tmp_path / "clear.png")
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((17, 20)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)],
    ids=["upside down", "held to the right", "held to the left"],
)
def test_photo_of_a_turned_camera_is_read_upright(tmp_path: Path, orientation: int, turn: Image.Transpose) -> None:
    upright, exif = drawing(0, 255), Image.Exif()
    exif[ORIENTATION] = orientation
    upright.transpose(turn).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "photo.jpg").convert("L")
    assert image.size == upright.size
    assert np.abs(np.asarray(image, float) - np.asarray(upright, float)).mean() < 2  # what JPEG loses


def test_file_that_is_missing_or_no_image_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/absent\.png: no such file$"):
        read_image(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(UserError, match=rf"\A{tmp_path}/text\.png: not an image that Pillow can read \(.*\)\Z"):
        read_image(tmp_path / "text.png")
