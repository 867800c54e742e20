"""What a network is made of: one frozen dataclass, stored inside our checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ..errors import WeightsError

Architecture = Literal["medverse", "neuroverse3d"]
Partition = Literal["interleaved", "contiguous"]
PositionBias = Literal["none", "relative"]
Norm = Literal["none", "group"]
Output = Literal["identity", "sigmoid"]
Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")

CHOICES: dict[str, tuple[str, ...]] = {
    "architecture": ("medverse", "neuroverse3d"),
    "partition": ("interleaved", "contiguous"),
    "position_bias": ("none", "relative"),
    "norm": ("none", "group"),
    "output": ("identity", "sigmoid"),
}


@dataclass(frozen=True)
class NetworkConfig:
    """Describe a network completely, apart from its weights.

    The defaults are the full-size released Medverse network (71.05 M parameters).

    Parameters
    ----------
    architecture : "medverse" (BAM fusion, autoregressive branch) or "neuroverse3d" (Eqs. 3-5).
    channels : width of each U-Net stage, from full resolution to the bottleneck.
    window : side in voxels of the cube the network was trained on.
    partition : how BAM cuts a feature map into blocks; "contiguous" is the paper,
        "interleaved" the released weights. Unused by "neuroverse3d".
    blocks_per_axis : p of Medverse, so B = p**3 blocks.
    attention_dim : m of Medverse Eqs. 7-8, a multiple of 6.
    position_bias : "none" as in the paper, or "relative" for our own models: BAM's scores
        get a learned bias for each offset between two blocks.
    norm : "none" as in both papers, or "group" for our own experiments.
    output : "identity" (released) or "sigmoid" inside the network.

    Raises
    ------
    WeightsError : a value that no network can be built from.
    """

    architecture: Architecture = "medverse"
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    window: int = 128
    partition: Partition = "interleaved"
    blocks_per_axis: int = 4
    attention_dim: int = 66
    position_bias: PositionBias = "none"
    norm: Norm = "none"
    output: Output = "identity"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise WeightsError(
                    f"network config: {name}={getattr(self, name)!r} is not one of {allowed}"
                )
        if len(self.channels) < 2 or not all(
            isinstance(c, int) and 0 < c <= 4096 for c in self.channels
        ):
            raise WeightsError(
                f"network config: channels={self.channels!r} need two stages or more"
            )
        if self.attention_dim < 6 or self.attention_dim % 6:
            raise WeightsError(
                f"network config: attention_dim={self.attention_dim} must be a multiple of 6"
            )
        if self.blocks_per_axis < 1:
            raise WeightsError(
                f"network config: blocks_per_axis={self.blocks_per_axis} must be >= 1"
            )
        if self.window <= 0 or self.window % self.multiple:
            raise WeightsError(
                f"network config: window={self.window} must be a multiple of {self.multiple}"
            )

    @property
    def multiple(self) -> int:
        """Number that every side of an input must divide by."""
        halvings: int = 2 ** (len(self.channels) - 1)
        return halvings * (self.blocks_per_axis if self.autoregressive else 1)

    @property
    def autoregressive(self) -> bool:
        """Whether the network has the autoregressive branch of Medverse."""
        return self.architecture == "medverse"

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain JSON values."""
        return {**asdict(self), "channels": list(self.channels)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkConfig:
        """Build a config from JSON values; an unknown key is a `WeightsError`."""
        if not isinstance(values, dict):
            raise WeightsError(f"network config: must be a dict, got {type(values).__name__}")
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise WeightsError(f"network config: unknown keys {sorted(unknown)}")
        try:
            return cls(**{**values, "channels": tuple(values.get("channels", cls.channels))})
        except TypeError as error:
            raise WeightsError(f"network config: {error}") from error
