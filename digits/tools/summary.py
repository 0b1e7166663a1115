"""`python -m digits summary`: the result in this folder, in a few lines."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from digits import paths
from digits.errors import UserError
from digits.files import read_json


def main(parser: ArgumentParser, words: list[str]) -> None:
    """Say how good the model in this folder is, where its files are, and what to type next. Computes nothing."""
    parser.parse_args(words)
    train, test, dataset = map(_read, (paths.TRAIN_METRICS, paths.TEST_METRICS, paths.DATASET_METRICS))
    interval = f"95 % interval {test['accuracy_low']:.2%} to {test['accuracy_high']:.2%}"
    print(f"""
test accuracy {test["accuracy"]:.2%} ({interval}), {test["errors"]} errors in {test["count"]:,}
validation accuracy {train["validation_accuracy"]:.2%} of {dataset["validation"]["count"]:,} images

figures         {paths.CONFUSION.parent}/
the model       {paths.ONNX.parent}/, with {paths.MODEL_CARD.name}
next            make ui       every run, in MLflow
                make plots    curves, mistakes and figures as a page
                dvc exp run --name slower -S train.learning_rate=0.1
                python -m digits compare HEAD slower""")


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(path)
    except OSError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    return content
