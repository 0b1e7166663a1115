"""`python -m digits data`: what a folder or file of images holds, before anything runs."""

from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np

from digits.datasets import FOLDER
from digits.errors import UserError
from digits.images import own, readers
from digits.params import PATH, Params
from digits.params.data import DataParams
from digits.params.reading import read, validated

SAMPLES = 8  # images of each class in the picture


def main(parser: ArgumentParser, words: list[str]) -> None:
    """Look at your own images before anything runs: format, parts, images of each class, sizes, values, images that are
    in train and test, and what would be rejected. Draws samples. Section `data` of params.yaml says how to read them.
    """
    parser.add_argument("path", nargs="?", type=Path, help="a folder or file (default: data.folder of params.yaml)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw samples of each class")
    arguments = parser.parse_args(words)
    data = validated(DataParams, read(Params, PATH).get("data"), PATH, ("data",))
    source = own.Source.of(data)
    if arguments.path:
        source = replace(source, path=arguments.path)
    source = source.resolved()
    found = own.survey(source, duplicates=True)
    print("\n".join(found.lines()))
    if found.scale == 1.0:
        print(f"values from {found.low:g} to {found.high:g}")
    if found.twice is not None:
        print(f"{found.twice:,} test images are also training images" if found.twice else "no test image is in train")
    print()
    width = max(map(len, found.classes), default=0)
    parts = [part for part in readers.PARTS if found.total(part)]
    print(f"{'class':{max(width, 5)}}  " + "  ".join(f"{part:>10}" for part in parts))
    for name in found.classes:
        print(f"{name:{max(width, 5)}}  " + "  ".join(f"{found.counts[part][name]:10,}" for part in parts))
    if faults := found.faults(source.side):
        raise UserError("\n".join(f"{source.path}: {fault}" for fault in faults))
    if arguments.picture:
        draw(source, found, arguments.picture)
        print(f"\n{arguments.picture}: the first images of each class")
    print(f"\nto use them: dvc exp run -S data.name={FOLDER} -S data.folder={source.path}")


def draw(source: own.Source, found: own.Survey, path: Path) -> None:
    """Show the first images of each class. Raises UserError if `path` cannot be written."""
    import torch

    from digits.images.splits import Split
    from digits.reports.figures import preprocess as figures

    images, labels = [], []
    missing = dict.fromkeys(range(min(figures.SHOWN, len(found.classes))), SAMPLES)
    for part, block, places in own.pixels(source, found):
        for image, place in zip(block, places.tolist(), strict=True):
            if part == "train" and missing.get(place, 0):
                missing[place] -= 1
                images.append(image if image.ndim == 3 else image[..., np.newaxis])
                labels.append(place)
        if not any(missing.values()):
            break
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    try:
        figures.samples(Split(pixels, torch.tensor(labels), tuple(found.classes)), path, SAMPLES)
    except (OSError, ValueError) as error:
        raise UserError(f"--picture: {path}: cannot be written ({error})") from None
