"""What is done to images to see what a network withstands, in words and amounts: `corruptions` does it."""

from dataclasses import dataclass

SEVERITIES = range(1, 6)


@dataclass(frozen=True)
class Corruption:
    """One kind: how to say an amount, and that of each severity."""

    label: str
    amounts: tuple[float, ...]


CORRUPTIONS = {
    "shift": Corruption("shifted by {:g} pixels along both axes", (1, 2, 3, 4, 5)),
    "rotation": Corruption("rotated by {:g} degrees", (10, 15, 20, 30, 40)),
    "scale": Corruption("scaled by ±{:.0%}", (0.1, 0.2, 0.3, 0.4, 0.5)),
    "blur": Corruption("blurred with a sigma of {:g} pixels", (0.5, 1, 1.5, 2, 2.5)),
    "noise": Corruption("with noise of sigma {:.0%}", (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption("with {:.0%} of their contrast", (0.7, 0.5, 0.3, 0.2, 0.1)),
    "inversion": Corruption("inverted by {:.0%}", (0.2, 0.4, 0.6, 0.8, 1)),
    "stroke": Corruption("with strokes {:g} pixels wider or thinner on each side", (0.2, 0.4, 0.6, 0.8, 1)),
}


def described(kind: str, severity: int) -> str:
    """Return what is done to images, as in "images rotated by 20 degrees"."""
    corruption = CORRUPTIONS[kind]
    return corruption.label.format(corruption.amounts[severity - 1])
