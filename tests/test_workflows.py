"""What runs on GitHub."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from digits import paths

from .conftest import ROOT, git

WORKFLOWS = ROOT / ".github/workflows"


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((WORKFLOWS / name).read_text(encoding="utf-8"))
    return content


@pytest.mark.slow
def test_a_pull_request_is_compared_with_its_base(tmp_path: Path) -> None:
    steps = load("compare.yml")["jobs"]["compare"]["steps"]
    (command,) = (step["run"] for step in steps if step.get("name") == "Compare")
    copy = tmp_path / "copy"
    git("clone", "--quiet", str(ROOT), str(copy))  # as in CI: what is in git, and no data
    table = copy / paths.VALIDATION_TABLE
    table.write_text(re.sub(r"\b0,0\b", "0,6", table.read_text(encoding="utf-8"), count=30), encoding="utf-8")
    git("-C", str(copy), "commit", "--quiet", "--all", "--message=a worse model")
    environment = os.environ | {"BASE": "HEAD~1", "HEAD": "HEAD", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)  # mlflow leaves it behind where another test has set a server
    command = command.replace(".venv/bin/python", sys.executable)
    subprocess.run(["bash", "-c", command], cwd=copy, env=environment, check=True)
    told = (copy / "comparison.md").read_text(encoding="utf-8")
    assert "**B is worse: -0.60 % points" in told
    assert "| 0 | 494 | 0 | 30 |" in told
    assert not git("-C", str(copy), "status", "--porcelain", "--ignored").replace("?? comparison.md\n", "")


@pytest.mark.parametrize("path", sorted(WORKFLOWS.iterdir()), ids=lambda path: path.name)
def test_a_workflow_may_write_only_comments_and_knows_no_secret(path: Path) -> None:
    granted = {key for key, value in load(path.name)["permissions"].items() if value == "write"}
    assert granted <= {"pull-requests"}
    assert "secrets." not in path.read_text(encoding="utf-8")
    assert "pull_request_target" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    used = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", one) for one in used), used
