"""The section `export`, which export reads."""

from typing import Annotated

from pydantic import Field

from digits.params.reading import Section


class ExportParams(Section):
    opset: Annotated[int, Field(ge=18, le=21)]
    tolerance: Annotated[float, Field(gt=0)]
