import struct
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from digits.datasets import FILES
from digits.errors import UserError
from digits.images.idx import format_idx, read_idx

from .conftest import CONTENTS, IMAGES, arrays, idx


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    for key, array in arrays().items():
        path = tmp_path / FILES[key]
        path.write_bytes(CONTENTS[path.name])
        assert np.array_equal(read_idx(path), array)


def test_header_is_that_of_the_format() -> None:
    assert idx(2, 28, 28)[:16] == bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28])
    assert format_idx(np.array([3, 1], np.uint8)) == bytes([0, 0, 8, 1, 0, 0, 0, 2, 3, 1])


def test_fault_is_reported_under_the_name_of_the_original(tmp_path: Path) -> None:
    (tmp_path / ".partial").write_bytes(b"text")
    with pytest.raises(UserError, match=rf"^own/{IMAGES}: not IDX of images"):
        read_idx(tmp_path / ".partial", Path("own", IMAGES))


@pytest.mark.filterwarnings("error")
def test_read_file_becomes_a_tensor_of_the_same_memory_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / IMAGES
    path.write_bytes(CONTENTS[IMAGES])
    array = read_idx(path)
    tensor = torch.from_numpy(array)
    assert tensor.data_ptr() == array.ctypes.data
    tensor[:] = 7  # in memory only
    assert path.read_bytes() == CONTENTS[IMAGES]


def test_file_larger_than_memory_and_swap_is_mapped(tmp_path: Path) -> None:
    count = (psutil.virtual_memory().total + psutil.swap_memory().total) // 784 + 1
    path = tmp_path / IMAGES
    with path.open("wb") as file:  # without blocks on the disk
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", count, 28, 28))
        file.truncate(16 + count * 784)
    images = torch.from_numpy(read_idx(path))
    assert images.shape == (count, 28, 28)
    assert int(images[-1].sum()) == 0
