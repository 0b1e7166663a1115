"""What images may be, and the facts about the named data sets, each in its one place: files, classes, checksums."""

from dataclasses import dataclass, field

SMALLEST, LARGEST = 8, 64  # pixels of a side


@dataclass(frozen=True)
class Shape:
    """That of every image: a square of `side` x `side` pixels, gray (1 channel) or in color (3)."""

    channels: int
    side: int

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Those of an array of its pixels: (side, side), or (side, side, 3)."""
        return (self.side, self.side) + ((3,) if self.channels == 3 else ())

    def __str__(self) -> str:
        return f"{self.side} x {self.side} {'gray' if self.channels == 1 else 'color'}"


MNIST_SHAPE = Shape(1, 28)

# The names that Yann LeCun gave the four files of MNIST, and that its successors kept.
FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}

ABOUT = "dataset.json"  # beside them: what they do not say

FOLDER = "folder"  # the value of `data.name` that stands for the user's own files


@dataclass(frozen=True)
class Dataset:
    """A data set that params.yaml can name. `torchvision` is the name of its class in `torchvision.datasets`.

    `split` is the argument of that name, where it has one; `side` is that of its gray images, and `ink` says whether
    they show strokes as MNIST's do; `as_mnist` that it is published as four files in the format of MNIST. `hub` is its
    name on Hugging Face; `rejected` are the indices of test images whose label fewer than three of five reviewers
    confirmed.
    """

    torchvision: str
    classes: tuple[str, ...]
    hub: str
    license: str
    train_count: int = 60_000
    side: int = 28
    split: str | None = None
    ink: bool = True
    as_mnist: bool = True
    # MD5 of each uncompressed file. Without one, the MD5 that torchvision lists for the .gz file is checked.
    md5: dict[str, str] = field(default_factory=dict)
    rejected: tuple[int, ...] = ()


DIGITS, CAPITALS, SMALL = "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
UNLIKE_CAPITALS = "abdefghnqrt"  # small letters that do not look like their capitals: EMNIST merges the others


def _emnist(split: str, train_count: int, classes: str) -> Dataset:
    return Dataset("EMNIST", tuple(classes), "", "CC0", train_count, split=split, as_mnist=False)


FASHION = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
SYLLABLES = "o, ki, su, tsu, na, ha, ma, ya, re, wo"
DATASETS = {
    "mnist": Dataset(
        torchvision="MNIST",
        classes=tuple(DIGITS),
        hub="ylecun/mnist",
        license="CC BY-SA 3.0",
        md5={
            FILES["train", "images"]: "6bbc9ace898e44ae57da46a324031adb",
            FILES["train", "labels"]: "a25bea736e30d166cdddb491f175f624",
            FILES["test", "images"]: "2646ac647ad5339dbf082846283269ea",
            FILES["test", "labels"]: "27ae3e4e09519cfbb04c329615203637",
        },
        # C. G. Northcutt, A. Athalye, J. Mueller, "Pervasive Label Errors in Test Sets" (2021, NeurIPS), from
        # mturk/mnist_mturk.json of github.com/cleanlab/label-errors.
        rejected=(947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729),
    ),
    "fashion_mnist": Dataset(
        "FashionMNIST", tuple(FASHION.split(", ")), "zalando-datasets/fashion_mnist", "MIT", ink=False
    ),
    "kmnist": Dataset("KMNIST", tuple(SYLLABLES.split(", ")), "tanganke/kmnist", "CC BY-SA 4.0"),
    "qmnist": Dataset("QMNIST", tuple(DIGITS), "", "BSD 3-Clause", as_mnist=False),
    "usps": Dataset("USPS", tuple(DIGITS), "flwrlabs/usps", "not stated", train_count=7_291, side=16, as_mnist=False),
    "emnist_byclass": _emnist("byclass", 697_932, DIGITS + CAPITALS + SMALL),
    "emnist_bymerge": _emnist("bymerge", 697_932, DIGITS + CAPITALS + UNLIKE_CAPITALS),
    "emnist_balanced": _emnist("balanced", 112_800, DIGITS + CAPITALS + UNLIKE_CAPITALS),
    "emnist_letters": _emnist("letters", 124_800, SMALL),
    "emnist_digits": _emnist("digits", 240_000, DIGITS),
    "emnist_mnist": _emnist("mnist", 60_000, DIGITS),
}
