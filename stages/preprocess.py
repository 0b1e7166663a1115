"""Stage 2: raw IDX files -> train, validation and test splits, their statistics and pictures.

What is done, and why
- Validation images are taken from the training set, stratified by class and seeded, so that every choice (epoch,
  recipe, threshold) can be made without the test set. The test set is a file of its own: training never sees it.
- Pixels stay uint8 (a quarter of float32, exact) and become 0 … 1 in the batch.
- Mean and standard deviation are those of the training split alone: statistics over validation or test images would
  leak them into training. They end up in the network's first layer.
- No cropping, deskewing or resizing: MNIST is already centred by mass in 28 x 28, and what a network should not depend
  on (small shifts, rotations) it learns from augmentation instead.
"""

import torch

from digits import data, figures, lineage, params, paths, sources
from digits.command import UserError, run
from digits.datasets import DATASETS, FILES
from digits.files import write_json
from digits.runtime import generator


def read(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Map images (uint8 [n, 1, 28, 28]) and read labels (int64 [n]) of "train" or "test"."""
    images = sources.read_idx(paths.RAW / FILES[part, "images"])
    labels = sources.read_idx(paths.RAW / FILES[part, "labels"])
    return data.from_numpy(images).unsqueeze(1), data.from_numpy(labels).long()


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
    chosen, held_out = data.stratified(labels, p.split.validation, generator(p.split.seed, "split"))
    if p.split.training_share < 1:
        count = max(2, round(p.split.training_share * len(chosen)))
        _, part = data.stratified(labels[chosen], count, generator(p.split.seed, "share"))
        chosen = chosen[part]
    everything = data.Split(images, labels, classes)
    data.save(everything, paths.TRAIN, chosen)
    data.save(everything, paths.VALIDATION, held_out)
    data.save(data.Split(test_images, test_labels, classes), paths.TEST)


def main() -> None:
    p = params.load()
    lineage.inputs("preprocess")
    divide(p)
    files = {"train": paths.TRAIN, "validation": paths.VALIDATION, "test": paths.TEST}
    splits = {name: data.load(path, in_order=True) for name, path in files.items()}
    mean, std = data.pixel_statistics(splits["train"].images)
    counts = {name: {"count": len(split)} for name, split in splits.items()}
    write_json(paths.DATASET_METRICS, {**counts, "pixel_mean": mean, "pixel_std": std})
    figures.samples(splits["train"], paths.SAMPLES)
    figures.class_balance(splits, paths.CLASS_BALANCE)
    print(", ".join(f"{len(split):,} {name}" for name, split in splits.items()) + f"; pixels {mean:.4f} ± {std:.4f}")


if __name__ == "__main__":
    run(main)
