"""What is written on pictures: the exported model, in ONNX Runtime, on each of their characters."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits import paths
from digits.errors import UserError, reason
from digits.files import is_intact
from digits.serving import preprocessing, runtime
from digits.serving.preprocessing import Character

INCLUDED = Path(__file__).parent / "page/model.onnx"  # the default model of this version, for those who train none
SURE = 0.95  # an answer is unsure if the probability of one of its characters is lower
BATCH = 256  # characters at once
LARGEST = 100_000_000  # bytes of a picture


@dataclass(frozen=True)
class Digit:
    """A character: its class, its probability, its box (left, top, right, bottom in pixels), and its line."""

    label: str
    probability: float
    box: tuple[int, int, int, int]
    line: int


@dataclass(frozen=True)
class Answer:
    """What is written on a picture, its lines separated by line feeds, or the `error` that says why nothing is read.

    `images` are what the model saw, float32 [n, channels, side, side]. `odd` says that something on it may be no
    character.
    """

    file: str
    digits: tuple[Digit, ...] = ()
    error: str | None = None
    images: NDArray[np.float32] | None = None
    odd: bool = False

    @property
    def text(self) -> str:
        """Return the lines of characters, in words with a space between those of more than one letter."""
        lines: dict[int, list[str]] = {}
        for digit in self.digits:
            lines.setdefault(digit.line, []).append(digit.label)
        space = " " if any(len(digit.label) > 1 for digit in self.digits) else ""
        return "\n".join(space.join(line) for line in lines.values())

    @property
    def readable(self) -> bool:
        """Say whether it is about a picture, with or without anything to read, and not about something else."""
        return self.error in (None, preprocessing.NOTHING)

    @property
    def unsure(self) -> bool:
        """Say whether the answer should not be trusted."""
        return self.odd or any(digit.probability < SURE for digit in self.digits)

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as `--format json` prints it."""
        if self.error:
            return {"file": self.file, "error": self.error}
        digits = [
            asdict(digit) | {"probability": round(digit.probability, 4), "box": list(digit.box)}
            for digit in self.digits
        ]
        return {"file": self.file, "text": self.text, "digits": digits, "unsure": self.unsure}


class Model:
    """An ONNX file that the export stage wrote: `classes`, and the `channels` and `side` of the images that it takes.

    `content` is the file's, `md5` the one in its seal. `ink` says that the images show strokes as MNIST's do. Raises
    UserError if the file is something else.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        try:
            self.content = content = path.read_bytes()
            onnxruntime = runtime.load()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads  # 0: as many as there are cores
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map
            self.classes: list[str] = json.loads(metadata["classes"])
            self.ink: bool = json.loads(metadata["model"]).get("ink", True)
            (entrance,) = self._session.get_inputs()
            self._input: str = entrance.name
            _, channels, side, _ = entrance.shape
            self.channels, self.side = int(channels), int(side)
            self.md5 = metadata["md5"]
            if not is_intact(content, self.md5):
                raise ValueError("damaged: its content does not match its checksum")
        except Exception as error:  # ONNX Runtime has an exception of its own for every way to fail
            raise UserError(f"{path}: not a model of this project ({reason(error)}); `dvc repro` makes it") from None

    def about(self) -> dict[str, Any]:
        """Return what the page needs to know about the model beside the file."""
        return {"classes": self.classes, "ink": self.ink, "sure": SURE}

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [n, classes] for images [n, channels, side, side] in 0 … 1."""
        found: NDArray[np.float32] = self._session.run(None, {self._input: images})[0]
        return found

    def probabilities(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probability of each class [n, classes] for images [n, channels, side, side] in 0 … 1."""
        logits = self.logits(images).astype(np.float64)
        shares: NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return shares

    def read(self, sources: Sequence[tuple[str, Path | bytes]], *, single: bool = False) -> Iterator[Answer]:
        """Yield an answer for each picture, named and given as a file or its content, in their order.

        If `single`, each shows exactly one character; otherwise everything on it is read.
        """
        waiting: list[tuple[str, list[Character] | str]] = []
        count = 0
        for name, source in sources:
            found = self._characters(name, source, single=single)
            waiting.append((name, found))
            count += 0 if isinstance(found, str) else len(found)
            if count >= BATCH:
                yield from self._answers(waiting)
                waiting, count = [], 0
        yield from self._answers(waiting)

    def _characters(self, name: str, source: Path | bytes, *, single: bool) -> list[Character] | str:
        try:
            opened = io.BytesIO(source) if isinstance(source, bytes) else _checked(source)
            return preprocessing.characters(opened, name, self.channels, self.side, ink=self.ink, single=single)
        except UserError as error:
            return str(error).removeprefix(f"{name}: ")

    def _answers(self, waiting: list[tuple[str, list[Character] | str]]) -> Iterator[Answer]:
        pictures = [one.image for _, found in waiting if not isinstance(found, str) for one in found]
        shares = self.probabilities(np.stack(pictures)) if pictures else np.zeros((0, len(self.classes)))
        first = 0
        for name, found in waiting:
            if isinstance(found, str):
                yield Answer(name, error=found)
                continue
            mine = shares[first : first + len(found)]
            first += len(found)
            digits = tuple(
                Digit(self.classes[int(row.argmax())], float(row.max()), one.box, one.line)
                for one, row in zip(found, mine, strict=True)
            )
            images, odd = np.stack([one.image for one in found]), any(one.odd for one in found)
            yield Answer(name, digits, images=images, odd=odd)


def _checked(path: Path) -> Path:
    """Return the path of a picture; reading a device or a pipe might never end."""
    if not path.exists():
        raise UserError("no such file")
    if not path.is_file():
        raise UserError("not a file")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path.stat().st_size:,} bytes; must be at most {LARGEST:,}")
    return path


def default() -> Path:
    """Return the model that this folder has exported, or the one that comes with the package."""
    return paths.ONNX if paths.ONNX.is_file() else INCLUDED
