"""The content of metrics/dataset.json, readable without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """The number of images in a split."""

    count: int


@dataclass(frozen=True)
class Statistics:
    """The content of metrics/dataset.json; mean and standard deviation are those of training pixels in 0 … 1.

    Each is one number, or of images in color one for each channel; so is `background`, the median of the pixels along
    the border. `ink` says that images show strokes on black, scaled and centered as in MNIST; `test_held_out` that the
    test split was drawn from the same images as the others, since the data had none.
    """

    train: Count
    validation: Count
    test: Count
    pixel_mean: float | list[float]
    pixel_std: float | list[float]
    background: float | list[float] = 0.0
    ink: bool = True
    test_held_out: bool = False
