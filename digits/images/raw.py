"""What the raw IDX files do not say of a data set, in a file beside them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from digits.datasets import ABOUT
from digits.files import read_as, write_text


@dataclass(frozen=True)
class About:
    """What the IDX files do not say: the names of the labels, whether images show strokes as MNIST's do (`ink`).

    The last `validation` images of the training file are a validation part that the data came with.
    """

    classes: list[str]
    ink: bool
    validation: int = 0

    def write(self, folder: Path) -> None:
        """Write it into the folder of the raw files."""
        write_text(folder / ABOUT, json.dumps(asdict(self), ensure_ascii=False) + "\n")


def about(folder: Path) -> About:
    """Return what `About.write` wrote."""
    return read_as(About, folder / ABOUT)
