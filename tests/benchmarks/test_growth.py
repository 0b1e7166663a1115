from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import growth
from digits import params, paths
from digits.datasets import FILES
from digits.images.idx import format_idx, read_idx
from digits.learning import networks
from tests.conftest import ROOT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with three images of each part as raw data, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    paths.RAW.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        images = random.integers(0, 256, (3, 28, 28), np.uint8)
        (paths.RAW / FILES[part, "images"]).write_bytes(format_idx(images))
        (paths.RAW / FILES[part, "labels"]).write_bytes(format_idx(np.arange(3, dtype=np.uint8)))
    return tmp_path


def test_enlarged_data_begin_with_the_originals_and_continue_with_shifted_copies(folder: Path) -> None:
    assert growth.enlarge(folder / "own", 3) == 3 * (3 + 3)
    for part in ("train", "test"):
        made, labels = (read_idx(folder / "own" / FILES[part, kind]) for kind in ("images", "labels"))
        before, names = (read_idx(paths.RAW / FILES[part, kind]) for kind in ("images", "labels"))
        assert np.array_equal(made[:3], before)
        assert not np.array_equal(made[3:6], before)
        assert not np.array_equal(made[6:], made[3:6])
        assert labels.tolist() == 3 * names.tolist()


@pytest.mark.slow
def test_a_copied_project_has_a_short_training_on_the_enlarged_data(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder / "project"
    growth.enlarge(folder / "own", 2)
    monkeypatch.chdir(ROOT)
    growth.copy_project(root, folder / "own")
    p = params.load(networks.check, path=root / "params.yaml")
    assert (p.data.name, p.data.folder, p.train.epochs, p.model.name) == ("folder", str(folder / "own"), 1, "mlp")
    content = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))  # for six images
    content["split"]["validation"], content["train"]["batch_size"] = 0.3, 2
    (root / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert growth.measure("download", root).seconds > 0
    assert (root / paths.RAW / FILES["train", "images"]).stat().st_size == 16 + 6 * 784
