"""The code of docs/use.md, in every runtime, on all test images."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from digits.images import splits
from digits.images.batches import to_float
from digits.learning import exporting
from digits.serving.reading import INCLUDED

from ..conftest import ROOT
from .conftest import Project

pytestmark = pytest.mark.slow
SAMPLES = re.findall(r"^```(python|js)\n(.*?)^```", (ROOT / "docs/use.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
NODE = """
import { readFileSync, writeFileSync } from "node:fs";
import * as ort from "RUNTIME/ort.wasm.bundle.min.mjs";
import { gunzipSync } from "node:zlib";
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = new Uint8Array(gunzipSync(readFileSync("RUNTIME/ort-wasm-simd-threaded.wasm.gz"))).buffer;
const images = new Float32Array(new Uint8Array(readFileSync("images.f32")).buffer);
const n = images.length / 784;
SAMPLE
writeFileSync("logits.json", JSON.stringify([...logits.data]));
"""


@pytest.fixture(scope="module")
def images(finished: Project) -> NDArray[np.float32]:
    split = splits.load(finished.root / "data/splits/test.safetensors")
    found: NDArray[np.float32] = to_float(split.images).numpy()
    assert len(found) == 10_000
    return found


@pytest.fixture(scope="module")
def expected(finished: Project) -> NDArray[np.float32]:
    """The logits of the exported file, as the export stage verified them against the trained model's."""
    test = splits.load(finished.root / "data/splits/test.safetensors")
    found: NDArray[np.float32] = exporting.run_onnx(finished.root / "models/export/model.onnx", test, 500, 1).numpy()
    return found


def assert_same(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert np.abs(logits - expected).max() < 1e-3
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).all()


@pytest.mark.parametrize("number", range(3))
def test_python_gives_the_same(
    finished: Project,
    images: NDArray[np.float32],
    expected: NDArray[np.float32],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(finished.root)
    kind, text = SAMPLES[number]
    assert kind == "python"
    names = {"images": images}
    exec(text, names)
    assert_same(names["logits"], expected)


def test_node_gives_the_same(
    finished: Project,
    images: NDArray[np.float32],
    expected: NDArray[np.float32],
    tmp_path: Path,
) -> None:
    if not (node := shutil.which("node")):
        pytest.skip("Node is not installed")
    kind, text = SAMPLES[3]
    assert kind == "js"
    images.tofile(tmp_path / "images.f32")
    shutil.copytree(finished.root / "models/export", tmp_path / "models/export")
    runtime = (INCLUDED.parent / "runtime").as_posix()
    # There is no file system in the browser's build, which the repository has: the content instead of the path.
    sample = re.sub(r'"(models/\S+\.onnx)"', r'readFileSync("\1")', text)
    (tmp_path / "run.mjs").write_text(NODE.replace("RUNTIME", runtime).replace("SAMPLE", sample), encoding="utf-8")
    subprocess.run([node, "run.mjs"], cwd=tmp_path, check=True)
    logits = np.float32(json.loads((tmp_path / "logits.json").read_bytes())).reshape(-1, 10)
    assert_same(logits, expected)
