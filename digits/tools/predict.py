"""The exported model on a person's own images. Needs neither torch nor the rest of the library."""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np

from digits import paths
from digits.errors import UserError
from digits.serving.preprocessing import prepare, read_image
from digits.serving.reading import Model


def main(parser: ArgumentParser, words: list[str]) -> None:
    """Classify images of any size, each of one thing: a handwritten character, dark on light or light on dark, or what
    the model was trained on.
    """
    parser.add_argument("images", nargs="+", type=Path, help="image files")
    parser.add_argument("--model", type=Path, default=paths.ONNX, help="an exported ONNX file (default: %(default)s)")
    arguments = parser.parse_args(words)
    model = Model(arguments.model)
    prepared, faults = [], []
    for path in arguments.images:
        try:
            prepared.append(prepare(read_image(path), model.channels, model.side, ink=model.ink))
        except UserError as error:
            faults.append(str(error) if str(error).startswith(str(path)) else f"{path}: {error}")
    if faults:
        raise UserError("\n".join(faults))
    for path, ranking in zip(arguments.images, model.classify(np.stack(prepared)), strict=True):
        print(f"{path}: " + ", then ".join(f"{name} ({share:.1%})" for name, share in ranking[:2]))
