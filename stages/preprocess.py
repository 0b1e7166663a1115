"""Stage 2: raw IDX files -> train, validation and test splits, their statistics and pictures.

What is done, and why
- Validation images are taken from the training set, stratified by class and seeded, so that every choice (epoch,
  recipe, threshold) can be made without the test set. The test set is a file of its own: training never sees it.
- Pixels stay uint8 (a quarter of float32, exact) and become 0 … 1 in the batch.
- Mean and standard deviation are those of the training split alone: statistics over validation or test images would
  leak them into training. They end up in the network's first layer.
- A validation part that your own data come with is used; where they have no test part, one is held out by class.
- No cropping, deskewing or resizing: MNIST is already centered by mass in 28 x 28, and invariance to small shifts and
  rotations is learned from augmentation instead.
"""

from dataclasses import asdict
from functools import partial

import numpy as np
import torch

from digits import params, paths, pipeline
from digits.datasets import FILES
from digits.errors import UserError, run
from digits.files import write_json
from digits.images import raw, splits
from digits.images.idx import read_idx
from digits.learning import networks
from digits.learning.streams import generator
from digits.params.data import number_of
from digits.reports.figures import preprocess as figures


def read(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Map images (uint8 [n, channels, side, side]) and read labels (int64 [n]) of "train" or "test"."""
    images, labels = (read_idx(paths.RAW / FILES[part, kind]) for kind in ("images", "labels"))
    pixels = torch.from_numpy(images)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels, torch.from_numpy(labels.astype(np.int64))


def divide(p: params.Params) -> bool:
    """Write the three splits; say whether the test split had to be held out, since the data have none.

    Raises UserError if there are too few training images.
    """
    (images, labels), (test_images, test_labels) = read("train"), read("test")
    about = raw.about(paths.RAW)
    classes, random = tuple(about.classes), partial(generator, p.split.seed)
    everything, test = splits.Split(images, labels, classes), splits.Split(test_images, test_labels, classes)
    left, given = (
        torch.arange(len(labels) - about.validation),
        torch.arange(len(labels))[len(labels) - about.validation :],
    )
    share, test_part = p.split.test, None
    if not len(test):
        left, test_part = _held_out(labels, left, number_of(share, len(left)), random("test"))
    count = number_of(p.split.validation, len(left))
    if about.validation:
        chosen, held_out = left, given
    elif count > len(left) - 2:
        raise UserError(
            f"params.yaml: split.validation: must leave 2 or more of the {len(left)} training images, "
            f"not take {p.split.validation}"
        )
    else:
        chosen, held_out = _held_out(labels, left, count, random("split"))
    if p.split.training_share < 1:
        _, chosen = _held_out(labels, chosen, max(2, round(p.split.training_share * len(chosen))), random("share"))
    splits.save(everything, paths.TRAIN, chosen)
    splits.save(everything, paths.VALIDATION, held_out)
    splits.save(test if test_part is None else everything, paths.TEST, test_part)
    return test_part is not None


def _held_out(
    labels: torch.Tensor, among: torch.Tensor, count: int, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide some of the images, by their indices, into all but `count` and `count`, with the same share of classes."""
    rest, part = splits.stratified(labels[among], count, random)
    return among[rest], among[part]


def main() -> None:
    reading = pipeline.Reading("preprocess")
    p = params.load(networks.check)
    reading.prove()
    held_out = divide(p)
    files = {"train": paths.TRAIN, "validation": paths.VALIDATION, "test": paths.TEST}
    made = {name: splits.load(path, in_order=True) for name, path in files.items()}
    statistics = splits.statistics(made, ink=raw.about(paths.RAW).ink, test_held_out=held_out)
    write_json(paths.DATASET_METRICS, asdict(statistics))
    figures.overview(made, paths.OVERVIEW)
    figures.samples(made["train"], paths.SAMPLES)
    figures.class_balance(made, paths.CLASS_BALANCE)
    counts = ", ".join(f"{len(split):,} {name}" for name, split in made.items())
    numbers = statistics.pixel_mean, statistics.pixel_std
    mean, std = (
        ", ".join(f"{one:.4f}" for one in (number if isinstance(number, list) else [number])) for number in numbers
    )
    print(f"{counts}; pixels {mean} ± {std}")
    if held_out:
        print("the data have no test part: the test split is drawn from the same images, by class and split.seed")
    for name, split in made.items():
        if absent := split.absent():
            print(f"no {name} images of {', '.join(absent[:20])}{', …' if len(absent) > 20 else ''}")
    reading.check()


if __name__ == "__main__":
    run(main)
