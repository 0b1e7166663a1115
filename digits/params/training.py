"""The sections `model`, `train` and `augmentation`, which train reads."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from digits.params.reading import Section, Share


class ModelParams(Section):
    """Which network; every other key is a section with the knobs of the network of that name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    name: str
    members: Annotated[int, Field(ge=1, le=64)]
    tta_shift: Annotated[int, Field(ge=0, le=8)]

    def knobs(self) -> dict[str, Any]:
        """Return the knobs that make the network: those of every network, and its own."""
        return {"members": self.members, "tta_shift": self.tta_shift, **self.networks()[self.name]}

    def networks(self) -> dict[str, dict[str, Any]]:
        """Return the knobs of every network in the file, by its name."""
        return self.__pydantic_extra__ or {}


class TrainParams(Section):
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=2)]  # batch norm needs two
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["linear", "cosine", "constant"]
    warmup: Annotated[float, Field(ge=0, le=1)]
    momentum: Share
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    label_smoothing: Share
    hard_examples: Annotated[float, Field(ge=0, le=0.5)]
    ema: Share
    keep: Literal["last", "best"]


class AugmentationParams(Section):
    rotation: Annotated[float, Field(ge=0, le=180)]
    scale: Share
    shift: Annotated[float, Field(ge=0, le=28)]
    shear: Share
