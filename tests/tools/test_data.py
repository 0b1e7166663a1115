from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digits.__main__ import dispatch
from digits.errors import UserError

from ..conftest import Change


@pytest.fixture
def arrays(change: Change) -> Path:
    """Return the path of a file with two classes, of which one test image is a training image too."""
    change({})
    images = np.random.default_rng(0).integers(0, 256, (12, 10, 10), dtype=np.uint8)
    labels = np.array(["cat", "dog"] * 6)
    np.savez("own.npz", x_train=images[:8], y_train=labels[:8], x_test=images[7:], y_test=labels[7:])
    return Path("own.npz")


def test_what_a_file_holds_is_said_before_anything_runs(arrays: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["data", str(arrays), "--picture", "samples.png"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "npz: 8 train, 5 test images of 2 classes, 10 x 10 pixels, gray"
    assert "1 test images are also training images" in lines
    assert [line.split() for line in lines if line.startswith(("cat", "dog"))] == [["cat", "4", "2"], ["dog", "4", "3"]]
    assert lines[-1] == "to use them: dvc exp run -S data.name=folder -S data.folder=own.npz"
    assert {path.name for path in Path.cwd().iterdir()} == {"own.npz", "params.yaml", "samples.png"}
    assert Image.open("samples.png").width > 500


def test_what_would_be_rejected_is_said_and_is_code_1(arrays: Path) -> None:
    np.savez(arrays, x=np.ones((4, 10, 12)), y=np.array(list("abab")))
    with pytest.raises(
        UserError, match=r"^own\.npz: images of 10 x 12 pixels; must be squares of 8 to 64: data\.side: 28"
    ):
        dispatch(["data", str(arrays)])


@pytest.mark.parametrize("path", ["nowhere", "params.yaml"])
@pytest.mark.usefixtures("arrays")
def test_path_that_has_nothing_to_read_is_one_line(path: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.folder: {path}: [^\n]+$"):
        dispatch(["data", path])


@pytest.mark.usefixtures("arrays")
def test_wrong_value_in_params_is_one_line() -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("format: auto", "format: xml"), encoding="utf-8")
    with pytest.raises(UserError, match=r"^params\.yaml: data\.format: must be 'auto', [^\n]+, not 'xml'$"):
        dispatch(["data", "own.npz"])
