"""A person's own images: every format gives the same IDX files, and no damaged one a traceback or a file."""

import gzip
import io
import json
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from digits.datasets import FILES
from digits.errors import UserError
from digits.images import own, raw, readers
from digits.images.idx import format_idx, read_idx
from digits.images.readers import FORMATS
from digits.params import data

from ..damage import damaged

NAMES = {"train": ["2", "2", "10", "10", "10", "apple"], "test": ["2", "10", "apple"]}
Arrays = dict[str, tuple[NDArray[np.uint8], list[str]]]


def arrays(side: int = 12, channels: int = 1) -> Arrays:
    """Return random images of each part, in the order of their classes, with the names of these."""
    generator = np.random.default_rng(0)
    shape = (side, side) + ((3,) if channels == 3 else ())
    return {
        part: (generator.integers(0, 256, (len(names), *shape), dtype=np.uint8), names) for part, names in NAMES.items()
    }


def as_images(folder: Path, content: Arrays, suffix: str = ".png") -> Path:
    for part, (images, names) in content.items():
        for place, (image, name) in enumerate(zip(images, names, strict=True)):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / part / name / f"{place}{suffix}")
    return folder


def as_csv(folder: Path, content: Arrays, *, last: bool = False, header: bool = True, packed: bool = False) -> Path:
    for part, (images, names) in content.items():
        lines = []
        for image, name in zip(images, names, strict=True):
            row = [*map(str, image.flatten())]
            lines.append(",".join([*row, name] if last else [name, *row]))
        columns = [f"pixel{place}" for place in range(images[0].size)]
        if header:
            lines.insert(0, ",".join([*columns, "label"] if last else ["label", *columns]))
        text = "\n".join(lines).encode() + b"\n"
        (folder / f"{part}.csv{'.gz' if packed else ''}").write_bytes(gzip.compress(text, mtime=0) if packed else text)
    return folder


def as_npz(folder: Path, content: Arrays, names: str = "x_{} y_{}") -> Path:
    arrays: dict[str, Any] = {}
    for part, (images, labels) in content.items():
        one, other = names.format(part, part).split()
        arrays |= {one: images, other: np.array(labels)}
    np.savez_compressed(folder / "data.npz", **arrays)
    return folder / "data.npz"


def as_parquet(folder: Path, content: Arrays) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    classes = ["10", "2", "apple"]  # in any order
    features = {"label": {"names": classes, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    for part, (images, names) in content.items():
        rows = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({"image": rows, "label": [classes.index(name) for name in names]})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    return folder


def as_mat(folder: Path, content: Arrays) -> Path:
    from scipy.io import savemat

    codes = {"2": 2, "10": 10, "apple": 11}
    for part, (images, names) in content.items():
        found = images if images.ndim == 4 else np.repeat(images[..., np.newaxis], 3, axis=-1)
        labels = np.array([[codes[name]] for name in names])
        savemat(folder / f"{part}_32x32.mat", {"X": np.moveaxis(found, 0, -1), "y": labels})
    return folder


def as_idx(folder: Path, content: Arrays) -> Path:
    codes = {"2": 2, "10": 10, "apple": 11}
    for part, (images, names) in content.items():
        (folder / FILES[part, "images"]).write_bytes(format_idx(images))
        (folder / FILES[part, "labels"]).write_bytes(format_idx(np.array([codes[name] for name in names], np.uint8)))
    return folder


WRITERS: dict[str, Callable[[Path, Arrays], Path]] = {
    "idx": as_idx, "images": as_images, "csv": as_csv, "npz": as_npz, "parquet": as_parquet, "mat": as_mat,
}  # fmt: skip


def copied(path: Path, target: Path, **how: Any) -> dict[str, NDArray[Any]]:
    """Return what is copied to `target`, by file."""
    source = own.Source(path, **how)
    found = own.survey(source)
    assert not found.faults(source.side)
    own.copy(source, found, target)
    return {file: read_idx(target / file) for file in FILES.values()}


def assert_same(found: dict[str, NDArray[Any]], content: Arrays) -> None:
    for part, (images, names) in content.items():
        np.testing.assert_array_equal(found[FILES[part, "images"]], images)
        assert found[FILES[part, "labels"]].tolist() == [["2", "10", "apple"].index(name) for name in names]


def test_every_format_has_a_case_here_and_can_be_named_in_params() -> None:
    assert WRITERS.keys() == FORMATS.keys() == set(data.FORMATS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_files(tmp_path: Path, name: str, channels: int) -> None:
    (tmp_path / "own").mkdir()
    content = arrays(channels=channels)
    found = copied(WRITERS[name](tmp_path / "own", content), tmp_path / "raw")
    if name == "mat" and channels == 1:  # SVHN is always in color
        found = {file: array[..., 0] if array.ndim == 4 else array for file, array in found.items()}
    assert_same(found, content)
    named = ["2", "10", "11"] if name in ("idx", "mat") else ["2", "10", "apple"]
    assert raw.about(tmp_path / "raw") == raw.About(named, ink=False)


@pytest.mark.parametrize("how", [{"last": True}, {"last": True, "header": False}, {"packed": True}, {"header": False}])
def test_label_of_a_table_may_be_first_or_last_with_or_without_a_header(tmp_path: Path, how: dict[str, bool]) -> None:
    (tmp_path / "own").mkdir()
    content = arrays()
    for images, _ in content.values():
        images[:, 0, 0] = images[:, -1, -1] = 0  # as the corners of handwriting are
    assert_same(copied(as_csv(tmp_path / "own", content, **how), tmp_path / "raw"), content)


def test_label_that_may_be_first_or_last_has_to_be_named(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    path = as_csv(tmp_path / "own", arrays(), header=False)
    with pytest.raises(UserError, match=r"train\.csv: labels may be first or last; set data\.label to say which$"):
        own.survey(own.Source(path))
    assert_same(copied(path, tmp_path / "raw", label="first"), arrays())


def test_table_without_labels_is_skipped_and_said(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    path = as_csv(tmp_path / "own", arrays())
    lines = (path / "test.csv").read_text().splitlines()
    (path / "test.csv").write_text("\n".join(line.split(",", 1)[1] for line in lines))
    found = own.survey(own.Source(path))
    assert found.total("test") == 0
    assert "skipped: 1 test.csv, which has no labels" in found.lines()


@pytest.mark.parametrize(
    ("names", "part"), [("{}_images {}_labels", "val"), ("x_{} y_{}", "validation"), ("{}_x {}_y", "valid")]
)
def test_validation_part_that_the_data_have_is_used(tmp_path: Path, names: str, part: str) -> None:
    content = arrays()
    validation = {part: (content["test"][0][::-1].copy(), content["test"][1][::-1])}
    path = as_npz(tmp_path, content | validation, names)
    found = copied(path, tmp_path / "raw")
    assert raw.about(tmp_path / "raw").validation == 3
    images = found[FILES["train", "images"]]
    np.testing.assert_array_equal(images, np.concatenate([content["train"][0], content["test"][0][::-1]]))


def test_labels_of_medmnist_and_flat_or_channel_first_images_are_understood(tmp_path: Path) -> None:
    images, names = arrays(channels=3)["train"]
    labels = np.array([[2] if name == "2" else [10] for name in names])
    np.savez(tmp_path / "a.npz", train_images=np.moveaxis(images, -1, 1), train_labels=labels)
    np.testing.assert_array_equal(copied(tmp_path / "a.npz", tmp_path / "raw")[FILES["train", "images"]], images)
    gray = images[..., 0]
    np.savez(tmp_path / "b.npz", data=gray.reshape(len(gray), -1), target=labels[:, 0])
    np.testing.assert_array_equal(copied(tmp_path / "b.npz", tmp_path / "raw")[FILES["train", "images"]], gray)


@pytest.mark.parametrize(
    ("values", "scale"), [(np.float32(1 / 255), 255.0), (np.float64(16 / 255), 255 / 16), (np.float32(1), 1.0)]
)
def test_values_of_0_to_1_and_0_to_16_are_scaled_and_said(tmp_path: Path, values: Any, scale: float) -> None:
    images, names = arrays()["train"]
    images[0, 0, 0] = 255
    np.savez(tmp_path / "a.npz", x=images * values, y=np.array(names))
    found = own.survey(own.Source(tmp_path / "a.npz"))
    assert found.scale == scale
    assert any("scaled by" in line for line in found.lines()) == (scale != 1)
    assert_same(copied(tmp_path / "a.npz", tmp_path / "raw"), {"train": (images, names)})


def test_transposed_images_are_put_upright(tmp_path: Path) -> None:
    images, names = arrays()["train"]
    np.savez(tmp_path / "a.npz", x=images.transpose(0, 2, 1), y=np.array(names))
    assert_same(copied(tmp_path / "a.npz", tmp_path / "raw", transpose=True), {"train": (images, names)})


def test_emnist_is_stored_by_columns(tmp_path: Path) -> None:
    from scipy.io import savemat

    content = arrays(28)
    dataset = {
        part: {
            "images": images.transpose(0, 2, 1).reshape(len(images), -1),
            "labels": np.array([[["2", "10", "apple"].index(name)] for name in names]),
        }
        for part, (images, names) in content.items()
    }
    savemat(tmp_path / "emnist.mat", {"dataset": dataset})
    assert_same(copied(tmp_path / "emnist.mat", tmp_path / "raw"), content)


def test_ten_of_svhn_is_the_digit_0(tmp_path: Path) -> None:
    from scipy.io import savemat

    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    savemat(tmp_path / "train_32x32.mat", {"X": images, "y": np.arange(20)[:, np.newaxis] % 10 + 1})
    found = own.survey(own.Source(tmp_path))
    assert found.classes == list("0123456789")


def test_hidden_and_unrelated_files_are_skipped_and_counted(tmp_path: Path) -> None:
    path = as_images(tmp_path / "own", arrays())
    for name in (".DS_Store", "notes.txt"):
        (path / "train/2" / name).write_text("text")
        (path / "train" / name).write_text("text")
    found = own.survey(own.Source(path))
    assert found.skipped == {"hidden": 2, "not a picture": 1, "not in the folder of a class": 1}
    assert_same(copied(path, tmp_path / "raw"), arrays())


def test_folder_of_classes_that_is_not_divided_is_for_training(tmp_path: Path) -> None:
    path = as_images(tmp_path / "own", {"train": arrays()["train"]})
    found = copied(path / "train", tmp_path / "raw")
    assert_same(found, {"train": arrays()["train"]})
    assert len(found[FILES["test", "images"]]) == 0


def test_pictures_of_every_mode_are_read(tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)
    one = Image.fromarray(gray)
    turned = one.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    clear = Image.new("RGBA", (12, 12), (0, 0, 0, 0))
    clear.paste(Image.new("RGBA", (4, 4), (20, 20, 20, 255)), (4, 4))
    saved: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "L.png": (one, {}), "RGB.png": (one.convert("RGB"), {}), "P.png": (one.convert("P"), {}),
        "16.png": (Image.fromarray(gray.astype(np.uint16) * 257), {}),
        "F.tif": (Image.fromarray(gray / np.float32(255)), {}), "turned.png": (turned, {"exif": exif}),
    }  # fmt: skip
    for name, (image, more) in saved.items():
        (tmp_path / "own" / "a").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "own/a" / name, **more)
    clear_folder = tmp_path / "own/b"
    clear_folder.mkdir()
    clear.save(clear_folder / "clear.png")
    found = copied(tmp_path / "own", tmp_path / "raw")[FILES["train", "images"]]
    for image in found[:-1]:
        np.testing.assert_array_equal(image, gray)
    assert found[-1, 0, 0] == 255  # dark on transparent lies on white
    assert found[-1, 5, 5] == 20


def test_images_of_different_sizes_name_the_knob_that_fits_them(tmp_path: Path) -> None:
    path = as_images(tmp_path / "own", arrays())
    Image.new("L", (30, 20), 200).save(path / "train/2/other.png")
    (line,) = own.survey(own.Source(path)).faults(0)
    assert line == "images of 12 x 12 and of 20 x 30 pixels; data.side: 28 scales and pads all of them"
    found = copied(path, tmp_path / "raw", side=28)[FILES["train", "images"]]
    assert found.shape[1:] == (28, 28)
    assert (found[2] == 200).all()  # padded with the color of its border


@pytest.mark.parametrize(
    ("images", "labels", "fault"),
    [
        (np.ones((4, 12, 12)), ["a"] * 4, "1 class (a); must be two or more"),
        (np.ones((4, 12, 10)), list("abab"), "images of 12 x 10 pixels; must be squares of 8 to 64: data.side: 28"),
        (np.ones((4, 70, 70)), list("abab"), "images of 70 x 70 pixels; must be squares of 8 to 64: data.side: 28"),
        (-np.ones((4, 12, 12)), list("abab"), "values from -1 to -1; must be 0 to 255, 0 to 1 or 0 to 16"),
        (300 * np.ones((4, 12, 12)), list("abab"), "values from 300 to 300; must be 0 to 255"),
        (np.zeros((4, 12, 12)), list("abab"), "values from 0 to 0; must be 0 to 255, 0 to 1 or 0 to 16, and not all 0"),
    ],
)
def test_data_that_cannot_be_used_say_why(tmp_path: Path, images: NDArray[Any], labels: list[str], fault: str) -> None:
    np.savez(tmp_path / "a.npz", x=images, y=np.array(labels))
    (line,) = own.survey(own.Source(tmp_path / "a.npz")).faults(0)
    assert line.startswith(fault)


def test_class_that_only_the_test_part_has_is_named(tmp_path: Path) -> None:
    images, _ = arrays()["test"]
    path = as_npz(tmp_path, arrays() | {"test": (images, ["2", "10", "pear"])})
    assert own.survey(own.Source(path)).faults(0) == ["test images of pear, of which there are no training images"]


def test_more_classes_than_a_byte_can_count_are_kept(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(300)] * 2
    images = np.random.default_rng(0).integers(0, 256, (600, 8, 8), dtype=np.uint8)
    found = copied(as_npz(tmp_path, {"train": (images, names)}), tmp_path / "raw")
    assert found[FILES["train", "labels"]].tolist() == [*range(300)] * 2


def test_arrays_that_need_pickle_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object), y=np.array(["a"]))
    with pytest.raises(UserError, match=r"a\.npz: .*must be an array of numbers or text$"):
        own.survey(own.Source(tmp_path / "a.npz"))


@pytest.mark.parametrize("name", ["nothing", "empty", "a.txt", "a.csv"])
def test_path_that_has_nothing_to_read_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("a.txt", "a.csv"):
        (tmp_path / file).touch()
    with pytest.raises(UserError) as raised:
        own.survey(own.Source(tmp_path / name))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("names", [("a\nb", "c"), ("x\x85", "y\x1c"), ("x" * 9000, "z")])
def test_names_in_a_file_are_shown_on_one_line(tmp_path: Path, names: tuple[str, str]) -> None:
    arrays: dict[str, Any] = dict.fromkeys(names, np.zeros((2, 8, 8)))
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError) as raised:
        own.survey(own.Source(tmp_path / "a.npz"))
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 500 + len(str(tmp_path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_one_line(tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    """Many more with `pytest tests/images/test_own.py --damaged 400`."""
    sound, work = tmp_path / "sound", tmp_path / "work"
    sound.mkdir()
    path = WRITERS[name](sound, arrays(8)).relative_to(sound)
    for number in range(request.config.getoption("--damaged")):
        chance = random.Random(f"{name} {number}")
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(sound, work)
        file = chance.choice(sorted(entry for entry in work.rglob("*") if entry.is_file()))
        file.write_bytes(damaged(file.read_bytes(), chance))
        try:
            source = own.Source(work / path, format=name)
            found = own.survey(source)
            if not found.faults(0):
                own.copy(source, found, tmp_path / "raw")
        except UserError as error:
            lines = str(error).splitlines()
            assert len(lines) == 1, lines
            assert len(lines[0]) < 500, lines


@pytest.mark.slow
def test_small_matlab_file_that_unpacks_to_very_much_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """700 MB of zeros in 0.7 MB, as scipy would write them."""
    monkeypatch.setattr(readers, "ROOM", 600 << 20)
    count = 700 << 20
    head = struct.pack("<IIIIIIII", 6, 8, 9, 0, 5, 12, 1, count // 1000) + struct.pack("<II", 1000, 0)
    head += struct.pack("<II", 1 | 1 << 16, ord("X")) + struct.pack("<II", 2, count)
    packer = zlib.compressobj()
    packed = packer.compress(struct.pack("<II", 14, len(head) + count) + head)
    packed += b"".join(packer.compress(bytes(1 << 20)) for _ in range(count >> 20)) + packer.flush()
    file = tmp_path / "bomb.mat"
    file.write_bytes(b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(UserError, match=r"^\S+bomb\.mat: not a MATLAB file that can be read \(unpacking it takes more"):
        own.survey(own.Source(file))


def test_earlier_files_stay_as_they_are_when_new_ones_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    path = as_csv(tmp_path / "own", arrays())
    copied(path, tmp_path / "raw")
    before = {file.name: file.read_bytes() for file in (tmp_path / "raw").iterdir()}
    source = own.Source(path)
    found = own.survey(source)
    (path / "test.csv").write_text((path / "test.csv").read_text().replace("\n2,", "\nx,y,", 1))
    with pytest.raises(UserError):
        own.copy(source, found, tmp_path / "raw")
    assert {file.name: file.read_bytes() for file in (tmp_path / "raw").iterdir()} == before
