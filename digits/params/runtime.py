"""The section `runtime`, which train, evaluate and export read."""

from typing import Literal

from digits.params.reading import Amount, Count, Section


class RuntimeParams(Section):
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count
    batch_size: Count
    reproducibility: Literal["machine", "portable"]
    precision: Literal["auto", "fp32", "bf16"]
    processes: Count
    checkpoint: Amount
