"""Stage 1: the raw IDX files of the data set that params.yaml names, each one verified.

A canonical data set is checked file by file against its published MD5, whatever source served it, so that everybody
starts from the same bytes; a folder of your own is checked for its format, sizes and counts.
"""

from pathlib import Path

from digits import params, paths, sources
from digits.command import run
from digits.datasets import FOLDER


def main() -> None:
    data = params.load().data
    if data.name == FOLDER:
        sources.copy_folder(Path(data.folder), paths.RAW)
    else:
        sources.download(data.name, data.sources, data.timeout, paths.RAW)


if __name__ == "__main__":
    run(main)
