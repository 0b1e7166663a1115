"""`python -m digits sync`: log results to MLflow that it missed."""

import subprocess
import sys
from argparse import ArgumentParser

from digits import params
from digits.errors import UserError
from digits.learning import networks, runtime
from digits.records import runs, store


def main(parser: ArgumentParser, words: list[str]) -> None:
    """Log the results in this folder to MLflow as one complete run, unless there is one: after the tracking server was
    away, or the database was lost.
    """
    parser.parse_args(words)
    p = params.load(networks.check)
    if store.is_off():
        raise UserError(f"MLFLOW_TRACKING_URI: is {store.OFF}; must name a tracking server, or not be set")
    if subprocess.run([sys.executable, "-m", "dvc", "status", "--quiet"], check=False).returncode:
        raise UserError("the results here are not those of the code, data and params here; run `dvc repro` first")
    runs.sync(p, runtime.recorded(p.runtime, runtime.prepare(p.runtime)))
