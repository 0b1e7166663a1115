"""Files with bytes changed, removed or added, or with other content altogether: what a reader has to survive."""

import io
import random
import zipfile
from collections.abc import Iterator


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a damaged version of a file."""
    how = chance.randrange(6)
    place = chance.randrange(max(1, len(content)))
    if how == 0:
        return content[:place]
    if how == 1:
        changed = bytearray(content)
        for _ in range(chance.choice([1, 3, 30])):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)
    if how == 2:
        return content[:place] + chance.randbytes(chance.choice([1, 4, 1000])) + content[place:]
    if how == 3:
        return chance.choice([b"", b"\0", chance.randbytes(len(content)), b"<html>", content * 2])
    if how == 4:  # the numbers in headers are the largest they can be
        return content[:place] + b"\xff" * chance.choice([1, 2, 4, 8]) + content[place + 8 :]
    end = min(len(content), place + chance.choice([1, 16, 1000]))
    return content[:place] + content[end:]


def all_damaged(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield so many damaged versions of a file."""
    chance = random.Random(seed)
    for _ in range(count):
        yield damaged(content, chance)


def repacked(content: bytes, chance: random.Random) -> bytes:
    """Return a ZIP archive one of whose entries is damaged, and its checksums right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = chance.choice(list(entries))
    entries[name] = damaged(entries[name], chance)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for entry, inside in entries.items():
            archive.writestr(entry, inside)
    return packed.getvalue()
