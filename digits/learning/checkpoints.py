"""The state of a training in progress, so that one that was killed resumes and ends in the same bits.

It is kept in `.dvc/tmp/checkpoints` of the repository (also for experiments that DVC runs in a temporary copy, which is
deleted), apart from DVC's outputs, which are removed before a stage runs. Its name is a digest of everything that
determines the result: a state of other params, data, code or another processor is never found.

The file: the MD5 of the rest as 32 hexadecimal digits, then an archive of `torch.save` without any code in it.
"""

import io
import sys
import time
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock, Timeout

from digits import pipeline
from digits.files import digest, md5_of, write_bytes


def folder() -> Path:
    """Return the folder of all checkpoints."""
    return pipeline.home() / ".dvc/tmp/checkpoints"


class Checkpoint:
    """The saved state of one training.

    `result_of` is everything that determines its result, as JSON values; `key` is a digest of it. `with
    Checkpoint(result_of, interval) as checkpoint:` waits while another process runs the same training, and removes the
    file when the block succeeds. `interval` is in seconds; 0 turns saving off.
    """

    def __init__(self, result_of: Any, interval: float) -> None:
        self.key = digest(result_of)
        self.path = folder() / f"{self.key}.pt"
        self._interval = interval
        self._lock = FileLock(self.path.with_suffix(".lock"))
        self._saved = time.monotonic()

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            print("the same training is already running in another process; waiting for it to end", file=sys.stderr)
            self._lock.acquire()
        self._saved = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.path.unlink(missing_ok=True)
        Path(self._lock.lock_file).unlink(missing_ok=True)  # whoever waits for it notices
        self._lock.release()

    def due(self) -> bool:
        """Say whether it is time to save."""
        return self._interval > 0 and time.monotonic() - self._saved >= self._interval

    def save(self, state: dict[str, Any]) -> None:
        """Save a state (tensors and plain values, nested), whole or not at all."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_bytes(self.path, md5_of(content).encode() + content)
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None if there is none or it is damaged, which is printed."""
        if not self.path.exists():
            return None
        content = self.path.read_bytes()
        if content[:32] != md5_of(content[32:]).encode():
            print(f"{self.path}: damaged; ignored, training starts over", file=sys.stderr)
            return None
        try:
            state = torch.load(io.BytesIO(content[32:]), "cpu", weights_only=True)
        except Exception:  # whatever a forged archive makes torch raise
            state = None
        if not isinstance(state, dict):
            print(f"{self.path}: not a checkpoint; ignored, training starts over", file=sys.stderr)
            return None
        return state
