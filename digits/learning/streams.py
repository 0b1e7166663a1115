"""Random streams: one for each purpose, so that a new draw for one changes nothing for the others."""

import hashlib
from typing import Any

import torch


def derive(seed: int, purpose: str) -> int:
    """Return a 63-bit seed for one purpose."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator for one purpose; drawn on the CPU, random numbers are the same for every device."""
    return torch.Generator().manual_seed(derive(seed, purpose))


class Streams:
    """What a training draws: the order of batches, augmentation and, from torch's global generators, dropout."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.order, self.augmentation = generator(seed, "order"), generator(seed, "augmentation")
        torch.manual_seed(derive(seed, "dropout"))  # dropout can only draw from the global generator of its device
        self._device = None if device.type == "cpu" else torch.get_device_module(device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all streams."""
        state = {"order": self.order.get_state(), "augmentation": self.augmentation.get_state()}
        state["cpu"] = torch.get_rng_state()
        return state | ({"device": self._device.get_rng_state()} if self._device else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.order.set_state(state["order"])
        self.augmentation.set_state(state["augmentation"])
        torch.set_rng_state(state["cpu"])
        if self._device:
            self._device.set_rng_state(state["device"])
