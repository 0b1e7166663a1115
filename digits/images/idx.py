"""The IDX format of MNIST (Yann LeCun, "The MNIST database").

Big-endian: two zero bytes, a type code (8: unsigned byte), the number of dimensions, the size of each as 32 bits, then
the values.
"""

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digits.datasets import SIDE
from digits.errors import UserError
from digits.files import map_bytes


def read_idx(path: Path, name: Path | None = None) -> NDArray[np.uint8]:
    """Map the IDX file of unsigned bytes at `path`: images [n, 28, 28] where its name says idx3, else labels [n].

    It may be larger than memory. Raises UserError if type, dimensions, image size or length are wrong, in which the
    file is called `name` if that is given.
    """
    name = name or path
    dimensions = 3 if "-idx3-" in name.name else 1
    header, size = 4 + 4 * dimensions, path.stat().st_size
    with path.open("rb") as file:
        start = file.read(header)
    if start[:4] != bytes([0, 0, 8, dimensions]):
        found, wanted = start[:4].hex(" "), f"00 00 08 {dimensions:02x}"
        raise UserError(f"{name}: not IDX bytes in {dimensions} dimension(s): begins with {found}, must with {wanted}")
    if size < header:
        raise UserError(f"{name}: {size} bytes, but the header alone takes {header}")
    shape = struct.unpack(f">{dimensions}I", start[4:])
    if shape[0] == 0 or shape[1:] not in ((), (SIDE, SIDE)):
        raise UserError(f"{name}: has shape {shape}; must be 1 or more, and images {SIDE} x {SIDE} pixels")
    expected = header + math.prod(shape)
    if size != expected:
        raise UserError(f"{name}: {size} bytes, but its header promises {expected}")
    return map_bytes(path, in_order=True)[header:].reshape(shape)


def format_idx(array: NDArray[np.uint8]) -> bytes:
    """Return the IDX file of an array of unsigned bytes; the inverse of `read_idx`."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
