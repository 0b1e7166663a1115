"""Data larger than the memory that a process may have of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from digits.datasets import FILES
from digits.sources import format_idx

from .conftest import REPOSITORY, SHORT, write_images, write_params

# What a process may add to its own memory once all is imported; mapped files are not counted.
LIMIT = 96 << 20
SCRIPT = f"""
import re, resource
from pathlib import Path
from digits.files import write_text
from stages import download, preprocess
import torch
torch.set_num_threads(1)
status = Path("/proc/self/status").read_text()
limit = int(re.search(r"VmData:\\s*(\\d+) kB", status)[1]) * 1024 + {LIMIT}
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
download.main()
preprocess.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_download_and_preprocess_need_less_memory_than_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("data/own"))
    count = 3 * LIMIT // 2 // 784
    for kind, shape in (("images", (count, 28, 28)), ("labels", (count,))):
        Path("data/own", FILES["train", kind]).write_bytes(format_idx(np.full(shape, 9, np.uint8)))
    write_params(SHORT)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True)
    assert Path("data/splits/train.safetensors").stat().st_size > 1.4 * LIMIT
