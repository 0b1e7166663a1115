"""The exported model in ONNX Runtime: images -> classes."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from digits.errors import UserError, reason
from digits.files import is_intact


class Model:
    """An ONNX file that the export stage wrote: `classes`, and the `channels` and `side` of the images that it takes.

    `ink` says that they show strokes as MNIST's do. Raises UserError if the file is something else.
    """

    def __init__(self, path: Path) -> None:
        try:
            content = path.read_bytes()
            self._session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map
            self.classes: list[str] = json.loads(metadata["classes"])
            self.ink: bool = json.loads(metadata["model"]).get("ink", True)
            (entrance,) = self._session.get_inputs()
            self._input: str = entrance.name
            _, channels, side, _ = entrance.shape
            self.channels, self.side = int(channels), int(side)
            if not is_intact(content, metadata["md5"]):
                raise ValueError("damaged: its content does not match its checksum")
        except Exception as error:  # ONNX Runtime has an exception of its own for every way to fail
            raise UserError(f"{path}: not a model of this project ({reason(error)}); `dvc repro` makes it") from None

    def classify(self, images: NDArray[np.float32]) -> list[list[tuple[str, float]]]:
        """Return the classes and their probabilities for images [n, channels, side, side], the likeliest first."""
        logits = self._session.run(None, {self._input: images})[0].astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        order = np.argsort(-shares, kind="stable")
        return [
            [(self.classes[label], float(row[label])) for label in labels]
            for row, labels in zip(shares, order, strict=True)
        ]
