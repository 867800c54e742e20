"""The command line: `medverse-nb`, or `python -m medverse_nb`.

Exit codes: 0 done, 1 some cases failed or the doctor found an error, 2 bad input,
3 not built yet, 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .console import (
    log_console,
    out_console,
    print_cases,
    print_demo,
    print_evaluation,
    print_json,
    print_report,
    progress,
    show_warning,
    stop,
    write_json,
)
from .errors import InputError, MedverseError, NotBuiltYet, missing_extra

if TYPE_CHECKING:
    from .classes import Classes
    from .cohort import Plan

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="3D in-context learning for medical images. Research use only, not a medical device.",
)  # fmt: skip
INTERRUPTED = 130

Targets = Annotated[list[Path], typer.Argument(help="Scans, or folders of scans.")]
IMAGES = typer.Option(help="Folder of labelled images (nnU-Net imagesTr).")
LABELS = typer.Option(help="Folder of their labels (labelsTr).")
Images = Annotated[Path, IMAGES]
Labels = Annotated[Path, LABELS]
ContextSize = Annotated[int | None, typer.Option(help="How many pairs; default all.")]
ClassesText = Annotated[
    str | None, typer.Option("--classes", help='"1,2" keeps values; "hippocampus=1+2" joins them.')
]
Model = Annotated[str, typer.Option(help="Model name, .safetensors or released .ckpt.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
AlignName = Literal["box", "center", "world"]
AlignText = Annotated[AlignName, typer.Option("--align")]
TaskName = Literal["segmentation", "image"]
TrustName = Literal["off", "fast", "full"]
RegisterName = Literal["off", "affine", "deformable"]
TaskText = Annotated[TaskName, typer.Option("--task")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Seed = Annotated[int, typer.Option(help="Chooses the context pairs.")]


def parse_classes(text: str | None) -> Classes:
    """Turn `1,2` into [1, 2] and `a=1+2,b=3` into {"a": (1, 2), "b": (3,)}."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        if any("=" in part for part in parts):
            named = [part.split("=", 1) for part in parts]
            return {
                name.strip(): tuple(int(v) for v in values.split("+")) for name, values in named
            }
        return [int(part) for part in parts]
    except ValueError as error:
        raise InputError(f'--classes {text!r}: write "1,2" or "name=1+2"') from error


def parse_sizes(text: str | None) -> list[int] | None:
    """Turn `1,2,4` into [1, 2, 4]."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f'--sizes {text!r}: write "1,2,4"') from error


def _tell_version(wanted: bool) -> None:
    if wanted:
        out_console.print(f"medverse_nb {version('medverse_nb')}")
        raise typer.Exit


@app.callback()
def set_up(
    verbose: Annotated[int, typer.Option("-v", count=True, help="More messages.")] = 0,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_tell_version, help="Tell the version and end."
        ),
    ] = False,
) -> None:
    """Set the log level."""
    logging.basicConfig(
        level=(logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)],
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("demo_out"),
    as_json: Json = False,
) -> None:
    """Segment a virtual brain and a phantom abdomen from four pairs, without a download."""
    from .demo import run_demo

    rows = run_demo(out, log_console.print)
    if as_json:
        print_json({"rows": rows, "out": str(out)})
        return
    print_demo(rows, out)


@app.command()
def predict(
    targets: Targets,
    images: Annotated[Path | None, IMAGES] = None,
    labels: Annotated[Path | None, LABELS] = None,
    bank: Annotated[
        Path | None, typer.Option(help="A saved session, in place of --images and --labels.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions"),
    context_size: ContextSize = None,
    limit: Annotated[int | None, typer.Option(help="At most so many cases.")] = None,
    classes: ClassesText = None,
    model: Annotated[
        str | None, typer.Option(help="Default medverse-tiny, or the bank's own.")
    ] = None,
    device: Device = "auto",
    align: Annotated[AlignName | None, typer.Option(help="Default box.")] = None,
    task: Annotated[TaskName | None, typer.Option(help="Default segmentation.")] = None,
    seed: Seed = 0,
    trust: Annotated[TrustName, typer.Option(help="Tell the Dice to expect.")] = "off",
    register: Annotated[
        RegisterName, typer.Option(help="Lay every pair on the scan first.")
    ] = "off",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of one thread, a scan each.")
    ] = None,
    truths: Annotated[
        Path | None, typer.Option(help="Folder of the scans' known labels, to tell the Dice.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict scans from labelled ones; with known labels, the Dice is told too."""
    from .cohort import mean_scores, plan_cohort, with_truths
    from .files import check_writable
    from .session import ICLSession

    wanted = parse_classes(classes)
    check_writable(out / "predictions.json")
    sizes: dict[str, Any] = {"context_size": context_size, "limit": limit, "seed": seed}
    if bank is not None:
        if images or labels or align or task:
            raise InputError("--bank brings pairs, task and align; leave those options out")
        plan = _plan_with_bank(targets, bank, sizes)
    elif images is None or labels is None:
        raise InputError("give --images and --labels, or a --bank")
    else:
        plan = plan_cohort(targets, images, labels, **sizes)
    if truths is not None:
        plan = with_truths(plan, truths)
    with _started(workers) as client, progress(len(plan.cases)) as advance:
        if bank is not None:
            session = ICLSession.load(bank, model=model, device=device, client=client)
            for name in set(session.context.names) - set(plan.context):
                session.remove_context(name)
        else:
            session = ICLSession(
                model or "medverse-tiny", task=task or "segmentation", device=device,
                align=align or "box", client=client,
            )  # fmt: skip
            assert images is not None
            assert labels is not None
            session.add_context_folder(images, labels, names=plan.context)
        session.resolve(wanted)
        rows = session.predict_cases(
            plan.cases, out=out, classes=wanted, trust=trust, register=register,
            on_progress=advance,
        )  # fmt: skip
    failed = [row for row in rows if "error" in row]
    for row in failed:
        log_console.print(f"error: {row['case']}: {row['error']}", style="red", soft_wrap=True)
    if len(failed) == len(rows):
        raise typer.Exit(2)
    means = mean_scores(rows)
    summary = {"context": plan.context, "mean": means, "cases": rows}
    write_json(out / "predictions.json", summary)
    if as_json:
        print_json(summary)
    else:
        print_cases(rows, means, out)
    if failed:
        raise typer.Exit(1)


@app.command()
def check(
    images: Images,
    labels: Labels,
    target: Annotated[Path | None, typer.Argument(help="The scan to be predicted.")] = None,
    align: AlignText = "box",
    task: TaskText = "segmentation",
    as_json: Json = False,
) -> None:
    """Ask the context doctor about a folder of pairs and, if given, a target."""
    from .context import ContextSet
    from .evaluation.doctor import examine
    from .io import read_volume
    from .pair import make_pairs
    from .pair_folder import find_pairs

    context = ContextSet()
    context.add(*make_pairs(find_pairs(images, labels), task=task))
    report = examine(context.pairs, None if target is None else read_volume(target), align)
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report, len(context))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A scan, a label or a bank.", metavar="FILE")],
    as_json: Json = False,
) -> None:
    """Tell a volume's shape, spacing, orientation and intensities, or what is in a bank."""
    facts = _facts_of_bank(path) if path.suffix.lower() == ".mvctx" else _facts_of_volume(path)
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        rows = value if isinstance(value, list) and isinstance((value or [0])[0], dict) else [value]
        for number, row in enumerate(rows):
            told = ", ".join(f"{k} {v}" for k, v in row.items()) if rows is value else row
            out_console.print(f"{'' if number else key:14} {told}", soft_wrap=True)


def _facts_of_bank(path: Path) -> dict[str, Any]:
    from .bank import open_bank

    with open_bank(path) as bank:
        return bank.to_dict()


def _facts_of_volume(path: Path) -> dict[str, Any]:
    from .geometry import orientation_of
    from .io import read_volume
    from .regions import slabs
    from .volume import grid_of, view_of

    scan = read_volume(path)
    grid = grid_of(scan)
    extremes = [(float(slab.min()), float(slab.max())) for slab in slabs(view_of(scan))]
    return {
        "name": scan.name,
        "shape": list(grid.shape),
        "spacing_mm": [round(s, 4) for s in grid.spacing_mm],
        "orientation": orientation_of(grid.affine),
        "affine": grid.affine.round(4).tolist(),
        "dtype": str(scan.dtype),
        "minimum": min(least for least, _ in extremes),
        "maximum": max(most for _, most in extremes),
        "changes": list(scan.attrs.get("changes", [])),
    }


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that ship with the package."""
    from .model.registry import available_models

    cards = available_models()
    if as_json:
        print_json(cards)
        return
    for card in cards:
        out_console.print(f"{card['name']}: {card['summary']}", style="bold")
        for key in ("parameters", "window", "licence", "training_data", "limits"):
            out_console.print(f"  {key:14} {card[key]}")


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="YAML file, such as configs/tiny.yaml.")],
    run: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and weights.")] = Path(
        "runs/tiny"
    ),
    minutes: Annotated[float, typer.Option(help="In all, resumed parts included.")] = 150,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="CPU processes; default one a core.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a bad case.")] = False,
    initial_weights: Annotated[
        str | None, typer.Option(help="A model's name or file to start from.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the configuration's.")] = None,
) -> None:
    """Train a model, or go on training it; Ctrl-C leaves a whole checkpoint."""
    if minutes <= 0 or (workers is not None and workers < 1):
        raise InputError("--minutes and --workers must be positive")
    try:
        from .training.config import read_config
        from .training.run import Run
        from .training.run import train as train_run
    except ModuleNotFoundError as error:
        raise missing_extra("training", error, "train") from error
    settings = read_config(config, seed=seed)
    weights = train_run(
        Run(settings, run, minutes, device, resume, strict, workers, initial_weights)
    )
    if weights:
        out_console.print(f"written to {weights}", soft_wrap=True)


@app.command()
def evaluate(
    images: Annotated[Path, typer.Argument(help="Folder of images (nnU-Net imagesTr).")],
    labels: Annotated[Path, typer.Argument(help="Folder of their labels (labelsTr).")],
    out: Annotated[Path, typer.Option(help="Folder of the results; the same one resumes.")],
    sizes: Annotated[
        str | None, typer.Option(help='Pairs in a context, "1,2,4"; default 1 to 16, doubling.')
    ] = None,
    draws: Annotated[int, typer.Option(help="Random contexts of each size.")] = 10,
    test: Annotated[
        float, typer.Option(help="Cases to predict: a number, or below 1 a share.")
    ] = 0.2,
    classes: ClassesText = None,
    tolerance: Annotated[float, typer.Option(help="Of the surface Dice, in mm.")] = 1.0,
    model: Model = "medverse-tiny",
    device: Device = "auto",
    align: AlignText = "box",
    task: TaskText = "segmentation",
    seed: Annotated[int, typer.Option(help="Chooses the test cases and the contexts.")] = 0,
    as_json: Json = False,
) -> None:
    """Score a model on a labelled cohort: several context sizes, several draws of each."""
    from .evaluation.evaluate import Cohort
    from .evaluation.evaluate import evaluate as evaluate_cohort
    from .inference.recipe import Settings
    from .session import ICLSession

    wanted, numbers = parse_classes(classes), parse_sizes(sizes)
    cohort = Cohort.from_folder(images, labels)
    session = ICLSession(model, task=task, device=device, align=align)
    with progress(len(cohort.cases)) as advance:
        found = evaluate_cohort(
            session.network, cohort, out, weights_sha256=session.weights_hash, task=task,
            classes=wanted, test=test, sizes=numbers, draws=draws, seed=seed,
            tolerance_mm=tolerance, align=align,
            settings=Settings(precision=session.precision), on_progress=advance,
        )  # fmt: skip
    errors = found.rows[found.rows["error"] != ""]
    for name, error in found.left_out.items():
        log_console.print(f"left out of the context: {name}: {error}", style="red", soft_wrap=True)
    for (case, error), rows in errors.groupby(["case", "error"]):
        told = f"error: {case}: {error} ({len(rows)} rows)"
        log_console.print(told, style="red", soft_wrap=True)
    if len(errors) == len(found.rows):
        raise typer.Exit(2)
    if as_json:
        summary = json.loads(found.summary.to_json(orient="records"))  # NaN becomes null
        print_json({"out": str(out), "left_out": found.left_out, "summary": summary})
    else:
        print_evaluation(found, out)
    if len(errors) or found.left_out:
        raise typer.Exit(1)


@app.command(name="app")
def serve_app(
    folder: Annotated[Path, typer.Argument(help="All it reads and writes is below it.")] = Path(),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Default any that is free.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only tell the address.")] = (
        False
    ),
    model: Model = "medverse-tiny",
    device: Device = "auto",
) -> None:
    """Serve the widgets as an app, on this machine only; Ctrl-C ends it."""
    from .app import serve

    def tell(address: str) -> None:
        out_console.print(f"medverse_nb serves {folder.resolve()} at", soft_wrap=True)
        out_console.print(address, soft_wrap=True)
        sys.stdout.flush()

    serve(folder, port=port, browser=not no_browser, model=model, device=device, tell=tell)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every error of ours is one line and an exit code."""
    warnings.showwarning = show_warning
    try:
        code = app(arguments, standalone_mode=False)
    except NotBuiltYet as error:
        stop(str(error), 3)
    except MedverseError as error:
        stop(str(error), 2)
    except typer.BadParameter.__mro__[1] as error:  # type: ignore[misc]
        # typer has no name of its own for the error that all its usage errors come from.
        told = error.format_message()
        if not told:  # a command was wanted, and the help is shown
            sys.exit(2)
        stop(told, 2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        stop("interrupted; finished cases are kept, nothing is half-written", INTERRUPTED)
    sys.exit(code)


def _plan_with_bank(targets: list[Path], bank: Path, sizes: dict[str, Any]) -> Plan:
    from .bank import open_bank
    from .cohort import plan_around

    with open_bank(bank) as opened:
        return plan_around(targets, dict.fromkeys(opened.names), str(bank), **sizes)


@contextmanager
def _started(workers: int | None) -> Iterator[Any]:
    """Start worker processes on this machine and yield their client; None for none."""
    if workers is None:
        yield None
        return
    try:
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        raise missing_extra("--workers", error, "distributed") from error
    if not logging.getLogger().isEnabledFor(logging.INFO):  # else -v asked for it
        logging.getLogger("distributed").setLevel(logging.ERROR)  # it tells of every connection
    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        yield client
