"""How well pictures of handwriting are read, and how sure the model has to be for an answer to be trusted.

    python -m benchmarks.handwriting [--images 5000] [--pictures FOLDER]

Run it after `dvc repro`. The threshold is chosen on pictures made here: digits of the validation split redrawn on
paper, one by one and in lines, and things that are no digits: letters, scribbles, blots, grain. Then come the test
images as PNG files, in both polarities, as a check. With `--pictures`, a folder whose labels.csv names files and what
is written on them (columns file and label, lines separated by "/") is read as well. Writes benchmarks/handwriting.md.
"""

import argparse
import csv
import io
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from tqdm import tqdm

from digits import paths
from digits.errors import UserError, reason, run
from digits.files import write_text
from digits.images import splits
from digits.serving import reading
from digits.serving.reading import Answer, Model

PAGE = Path("benchmarks/handwriting.md")
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
FLAGGED = 0.5  # the share of wrong answers that have to be unsure
KINDS = ("letters", "scribbles", "blots", "grain")

Gray = NDArray[Any]  # floating point, 0 … 255; ink is 0 … 1
Random = np.random.Generator
Picture = tuple[bytes | Path, str | None]  # and what is written on it


def png(pixels: NDArray[np.generic]) -> bytes:
    """Return gray pixels (0 … 255) as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def enlarged(image: NDArray[np.uint8], size: int) -> Gray:
    """Return the ink of an image of MNIST, 0 … 1, cut out and smoothly enlarged to so many pixels a side of 28."""
    smooth = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    # As sharp as a pen's: the slope of its edges grows with the size.
    sharp = np.clip((np.asarray(smooth, np.float32) / 255 - 0.5) * size / 28 / 1.5 + 0.5, 0, 1)
    rows, columns = np.nonzero(sharp > 0.1)
    return sharp[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def paper(height: int, width: int, random: Random) -> Gray:
    """Return a sheet in the light of a room, perhaps ruled."""
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    sheet: Gray = random.uniform(150, 250) * (
        1 + random.uniform(-0.25, 0.25) * down + random.uniform(-0.25, 0.25) * right
    )
    if random.random() < 0.2:
        pitch = int(random.integers(40, 90))
        for row in range(pitch, height - 2, pitch):
            sheet[row : row + int(random.integers(1, 3))] *= 0.8
    return sheet


def on_paper(ink: Gray, random: Random) -> Gray:
    """Return ink on a sheet as a camera would see it: soft, grainy, now and then light on dark."""
    height, width = ink.shape
    seen = paper(height, width, random) * (1 - ink * random.uniform(0.45, 0.95))
    if random.random() < 0.2:
        seen = 255 - seen
    blurred: Gray = ndimage.gaussian_filter(seen, random.uniform(0, 1.2))
    return blurred + random.normal(0, random.uniform(0, 6), ink.shape).astype(np.float32)


def alone(image: NDArray[np.uint8], random: Random) -> Gray:
    """Return one digit on a sheet of its own."""
    digit = enlarged(image, int(random.integers(40, 240)))
    margins = np.round(random.uniform(0.2, 1, 4) * max(digit.shape)).astype(int)
    ink = np.pad(digit, (tuple(margins[:2]), tuple(margins[2:])))
    return on_paper(ink, random)


def written(images: NDArray[np.uint8], rows: list[int], random: Random) -> Gray:
    """Return digits in lines of so many each, as uneven as people write."""
    size = int(random.integers(50, 90))
    ink = np.zeros((round(1.9 * size * (len(rows) + 0.5)), round(1.2 * size * (max(rows) + 1))), np.float32)
    waiting = iter(images)
    for row, count in enumerate(rows):
        for column in range(count):
            digit = enlarged(next(waiting), round(size * random.uniform(0.9, 1.1)))
            top = round(1.9 * size * (row + 0.4) + random.uniform(-0.1, 0.1) * size)
            left = round(1.2 * size * (column + 0.5) + random.uniform(-0.05, 0.05) * size)
            ink[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return on_paper(ink, random)


def meaningless(kind: str, random: Random) -> Gray:
    """Return a picture without digits."""
    picture = Image.new("L", (200, 200), 0)
    pen = ImageDraw.Draw(picture)
    if kind == "letters":
        letter = str(random.choice([letter for letter in string.ascii_letters if letter not in "IOSZBlogqbszi"]))
        pen.text((60, 20), letter, 255, ImageFont.load_default(int(random.integers(90, 150))))
    elif kind == "scribbles":
        points = [tuple(map(float, point)) for point in random.uniform(20, 180, (int(random.integers(5, 14)), 2))]
        pen.line(points, 255, int(random.integers(4, 14)), joint="curve")
    elif kind == "blots":
        for _ in range(int(random.integers(1, 5))):
            left, top, width, height = random.uniform((20, 20, 30, 30), (110, 110, 80, 80))
            pen.ellipse((left, top, left + width, top + height), 255)
    else:
        grain: Gray = ndimage.gaussian_filter(random.uniform(0, 255, (200, 200)), random.uniform(0, 6))
        return grain
    return on_paper(np.asarray(picture, np.float32) / 255, random)


@dataclass
class Tally:
    """How pictures of one kind were read: which answers were right, and how sure each was."""

    right: list[float] = field(default_factory=list)
    wrong: list[float] = field(default_factory=list)
    refused: int = 0

    def add(self, answer: Answer, text: str | None) -> None:
        """Count an answer to a picture on which this is written; None: nothing that could be read."""
        if answer.error:
            self.refused += 1
            return
        sure = 0.0 if answer.odd else min(digit.probability for digit in answer.digits)
        (self.right if answer.text == text else self.wrong).append(sure)

    @property
    def count(self) -> int:
        return len(self.right) + len(self.wrong) + self.refused

    def flagged(self, threshold: float) -> tuple[float, float]:
        """Return the share of right and that of wrong answers that are unsure; "nothing to read" is not wrong."""
        return tuple(
            sum(sure < threshold for sure in answers) / max(1, len(answers)) for answers in (self.right, self.wrong)
        )  # type: ignore[return-value]


def tally(model: Model, pictures: Iterator[Picture], what: str, count: int, *, single: bool) -> Tally:
    """Read pictures and count the answers."""
    found = Tally()
    with tqdm(total=count, desc=what, unit=" pictures", disable=None, leave=False) as bar:
        for source, text in pictures:
            (answer,) = model.read([(what, source)], single=single)
            found.add(answer, text)
            bar.update()
    return found


def own(model: Model, count: int) -> dict[str, Tally]:
    """Read pictures made from the validation split, and pictures without digits."""
    split = splits.load(paths.VALIDATION)
    images, labels = split.images[:, 0].numpy(), [split.classes[label] for label in split.labels.tolist()]
    count = min(count, len(labels))
    random = np.random.default_rng(0)

    def pages() -> Iterator[tuple[bytes, str]]:
        place = 0
        while place + 12 <= count:
            rows = [int(random.integers(1, 5)) for _ in range(int(random.integers(1, 4)))]
            texts, start = [], place
            for row in rows:
                texts.append("".join(labels[place : place + row]))
                place += row
            yield png(written(images[start:place], rows, random)), "\n".join(texts)

    singles = ((png(alone(image, random)), label) for image, label in zip(images[:count], labels, strict=False))
    found = {
        "one digit": tally(model, singles, "one digit", count, single=True),
        "pages": tally(model, pages(), "pages", count // 5, single=False),
    }
    for kind in KINDS:
        others = ((png(meaningless(kind, random)), None) for _ in range(count // 10))
        found[kind] = tally(model, others, kind, count // 10, single=False)
    return found


def chosen(found: Tally) -> float:
    """Return the smallest threshold, in steps of 5 %, at which so many of the wrong answers are unsure."""
    return min(step / 100 for step in range(50, 100, 5) if found.flagged(step / 100)[1] >= FLAGGED)


def table(found: dict[str, Tally]) -> str:
    """Return a Markdown table of what is unsure at each threshold."""
    lines = [
        "| pictures | right | wrong | nothing to read | " + " | ".join(f"{limit:.0%}" for limit in THRESHOLDS) + " |",
        "|---" * (4 + len(THRESHOLDS)) + "|",
    ]
    for kind, one in found.items():
        shares = []
        for limit in THRESHOLDS:
            right, wrong = one.flagged(limit)
            shares.append(f"{100 * wrong:.0f}" if kind in KINDS else f"{100 * right:.1f} / {100 * wrong:.0f}")
        lines.append(f"| {kind} | {len(one.right)} | {len(one.wrong)} | {one.refused} | {' | '.join(shares)} |")
    return "\n".join(lines)


def files(model: Model) -> list[str]:
    """Read all test images as PNG files, in both polarities; return a line of the report for each."""
    split = splits.load(paths.TEST)
    images, labels = split.images[:, 0].numpy(), [split.classes[label] for label in split.labels.tolist()]
    lines = []
    for name, shown in (("white on black", images), ("black on white", 255 - images)):
        pictures: Iterator[Picture] = ((png(image), label) for image, label in zip(shown, labels, strict=True))
        found = tally(model, pictures, name, len(labels), single=True)
        lines.append(
            f"| MNIST's test images as PNG files, {name} | {len(found.right) / found.count:.2%} of {found.count:,} |"
        )
    return lines


def distance(one: str, other: str) -> int:
    """Return how many characters have to be changed, added or left out to make one text of another."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        last, row[0] = row[0], place
        for column, wanted in enumerate(other, 1):
            last, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, last + (letter != wanted))
    return row[-1]


def labelled(model: Model, folder: Path) -> list[str]:
    """Read the pictures that a folder's labels.csv names; return lines of the report, one for each of its folders.

    Those of a folder called page show several characters, the others one.
    """
    try:
        rows = list(csv.DictReader((folder / "labels.csv").open(newline="", encoding="utf-8")))
        texts = {row["file"]: row["label"].replace("/", "\n") for row in rows}
    except (OSError, KeyError) as error:
        raise UserError(f"{folder}: must have a labels.csv with the columns file and label ({reason(error)})") from None
    lines, everything, marked = [], Tally(), 0
    for kind in sorted({file.split("/")[0] for file in texts}):
        single, mine = kind != "page", [file for file in texts if file.split("/")[0] == kind]
        found, lost, digits = Tally(), 0, 0
        for file in tqdm(mine, desc=kind, unit=" pictures", disable=None, leave=False):
            (answer,) = model.read([(file, folder / file)], single=single)
            for one in (found, everything):
                one.add(answer, texts[file])
            marked += (answer.unsure or bool(answer.error)) and answer.text != texts[file]
            wanted, read = (text.replace("\n", "") for text in (texts[file], answer.text))
            digits += len(wanted)
            lost += min(distance(read, wanted), len(wanted))
        lines.append(f"| {kind} | {len(found.right)} of {found.count} |")
        if not single:
            lines.append(f"| {kind}: digits | {digits - lost} of {digits} ({(digits - lost) / digits:.1%}) |")
    right, _ = everything.flagged(reading.SURE)
    wrong = everything.count - len(everything.right)
    lines.append(f"| all: right answers that are unsure | {right:.1%} of {len(everything.right):,} |")
    lines.append(f'| all: wrong answers that are unsure, or "nothing to read" | {marked} of {wrong} |')
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.handwriting", description="How well is handwriting read, and when is it trusted?"
    )
    parser.add_argument("--images", type=int, default=5000, help="of the validation split (default: %(default)s)")
    parser.add_argument("--pictures", type=Path, help="a folder of your own pictures, with labels.csv")
    options = parser.parse_args()
    if options.images < 100:
        raise UserError(f"--images: must be 100 or more, not {options.images}")
    model = Model(reading.default())
    found = own(model, options.images)
    limit = chosen(found["one digit"])
    lines = ["| pictures | read rightly |", "|---|---|", *files(model)]
    lines += labelled(model, options.pictures) if options.pictures else []
    report = REPORT.format(table=table(found), limit=limit, used=reading.SURE, results="\n".join(lines))
    write_text(PAGE, report)
    print(report)


REPORT = """# Reading handwriting

What `python -m benchmarks.handwriting` measured: digits of the validation split redrawn on paper, one by one and in
lines, and pictures without any digit. Below each threshold: which percentage of the right and of the wrong answers
would be unsure; of pictures without digits, of all answers.

{table}

The threshold is the smallest, in steps of 5 %, at which half of the wrong answers to one digit are unsure: {limit:.0%}.
The one in use is {used:.0%} (`SURE` in digits/serving/reading.py).

With that threshold:

{results}

Rows after those of MNIST are a folder of real pictures from many hands (`--pictures`), most of them without a license,
so that they are not in this repository. Nothing was chosen on the test images.
"""


if __name__ == "__main__":
    run(main)
