from pathlib import Path

import pytest
import yaml

from digits import pipeline
from digits.errors import UserError
from digits.files import md5

from .conftest import ROOT

MADE = "stages: {{train: {{outs: [{}]}}}}"
BROKEN = ("{md5: 0123456789abcdef0123456789abcdef}", "{path: x}", "{path: x, md5: 0123abcd}", "x")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, the working directory of this test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_code_of_a_stage_is_each_file_of_the_library_that_dvc_yaml_names() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    code = pipeline.code("train")
    assert code == {dep: md5(ROOT / dep) for dep in stages["train"]["deps"] if dep.endswith(".py")}
    assert "digits/reports/model_card.md" in pipeline.code("export")
    assert {Path(file).parts[0] for file in pipeline.code(*stages)} == {"digits", "stages"}
    assert pipeline.code(*stages).items() > code.items()


def write_inputs() -> None:
    """Write what the stage preprocess reads, and a dvc.lock that knows it."""
    files = [dep for dep in pipeline.stages()["preprocess"]["deps"] if not dep.endswith(".py")]
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(f"content of {file}")
    outs = [{"path": file, "md5": md5(Path(file))} for file in files]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"download": {"outs": outs}}}))


def test_inputs_that_are_as_dvc_lock_says_are_returned_with_their_md5(folder: Path) -> None:
    write_inputs()
    found = pipeline.inputs("preprocess")
    assert len(found) == 5
    assert all(md5(folder / file) == checksum for file, checksum in found.items())


def test_every_changed_or_missing_input_is_reported_with_what_to_do(folder: Path) -> None:
    write_inputs()
    first, second, *_ = pipeline.inputs("preprocess")
    content = bytearray((folder / first).read_bytes())
    content[3] ^= 1
    (folder / first).write_bytes(content)
    (folder / second).unlink()
    with pytest.raises(UserError) as raised:
        pipeline.inputs("preprocess")
    one, other = str(raised.value).splitlines()
    assert one.startswith(f"{first}: MD5 {md5(folder / first)}, but in dvc.lock stage download made ")
    assert "python -m digits verify" in one
    assert other.startswith(f"{second}: cannot be read (No such file or directory)")


def test_without_dvc_lock_inputs_are_accepted_as_they_are(folder: Path) -> None:
    write_inputs()
    (folder / "dvc.lock").unlink()
    assert len(pipeline.inputs("preprocess")) == 5


@pytest.mark.parametrize("text", ["", "stages", "{", "other: 1", "\0", *map(MADE.format, BROKEN)])
def test_broken_dvc_lock_is_one_line(folder: Path, text: str) -> None:
    (folder / "dvc.lock").write_text(text)
    with pytest.raises(UserError, match=r"^dvc\.lock: .* `python -m digits repair`"):
        pipeline.lock()


@pytest.mark.usefixtures("folder")
def test_without_dvc_lock_no_stage_has_made_anything() -> None:
    assert pipeline.lock() == {}


def test_another_dvc_lock_is_read_from_its_text(folder: Path) -> None:
    (folder / "dvc.lock").write_text(MADE.format(f"{{path: here, md5: {32 * 'c'}}}"))
    text = MADE.format(
        f"{{path: there, md5: {32 * 'a'}}}, {{path: 's3://x', etag: '1'}}, {{path: y, md5: {32 * 'b'}.dir}}"
    )
    assert [out["path"] for out in pipeline.lock(text)["train"]["outs"]] == ["there", "s3://x", "y"]
    assert [out["path"] for out in pipeline.lock()["train"]["outs"]] == ["here"]


def test_outputs_are_all_files_that_stages_write_metrics_first() -> None:
    assert [path.as_posix() for path in pipeline.outputs("train")] == [
        "metrics/train.json",
        "plots/training.csv",
        "plots/training.png",
        "plots/augmentation.png",
        "models/model.safetensors",
    ]
    assert pipeline.outputs("train", "export") == pipeline.outputs("train") + pipeline.outputs("export")
    assert pipeline.outputs("download")[0] == Path("data/raw/train-images-idx3-ubyte")


def test_without_dvc_yaml_the_place_to_run_from_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "ROOT", folder)
    with pytest.raises(UserError, match=r"^dvc\.yaml: not found here; run this from the repository's root$"):
        pipeline.stages.__wrapped__()


def test_what_outlives_a_run_is_kept_in_the_real_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert pipeline.home() == folder.resolve()
    monkeypatch.setenv("DVC_ROOT", str(ROOT))  # as in an experiment that DVC runs in a temporary copy
    assert pipeline.home() == ROOT
