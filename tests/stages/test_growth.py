"""Data larger than the memory that a process may allocate."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from digits.datasets import FILES
from digits.images.idx import format_idx

from .conftest import REPOSITORY, SHORT, write_images, write_params

# kB that a process may add to its own memory after all imports; pages of mapped files are not counted.
LIMIT = 96 << 10
SCRIPT = """
import re, threading, time
from pathlib import Path
from stages import download, preprocess
import torch

def own():
    return int(re.search(r"RssAnon:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

def watch():
    while True:
        seen.append(own())
        time.sleep(0.002)

torch.set_num_threads(1)
before, seen = own(), []
threading.Thread(target=watch, daemon=True).start()
download.main()
preprocess.main()
print(max(seen) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_download_and_preprocess_need_less_memory_than_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("data/own"))
    count = 3 * LIMIT * 1024 // 2 // 784
    large = {"images": np.full((count, 28, 28), 9, np.uint8), "labels": (np.arange(count) % 10).astype(np.uint8)}
    large["images"][0] = 200
    for kind, array in large.items():
        Path("data/own", FILES["train", kind]).write_bytes(format_idx(array))
    write_params(SHORT)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) < LIMIT
    assert Path("data/splits/train.safetensors").stat().st_size > 1.4 * 1024 * LIMIT
