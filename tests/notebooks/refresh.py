"""Run notebooks again and save them as this repository keeps them: light, and in order.

python tests/notebooks/refresh.py                      # every tutorial and notebook
python tests/notebooks/refresh.py tutorials/00*.ipynb  # only these
python tests/notebooks/refresh.py --no-run             # only tidy what is saved
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[2]
SHOWN_ELSEWHERE = "application/vnd.jupyter.widget-view+json"  # needs a state that is not saved
EMBEDDED = re.compile(r"(data:image/png;base64,)([A-Za-z0-9+/=]+)")
WARNED_AT = re.compile(r"^\S+:\d+: (?=\w*Warning)", re.MULTILINE)  # a place in this machine's files
KEPT_METADATA = ("kernelspec", "language_info")


def all_notebooks() -> list[Path]:
    return [
        path
        for folder in ("tutorials", "notebooks")
        for path in sorted((ROOT / folder).glob("*.ipynb"))
    ]


def refresh(path: Path, timeout: int = 300, *, run: bool = True) -> None:
    """Run one notebook in its folder and write it back; a cell that fails leaves it as it was."""
    notebook = nbformat.read(path, as_version=4)
    if run:
        NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(path.parent)}},
        ).execute()
    tidy(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def tidy(notebook: Any) -> None:
    """Take out of an executed notebook what is heavy, private or of one machine."""
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in KEPT_METADATA}
    notebook.metadata["language_info"] = {"name": "python"}  # no version: it would only churn
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.outputs = merged([kept for output in cell.outputs if (kept := tidied(output))])


def merged(outputs: list[Any]) -> list[Any]:
    """Join what was printed in several pieces: where they end is chance."""
    kept: list[Any] = []
    for output in outputs:
        last = kept[-1] if kept else {}
        if output["output_type"] == "stream" and output["name"] == last.get("name"):
            last["text"] += output["text"]
        else:
            kept.append(output)
    return kept


def tidied(output: Any) -> Any | None:
    """Return an output without widgets, its picture in fewer bytes; None if nothing is left."""
    if "data" not in output:
        if output.get("name") == "stderr":
            output["text"] = WARNED_AT.sub("", output["text"])
        return output
    if output["data"].pop(SHOWN_ELSEWHERE, None) is not None:
        output["data"].pop("text/plain", None)  # the widget's own repr, of no use in its place
    if "image/png" in output["data"]:
        output["data"]["image/png"] = smaller(output["data"]["image/png"])
    if "text/html" in output["data"]:
        output["data"]["text/html"] = EMBEDDED.sub(
            lambda found: found[1] + smaller(found[2]), output["data"]["text/html"]
        )
    return output if output["data"] else None


def smaller(png: str) -> str:
    """Return a base64 PNG in 256 colours, or the same where that saves nothing."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        buffer = io.BytesIO()
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            buffer, "PNG", optimize=True
        )
    found = base64.b64encode(buffer.getvalue()).decode()
    return found if len(found) < len(png) else png


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of them if none is named")
    parser.add_argument("--timeout", type=int, default=300, help="seconds a cell may take")
    parser.add_argument("--no-run", action="store_true", help="only tidy what is saved")
    given = parser.parse_args()
    os.environ.pop("MPLBACKEND", None)  # Agg would draw nothing into the page
    os.environ["TQDM_DISABLE"] = "1"  # a bar would show how fast the machine is
    for path in given.notebooks or all_notebooks():
        started = time.perf_counter()
        refresh(path, given.timeout, run=not given.no_run)
        seconds, kilobytes = time.perf_counter() - started, path.stat().st_size / 1000
        sys.stdout.write(f"{path.name}: {seconds:.0f} s, {kilobytes:.0f} kB\n")


if __name__ == "__main__":
    main()
