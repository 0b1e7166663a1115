"""The same pictures, read by everything that reads: the command, the service, the page, and Node."""

import base64
import contextlib
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from digits.__main__ import dispatch
from digits.errors import UserError
from digits.serving import digits_onnx, paper, preprocessing, segmentation
from digits.serving.reading import INCLUDED, Model

from ..serving.conftest import png
from ..serving.servers import ask, form
from .conftest import KINDS, PAGE, picture, visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
MIRRORED, SHARED = 300, 100  # pictures
BATCH = 20  # pictures of a request
READ = """async ([rgba, width, height, single]) => {
    const { read } = await import("/recognition.js");
    const text = atob(rgba);
    const pixels = new Uint8ClampedArray(text.length);
    for (let place = 0; place < text.length; place++) pixels[place] = text.charCodeAt(place);
    return read(pixels, width, height, 28, single).map((one) => ({ ...one, image: [...one.image] }));
}"""
NODE = """
import { readFileSync } from "node:fs";
const [page, folder] = process.argv.slice(2);
const { Model, softmax } = await import(`${page}/model.js`);
const { read } = await import(`${page}/recognition.js`);
const content = (name) => { const { buffer } = new Uint8Array(readFileSync(`${page}/${name}`)); return buffer; };
const model = await Model.load(content);
const answers = [];
for (const { file, width, height } of JSON.parse(readFileSync(`${folder}/pictures.json`))) {
    const found = read(new Uint8ClampedArray(readFileSync(`${folder}/${file}.rgba`)), width, height, model.side, false);
    const logits = found.length ? await model.logits(found.map((one) => one.image)) : [];
    const shares = logits.map(softmax);
    answers.push({ file, digits: found.map((one, place) => ({
        label: model.classes[shares[place].indexOf(Math.max(...shares[place]))],
        probability: Math.max(...shares[place]), box: one.box, line: one.line })) });
}
console.log(JSON.stringify(answers));
"""


def shrunk(number: int) -> tuple[Image.Image, bool]:
    """Return a picture and whether it shows one character; most are small, since others take three times as long."""
    image, single = picture(number)
    if number % 24:
        image.thumbnail((240, 240))
    return image, single


def test_browser_prepares_pictures_as_python_does(browser: "Browser", static: str) -> None:
    characters = 0
    with visiting(browser, f"{static}/docs.html") as visit:
        for number in range(MIRRORED):
            image, single = shrunk(number)
            how: dict[str, Any] = {"channels": 1, "side": 28, "ink": True, "single": single}
            try:
                expected = preprocessing.characters(io.BytesIO(png(image)), "picture", **how)
            except UserError:
                expected = []
            rgba = base64.b64encode(image.convert("RGBA").tobytes()).decode()
            found = visit.page.evaluate(READ, [rgba, image.width, image.height, single])
            name = f"picture {number}, {KINDS[number % len(KINDS)]}"
            places = [(list(one.box), one.line, one.odd) for one in expected]
            assert [(one["box"], one["line"], one["odd"]) for one in found] == places, name
            for one, other in zip(found, expected, strict=True):
                assert np.abs(np.float32(one["image"]).reshape(28, 28) - other.image[0]).max() < 1e-5, name
            characters += len(found)
    assert characters > MIRRORED


def test_constants_are_those_of_python() -> None:
    source = (PAGE / "recognition.js").read_text(encoding="utf-8")
    assert f"export const WORK = {preprocessing.WORK};" in source
    for module, names in (
        (paper, ("GRID", "WINDOW", "NEAR", "BINS")),
        (segmentation, ("MOST", "FAINT", "GAP", "SMALLEST", "CARD_EDGE")),
    ):
        values = ", ".join(f"{getattr(module, name)}" for name in names)
        assert f"export const [{', '.join(names)}] = [{values}];" in source


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of pictures."""
    folder = tmp_path_factory.mktemp("shared")
    about = []
    for number in range(SHARED):
        image, _ = shrunk(number)
        name = f"{number:03}.png"
        (folder / name).write_bytes(png(image))
        (folder / f"{name}.rgba").write_bytes(image.convert("RGBA").tobytes())
        about.append({"file": name, "width": image.width, "height": image.height})
    (folder / "pictures.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def read(shared: Path) -> list[dict[str, Any]]:
    """What the command reads on them."""
    output = io.StringIO()
    with pytest.raises(UserError, match="nothing to read"), contextlib.redirect_stdout(output):
        dispatch(["predict", "--model", str(INCLUDED), "--format", "json", str(shared)])
    found: list[dict[str, Any]] = json.loads(output.getvalue())
    assert len(found) == SHARED
    return [one | {"file": Path(one["file"]).name} for one in found]


def test_service_answers_as_the_command_does(service: str, shared: Path, read: list[dict[str, Any]]) -> None:
    for start in range(0, SHARED, BATCH):
        files = [(one["file"], (shared / one["file"]).read_bytes()) for one in read[start : start + BATCH]]
        code, found = ask(f"{service}/predict", *form(*files))
        assert code == 200
        assert found == read[start : start + BATCH]


def test_page_answers_as_the_command_does(
    browser: "Browser", static: str, shared: Path, read: list[dict[str, Any]]
) -> None:
    with visiting(browser, static) as visit:
        visit.page.get_by_text("Waiting for a digit").wait_for()
        for one in read:
            visit.page.locator("#file").set_input_files(shared / one["file"])
            visit.page.locator("#text[data-file='" + one["file"] + "']").wait_for()
            digits = visit.page.locator("#digits li").all_inner_texts()
            assert [text.split()[0] for text in digits] == [digit["label"] for digit in one.get("digits", [])], one
            shares = [float(text.split()[1]) / 100 for text in digits]
            assert shares == pytest.approx([digit["probability"] for digit in one.get("digits", [])], abs=0.006)
            assert ("unsure" in visit.page.locator("#text").inner_text()) == one.get("unsure", False)
        visit.assert_quiet(static)


def test_model_as_mlflow_loads_it_answers_as_the_command_does(shared: Path, read: list[dict[str, Any]]) -> None:
    """MLflow takes tensors; tests/pipeline/test_pipeline.py has it serve them."""
    model, loaded = Model(INCLUDED, threads=1), digits_onnx._load_pyfunc(str(INCLUDED))
    for one in read:
        if "error" in one:
            continue
        prepared = preprocessing.characters(shared / one["file"], "picture", 1, 28, ink=True, single=False)
        logits = loaded.predict(np.stack([character.image for character in prepared]))
        labels = [model.classes[place] for place in logits.argmax(axis=1)]
        assert labels == [digit["label"] for digit in one["digits"]]


def test_node_answers_as_the_command_does(shared: Path, read: list[dict[str, Any]]) -> None:
    if not (node := shutil.which("node")):
        pytest.skip("Node is not installed")
    script = shared / "read.mjs"
    script.write_text(NODE)
    command = [node, str(script), str(PAGE), str(shared)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    for one, other in zip(json.loads(done.stdout), read, strict=True):
        assert [(digit["label"], digit["box"], digit["line"]) for digit in one["digits"]] == [
            (digit["label"], digit["box"], digit["line"]) for digit in other.get("digits", [])
        ]
        shares = [digit["probability"] for digit in other.get("digits", [])]
        assert [digit["probability"] for digit in one["digits"]] == pytest.approx(shares, abs=1e-3)
