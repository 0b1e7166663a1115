"""Stage 1: the images of the data set that params.yaml names, as raw IDX files, each one verified.

A named data set is checked file by file against its published MD5, whatever source served it, so that everybody starts
from the same bytes. Your own images may have any format of `images.readers`; they are checked for sizes, values,
classes and counts, and for whether the params fit them.
"""

from digits import params, paths
from digits.datasets import FOLDER
from digits.errors import UserError, run
from digits.images import fetching, own
from digits.images.readers import PARTS
from digits.learning import networks


def main() -> None:
    data = params.load(networks.check).data
    if data.name != FOLDER:
        fetching.download(data.name, data.sources, data.timeout, paths.RAW)
        return
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
