"""Who may import whom: sub-packages import only from those below, and the big libraries have one home each."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from .conftest import ROOT

# From the top down; the modules of the foundation are the last layer.
LAYERS = ("tools", "records", "reports", "learning", "serving", "images", "foundation")
HOMES = {
    "mlflow": ("digits/records/",),
    "matplotlib": ("digits/reports/",),
    "onnxruntime": ("digits/serving/", "digits/learning/exporting.py"),
    "optuna": ("digits/tools/tune.py",),
}
FILES = sorted(path.relative_to(ROOT) for folder in ("digits", "stages") for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path) for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Yield what a file imports, also inside functions; `from a import b` is `a.b` where that is a module."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:  # relative ones are those of tests among themselves
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse((ROOT / path).read_text(encoding="utf-8")))


GRAPH = {name_of(path): {found for found in imports(path) if found in MODULES} for path in FILES}


def layer(module: str) -> int:
    part = module.split(".")[1] if module.count(".") else "foundation"
    return LAYERS.index(part if part in LAYERS else "foundation")


def test_no_module_imports_itself_by_way_of_others() -> None:
    TopologicalSorter(GRAPH).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("module", [name for name in sorted(GRAPH) if name.startswith("digits.")])
def test_imports_point_down(module: str) -> None:
    if module == "digits.__main__":  # imports a command by its name, when it runs
        assert GRAPH[module] == {"digits.errors"}
        return
    up = {found for found in GRAPH[module] if layer(found) < layer(module)}
    assert not up, f"{module} imports from above: {up}"
    assert not {found for found in GRAPH[module] if found.startswith("stages")}


def test_a_module_below_another_is_recognized_as_such() -> None:
    assert layer("digits.files") > layer("digits.images.idx") > layer("digits.serving.reading")
    assert layer("digits.learning.training") > layer("digits.reports.figures.train") > layer("digits.records.runs")
    assert "digits.records.runs" in GRAPH["digits.records.results"]
    assert "digits.images.idx" in GRAPH["digits.images.readers"]


def test_no_stage_imports_another_or_a_tool() -> None:
    for module, found in GRAPH.items():
        if module.startswith("stages."):
            assert not [one for one in found if one.startswith(("stages", "digits.tools", "digits.serving"))]


@pytest.mark.parametrize("library", HOMES)
def test_library_is_imported_only_in_its_home(library: str) -> None:
    users = {path.as_posix() for path in FILES if library in {found.split(".")[0] for found in imports(path)}}
    assert users
    assert not [user for user in users if not user.startswith(HOMES[library])]


def test_every_imported_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in lines}
    tests = [path.relative_to(ROOT) for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    providers = packages_distributions()
    for path in [*FILES, *tests]:
        for top in {found.split(".")[0] for found in imports(path)}:
            if top in sys.stdlib_module_names or top in ("digits", "stages", "tests", "benchmarks"):
                continue
            names = {name.lower().replace("_", "-") for name in providers.get(top, [top])}
            assert names & declared, f"{path} imports {top}, which pyproject.toml does not declare"
