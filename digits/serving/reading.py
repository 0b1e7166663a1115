"""The exported model in ONNX Runtime: images -> classes."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from digits.errors import UserError, reason
from digits.files import is_intact


def classify(model: Path, images: NDArray[np.float32]) -> list[list[tuple[str, float]]]:
    """Return the classes and their probabilities for each of `images` [n, 1, 28, 28], the likeliest first.

    Raises UserError if `model` is not an ONNX file that the export stage wrote.
    """
    try:
        content = model.read_bytes()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        classes = json.loads(metadata["classes"])
        if not is_intact(content, metadata["md5"]):
            raise ValueError("damaged: its content does not match its checksum")
    except Exception as error:  # ONNX Runtime has an exception of its own for every way to fail
        raise UserError(f"{model}: not a model of this project ({reason(error)}); `dvc repro` makes it") from None
    logits = session.run(None, {session.get_inputs()[0].name: images})[0].astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return [[(classes[label], float(row[label])) for label in np.argsort(-row, kind="stable")] for row in shares]
