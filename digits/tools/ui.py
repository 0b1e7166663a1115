"""`python -m digits ui`: MLflow's pages, opened where the results are."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from digits.errors import UserError, public
from digits.records import pages, runs, store
from digits.tools import addresses

HOST = "127.0.0.1"
PATIENCE = 120  # seconds until a server must answer; it takes about 7


def main(parser: ArgumentParser, words: list[str]) -> None:
    """Show every run in MLflow's pages: print a link to the list of runs, with what each reached and changed, and open
    it where there is a display. Serves the runs of this folder until Ctrl-C, or links to the tracking server that
    MLFLOW_TRACKING_URI names.
    """
    parser.add_argument(
        "--port", type=int, default=5000, help="port of this machine to serve at (default: %(default)s)"
    )
    port: int = parser.parse_args(words).port
    if store.is_off():
        raise UserError(f"MLFLOW_TRACKING_URI: is {store.OFF}; must name a tracking server, or not be set")
    if not store.is_remote():
        addresses.check(HOST, port, named=f"--port: {port}", advice="`make ui PORT=5001` takes another")
    with store.access():
        client, experiment = store.connect()
        runs.clear_up(client, experiment)
        for key, value in pages.experiment().items():
            client.set_experiment_tag(experiment, key, value)
    if store.is_remote():
        _show(pages.link(store.uri(), experiment))
        return
    with _serving(port) as server:
        _show(pages.link(f"http://{HOST}:{port}", experiment))
        print("Ctrl-C ends it")
        try:
            server.wait()
        except KeyboardInterrupt:
            return
    raise UserError(f"MLflow's server ended with code {server.returncode}")


def _show(link: str) -> None:
    print(public(link))
    addresses.show(link)


@contextmanager
def _serving(port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Serve the runs of this folder, from when the server answers. Raises UserError if it does not come up."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", HOST, "--port", str(port)]
    # By the environment, since every user of the machine can read a command line, and a database may have a password.
    # No job runner: with it, a server takes 1.3 GB and 20 s instead of 490 MB and 7 s.
    settings = {"MLFLOW_BACKEND_STORE_URI": store.uri(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment = store.ENVIRONMENT | os.environ | settings
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+b") as log:
        # In a session of its own: Ctrl-C reaches this process alone, which ends the server and all of its workers.
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while not _answers(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().splitlines()
                    raise UserError(f"MLflow's server does not come up: {said[-1] if said else 'it says nothing'}")
                time.sleep(0.2)
            yield server
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://{HOST}:{port}/health", timeout=5
        ):
            return True
    except OSError:
        return False
