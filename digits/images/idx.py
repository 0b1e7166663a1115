"""The IDX format of MNIST (Yann LeCun, "The MNIST database").

Big-endian: two zero bytes, a type code (8: unsigned byte, 12: 32-bit integer), the number of dimensions, the size of
each as 32 bits, then the values.
"""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.datasets import LARGEST, SMALLEST
from digits.errors import UserError
from digits.files import map_bytes

TYPES: dict[int, Any] = {8: np.dtype("u1"), 12: np.dtype(">i4")}


def read_idx(path: Path, name: Path | None = None) -> NDArray[Any]:
    """Map the IDX file at `path`: images, uint8 [n, side, side] or [n, side, side, 3], where its name says idx3.

    Otherwise labels [n], uint8, or of more than 256 classes big-endian int32. It may be larger than memory. Raises
    UserError if type, dimensions, image size or length are wrong, in which the file is called `name` if that is given.
    """
    name = name or path
    allowed: dict[int, tuple[int, ...]] = {3: (8,), 4: (8,)} if "-idx3-" in name.name else {1: (8, 12)}
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        code, dimensions = (start[2], start[3]) if len(start) == 4 and not any(start[:2]) else (0, 0)
        if code not in allowed.get(dimensions, ()):
            wanted = " or ".join(f"00 00 {code:02x} {count:02x}" for count, codes in allowed.items() for code in codes)
            raise UserError(f"{name}: not IDX of {_kind(allowed)}: begins with {start.hex(' ')}, must with {wanted}")
        header = 4 + 4 * dimensions
        sizes = file.read(header - 4)
    if size < header:
        raise UserError(f"{name}: {size} bytes, but the header alone takes {header}")
    shape = struct.unpack(f">{dimensions}I", sizes)
    if dimensions > 1 and not is_image(shape[1:]):
        found = " x ".join(map(str, shape[1:]))
        raise UserError(
            f"{name}: images of {found}; must be squares of {SMALLEST} to {LARGEST} pixels, in gray or color"
        )
    expected = promised(start + sizes)
    if size != expected:
        raise UserError(f"{name}: {size} bytes, but its header promises {expected}")
    values: NDArray[Any] = map_bytes(path, in_order=True)[header:].view(TYPES[code]).reshape(shape)
    return values


def promised(start: bytes) -> int:
    """Return the size in bytes that an IDX file's header, which is in its first 20 bytes, promises."""
    code, dimensions = (start[2], start[3]) if len(start) > 3 else (0, 0)
    sizes = [int.from_bytes(start[place : place + 4], "big") for place in range(4, 4 + 4 * min(dimensions, 4), 4)]
    return 4 + 4 * dimensions + math.prod(sizes) * (TYPES[code].itemsize if code in TYPES else 1)


def _kind(allowed: dict[int, tuple[int, ...]]) -> str:
    return "labels" if 1 in allowed else "images"


def is_image(shape: tuple[int, ...]) -> bool:
    """Say whether this is the shape of an image: a square, in gray [side, side] or in color [side, side, 3]."""
    return len(shape) in (2, 3) and shape[0] == shape[1] and SMALLEST <= shape[0] <= LARGEST and shape[2:] in ((), (3,))


def header(shape: tuple[int, ...], *, wide: bool = False) -> bytes:
    """Return the header of an IDX file of this shape, of bytes or, if `wide`, of 32-bit integers."""
    return bytes([0, 0, 12 if wide else 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def format_idx(array: NDArray[Any]) -> bytes:
    """Return the IDX file of an array of unsigned bytes or 32-bit integers; the inverse of `read_idx`."""
    wide = array.dtype != np.uint8
    return header(array.shape, wide=wide) + (array.astype(">i4") if wide else array).tobytes()
