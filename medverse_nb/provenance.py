"""Where a context pair came from, and how it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

How = Literal["added", "accepted"]


@dataclass(frozen=True)
class Provenance:
    """What a pair remembers of its making.

    image, label : path, or "array"; the label of an answer taken as it was is "prediction".
    how : "added" by the user, or an answer that was "accepted".
    when : ISO 8601 in UTC.
    target, model, weights_sha256 : of an accepted pair, what was predicted and with what.
    tuned : whether the network had been tuned, so that it is not quite that of the hash.
    corrected : whether the mask differs from the answer in any voxel.
    """

    image: str = "array"
    label: str = "array"
    how: How = "added"
    when: str = ""
    target: str | None = None
    model: str | None = None
    weights_sha256: str | None = None
    tuned: bool | None = None
    corrected: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; of an added pair, only what it has."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def accepted(
    image: str, label: str, *, target: str, manifest: Mapping[str, Any], corrected: bool
) -> Provenance:
    """Return the provenance of an answer that became a pair.

    manifest : of the prediction.
    """
    return Provenance(
        image=image,
        label=label,
        how="accepted",
        when=now(),
        target=target,
        model=manifest["model"]["name"],
        weights_sha256=manifest["model"]["weights_sha256"],
        tuned=manifest["settings"]["tuning"] is not None,
        corrected=corrected,
    )


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
