"""A user's own folder of IDX files, checked and copied."""

import gzip
import zlib
from contextlib import ExitStack
from pathlib import Path
from shutil import copyfileobj
from typing import IO, cast

from tqdm import tqdm

from digits.datasets import FILES
from digits.errors import UserError
from digits.files import atomic, md5
from digits.images.idx import read_idx

BLOCK = 1 << 20  # bytes in memory at once


def copy_folder(folder: Path, target: Path) -> None:
    """Put the four IDX files of the user's own folder, plain or .gz, into `target`, once all prove to be sound.

    They may be larger than memory. Raises UserError with a line for each fault.
    """
    arrays, faults = {}, []
    with ExitStack() as partials:
        for key, file in FILES.items():
            partial = partials.enter_context(atomic(target / file))
            try:
                _copy(folder / file, partial)
                arrays[key] = read_idx(partial, folder / file)
            except UserError as error:
                faults.append(str(error))
        for part in ("train", "test"):
            if (part, "images") in arrays and (part, "labels") in arrays:
                images, labels = len(arrays[part, "images"]), len(arrays[part, "labels"])
                if images != labels:
                    faults.append(f"{folder}: {images} {part} images but {labels} {part} labels; must be as many")
        if ("train", "labels") in arrays and ("test", "labels") in arrays:
            largest, found = (int(arrays[part, "labels"].max()) for part in ("train", "test"))
            if found > largest:
                faults.append(f"{folder}: test label {found}; must not exceed the largest training label, {largest}")
        if faults:
            raise UserError("\n".join(faults))
    for path in (target / file for file in FILES.values()):
        print(f"{path.name}: {path.stat().st_size:,} bytes from {folder}, MD5 {md5(path)}")


def _copy(path: Path, target: Path) -> None:
    """Copy `path`, or unpack `path` + ".gz", with a progress bar."""
    packed = path.with_name(path.name + ".gz")
    source = path if path.exists() else packed
    try:
        size = source.stat().st_size
        with (
            source.open("rb") as file,
            tqdm.wrapattr(file, "read", size, desc=path.name, disable=None, leave=False) as read,
            target.open("wb") as copy,
        ):
            packed_file = cast("IO[bytes]", read)
            copyfileobj(gzip.GzipFile(mode="rb", fileobj=packed_file) if source == packed else read, copy, BLOCK)
    except FileNotFoundError:
        raise UserError(f"{path}: missing (or {packed.name})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
