"""Pictures of every kind that people have, read by the included model, or prepared for it."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from scipy import ndimage

from digits.errors import UserError
from digits.images.idx import read_idx
from digits.images.pictures import read_gray
from digits.serving.paper import stroke_width
from digits.serving.preprocessing import as_it_is, characters, normalize, strokes
from digits.serving.reading import Model

from ..conftest import drawing
from .conftest import answer, png, written

PAGE = "2356\n8094"
ORIENTATION = 0x0112  # the EXIF tag in which a camera says how it was held
Pixels = NDArray[np.float64]


def gray(image: Image.Image) -> NDArray[np.float32]:
    return np.asarray(image, np.float32)


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (40, 200), (255, 0), (180, 60)])
def test_character_is_scaled_to_20_pixels_and_centered_whatever_its_colors(ink: int, paper: int) -> None:
    (found,) = strokes(gray(drawing(ink, paper)), 28, single=True)
    assert found.image.shape == (28, 28)
    assert found.image.dtype == np.float32
    rows, columns = np.nonzero(found.image > 0.5)
    assert np.ptp(rows) + 1 == 20
    assert rows.mean() == pytest.approx(13.5, abs=0.6)
    assert columns.mean() == pytest.approx(13.5, abs=0.6)
    assert found.image.min() == 0
    assert found.image.max() > 0.95
    assert np.abs(np.subtract(found.box, (10, 15, 26, 76))).max() <= 1


@pytest.mark.parametrize("side", [20, 28, 64])
def test_thin_strokes_get_the_width_and_the_contrast_of_those_of_mnist(side: int) -> None:
    thin = np.zeros((400, 300), np.float32)
    thin[:, 149:151] = thin[199:201] = 0.3
    image = normalize(thin, side)
    assert image.max() > 0.95
    assert stroke_width(image > 0.5) == pytest.approx(2.4 / 28 * side, rel=0.25)


def test_images_of_mnist_are_taken_as_they_are_also_black_on_white() -> None:
    raw = Path(__file__).parents[2] / "data/raw/t10k-images-idx3-ubyte"
    if not raw.exists():
        pytest.skip("MNIST is not here; `dvc repro download` fetches it")
    images = np.asarray(read_idx(raw))[:500]
    for image in images:
        dark, light = as_it_is(np.float32(255) - image, 28), as_it_is(image.astype(np.float32), 28)
        assert (dark is None) == (light is None)
        if light is not None and dark is not None:
            np.testing.assert_allclose(light, image / 255, atol=1e-6)
            np.testing.assert_allclose(dark, light, atol=1e-6)
    assert np.mean([as_it_is(image.astype(np.float32), 28) is not None for image in images]) > 0.9


def test_small_picture_unlike_mnist_is_prepared() -> None:
    corner = np.zeros((28, 28), np.float32)
    corner[2:12, 3:5] = 255
    (found,) = strokes(corner, 28, single=True)
    rows, columns = np.nonzero(found.image > 0.5)
    assert np.ptp(rows) + 1 == 20
    assert columns.mean() == pytest.approx(13.5, abs=0.6)


def shade(page: Image.Image) -> Pixels:
    """Return a page that light falls on from one side, in the shadow of a hand."""
    light = np.tile(np.linspace(1, 0.45, page.width), (page.height, 1))
    light[:, : page.width // 4] *= 0.6
    shaded: Pixels = np.asarray(page, float) * ndimage.gaussian_filter(light, 12)
    return shaded


def ruled(page: Image.Image) -> Image.Image:
    pen = ImageDraw.Draw(page)
    for row in range(5, page.height, 45):
        pen.line([(0, row), (page.width, row + 4)], 120, 2)
    return page


def grid(page: Image.Image) -> Image.Image:
    pen = ImageDraw.Draw(page)
    for row in (4, page.height // 2, page.height - 5):
        pen.line([(0, row), (page.width, row)], 0, 3)
    for column in range(20, page.width, 96):
        pen.line([(column, 0), (column, page.height)], 0, 3)
    return page


def on_a_table(page: Image.Image) -> Image.Image:
    return ImageOps.expand(page, 70, 30)


def grainy(page: Image.Image) -> Pixels:
    pixels: Pixels = np.asarray(page, float) + np.random.default_rng(0).normal(0, 8, page.size[::-1])
    return pixels


def specks(page: Image.Image) -> Image.Image:
    pen = ImageDraw.Draw(page)
    for x, y in np.random.default_rng(1).integers(0, min(page.size), (40, 2)):
        pen.point((int(x), int(y)), 60)
    return page


def edge(page: Image.Image) -> Image.Image:
    ImageDraw.Draw(page).rectangle((0, page.height - 8, page.width, page.height), 10)
    return page


@pytest.mark.parametrize(
    "change",
    [lambda page: page, ImageOps.invert, shade, ruled, grid, on_a_table, grainy, specks, edge],
    ids=["plain", "light on dark", "shade", "ruled", "grid", "on a table", "grainy", "specks", "edge"],
)
def test_page_is_read_line_by_line_whatever_is_around_the_digits(
    model: Model, change: Callable[[Image.Image], Image.Image | Pixels]
) -> None:
    assert answer(model, change(written(PAGE))).text == PAGE


@pytest.mark.parametrize("size", [24, 60, 300])
def test_boxes_are_in_pixels_of_the_picture(model: Model, size: int) -> None:
    page = written("23", size)
    pixels = np.asarray(page)
    halves = np.split(pixels, [round(size * 1.6 * 1.2)], axis=1)
    for digit, half in zip(answer(model, page).digits, halves, strict=True):
        rows, columns = np.nonzero(half < 130)
        start = 0 if digit.label == "2" else pixels.shape[1] - half.shape[1]
        expected = (columns.min() + start, rows.min(), columns.max() + 1 + start, rows.max() + 1)
        assert np.abs(np.subtract(digit.box, expected)).max() <= max(2, size / 60)


def test_framed_digit_is_read_without_its_frame(model: Model) -> None:
    page = written("5", 80)
    ImageDraw.Draw(page).rectangle((6, 6, page.width - 7, page.height - 7), outline=20, width=3)
    assert answer(model, page, single=True).text == "5"


def test_faint_digit_beside_a_dark_one_is_read(model: Model) -> None:
    page = written("23", 80)
    pixels = np.asarray(page, float)
    pixels[:, page.width // 2 :] = 220 - (220 - pixels[:, page.width // 2 :]) * 0.5
    assert answer(model, pixels).text == "23"


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGBA", "LA", "P", "1", "CMYK"])
def test_every_mode_of_pixels_is_read(model: Model, mode: str, tmp_path: Path) -> None:
    page, file = written("47", ink=0, paper=255), tmp_path / "page.tiff"
    if mode == "I;16":
        Image.fromarray(np.asarray(page).astype(np.uint16) * 257).save(file)
    elif mode == "F":
        Image.fromarray(np.asarray(page, np.float32) / 255).save(file)
    elif mode in ("RGBA", "LA"):
        ink = Image.new("L", page.size, 0)
        Image.merge("LA", (ink, ImageOps.invert(page))).convert(mode).save(file)  # on nothing
    else:
        page.convert(mode).save(file)
    assert answer(model, file).text == "47"


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)],
    ids=["upside down", "held to the right", "held to the left"],
)
def test_photo_of_a_turned_camera_is_read_upright(
    model: Model, tmp_path: Path, orientation: int, turn: Image.Transpose
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    written(PAGE).transpose(turn).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    assert answer(model, tmp_path / "photo.jpg").text == PAGE


def test_large_scan_is_read_in_little_memory(model: Model, tmp_path: Path) -> None:
    written(PAGE, 700).convert("RGBA").save(tmp_path / "scan.png", compress_level=1)  # 5,040 x 2,800
    pixels, scale = read_gray(tmp_path / "scan.png", "scan", 900)
    assert max(pixels.shape) == 900
    assert scale == pytest.approx(5040 / 900)
    assert answer(model, tmp_path / "scan.png").text == PAGE


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize(
    "pixels",
    [
        np.full((100, 100), 255.0),
        np.full((300, 400), 90.0),
        np.zeros((1, 1)),
        np.zeros((1, 500)),
        np.random.default_rng(0).integers(0, 256, (28, 28)),
        np.random.default_rng(0).integers(0, 256, (200, 300)),
        np.random.default_rng(0).normal(200, 8, (300, 400)),
        np.pad(np.zeros((60, 60)), 40, constant_values=230.0),
    ],
    ids=["white", "gray", "pixel", "row", "small noise", "noise", "grain", "square"],
)
def test_nothing_is_read_where_nothing_is_written(model: Model, pixels: Pixels, *, single: bool) -> None:
    assert answer(model, pixels, single=single).error == "nothing to read"


def test_blots_are_not_trusted(model: Model) -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        blots = ndimage.gaussian_filter(random.random((200, 300)), 5) * 2550 - 1000
        found = answer(model, blots)
        assert found.error or found.unsure


def test_model_without_ink_gets_the_picture_fitted_into_a_square() -> None:
    picture = Image.new("RGB", (60, 30), (200, 10, 10))
    (found,) = characters(io.BytesIO(png(picture)), "one", 3, 16, ink=False, single=True)
    assert found.image.shape == (3, 16, 16)
    assert found.box == (0, 0, 60, 30)
    np.testing.assert_allclose(found.image[:, 8, 8], np.array([200, 10, 10]) / 255, atol=1e-6)


def test_file_that_is_no_picture_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"\Atext: not a picture that Pillow can read \(.*\)\Z"):
        characters(tmp_path / "text.png", "text", 1, 28, ink=True, single=True)
    Image.new("L", (12_000, 9_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"\Abomb: 12000 x 9000 pixels; must be at most 100,000,000\Z"):
        characters(tmp_path / "bomb.png", "bomb", 1, 28, ink=True, single=True)
