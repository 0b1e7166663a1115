"""Shared by the tests of the commands: a made-up result."""

from pathlib import Path
from typing import Any

from digits.records.results import Result


def result(name: str, **changes: Any) -> Result:
    """Return a result with a little of everything, and `changes` to its fields."""
    fields: dict[str, Any] = {
        "commit": "1" * 40,
        "patch": b"",
        "code": {"a.py": "1" * 32, "b.py": "2" * 32},
        "params": {"seed": "0"},
        "environment": {"torch": "2.15.0"},
        "outputs": {"data/x": "3" * 32},
        "metrics": {"loss": 0.5},
        "read": lambda file: Path(file).read_bytes(),
    }
    return Result(name, **fields | changes)
