"""How MLflow loads the exported model: in ONNX Runtime, without torch.

A copy of this file lies in each model that is logged, so it uses none of this project's code.
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Exported:
    """An ONNX file as MLflow calls it."""

    def __init__(self, path: str) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._input: str = self._session.get_inputs()[0].name

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:  # noqa: ARG002
        """Return the logits [n, classes] for images [n, channels, side, side] in 0 … 1."""
        logits: NDArray[np.float32] = self._session.run(None, {self._input: np.asarray(data, np.float32)})[0]
        return logits


def _load_pyfunc(path: str) -> Exported:
    return Exported(path)
