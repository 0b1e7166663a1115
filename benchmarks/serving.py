"""What the service can bear, against `mlflow models serve` with the same model.

    python -m benchmarks.serving [--seconds 10] [--rounds 3] [--clients 32]

Run it after `dvc repro`. So many clients ask, each again as soon as it has its answer; the servers take turns, each
with one worker, and the clients have a process of their own. An image of MNIST goes as a tensor in JSON to both, and as
a PNG file to ours, which also gets a page of eight digits. Writes benchmarks/serving.md.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import aiohttp
import numpy as np
import psutil
from tqdm import tqdm

from benchmarks import handwriting
from digits import paths
from digits.errors import UserError, run
from digits.files import write_text
from digits.images import splits
from digits.records import registry, served, store

PAGE = Path("benchmarks/serving.md")
PORTS = {"digits": 8511, "mlflow": 8512}
JSON, RAW = "application/json", "application/octet-stream"
BATCH = 32  # images of the larger requests
START = 120  # seconds until a server must answer


@dataclass(frozen=True)
class Load:
    """A kind of request: to which server and address, with which body."""

    name: str
    server: str
    path: str
    body: bytes
    kind: str
    images: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{PORTS[self.server]}/{self.path}"


@dataclass
class Found:
    """What came of a load: seconds of each answer, failures, and images per second in each round."""

    seconds: list[float] = field(default_factory=list)
    failures: int = 0
    rates: list[float] = field(default_factory=list)
    megabytes: float = 0

    def percentile(self, share: float) -> float:
        """Return within how many milliseconds so many percent of the answers came."""
        return 1000 * float(np.percentile(self.seconds, share))


def loads() -> list[Load]:
    """Return the loads: one image as a tensor to both servers, and as pictures to ours."""
    split = splits.load(paths.VALIDATION)
    images = split.images[:, 0].numpy()
    pixels = (images[:, None] / 255).astype("<f4")
    tensor, batch = (json.dumps({"inputs": pixels[:count].round(4).tolist()}).encode() for count in (1, BATCH))
    page = handwriting.png(handwriting.written(images[:8], [4, 4], np.random.default_rng(0)))
    return [
        Load("one image as JSON, mlflow models serve", "mlflow", "invocations", tensor, JSON, 1),
        Load("one image as JSON, POST /logits", "digits", "logits", tensor, JSON, 1),
        Load("one image as float32, POST /logits", "digits", "logits", pixels[:1].tobytes(), RAW, 1),
        Load("one image as a PNG file, POST /predict", "digits", "predict", handwriting.png(images[0]), "image/png", 1),
        Load(f"{BATCH} images as JSON, mlflow models serve", "mlflow", "invocations", batch, JSON, BATCH),
        Load(f"{BATCH} images as JSON, POST /logits", "digits", "logits", batch, JSON, BATCH),
        Load(f"{BATCH} images as float32, POST /logits", "digits", "logits", pixels[:BATCH].tobytes(), RAW, BATCH),
        Load("a page of eight digits, POST /predict", "digits", "predict", page, "image/png", 8),
    ]


@contextmanager
def serving(command: list[str], port: int, path: str, environment: dict[str, str]) -> Iterator[psutil.Process]:
    """Start a server; yield its process once it answers, and end it with those that it has started."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # mlflow starts the first uvicorn there
    with subprocess.Popen(
        [sys.executable, "-m", *command, "--port", str(port)],
        env=os.environ | environment | {"PATH": programs},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        process = psutil.Process(server.pid)
        try:
            for _ in range(START * 5):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5):
                        break
                except OSError:
                    time.sleep(0.2)
            else:
                raise UserError(f"{command[0]} does not answer within {START} seconds")
            yield process
        finally:
            for one in (*process.children(recursive=True), process):
                one.kill()


async def ask(load: Load, found: Found, clients: int, seconds: float) -> None:
    """Send a load from so many clients for some time."""
    answers = 0
    start = time.perf_counter()

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal answers
        while (before := time.perf_counter()) < start + seconds:
            async with session.post(load.address, data=load.body, headers={"Content-Type": load.kind}) as answer:
                await answer.read()
                found.failures += answer.status != 200
            found.seconds.append(time.perf_counter() - before)
            answers += 1

    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    found.rates.append(load.images * answers / (time.perf_counter() - start))


def memory(process: psutil.Process) -> float:
    """Return the megabytes that a process and those that it has started have in memory."""
    return float(sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))) / 1e6


def measure(clients: int, seconds: float, rounds: int) -> dict[str, Found]:
    """Send every load in turn, round by round."""
    from mlflow.models import Model

    kinds = loads()
    found = {load.name: Found() for load in kinds}
    with tempfile.TemporaryDirectory() as folder:
        served.save_model(f"{folder}/model", Model(), **registry.content())
        mlflow = ["mlflow", "models", "serve", "--model-uri", f"{folder}/model", "--env-manager", "local"]
        with (
            serving(["digits", "serve"], PORTS["digits"], "health", {}) as ours,
            serving(mlflow, PORTS["mlflow"], "ping", store.ENVIRONMENT) as theirs,
            tqdm(total=rounds * len(kinds), unit=" rounds", disable=None, leave=False) as bar,
        ):
            for load in kinds:  # the first answers take longer
                asyncio.run(ask(load, Found(), clients, min(seconds, 2)))
            for _ in range(rounds):
                for load in kinds:
                    asyncio.run(ask(load, found[load.name], clients, seconds))
                    found[load.name].megabytes = memory(ours if load.server == "digits" else theirs)
                    bar.update()
    return found


def table(found: dict[str, Found]) -> str:
    """Return a Markdown table of what came of the loads, each compared with the last before it of MLflow's."""
    lines = [
        "| requests | images per second | p50 | p99 | failures | memory | times mlflow |",
        "|---" * 7 + "|",
    ]
    bases: list[float] = []
    for name, one in found.items():
        if "mlflow" in name:
            bases = one.rates
        ratio = median(rate / base for rate, base in zip(one.rates, bases, strict=True))
        times = [f"{one.percentile(share):,.0f} ms" for share in (50, 99)]
        lines.append(
            f"| {name} | {median(one.rates):,.0f} | {' | '.join(times)} | {one.failures} of {len(one.seconds):,} "
            f"| {one.megabytes:,.0f} MB | {'–' if 'page' in name else f'{ratio:.1f}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="What can the service bear?")
    parser.add_argument("--seconds", type=float, default=10, help="of each load in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=32, help="default: %(default)s")
    options = parser.parse_args()
    if min(options.seconds, options.rounds, options.clients) <= 0:
        raise UserError("--seconds, --rounds, --clients: must be more than 0")
    made = table(measure(options.clients, options.seconds, options.rounds))
    write_text(
        PAGE,
        f"{options.clients} clients, {options.rounds} rounds of {options.seconds:g} s of each load, in turns, one "
        "worker each,\nservers and clients on the same two cores (`python -m benchmarks.serving`):\n\n"
        f"{made}\n\nTimes and failures are of all rounds, rates and ratios their medians. Both servers run the same "
        "ONNX file.\nOn a page, most of the time goes into finding its digits.\n",
    )
    print(made)


if __name__ == "__main__":
    run(main)
