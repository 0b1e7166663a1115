"""The file of a trained network, and what it says about itself."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import nn

from digits.errors import UserError, reason
from digits.files import SEAL, is_intact, seal, write_bytes
from digits.learning.description import Description, described
from digits.learning.networks import build


def save(network: nn.Module, description: Description, path: Path) -> None:
    """Write weights, description and a checksum as one safetensors file, whole or not at all."""
    tensors = {key: value.contiguous().cpu() for key, value in network.state_dict().items()}
    # Exactly one metadata key: safetensors writes several in random order, and equal models must be equal bytes.
    metadata = {"model": json.dumps({**asdict(description), "md5": SEAL}, sort_keys=True)}
    write_bytes(path, seal(serialize(tensors, metadata)))


def load(path: Path) -> tuple[nn.Module, Description]:
    """Read a file written by `save`: the network in evaluation mode on the CPU, and its description.

    Raises UserError if the file is missing, damaged or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["model"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dictionary
        if not is_intact(path.read_bytes(), content.pop("md5")):
            raise ValueError("its content does not match its checksum")
        description = described(content)
        network = build(description.name, len(description.classes), description.knobs, description.shape)
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        fault = f"not a model of this project, or damaged ({reason(error)})"
        raise UserError(f"{path}: {fault}; `dvc repro` makes it") from None
    return network.eval(), description
