"""The section `runtime`, which train, evaluate and export read."""

from typing import Annotated, Literal

from pydantic import Field

from digits.params.reading import Section


class RuntimeParams(Section):
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Annotated[int, Field(ge=1, le=1024)]
    batch_size: Annotated[int, Field(ge=1, le=100_000)]
    reproducibility: Literal["machine", "portable"]
    precision: Literal["auto", "fp32", "bf16"]
    processes: Annotated[int, Field(ge=1, le=1024)]
    checkpoint: Annotated[float, Field(ge=0, le=86_400)]
