"""dvc.yaml against what runs: every file that can change a stage's outputs is listed in its deps, and no other.

Each stage runs in a process of its own on a project in miniature. What it had imported when it wrote its last output is
what it executed before.
"""

import ast
import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from digits import pipeline

from .conftest import REPOSITORY

STAGES = list(pipeline.stages())
ALL = frozenset(STAGES)
SCRIPT = """
import json, sys
from pathlib import Path
root, stage, outputs = Path(sys.argv[1]), sys.argv[2], set(json.loads(sys.argv[3]))
sys.path.insert(0, str(root))
executed = set()

def note(event, arguments):
    if event == "os.rename" and str(arguments[1]) in outputs:  # an output appears
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if file and root in Path(file).parents and ".venv" not in file:
                executed.add(Path(file).relative_to(root).as_posix())

sys.addaudithook(note)
__import__(f"stages.{stage}", fromlist=["main"]).main()
(Path.cwd() / f"{stage}.executed").write_text(json.dumps(sorted(executed)))
"""

# Files that a stage executes before it writes its outputs, but does not depend on: for which stages, and why.
EXCEPTIONS = {
    "*/__init__.py": (ALL, "hold no code, or settings of the process that change its speed only"),
    "digits/records/*.py": (ALL, "log what a stage does; it does the same without them (MLFLOW_TRACKING_URI=off)"),
    "digits/reports/significance.py": (ALL, "decides which registered model is the champion, after the outputs"),
    "digits/params/checks.py": (ALL, "rejects params, and returns none"),
    "digits/params/data.py": ({"train"}, "sections that the stage does not read"),
    "digits/params/training.py": (ALL - {"train"}, "sections that the stage does not read"),
    "digits/params/runtime.py": ({"download", "preprocess"}, "a section that the stage does not read"),
    "digits/params/evaluation.py": (ALL - {"evaluate"}, "a section that the stage does not read"),
    "digits/params/export.py": (ALL - {"export"}, "a section that the stage does not read"),
    "digits/learning/networks.py": ({"download", "preprocess"}, "rejects knobs of networks; no network is trained"),
    "digits/learning/layers.py": ({"download", "preprocess"}, "imported by networks.py"),
    "digits/learning/distributed.py": ({"download", "preprocess"}, "imported by networks.py"),
}
NOT_CODE = ("digits/params/__init__.py",)  # an __init__.py with code, which stages do depend on


def deps(stage: str) -> set[str]:
    return {dep for dep in pipeline.stages()[stage]["deps"] if dep.endswith(".py")}


def excepted(file: str, stage: str) -> bool:
    return file not in NOT_CODE and any(
        fnmatch(file, pattern) and stage in stages for pattern, (stages, _) in EXCEPTIONS.items()
    )


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What each stage has executed when it writes its last output."""
    from .conftest import SHORT, write_images, write_params

    here, folder = Path.cwd(), tmp_path_factory.mktemp("miniature")
    os.chdir(folder)
    try:
        write_images(Path("data/own"))
        write_params(SHORT)
    finally:
        os.chdir(here)
    found = {}
    for stage in STAGES:
        outputs = json.dumps([str(path) for path in pipeline.outputs(stage)])
        command = [sys.executable, "-c", SCRIPT, str(REPOSITORY), stage, outputs]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
        done = subprocess.run(
            command, cwd=folder, env=environment | {"MLFLOW_TRACKING_URI": "off"}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[stage] = set(json.loads((folder / f"{stage}.executed").read_text()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_what_it_executes_before_it_writes_its_outputs(
    executed: dict[str, set[str]], stage: str
) -> None:
    missing = {file for file in executed[stage] - deps(stage) if not excepted(file, stage)}
    assert f"stages/{stage}.py" in executed[stage]
    assert not missing, f"dvc.yaml: {stage}: executes {missing}, which are not among its deps"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_nothing_else(executed: dict[str, set[str]], stage: str) -> None:
    assert not deps(stage) - executed[stage]
    assert not {file for file in deps(stage) if excepted(file, stage)}


@pytest.mark.slow
def test_every_exception_is_needed(executed: dict[str, set[str]]) -> None:
    for pattern, (stages, _) in EXCEPTIONS.items():
        assert [file for stage in stages for file in executed[stage] if fnmatch(file, pattern)], pattern


def test_sub_packages_hold_no_code() -> None:
    for path in (REPOSITORY / "digits").glob("*/**/__init__.py"):
        if path.relative_to(REPOSITORY).as_posix() not in NOT_CODE:
            (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(docstring, ast.Expr), path


def test_sections_of_params_are_read_by_the_stages_that_depend_on_their_schema() -> None:
    schemas = {
        "data": "data", "split": "data", "model": "training", "train": "training", "augmentation": "training",
        "runtime": "runtime", "evaluate": "evaluation", "export": "export",
    }  # fmt: skip
    for stage, entry in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        sections = {name.split(".")[0] for name in entry["params"]} & set(schemas)
        needed = {f"digits/params/{schemas[section]}.py" for section in sections}
        others = {f"digits/params/{name}.py" for name in schemas.values()} - needed
        assert needed <= deps(stage)
        assert not others & deps(stage)


@pytest.mark.parametrize(
    ("files", "stages"),
    [
        (["digits/records/*.py", "digits/tools/*.py", "digits/reports/significance.py", "digits/__main__.py"], set()),
        (["digits/reports/figures/compare.py", "digits/reports/figures/tune.py", "tests/*.py"], set()),
        (["digits/params/training.py", "digits/learning/training.py"], {"train"}),
        (["digits/params/export.py", "digits/learning/exporting.py"], {"export"}),
        (["digits/params/evaluation.py", "digits/reports/figures/evaluate.py"], {"evaluate"}),
        (["digits/reports/advice.py"], {"evaluate", "export"}),
        (["digits/learning/evidence.py", "digits/learning/robustness.py"], {"evaluate"}),
    ],
)
def test_change_of_a_file_concerns_these_stages_only(files: list[str], stages: set[str]) -> None:
    for pattern in files:
        assert list(REPOSITORY.glob(pattern)), pattern
        assert {stage for stage in STAGES for dep in deps(stage) if fnmatch(dep, pattern)} == stages
