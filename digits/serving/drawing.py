"""What was found on pictures, to look at: each with a box around every character, beside what the model saw of it."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from digits.errors import UserError, reason
from digits.images import pictures
from digits.serving.reading import SURE, Answer, Digit

WIDTH, CELL, ROWS = 600, 84, 5  # pixels of a picture and of a character, with its answer below; characters in a column
GREEN, RED, BACK = (0, 110, 60), (190, 30, 30), "white"


def draw(found: list[tuple[Answer, Path | bytes]], target: Path) -> None:
    """Write a picture with a row for each answer and the picture that it is about, those with an error left out.

    Raises UserError if `target` cannot be written, as an image of the kind that its name says.
    """
    rows = [_row(answer, file) for answer, file in found if not answer.error]
    if not rows:
        return
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), BACK)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    try:
        sheet.save(target)
    except (OSError, ValueError) as error:
        raise UserError(f"{target}: cannot be written ({reason(error)})") from None


def _color(digit: Digit) -> tuple[int, int, int]:
    return RED if digit.probability < SURE else GREEN


def _row(answer: Answer, source: Path | bytes) -> Image.Image:
    assert answer.images is not None
    pixels = pictures.read(io.BytesIO(source) if isinstance(source, bytes) else source, answer.file)
    picture = Image.fromarray(pixels).convert("RGB")
    scale = WIDTH / max(picture.size)
    picture = picture.resize([max(1, round(length * scale)) for length in picture.size])
    pen = ImageDraw.Draw(picture)
    for digit in answer.digits:
        pen.rectangle([edge * scale for edge in digit.box], outline=_color(digit), width=2)
    columns = -(-len(answer.digits) // ROWS)
    height = max(picture.height, min(len(answer.digits), ROWS) * (CELL + 18)) + 10
    row = Image.new("RGB", (WIDTH + 10 + columns * (CELL + 10), height), BACK)
    row.paste(picture, (0, 0))
    pen, font = ImageDraw.Draw(row), ImageFont.load_default(14)
    for number, (digit, image) in enumerate(zip(answer.digits, answer.images, strict=True)):
        left, top = WIDTH + 10 + number // ROWS * (CELL + 10), number % ROWS * (CELL + 18)
        pixels = np.rint(image * 255).astype(np.uint8)
        seen = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        row.paste(seen.resize((CELL, CELL), Image.Resampling.NEAREST), (left, top))
        pen.text((left, top + CELL), f"{digit.label}  {digit.probability:.1%}", _color(digit), font)
    return row
