"""Real servers of other programs, each on a free port of this machine, for as long as a test needs them."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str | Path],
    ready: Callable[[], bool],
    log: Path,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    end: signal.Signals = signal.SIGTERM,
) -> Iterator[None]:
    """Run a server that stays in the foreground, from when it is ready; what it says goes to `log`."""
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=user,
            extra_groups=[] if user else None,
            start_new_session=True,  # so that it ends with all its children
        )
        try:
            deadline = time.monotonic() + 120
            while not ready():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield
        finally:
            if server.poll() is None:
                os.killpg(server.pid, end)
            server.wait(timeout=30)
