"""Stage 1: the images of the data set that params.yaml names, as raw IDX files, each one verified.

A named data set is checked file by file against its published MD5, whatever source served it, so that everybody starts
from the same bytes. Your own images may have any format of `images.readers`; they are checked for sizes, values,
classes and counts, and for whether the params fit them.
"""

from digits import params, paths, pipeline
from digits.datasets import FOLDER
from digits.errors import UserError, run
from digits.images import fetching, own
from digits.images.readers import PARTS
from digits.learning import networks
from digits.params.data import DataParams


def main() -> None:
    reading = pipeline.Reading("download")
    p = params.load(networks.check)
    if p.data.name == FOLDER:
        copy(p.data)
    else:
        fetching.download(p.data.name, p.data.sources, p.data.timeout, paths.RAW)
    reading.check()


def copy(data: DataParams) -> None:
    """Check a person's own images and copy them."""
    source = own.Source.of(data)
    found = own.survey(source)
    if faults := found.faults(source.side):
        raise UserError("\n".join(f"{source.path}: {fault}" for fault in faults))
    counts = {part: found.total(part) for part in PARTS}
    params.reject_misfits(networks.check, found.shape(source.side), counts)
    own.copy(source, found, paths.RAW)
    print("\n".join(found.lines()))


if __name__ == "__main__":
    run(main)
