"""The exported model on a person's own images:

    python -m digits.predict photo.png scan.jpg

Needs neither torch nor the rest of the library: the ONNX file, ONNX Runtime, Pillow and NumPy. An image may be dark on
light or light on dark, of any size, with one character in it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from digits import paths
from digits.command import UserError, run
from digits.datasets import SIDE
from digits.files import is_intact

INK_SIDE = 20  # pixels: MNIST scales each digit to fit 20 x 20, then centres it by mass in 28 x 28 (LeCun et al., 1998)


def read_image(path: Path) -> Image.Image:
    """Give the image in a file as 8-bit grey, transparency on white. Raises UserError if there is none."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: not an image that Pillow can read ({error})") from None
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L")


def prepare(image: Image.Image) -> NDArray[np.float32]:
    """Give a grey image as the model wants it: float32 [1, 28, 28], 0 … 1, white on black.

    It is scaled and centred like those of MNIST; an image of 28 x 28 on black is taken as it is. Raises UserError if
    there is nothing on it.
    """
    pixels = np.asarray(image, np.float32) / np.float32(255)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = float(np.median(border))
    if background > 0.5:
        pixels, background = np.float32(1) - pixels, 1 - background
    elif pixels.shape == (SIDE, SIDE):
        return pixels[np.newaxis]
    contrast = float(pixels.max()) - background
    if contrast < 0.1:
        raise UserError("nothing to be seen: all of it is of nearly one brightness")
    pixels = np.clip((pixels - background) / contrast, 0, 1)

    rows, columns = (np.flatnonzero((pixels > 0.3).any(axis=axis)) for axis in (1, 0))
    ink = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = INK_SIDE / max(ink.shape)
    size = (max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale)))
    small = np.asarray(
        Image.fromarray(ink).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    )
    small = np.clip(small, 0, 1)
    # Ink of 20 x 20 leaves 8 pixels of play: the centre of mass comes as close to the middle as they allow.
    top, left = (
        int(np.clip(round((SIDE - 1) / 2 - float(centre)), 0, SIDE - length))
        for centre, length in zip(_centre_of_mass(small), small.shape, strict=True)
    )
    canvas = np.zeros((1, SIDE, SIDE), np.float32)
    canvas[0, top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def _centre_of_mass(image: NDArray[np.float32]) -> tuple[float, float]:
    total = float(image.sum())
    rows, columns = (np.arange(length) for length in image.shape)
    return float(rows @ image.sum(axis=1)) / total, float(columns @ image.sum(axis=0)) / total


def predict(model: Path, images: NDArray[np.float32]) -> list[list[tuple[str, float]]]:
    """Give for each of `images` [n, 1, 28, 28] the classes and their probabilities, the likeliest first.

    Raises UserError if `model` is not an ONNX file that the export stage wrote.
    """
    try:
        content = model.read_bytes()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        classes = json.loads(metadata["classes"])
        if not is_intact(content, metadata["md5"]):
            raise ValueError("damaged: its content is not that of its checksum")
    except Exception as error:  # ONNX Runtime has an exception of its own for every way to fail
        reason = str(error).splitlines()[0]
        raise UserError(f"{model}: not a model of this project ({reason}); `dvc repro` makes it") from None
    logits = session.run(None, {session.get_inputs()[0].name: images})[0].astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return [[(classes[label], float(row[label])) for label in np.argsort(-row, kind="stable")] for row in shares]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m digits.predict", description="Read handwritten characters.")
    parser.add_argument("images", nargs="+", type=Path, help="image files with one character each")
    parser.add_argument("--model", type=Path, default=paths.ONNX, help="an exported ONNX file (default: %(default)s)")
    arguments = parser.parse_args()
    prepared, faults = [], []
    for path in arguments.images:
        try:
            prepared.append(prepare(read_image(path)))
        except UserError as error:
            faults.append(str(error) if str(error).startswith(str(path)) else f"{path}: {error}")
    if faults:
        raise UserError("\n".join(faults))
    for path, ranking in zip(arguments.images, predict(arguments.model, np.stack(prepared)), strict=True):
        print(f"{path}: " + ", then ".join(f"{name} ({share:.1%})" for name, share in ranking[:2]))


if __name__ == "__main__":
    run(main)
