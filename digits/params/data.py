"""The sections `data` and `split`, which download and preprocess read."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from digits.datasets import DATASETS, FOLDER, LARGEST, SMALLEST
from digits.params.reading import Count, Section, Seed, one_of

FORMATS = ("idx", "images", "csv", "npz", "parquet", "mat")  # those of images/readers.py, which is not for every stage


def _source(name: str) -> str:
    if not re.fullmatch(r"torchvision|pypi|https?://\S+", name):
        raise ValueError("must be torchvision, pypi or a URL that begins with http:// or https://")
    if re.search("[@?#]", name):  # DVC writes it into dvc.lock
        raise ValueError("must be an address without user, password and query, which would be recorded")
    return name


def _side(side: int) -> int:
    if side and not SMALLEST <= side <= LARGEST:
        raise ValueError(f"must be {SMALLEST} to {LARGEST}, or 0 for images as they are")
    return side


class DataParams(Section):
    name: Annotated[str, one_of(*DATASETS, FOLDER)]
    folder: Annotated[str, Field(min_length=1)]
    format: Annotated[str, one_of("auto", *FORMATS)]
    label: Annotated[str, Field(min_length=1)]
    transpose: bool
    side: Annotated[int, AfterValidator(_side)]
    ink: bool
    sources: Annotated[list[Annotated[str, AfterValidator(_source)]], Field(min_length=1)]
    timeout: Annotated[float, Field(gt=0, le=3600)]


Part = Annotated[float, Field(gt=0, lt=1)]


class SplitParams(Section):
    validation: Count | Part
    test: Part
    training_share: Annotated[float, Field(gt=0, le=1)]
    seed: Seed


def number_of(amount: float, count: int) -> int:
    """Return how many of `count` images an amount is: itself, or a share of them, of which one at least."""
    return amount if isinstance(amount, int) else max(1, round(amount * count))
