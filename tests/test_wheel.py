"""The wheel as people install it: in a new environment, without torch; and the container's steps without Docker."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from digits.serving.reading import INCLUDED

from .conftest import ROOT, git
from .pipeline.servers import free_port
from .serving.conftest import written
from .serving.servers import ask

pytestmark = pytest.mark.slow
UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"  # `make setup` puts it there
NEEDED = "import numpy, onnxruntime, PIL.Image, scipy.ndimage"


def run(*command: str | Path, folder: Path, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command as on a machine that has nothing of this repository."""
    kept = ("PATH", "HOME", "PIP_", "UV_", "SSL_", "LANG")
    environment = {key: value for key, value in os.environ.items() if key.startswith(kept)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done


def timed(*command: str | Path, folder: Path) -> tuple[str, float]:
    """Return what a command says, and the processor seconds that it takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(*command, folder=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from what the Dockerfile copies, as git has it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for names in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        for name in git("-C", str(ROOT), "ls-files", *names.split()).splitlines():
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--wheel", "--outdir", target, folder=source)
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it where nothing else is; the folder of its programs."""
    root = tmp_path_factory.mktemp("environment")
    run(UV, "venv", "--quiet", "--clear", "--python", sys.executable, root, folder=root)
    run(UV, "pip", "install", "--quiet", "--python", root, wheel, folder=root)
    return root / "bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written("23\n5").save(tmp_path / "page.png")
    return tmp_path


def test_wheel_is_sound_and_has_the_model_and_the_page(wheel: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, folder=wheel.parent)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    page = {
        f"digits/serving/page/{path.relative_to(INCLUDED.parent)}"
        for path in INCLUDED.parent.rglob("*")
        if path.is_file()
    }
    assert page < names
    assert {name.split("/")[0] for name in names if not name.startswith("reproducible_mnist-")} == {"digits"}
    assert wheel.stat().st_size < 6_000_000


def test_pictures_are_read_without_torch_and_soon(environment: Path, folder: Path) -> None:
    run(environment / "digits", "predict", "page.png", folder=folder)  # python writes what it has compiled
    answer, answered = timed(environment / "digits", "predict", "--format", "json", "page.png", folder=folder)
    assert json.loads(answer)[0]["text"] == "23\n5"
    _, imported = timed(environment / "python", "-c", NEEDED, folder=folder)
    assert answered < 3 * imported  # 1.5 times on a quiet machine
    listed = run(UV, "pip", "list", "--quiet", "--format", "json", "--python", environment / "python", folder=folder)
    installed = json.loads(listed.stdout)
    assert not {"torch", "mlflow", "dvc", "matplotlib"} & {one["name"] for one in installed}


def test_what_needs_the_pipeline_is_one_line(environment: Path, folder: Path) -> None:
    for command in ("compare", "seeds", "verify"):
        done = run(environment / "digits", command, fails=True, folder=folder)
        assert re.fullmatch(
            r"digits \w+: needs \w+, which is not installed; pip install 'repro.+\[train\].+\n", done.stderr
        )


def test_container_answers_and_is_healthy(environment: Path, folder: Path) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    command = json.loads(re.findall(r"^CMD (.+)$", dockerfile, re.MULTILINE)[-1])
    check = json.loads(re.findall(r"^HEALTHCHECK .* CMD (.+)$", dockerfile, re.MULTILINE)[-1])
    assert re.search(r"^USER (?!root)\w+$", dockerfile, re.MULTILINE)
    port = str(free_port())
    command = [str(environment / command[0]), *command[1:]]
    command[command.index("--port") + 1] = port
    command[command.index("--host") + 1] = "127.0.0.1"
    asked = [str(environment / check[0]), check[1], check[2].replace("8000", port)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            server.stdout.readline()
            for _ in range(100):
                if not subprocess.run(asked, capture_output=True, check=False).returncode:
                    break
                assert server.poll() is None
            code, found = ask(f"http://127.0.0.1:{port}/predict", (folder / "page.png").read_bytes(), "image/png")
            assert (code, found[0]["text"]) == (200, "23\n5")
        finally:
            server.kill()
    assert subprocess.run(asked, capture_output=True, check=False).returncode
