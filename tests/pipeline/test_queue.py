"""DVC's queue of experiments: one that fails, one whose worker is killed, and a grid."""

import json
import re
import shlex
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from digits import params
from digits.errors import UserError
from digits.learning import networks

from .conftest import DIGITS, Project

pytestmark = pytest.mark.slow
SEEDS = (*DIGITS, "seeds")
CHEAP = ("--count", "1", "-S", "model.name=linear")


def experiment(project: Project, name: str) -> str:
    """Give an experiment without changes this name; return its commit."""
    head = project.run("git", "rev-parse", "HEAD").stdout.strip()
    commit = project.run("git", "commit-tree", "-p", head, "-m", name, "HEAD^{tree}").stdout.strip()
    project.run("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit)
    return commit


def experiments(project: Project) -> dict[str, str]:
    lines = project.run("git", "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps/*/*/*").stdout.split(
        "\n"
    )
    return {line.split()[0].rsplit("/", 1)[-1]: line.split()[1] for line in lines if line}


@pytest.mark.stress  # what is said is a test of tests/tools/test_seeds.py
def test_seed_that_fails_is_named_with_where_to_find_the_reason(project: Project, call: Callable[..., str]) -> None:
    before = experiment(project, "wild-seed-0")
    settings = (*CHEAP, "-S", "train.learning_rate=1e30")
    done = project.run(*SEEDS, "wild", *settings, fails=True, MLFLOW_TRACKING_URI="off")
    assert "wild-seed-0: failed; `dvc queue logs wild-seed-0` says why" in done.stderr
    assert "training diverged" in project.run("dvc", "queue", "logs", "wild-seed-0").stdout
    there = experiments(project)  # nothing has replaced it
    assert (there["wild-seed-0"], "replaced-wild-seed-0" in there) == (before, False)
    for setting in ("model.cnn.channels=[8", "model.mlp=[8]", "seed=3", "train.epochs=abc"):
        with pytest.raises(UserError):
            call(project, "seeds", "wild", "-S", setting)
    assert experiments(project) == there


@pytest.mark.stress
def test_seed_whose_worker_is_killed_is_run_again(project: Project) -> None:
    before = experiment(project, "hit-seed-0")
    with ThreadPoolExecutor() as pool:
        under_way = pool.submit(project.run, *SEEDS, "hit", *CHEAP, MLFLOW_TRACKING_URI="off")
        while not (found := re.search(r"(\w+) +hit-seed-0\b.*Running", project.run("dvc", "queue", "status").stdout)):
            assert not under_way.done()
            time.sleep(0.5)
        ours = [
            process for process in psutil.process_iter(["cmdline", "cwd"]) if process.info["cwd"] == str(project.root)
        ]
        worker = next(process for process in ours if "queue-worker" in (process.info["cmdline"] or ()))
        for process in (worker, *worker.children(recursive=True)):
            process.kill()
        (folder,) = (project.root / ".dvc/tmp/exps/run").glob(f"{found[1]}*")
        shutil.rmtree(folder)  # as if it took the task while shutting down
        assert experiments(project)["replaced-hit-seed-0"] == before
        assert "| hit | 1 | " in under_way.result(timeout=240).stdout
    there = experiments(project)
    assert (there["hit-seed-0"] != before, "replaced-hit-seed-0" in there) == (True, False)
    shown = json.loads(project.run("dvc", "exp", "show", "--json").stdout)
    assert [one["name"] for one in shown[1]["experiments"] if one["name"] == "hit-seed-0"] == ["hit-seed-0"]


def test_grid_of_the_readme_queues_every_combination(project: Project) -> None:
    lines = (project.root / "README.md").read_text().replace("\\\n", " ").splitlines()
    grid = next(line for line in lines if line.startswith("dvc exp run --queue --name rates"))
    project.run(*shlex.split(grid))
    shown = json.loads(project.run("dvc", "exp", "show", "--json").stdout)
    queued = {
        experiment["name"]: experiment["revs"][0]["data"]["params"]["params.yaml"]["data"]
        for experiment in shown[1]["experiments"]
        if experiment["name"].startswith("rates")
    }
    assert queued.keys() == {f"rates-{place}" for place in range(1, 5)}
    tried = set()
    for content in queued.values():
        chosen = params.assemble(content, networks.check, {}, project.root / "params.yaml")
        tried.add((chosen.recipe, chosen.train.learning_rate, chosen.model.knobs()["dropout"]))
    assert tried == {("quick", rate, dropout) for rate in (0.1, 0.2) for dropout in (0.0, 0.1)}
    project.run("dvc", "queue", "remove", "--queued")
