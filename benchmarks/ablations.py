"""What each part is worth: the same recipe and minutes with one part taken away.

    python benchmarks/ablations.py --label-maps DIR --minutes 12

Every arm is `configs/tiny.yaml` but for what its name says, trained from chance by
`medverse-nb train`, and scored on held-out heads: in one window, and on the native grid of
boxes around eleven structures. Arms that are trained already are only scored. The arms are
Medverse's Table 3 (BAM, NA-ICL) and the partition of the blocks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from brains import PAIRS, SEED, STRUCTURES, choose, cut, read_heads
from record import record
from torch import Generator

import medverse_nb as mv
from medverse_nb.tasks.contrast import render_images
from medverse_nb.tasks.labelmaps import HeadMap

CONFIG = Path(__file__).parents[1] / "configs" / "tiny.yaml"


@dataclass(frozen=True)
class Arm:
    """What differs from the configuration; `scales` 1 is a direct sliding window."""

    network: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    scales: int | None = None


WITHOUT_NA_ICL = {"autoregressive": 0.0}
ARMS = {
    "BAM and NA-ICL": Arm(),
    "no NA-ICL": Arm(tasks=WITHOUT_NA_ICL, scales=1),
    "no BAM, no NA-ICL": Arm({"architecture": "neuroverse3d"}, WITHOUT_NA_ICL, scales=1),
    "interleaved blocks": Arm({"partition": "interleaved"}),
}


def train(name: str, arm: Arm, minutes: float, runs: Path, label_maps: Path) -> Path:
    """Train an arm, unless it is there, and return its folder."""
    folder = runs / name.replace(" ", "-").replace(",", "")
    settings = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    settings["name"] = "arm"
    settings["network"] |= arm.network
    settings["tasks"] |= arm.tasks
    settings["data"][0]["folder"] = str(label_maps.resolve())
    settings["stages"] = settings["stages"][:1]
    settings["validation"] |= {"every_minutes": minutes, "tasks": 120}
    if (folder / "arm.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "arm.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "medverse_nb", "train", "--config", str(config)]
    command += ["--run", str(folder), "--minutes", str(minutes), "--resume"]
    subprocess.run(command, check=True)  # noqa: S603, our own command line
    return folder


def score_native(weights: Path, arm: Arm, heads: list[HeadMap], subjects: int) -> float:
    """Return the mean Dice of eleven structures on the native grid of their boxes."""
    network = mv.load_model(str(weights))
    scores = []
    for structure in STRUCTURES.values():
        for target in range(subjects):
            generator = Generator().manual_seed(SEED + 100 * structure + target)
            labels = cut(choose(heads, target, generator), structure, "by structure", generator)
            side = labels.classes.shape[-1]
            images = render_images(labels, generator, side).numpy()
            masks = (labels.classes == labels.values.index(structure)).numpy()
            answer = mv.predict_array(network, images[0], images[1:], masks[1:], scales=arm.scales)
            scores.append(mv.metrics.dice(answer > 0.5, masks[0]))
    return float(np.mean(scores))


def main() -> None:
    """Train and score all arms and record the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label-maps", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    args = parser.parse_args()
    heads = read_heads(args.label_maps)
    rows = {}
    for name, arm in ARMS.items():
        folder = train(name, arm, args.minutes, args.runs, args.label_maps)
        last = (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        rows[name] = {
            **json.loads(last),
            "native_dice": round(
                score_native(folder / "arm.safetensors", arm, heads, args.subjects), 4
            ),
        }
        print(f"{name:20}", rows[name], flush=True)
    record(
        "ablations",
        {"minutes": args.minutes, "subjects": args.subjects, "pairs": PAIRS, "rows": rows},
    )


if __name__ == "__main__":
    main()
