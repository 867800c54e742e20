"""What each part is worth: the same recipe and minutes with one part taken away.

    python benchmarks/ablations.py --label-maps DIR --minutes 60

Every arm is `configs/tiny.yaml` but for what its name says and what the arms' short time asks for
(windows of 32, segmentation alone, the first stage), trained from chance by `medverse-nb train`,
and scored on held-out heads: in one window, and on the native grid of boxes around eleven
structures. All arms are trained at the same time, a process each, so that whatever else the
machine does takes the same from each. Arms that are trained already are only scored. The arms
are Medverse's Table 3 (BAM, NA-ICL) and the partition of the blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from brains import PAIRS, STRUCTURES, draw_structure, mean, read_heads
from record import RESULTS, record

import medverse_nb as mv
from medverse_nb.tasks.labelmaps import HeadMap

CONFIG = Path(__file__).parents[1] / "configs" / "tiny.yaml"


@dataclass(frozen=True)
class Arm:
    """What differs from the configuration; `scales` 1 is a direct sliding window."""

    network: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    scales: int | None = None


WINDOW = 32  # a step of a window of 64 takes ten times as long
WITHOUT_NA_ICL = {"autoregressive": 0.0}
ARMS = {
    "BAM and NA-ICL": Arm(),
    "no NA-ICL": Arm(tasks=WITHOUT_NA_ICL, scales=1),
    "no BAM, no NA-ICL": Arm({"architecture": "neuroverse3d"}, WITHOUT_NA_ICL, scales=1),
    "interleaved blocks": Arm({"partition": "interleaved"}),
}


def settings_of(arm: Arm, minutes: float, label_maps: Path) -> dict[str, Any]:
    """Return the configuration an arm is trained with."""
    settings = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    settings["name"] = "arm"
    settings["network"] |= {"window": WINDOW, **arm.network}
    settings.pop("windows")
    settings["tasks"] |= {"enhancement": 0.0, **arm.tasks}
    settings["data"][0]["folder"] = str(label_maps.resolve())
    settings["stages"] = settings["stages"][:1]
    settings["validation"] |= {"every_minutes": minutes, "tasks": 120}
    return settings


def prepare(folder: Path, settings: dict[str, Any], minutes: float) -> list[str] | None:
    """Return the command that trains an arm in its folder or goes on with it, None if it is done."""
    config = folder / "arm.yaml"
    text = yaml.safe_dump(settings, sort_keys=False)
    if config.is_file() and config.read_text(encoding="utf-8") != text:
        sys.exit(f"{config}: an arm of other settings or minutes; use another --runs")
    if (folder / "arm.safetensors").is_file():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "medverse_nb", "train", "--config", str(config)]
    return [*command, "--run", str(folder), "--minutes", str(minutes), "--resume", "--workers=1"]


def train(commands: Sequence[list[str]]) -> None:
    """Run commands side by side, one thread each; all are ended if one fails."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        running = list[subprocess.Popen[bytes]]()
        for command in commands:
            one = subprocess.Popen(command, env=alone)  # noqa: S603, our own command line
            stack.enter_context(one)
            stack.callback(one.terminate)
            running.append(one)
        while running:
            if any(one.poll() for one in running):
                sys.exit("an arm was not trained")
            running = [one for one in running if one.poll() is None]
            time.sleep(0.2)


def score_native(weights: Path, arm: Arm, heads: list[HeadMap], subjects: int) -> dict[str, float]:
    """Return the mean Dice of eleven structures on the native grid of their boxes."""
    network = mv.load_model(str(weights))
    rows = []
    for name, value in STRUCTURES.items():
        for target in range(subjects):
            images, classes = draw_structure(heads, name, target, "by structure")
            masks = classes == value
            answer = mv.predict_array(network, images[0], images[1:], masks[1:], scales=arm.scales)
            rows.append(
                {
                    "native_dice": mv.metrics.dice(answer > 0.5, masks[0]),
                    "native_mean_label": mv.metrics.dice(masks[1:].mean(0) > 0.5, masks[0]),
                }
            )
    return mean(rows)


def main() -> None:
    """Train and score all arms and record the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label-maps", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="of all arms together")
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to record in")
    args = parser.parse_args()
    heads = read_heads(args.label_maps)
    folders = {name: args.runs / name.replace(" ", "-").replace(",", "") for name in ARMS}
    commands = [
        prepare(folders[name], settings_of(arm, args.minutes, args.label_maps), args.minutes)
        for name, arm in ARMS.items()
    ]
    train([command for command in commands if command is not None])
    rows = {}
    for name, arm in ARMS.items():
        folder = folders[name]
        last = (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        native = score_native(folder / "arm.safetensors", arm, heads, args.subjects)
        rows[name] = {**json.loads(last), **native}
        print(f"{name:20}", rows[name], flush=True)
    figures = {"minutes": args.minutes, "subjects": args.subjects, "pairs": PAIRS, "rows": rows}
    record("ablations", figures, args.results)


if __name__ == "__main__":
    main()
