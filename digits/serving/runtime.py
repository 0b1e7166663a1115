"""ONNX Runtime."""

import os
from typing import Any


def load() -> Any:
    """Import and return it, so that it keeps no identifier of this machine in the home folder, and tells nobody."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
