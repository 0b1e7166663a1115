import csv
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from digits.__main__ import dispatch
from digits.errors import UserError
from digits.serving.reading import INCLUDED

from ..serving.conftest import png, written


def predict(*arguments: object) -> None:
    dispatch(["predict", *map(str, arguments)])


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a folder of two pages, one of them in a folder within, beside what are none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pages/more").mkdir(parents=True)
    written("23\n5").save("pages/one.png")
    written("8", ink=230, paper=30).save("pages/more/two.jpg")
    (tmp_path / "pages/.hidden.png").write_text("no picture")
    (tmp_path / "pages/notes.txt").write_text("no picture")
    return tmp_path


def test_each_picture_is_a_line_with_what_is_written_and_how_sure_that_is(
    pages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict("--model", INCLUDED, "pages/one.png", pages / "pages/more/two.jpg")
    one, two = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"pages/one\.png: 23 / 5 \((unsure of \d, )?[\d.]+%\)", one)
    assert two.startswith(f"{pages}/pages/more/two.jpg: 8 (")


def test_json_has_an_object_for_each_file_in_their_order_also_of_folders(
    pages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pages / "blank.png").write_bytes(png(np.full((60, 60), 255.0)))
    with pytest.raises(UserError, match=r"\Aabsent\.png: no such file\nblank\.png: nothing to read\Z"):
        predict("--format", "json", "absent.png", "pages", "blank.png")
    found = json.loads(capsys.readouterr().out)
    names = ["absent.png", "pages/more/two.jpg", "pages/one.png", "blank.png"]
    assert [one["file"] for one in found] == names
    assert [one.get("text", one.get("error")) for one in found] == ["no such file", "8", "23\n5", "nothing to read"]
    assert [digit["line"] for digit in found[2]["digits"]] == [0, 0, 1]


@pytest.mark.usefixtures("pages")
def test_csv_has_a_row_for_each_character(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"\Anone\.png: no such file\Z"):
        predict("--format", "csv", "pages/one.png", "none.png")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["file"], row["line"], row["label"]) for row in rows] == [
        ("pages/one.png", "0", "2"),
        ("pages/one.png", "0", "3"),
        ("pages/one.png", "1", "5"),
        ("none.png", "", ""),
    ]
    assert rows[-1]["error"] == "no such file"


def test_single_reads_one_character_though_it_is_broken(pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = np.array(written("5", 90))
    page[60:64] = 220
    (pages / "broken.png").write_bytes(png(page))
    predict("--single", "broken.png")
    assert capsys.readouterr().out.startswith("broken.png: 5 (")


def test_picture_comes_from_stdin(
    pages: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (pages / "pages/one.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    predict("--show", "show.png", "-")
    assert capsys.readouterr().out.startswith("-: 23 / 5 (")
    assert (pages / "show.png").exists()


def test_show_draws_boxes_and_what_the_model_saw(pages: Path) -> None:
    predict("--show", "show.png", "pages")
    with Image.open(pages / "show.png") as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert ((pixels[..., 1] - pixels[..., 0] > 60) & (pixels[..., 1] - pixels[..., 2] > 30)).sum() > 500  # green boxes
    assert (pixels[:, 620:] == 0).all(axis=2).sum() > 2000  # black, as MNIST
    with pytest.raises(UserError, match=r"^absent/show\.png: cannot be written"):
        predict("--show", "absent/show.png", "pages")


def test_folder_without_pictures_is_one_line(pages: Path) -> None:
    (pages / "empty").mkdir()
    with pytest.raises(UserError, match=r"\Aempty: no pictures in this folder; looked for \.png, "):
        predict("empty")


def test_without_an_exported_model_the_included_one_is_used(pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict("pages/one.png")
    assert capsys.readouterr().out.startswith("pages/one.png: 23 / 5")
    (pages / "models/export").mkdir(parents=True)
    (pages / "models/export/model.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"^models/export/model\.onnx: not a model .* `dvc repro` makes it$"):
        predict("pages/one.png")
