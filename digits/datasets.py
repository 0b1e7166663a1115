"""The facts about the data sets, each in its one place: file names, image size, class names, counts, checksums."""

from dataclasses import dataclass, field

SIDE = 28  # pixels; every image is SIDE x SIDE, one channel

# The names that Yann LeCun gave the four files of MNIST, and that the sets after it kept.
FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}

FOLDER = "folder"  # the value of `data.name` that stands for the user's own files


@dataclass(frozen=True)
class Dataset:
    """A data set that can be named in params.yaml. `torchvision` is the name of its class in `torchvision.datasets`."""

    torchvision: str
    classes: tuple[str, ...]
    train_count: int = 60_000
    test_count: int = 10_000
    # MD5 of the uncompressed files. Without one, the MD5 that torchvision gives for the .gz file is checked.
    md5: dict[str, str] = field(default_factory=dict)


DATASETS = {
    "mnist": Dataset(
        torchvision="MNIST",
        classes=tuple("0123456789"),
        md5={
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
    ),
    "fashion_mnist": Dataset(
        torchvision="FashionMNIST",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "kmnist": Dataset(torchvision="KMNIST", classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
}
