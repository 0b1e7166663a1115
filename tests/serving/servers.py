"""The service in a process of its own, and requests to it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tests.conftest import ROOT
from tests.pipeline.servers import free_port

Kind = TypeVar("Kind")


def ask(address: str, body: bytes | None = None, kind: str = "", method: str | None = None) -> tuple[int, Any]:
    """Return the code and the JSON of an answer."""
    request = urllib.request.Request(address, body, {"Content-Type": kind} if kind else {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def finish(work: Coroutine[Any, Any, Kind]) -> Kind:
    """Return what comes of a coroutine, also where the browser's driver has an event loop of its own in this thread."""
    with ThreadPoolExecutor() as pool:
        return pool.submit(asyncio.run, work).result()


def form(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    """Return the body of a form with these files, and its content type."""
    head = '--limit\r\nContent-Disposition: form-data; name="file"; filename="{}"\r\n\r\n'
    parts = [head.format(name).encode() + content + b"\r\n" for name, content in files]
    return b"".join(parts) + b"--limit--\r\n", "multipart/form-data; boundary=limit"


@contextmanager
def serving(*arguments: str, folder: Path = ROOT) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Start `digits serve` in a folder; yield its address once it answers, and its process."""
    port = free_port()
    command = [sys.executable, "-m", "digits", "serve", "--port", str(port), *arguments]
    # Where the tests themselves run in the background, they are told to ignore Ctrl-C, and would pass that on.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    environment |= {"PYTHONPATH": str(ROOT)}
    output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, preexec_fn=heeding, **output) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(300):
                try:
                    assert ask(f"{address}/health")[0] == 200
                    break
                except urllib.error.URLError:
                    assert server.poll() is None, server.communicate()[0]
                    time.sleep(0.1)
            yield address, server
        finally:
            server.kill()
