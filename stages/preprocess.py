"""Stage 2: raw IDX files -> train, validation and test splits, their statistics and pictures.

What is done, and why
- Validation images are taken from the training set, stratified by class and seeded, so that every choice (epoch,
  recipe, threshold) can be made without the test set. The test set is a file of its own: training never sees it.
- Pixels stay uint8 (a quarter of float32, exact) and become 0 … 1 in the batch.
- Mean and standard deviation are those of the training split alone: statistics over validation or test images would
  leak them into training. They end up in the network's first layer.
- No cropping, deskewing or resizing: MNIST is already centered by mass in 28 x 28, and invariance to small shifts and
  rotations is learned from augmentation instead.
"""

from dataclasses import asdict

import torch

from digits import params, paths, pipeline
from digits.datasets import DATASETS, FILES
from digits.errors import UserError, run
from digits.files import write_json
from digits.images import splits
from digits.images.idx import read_idx
from digits.learning import networks
from digits.learning.streams import generator
from digits.reports.figures import preprocess as figures


def read(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Map images (uint8 [n, 1, 28, 28]) and read labels (int64 [n]) of "train" or "test"."""
    images, labels = (read_idx(paths.RAW / FILES[part, kind]) for kind in ("images", "labels"))
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long()


def divide(p: params.Params) -> None:
    """Write the three splits. Raises UserError if there are too few training images."""
    (images, labels), (test_images, test_labels) = read("train"), read("test")
    if p.split.validation > len(labels) - 2:
        raise UserError(
            f"params.yaml: split.validation: must leave 2 or more of the {len(labels)} training images, "
            f"not take {p.split.validation}"
        )
    known = DATASETS.get(p.data.name)
    classes = known.classes if known else tuple(map(str, range(int(labels.max()) + 1)))
    chosen, held_out = splits.stratified(labels, p.split.validation, generator(p.split.seed, "split"))
    if p.split.training_share < 1:
        count = max(2, round(p.split.training_share * len(chosen)))
        _, part = splits.stratified(labels[chosen], count, generator(p.split.seed, "share"))
        chosen = chosen[part]
    everything = splits.Split(images, labels, classes)
    splits.save(everything, paths.TRAIN, chosen)
    splits.save(everything, paths.VALIDATION, held_out)
    splits.save(splits.Split(test_images, test_labels, classes), paths.TEST)


def main() -> None:
    p = params.load(networks.check)
    pipeline.inputs("preprocess")
    divide(p)
    files = {"train": paths.TRAIN, "validation": paths.VALIDATION, "test": paths.TEST}
    made = {name: splits.load(path, in_order=True) for name, path in files.items()}
    statistics = splits.statistics(made)
    write_json(paths.DATASET_METRICS, asdict(statistics))
    figures.overview(made, paths.OVERVIEW)
    figures.samples(made["train"], paths.SAMPLES)
    figures.class_balance(made, paths.CLASS_BALANCE)
    counts = ", ".join(f"{len(split):,} {name}" for name, split in made.items())
    print(f"{counts}; pixels {statistics.pixel_mean:.4f} ± {statistics.pixel_std:.4f}")


if __name__ == "__main__":
    run(main)
