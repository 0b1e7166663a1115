"""The sections `data` and `split`, which download and preprocess read."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from digits.datasets import DATASETS, FOLDER
from digits.params.reading import Count, Section, Seed, one_of


def _source(name: str) -> str:
    if not re.fullmatch(r"torchvision|pypi|https?://\S+", name):
        raise ValueError("must be torchvision, pypi or a URL that begins with http:// or https://")
    return name


class DataParams(Section):
    name: Annotated[str, one_of(*DATASETS, FOLDER)]
    folder: Annotated[str, Field(min_length=1)]
    sources: Annotated[list[Annotated[str, AfterValidator(_source)]], Field(min_length=1)]
    timeout: Annotated[float, Field(gt=0)]


class SplitParams(Section):
    validation: Count
    training_share: Annotated[float, Field(gt=0, le=1)]
    seed: Seed
