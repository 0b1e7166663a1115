"""What the file of a trained network says about itself, readable without torch."""

from dataclasses import asdict, dataclass
from typing import Any

from digits.datasets import MNIST_SHAPE, Shape


@dataclass(frozen=True)
class Description:
    """What the file of a model says about it: enough to rebuild the network and to know how it was trained.

    `classes` are the names of the outputs, `knobs` the network's own, `training` the knobs of params.yaml that shaped
    the weights, `data` the MD5 of each file that they were learned from, `code` one MD5 of all source files that took
    part; `shape` is that of an image, `ink` says whether images show strokes as MNIST's do. Which run and which commit
    made it is not part of it, since that differs between equal files: `python -m digits of` looks it up.
    """

    name: str
    classes: list[str]
    knobs: dict[str, Any]
    training: dict[str, Any]
    data: dict[str, str]
    code: str
    shape: Shape = MNIST_SHAPE
    ink: bool = True


def described(content: dict[str, Any]) -> Description:
    """Return a description from its JSON; an old one says nothing of a shape. Raises TypeError if it is none."""
    shape = content.pop("shape", asdict(MNIST_SHAPE))
    return Description(**content, shape=Shape(**shape))
