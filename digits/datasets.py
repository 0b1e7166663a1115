"""The facts about the named data sets, each in its one place: file names, image size, classes, counts, checksums."""

from dataclasses import dataclass, field

SIDE = 28  # pixels; every image is SIDE x SIDE, one channel

# The names that Yann LeCun gave the four files of MNIST, and that its successors kept.
FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}

FOLDER = "folder"  # the value of `data.name` that stands for the user's own files


@dataclass(frozen=True)
class Dataset:
    """A data set that params.yaml can name. `torchvision` is the name of its class in `torchvision.datasets`.

    `hub` is its name on Hugging Face; `rejected` are the indices of test images whose label fewer than three of five
    reviewers confirmed.
    """

    torchvision: str
    classes: tuple[str, ...]
    hub: str
    license: str
    train_count: int = 60_000
    # MD5 of each uncompressed file. Without one, the MD5 that torchvision lists for the .gz file is checked.
    md5: dict[str, str] = field(default_factory=dict)
    rejected: tuple[int, ...] = ()


FASHION = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
SYLLABLES = "o, ki, su, tsu, na, ha, ma, ya, re, wo"
DATASETS = {
    "mnist": Dataset(
        torchvision="MNIST",
        classes=tuple("0123456789"),
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
    "fashion_mnist": Dataset("FashionMNIST", tuple(FASHION.split(", ")), "zalando-datasets/fashion_mnist", "MIT"),
    "kmnist": Dataset("KMNIST", tuple(SYLLABLES.split(", ")), "tanganke/kmnist", "CC BY-SA 4.0"),
}
