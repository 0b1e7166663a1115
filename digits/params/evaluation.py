"""The section `evaluate`, which evaluate reads."""

from typing import Annotated

from pydantic import Field

from digits.params.reading import Section


class EvaluateParams(Section):
    bins: Annotated[int, Field(ge=1, le=1000)]
    gallery: Annotated[int, Field(ge=1, le=1000)]
