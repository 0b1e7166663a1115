"""Stage 1: the raw IDX files of the data set that params.yaml names, each one verified.

A named data set is checked file by file against its published MD5, whatever source served it, so that everybody starts
from the same bytes; your own folder is checked for format, sizes and counts.
"""

from pathlib import Path

from digits import params, paths
from digits.datasets import FOLDER
from digits.errors import run
from digits.images import fetching, folder
from digits.learning import networks


def main() -> None:
    data = params.load(networks.check).data
    if data.name == FOLDER:
        folder.copy_folder(Path(data.folder), paths.RAW)
    else:
        fetching.download(data.name, data.sources, data.timeout, paths.RAW)


if __name__ == "__main__":
    run(main)
