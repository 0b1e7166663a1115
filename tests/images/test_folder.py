from pathlib import Path

import pytest

from digits.datasets import FILES
from digits.errors import UserError
from digits.images import folder

from .conftest import CONTENTS, IMAGES, PACKED, TEST_LABELS, assert_complete, idx, md5


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own"
    path.mkdir()
    for file, content in CONTENTS.items():
        (path / file).write_bytes(content)
    return path


@pytest.mark.parametrize("block", [1 << 20, 100])
@pytest.mark.parametrize("packed", [[], [IMAGES], list(CONTENTS)])
def test_own_files_are_copied_plain_or_compressed(
    own: Path,
    tmp_path: Path,
    packed: list[str],
    block: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(folder, "BLOCK", block)
    for file in packed:
        (own / file).unlink()
        (own / f"{file}.gz").write_bytes(PACKED[f"{file}.gz"])
    folder.copy_folder(own, tmp_path / "raw")
    assert_complete(tmp_path / "raw")
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: {len(content):,} bytes from {own}, MD5 {md5(CONTENTS)[file]}" for file, content in CONTENTS.items()
    ]


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        (IMAGES, None, f"{IMAGES}: missing \\(or {IMAGES}.gz\\)"),
        (IMAGES, b"", "not IDX bytes in 3 dimension"),
        (IMAGES, b"\x89PNG\r\n\x1a\n" + bytes(100), "begins with 89 50 4e 47, must with 00 00 08 03"),
        (IMAGES, idx(5), "begins with 00 00 08 01, must with 00 00 08 03"),
        (IMAGES, b"\0\0\x0d\x03" + CONTENTS[IMAGES][4:], "begins with 00 00 0d 03"),
        (IMAGES, CONTENTS[IMAGES][:-1], f"{5 * 784 + 15} bytes, but its header promises {5 * 784 + 16}"),
        (IMAGES, CONTENTS[IMAGES] + b"\0", f"{5 * 784 + 17} bytes, but its header promises {5 * 784 + 16}"),
        (IMAGES, CONTENTS[IMAGES][:10], "10 bytes"),  # right as far as it goes: the fault is not how it begins
        (IMAGES, idx(5, 32, 32), "has shape \\(5, 32, 32\\); must be 1 or more, and images 28 x 28 pixels"),
        (IMAGES, idx(0, 28, 28), "has shape \\(0, 28, 28\\); must be 1 or more"),
        (IMAGES, idx(4, 28, 28), "4 train images but 5 train labels; must be as many"),
        (TEST_LABELS, idx(2), "3 test images but 2 test labels"),
        (TEST_LABELS, idx(3, value=7), "test label 7; must not exceed the largest training label, 2"),
    ],
    ids=[
        "missing",
        "empty",
        "picture",
        "labels for images",
        "floats",
        "too short",
        "too long",
        "within the header",
        "32 x 32",
        "no image",
        "fewer images than labels",
        "fewer labels than images",
        "unknown label",
    ],
)
def test_fault_in_own_files_is_reported_with_its_place_and_nothing_is_copied(
    own: Path, tmp_path: Path, file: str, content: bytes | None, fault: str
) -> None:
    (own / file).unlink() if content is None else (own / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"\A{own}(/{file})?: .*{fault}[^\n]*\Z|\A{own}/{fault}\Z"):
        folder.copy_folder(own, tmp_path / "raw")
    assert not list(tmp_path.glob("raw/*"))


def test_truncated_gzip_file_of_your_own_is_reported(own: Path, tmp_path: Path) -> None:
    (own / IMAGES).unlink()
    (own / f"{IMAGES}.gz").write_bytes(PACKED[f"{IMAGES}.gz"][:-20])
    with pytest.raises(UserError, match=rf"{IMAGES}: cannot be read \(Compressed file ended"):
        folder.copy_folder(own, tmp_path / "raw")


def test_all_faults_in_own_files_are_reported_at_once(own: Path, tmp_path: Path) -> None:
    (own / IMAGES).unlink()
    (own / FILES["train", "labels"]).write_bytes(b"labels")
    (own / TEST_LABELS).write_bytes(idx(4))
    with pytest.raises(UserError) as raised:
        folder.copy_folder(own, tmp_path / "raw")
    assert [line.split(": ")[0] for line in str(raised.value).splitlines()] == [
        f"{own}/{IMAGES}",
        f"{own}/{FILES['train', 'labels']}",
        str(own),
    ]
