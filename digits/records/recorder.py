"""A process that logs to MLflow what a stage does, beside the stage.

MLflow takes seconds to import and to open its store. Here it does both while the stage imports torch and works, and no
training step waits for a tracking server, however slow. The stage sends a line of JSON for each thing to log, and at
the end waits for the last one, for a limited time.

The process ends with its stage: where that is killed, nothing more is logged, as if the stage had logged it itself.
"""

import gc
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from digits import errors, pipeline
from digits.errors import public
from digits.params import Params
from digits.records import names

if TYPE_CHECKING:
    import torch

    from digits.learning.curve import Epoch
    from digits.records import runs

PATIENCE = 120  # seconds that a stage waits for what is still to be logged; it takes about 3

_process: "subprocess.Popen[str] | None" = None


def start(argv: list[str]) -> None:
    """Start the process if this one, by its command line, runs a stage that is logged."""
    global _process
    is_stage = argv[-2:-1] == ["-m"] and argv[-1] in [f"stages.{stage}" for stage in names.METRICS]
    if not is_stage or os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return
    from digits.records import store

    if store.is_off():
        return
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "digits.records.recorder"]
    with suppress(OSError):  # no memory left, say: the stage then logs by itself
        _process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        _send(begin=pipeline.begun())


def drop() -> None:
    """End the process with nothing logged: others are to do what this stage was started for."""
    global _process
    if _process:
        _process.communicate()  # it ends when it can read no more
        _process = None


def record(p: Params, stage: str, device: "torch.device") -> None:
    """Add what `stage` wrote to its run, see `runs.record`."""
    from digits.learning import runtime
    from digits.records import runs

    environment = runtime.recorded(p.runtime, device)
    if _process:
        _send(stage=stage, params=p.model_dump_json(), environment=environment)
        _finish()
    else:
        runs.record(p, stage, environment)


def training(p: Params, device: "torch.device", key: str) -> "runs.TrainingRun | Elsewhere":
    """Return the run of a training in progress, see `runs.TrainingRun`."""
    from digits.learning import distributed, runtime
    from digits.records import runs

    environment = runtime.recorded(p.runtime, device, distributed.size())
    return Elsewhere(p, environment, key) if _process else runs.TrainingRun(p, environment, key)


class Elsewhere:
    """A `runs.TrainingRun` of that process."""

    def __init__(self, p: Params, environment: dict[str, str], key: str) -> None:
        self._began = time.monotonic()
        self._about = {"params": p.model_dump_json(), "environment": environment, "key": key}

    def __enter__(self) -> "Elsewhere":
        _send(training=self._about)
        return self

    def log(self, epoch: "Epoch") -> None:
        _send(epoch=asdict(epoch), seconds=time.monotonic() - self._began)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        from digits.records import runs

        _send(status=runs.status_of(kind))
        _finish()


def _send(**message: Any) -> None:
    assert _process
    assert _process.stdin
    with suppress(OSError):  # it has died: `_finish` says so
        _process.stdin.write(json.dumps(message) + "\n")
        _process.stdin.flush()


def _finish() -> None:
    """Wait until all is logged, and print what there is to say of it."""
    from digits.records import store

    assert _process
    pipe, _process.stdin = _process.stdin, None  # left open, since the process ends when it can read no more
    fault = ""
    try:
        said, complaints = _process.communicate(timeout=PATIENCE)
        if _process.returncode and not complaints:
            fault = "the process that logs to it has ended"
    except subprocess.TimeoutExpired:
        _process.kill()
        said, complaints = _process.communicate()
        fault = f"not done after {PATIENCE} s"
    except BaseException:
        _process.kill()
        raise
    finally:
        assert pipe
        with suppress(OSError):
            pipe.close()
    print(said, end="", flush=True)
    print(complaints, end="", file=sys.stderr)
    if fault:
        print(f"MLflow at {public(store.uri())}: {fault}; {store.LATER}", file=sys.stderr)


def main() -> None:
    """Log what the stage that started this process sends."""
    from digits.learning.curve import Epoch
    from digits.records import runs, store

    for number in (signal.SIGINT, signal.SIGTERM):  # which reach all of the stage's processes: it says what to do
        signal.signal(number, signal.SIG_IGN)
    messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(messages,), daemon=True).start()
    gc.set_threshold(100_000, 20, 100)  # as for the stages
    runs.act_for(os.getppid())
    pipeline.begin(messages.get()["begin"])
    with suppress(Exception):  # what is wrong is said when there is something to log
        store.prepare()
        pipeline.stages()  # what these two parse is remembered
        pipeline.lock()
    first = messages.get()
    if "training" in first:
        about = first["training"]
        live = runs.TrainingRun(_params(about), about["environment"], about["key"]).__enter__()
        while "epoch" in (message := messages.get()):
            live.log(Epoch(**message["epoch"]), message["seconds"])
        live.end(message["status"])
    else:
        runs.record(_params(first), first["stage"], first["environment"])
    sys.stdout.flush()
    errors.end()


def _params(message: Mapping[str, Any]) -> Params:
    return Params.model_validate_json(message["params"])


def _receive(messages: "queue.SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        messages.put(json.loads(line))
    os._exit(1)  # the stage is gone


if __name__ == "__main__":
    main()
