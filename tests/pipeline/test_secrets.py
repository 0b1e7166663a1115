"""Passwords and tokens that lie around end up in no run, log, card or message."""

import pytest

from .conftest import DIGITS, Project

pytestmark = pytest.mark.slow

# Where each is planted; all differ, so that the one that leaks is known.
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "planted-secret-2",
    "HTTPS_PROXY": "http://me:planted-secret-3@127.0.0.1:9",
    "DATABASE_PASSWORD": "planted-secret-4",
}
FILES = {
    "credentials.py": 'PASSWORD = "planted-secret-5"\n',
    ".env": "TOKEN=planted-secret-6\n",
    "digits/tokens.py": 'API_KEY = "planted-secret-7"\n',
    ".dvc/config": "\n['remote \"own\"']\n    url = https://me:planted-secret-8@example.com/x\n",
    "digits/tools/sync.py": '\nTOKEN = "planted-secret-9"\n',
    "notebook.ipynb": '{"source": "token=planted-secret-10"}\n',
    ".dvc/config.local": "\n['remote \"own\"']\n    password = planted-secret-11\n",
    "README.md": "\nhttps://me:planted-secret-12@example.com/\n",
}
EVALUATE = ("dvc", "repro", "--force", "--single-item", "evaluate")


def test_no_secret_is_recorded_or_shown(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # or Python compiles the files that have them
    for file, text in FILES.items():
        with (project.root / file).open("a") as opened:
            opened.write(text)
    made = project.run(*EVALUATE, MLFLOW_TRACKING_TOKEN="planted-secret-1")
    assert "may hold a secret" in made.stderr
    told = project.run(*DIGITS, "of", "models/model.safetensors")
    dead = "http://me:planted-secret-13@127.0.0.1:9/?token=planted-secret-14"
    lost = project.run(*DIGITS, "sync", fails=True, MLFLOW_TRACKING_URI=dead)
    assert "MLflow at http://127.0.0.1:9/" in lost.stderr
    storage = "postgresql://me:planted-secret-15@127.0.0.1:9/x"
    refused = project.run(*DIGITS, "tune", "--storage", storage, fails=True)
    assert "--storage: postgresql://127.0.0.1:9/x cannot be used" in refused.stderr
    text = (project.root / "params.yaml").read_text()
    sources = "sources: ['https://me:planted-secret-16@example.com/']"
    (project.root / "params.yaml").write_text(text.replace("sources: [torchvision, pypi]", sources))
    rejected = project.run("dvc", "repro", "--force", "--single-item", "download", fails=True)
    assert "params.yaml: data.sources.0: must be an address without user" in rejected.stderr
    (project.root / "params.yaml").write_text(text)
    said = "".join(part for done in (made, told, lost, refused, rejected) for part in (done.stdout, done.stderr))
    assert "planted-secret" not in said
    assert project.mlflow_runs()[0].data.tags["git_dirty"] == "true"
    own = {project.root / file for file in (*FILES, "tests/pipeline/test_secrets.py")}
    written = [path for path in project.root.rglob("*") if path.is_file() and path not in own]
    leaks = [str(path.relative_to(project.root)) for path in written if b"planted-secret" in path.read_bytes()]
    assert not leaks
    (project.root / ".dvc/config.local").unlink()  # other tests use the folder
