"""The app, the state: from a folder of files to a prediction, a corrected mask, a saved result.

It reads and writes below one folder only. Paths are given as text relative to that folder, as
they come from a browser; what leads out of it, by name or by link, is refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any, Concatenate, Literal, ParamSpec

import numpy as np
import traitlets
import xarray as xr

from ..bank import open_bank
from ..bank_file import LARGEST_BANK
from ..checks import VolumeWarning, collected_warnings
from ..classes import ClassSpec, ClassTable, read_class_table
from ..errors import ContextError, InputError, MedverseError, OutputError, first_line
from ..evaluation.doctor import Report
from ..io import name_of, read_volume, stem_of
from ..judge import TrustLevel
from ..pair import make_pair, make_pairs
from ..pair_folder import find_pairs
from ..prediction import Prediction
from ..progress import Progress
from ..session import ICLSession
from .job import Job
from .slices import SliceState
from .view import view

P = ParamSpec("P")
SCANS = (".nii", ".nii.gz", ".npy")
BANK = ".mvctx"
MOST_LISTED = 5000  # entries looked at: a home folder must not hold up the page
Looking = Literal["", "prediction", "drawing"]


def _told(
    action: Callable[Concatenate[AppState, P], str],
) -> Callable[Concatenate[AppState, P], bool]:
    """Turn errors of an action into `problem`, and what it returns into `said`."""

    @wraps(action)
    def act(state: AppState, /, *arguments: P.args, **named: P.kwargs) -> bool:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VolumeWarning)  # told on the page
                with collected_warnings() as notes:
                    said = action(state, *arguments, **named)
        except MedverseError as error:
            state.problem = str(error)
            return False
        except OSError as error:
            state.problem = f"the file system refused: {first_line(error)}"
            return False
        state.problem, state.notes, state.said = "", tuple(notes), said
        return True

    return act


class AppState(traitlets.HasTraits):
    """What the app shows and does.

    Actions return whether they were done. What could not be done is told in `problem`, and
    leaves all else as it was.

    Parameters
    ----------
    root : the folder; nothing outside it is read or written, the model's weights apart.
    session : None for a new one.
    model, device : of a new session, and of banks that are opened: a bank never brings its own.

    Traits
    ------
    folders, scans, banks : what there is below the root, as paths relative to it.
    complete : whether the lists hold all there is.
    pairs : names in the context.
    report : of the last check, None before.
    prediction : None before.
    planes : the scan that is looked at, with the mask that can be drawn on.
    looking : what that mask is: "prediction", a first mask being "drawing", or "" for nothing.
    problem, said, notes : why the last action was not done, what it did, and warnings.

    Raises
    ------
    InputError : no such folder.
    WeightsError : a model that cannot be loaded.
    """

    folders = traitlets.Tuple()
    scans = traitlets.Tuple()
    banks = traitlets.Tuple()
    complete = traitlets.Bool(True)
    pairs = traitlets.Tuple()
    report = traitlets.Instance(Report, allow_none=True)
    prediction = traitlets.Instance(Prediction, allow_none=True)
    planes = traitlets.Instance(SliceState, allow_none=True)
    looking = traitlets.Enum(("", "prediction", "drawing"), "")
    problem = traitlets.Unicode("")
    said = traitlets.Unicode("")
    notes = traitlets.Tuple()

    def __init__(
        self,
        root: str | Path,
        session: ICLSession | None = None,
        *,
        model: str | Path = "medverse-tiny",
        device: str = "auto",
    ) -> None:
        super().__init__()
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise InputError(f"no such folder: {root}")
        self.root = folder.resolve()
        self._model, self._device = model, device
        self.session = session or ICLSession(model, device=device)
        self.job = Job()
        self.job.observe(self._tell_end, "status")
        self._drawn: tuple[xr.DataArray, ClassTable] | None = None
        self._written: set[Path] = set()
        self._show_context()
        self.refresh()

    @property
    def classes(self) -> tuple[ClassSpec, ...]:
        """Classes of the context; none without any foreground."""
        return tuple(self.session.resolve(None)) if self.session.context.values else ()

    # --- files below the root ------------------------------------------------------------------

    @_told
    def refresh(self) -> str:
        """Look again what there is below the root."""
        folders: list[str] = ["."]
        scans: list[str] = []
        banks: list[str] = []
        looked_at = 0
        for path in self._walk(self.root):
            looked_at += 1
            if looked_at > MOST_LISTED:
                break
            shown = path.relative_to(self.root).as_posix()
            kind = path.name.lower()
            if path.is_dir():
                whole = kind.endswith(".zarr") or _has_dicom(path)
                (scans if whole else folders).append(shown)
            elif kind.endswith(SCANS):
                scans.append(shown)
            elif kind.endswith(BANK):
                banks.append(shown)
        self.folders, self.scans, self.banks = (
            tuple(sorted(found)) for found in (folders, scans, banks)
        )
        self.complete = looked_at <= MOST_LISTED
        rest = "" if self.complete else f"; only {MOST_LISTED} entries are listed, type the rest"
        return f"{len(self.scans)} scans and labels in {self.root.name or self.root}{rest}"

    def inside(self, text: str | Path, *, new: bool = False) -> Path:
        """Return the place that a relative path means.

        Parameters
        ----------
        text : relative to the root.
        new : it need not exist.

        Raises
        ------
        InputError : it leads out of the root, by name, by a link or by a link within a folder,
            or it is not there.
        """
        asked = str(text).strip()
        if not asked or "\0" in asked:
            raise InputError("choose a file or folder first")
        path = Path(asked)
        if (
            path.is_absolute()
            or path.drive
            or ".." in PurePosixPath(asked.replace("\\", "/")).parts
        ):
            raise InputError(f"{asked}: give a path below the app's folder, without '..'")
        place = self.root / path
        try:
            inside = place.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError) as error:  # links in a circle
            raise InputError(f"{asked}: cannot be followed ({first_line(error)})") from error
        if not inside:
            raise InputError(f"{asked}: is a link that leads out of the app's folder")
        if not new and not place.exists():
            raise InputError(f"{asked}: no such file or folder")
        return place

    def _scan_at(self, text: str) -> Path:
        """Return a volume's place; of a folder, all within has to be inside too."""
        place = self.inside(text)
        if place.is_dir():
            for folder, folders, files in os.walk(place):
                for name in (*folders, *files):
                    entry = Path(folder, name)
                    if entry.is_symlink():
                        self.inside(entry.relative_to(self.root))
        return place

    def _walk(self, folder: Path) -> Iterator[Path]:
        """Yield what is below a folder, nearest first; hidden things and links out left out."""
        waiting = [folder]
        while waiting:
            try:
                entries = sorted(waiting.pop(0).iterdir())
            except OSError:  # no permission, or gone
                continue
            for entry in entries:
                if entry.name.startswith(".") or not self._is_inside(entry):
                    continue
                yield entry
                if entry.is_dir() and not entry.is_symlink() and not _is_store(entry):
                    waiting.append(entry)

    def _is_inside(self, entry: Path) -> bool:
        try:
            return not entry.is_symlink() or entry.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):
            return False

    # --- context -------------------------------------------------------------------------------

    @_told
    def add_folder(self, images: str, labels: str) -> str:
        """Add the pairs of two folders (imagesTr, labelsTr), all or none."""
        self.job.check_free()
        found = find_pairs(self.inside(images), self.inside(labels))
        for name, files in found.items():
            for file in files:
                self._check_file(file, name)
        made = make_pairs(found)
        self.session.context.add(*made, table=self._class_table(labels, images))
        return self._changed(f"{len(made)} pairs added")

    @_told
    def add_pair(self, image: str, label: str) -> str:
        """Add one labelled scan."""
        self.job.check_free()
        pair = self.session.add_context(self._scan_at(image), self._scan_at(label))
        return self._changed(f"pair {pair.name} added")

    @_told
    def open_bank(self, bank: str) -> str:
        """Take the context of a bank in place of this one; `undo` then goes through its history."""
        self.job.check_free()
        place = self.inside(bank)
        with open_bank(place, LARGEST_BANK) as opened:
            for pair in opened.pairs:
                if pair.image.member is None:
                    raise InputError(
                        f"{bank}: keeps no image of pair {pair.name!r} but the path of one; the "
                        "app opens banks that were saved with their images"
                    )
        if opened.session.task != "segmentation":
            raise InputError(f"{bank}: is for {opened.session.task} tasks; the app segments")
        self.session = ICLSession.load(place, model=self._model, device=self._device)
        return self._changed(f"{bank}: {len(self.session.context)} pairs")

    @_told
    def remove(self, name: str) -> str:
        """Take a pair out of the context."""
        self.job.check_free()
        self.session.remove_context(name)
        return self._changed(f"pair {name} removed")

    @_told
    def undo(self) -> str:
        """Take back the last change of the context."""
        self.job.check_free()
        return self._changed(f"taken back: {self.session.undo().kind}")

    @_told
    def save_bank(self, bank: str) -> str:
        """Keep the context, with its images, in a `.mvctx` file below the root."""
        self.job.check_free()
        if not len(self.session.context):
            raise ContextError("there are no pairs to keep")
        place = self._new_place(bank)
        self.session.save(place)
        self._written.add(place)
        self.refresh()
        return f"written: {bank}"

    def _check_file(self, file: Path, name: str) -> None:
        try:
            self.inside(file.relative_to(self.root))
        except InputError as error:
            raise InputError(f"case {name!r}: {error}") from error

    def _class_table(self, *folders: str) -> ClassTable | None:
        """Read the `dataset.json` in or beside one of the folders, where that is inside."""
        for folder in folders:
            place = self.inside(folder)
            for where in (place, place.parent):
                if where.is_relative_to(self.root) and (where / "dataset.json").is_file():
                    file = self.inside((where / "dataset.json").relative_to(self.root))
                    return read_class_table(file)
        return None

    def _changed(self, said: str) -> str:
        self._show_context()
        return said

    def _show_context(self) -> None:
        self.pairs = tuple(self.session.context.names)
        self.report = None

    # --- check, predict, draw ------------------------------------------------------------------

    @_told
    def check(self, scan: str = "") -> str:
        """Ask the context doctor, about the context alone or with a scan."""
        self.report = self.session.check(self._scan_at(scan) if scan else None)
        return f"{len(self.report.findings)} findings"

    @_told
    def predict(self, scan: str, values: tuple[int, ...] = ()) -> str:
        """Begin to predict a scan on `job`; the answer is then looked at.

        values : label values to predict, none for all that the context has.
        """
        self.job.check_free()
        place, session = self._scan_at(scan), self.session
        wanted = list(values) or None
        if not len(session.context):
            raise ContextError("there are no pairs yet: add some, or draw the first mask")
        session.resolve(wanted)
        trust: TrustLevel = "off" if session.task == "image" else "fast"

        def work(tell: Progress, cancel: Event) -> Prediction:
            answer = session.predict(
                place, classes=wanted, trust=trust, cancel=cancel, on_progress=tell
            )
            _ = answer.mask, answer.statistics  # here, not where the page waits for them
            return answer

        self.job.start(work, then=self._take)
        return f"predicting {scan}"

    @_told
    def draw(self, scan: str, names: str = "") -> str:
        """Look at a scan with an empty mask, to draw a label on it: the start from no labels.

        names : the classes, with commas between; none for those of the context.
        """
        self.job.check_free()
        volume = read_volume(self._scan_at(scan))
        table = self._table_for(names)
        specs = table.specs(sorted(table.names))
        self.planes = view(volume, classes=specs, backend="static", edit=True, key="app").state
        self._drawn, self.prediction, self.looking = (volume, table), None, "drawing"
        return f"draw {', '.join(spec.name for spec in specs)} on {name_of(volume)}"

    def _table_for(self, names: str) -> ClassTable:
        """Make the table of the classes to draw; known names keep theirs, others get the next."""
        known = {spec.name: spec.number for spec in self.classes}
        wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
        if not wanted:
            raise InputError("name the class that you will draw, such as: lesion")
        if len(set(wanted)) != len(wanted):
            raise InputError(f"a class is named twice: {', '.join(wanted)}")
        table, following = ClassTable(), max(known.values(), default=0) + 1
        for name in wanted:
            if name not in known:
                known[name], following = following, following + 1
            table.names[known[name]] = name
            if (colour := self.session.context.table.colours.get(known[name])) is not None:
                table.colours[known[name]] = colour
        return table

    def _take(self, prediction: Prediction) -> None:
        """Look at an answer; it can be corrected at once."""
        self.planes = view(
            prediction.target,
            prediction.mask,
            classes=prediction.classes,
            backend="static",
            edit=True,
            key="app",
        ).state
        self._drawn, self.prediction, self.looking = None, prediction, "prediction"

    def _tell_end(self, change: Any) -> None:
        if change["new"] == "failed":
            self.problem = self.job.error
        elif change["new"] == "cancelled":
            self.said = "cancelled; nothing has changed"
        elif change["new"] == "done":
            self.said, self.notes = "predicted", tuple(self.job.result.warnings)

    # --- correct, accept, save -----------------------------------------------------------------

    @property
    def mask(self) -> xr.DataArray:
        """The mask that is looked at, as it was drawn by now; a copy.

        Raises
        ------
        InputError : nothing is looked at.
        """
        if self.planes is None or self.planes.editor is None:
            raise InputError("there is no mask yet: predict a scan, or draw on one")
        mask: xr.DataArray = self.planes.editor.mask
        return mask

    @_told
    def accept(self) -> str:
        """Make the mask that is looked at, with what was corrected, a pair of the context."""
        self.job.check_free()
        mask = self.mask
        if self._drawn is None:
            pair = self.session.accept(self.prediction, mask=mask)
            return self._changed(f"pair {pair.name} accepted")
        volume, table = self._drawn
        drawn = {int(value) for value in np.unique(mask.values)} - {0}
        if not drawn:
            raise InputError("nothing is drawn yet: take the brush and mark the structure")
        for entries in (table.names, table.colours):
            for value in set(entries) - drawn:
                del entries[value]
        name = self.session.context.free_name(name_of(volume))
        made = make_pair(volume, mask, name=name, task="segmentation")
        self.session.context.add(made, table=table)
        return self._changed(f"pair {name} drawn and added")

    @_told
    def save(self, folder: str, name: str = "") -> str:
        """Write the mask, with what was corrected, as NIfTI, and what is known of it as JSON.

        folder : below the root; made if it is not there.
        name : of the file, by default the scan's.
        """
        self.job.check_free()
        if self.prediction is None:
            raise InputError("there is no prediction to save: predict a scan first")
        stem = name.strip() or stem_of(name_of(self.prediction.target))
        if Path(stem).name != stem or "\\" in stem or stem.startswith("."):
            raise InputError(f"{stem!r} is no file name")
        image = self._new_place(f"{folder}/{stem}.nii.gz")
        sidecar = self._new_place(f"{folder}/{stem}.json")
        self.prediction.with_mask(self.mask).write(image)
        self._written |= {image, sidecar}
        self.refresh()
        return f"written: {image.relative_to(self.root).as_posix()} and {sidecar.name}"

    def _new_place(self, text: str) -> Path:
        """Return a place to write to; what was there before the app is never replaced."""
        place = self.inside(text, new=True)
        if (place.exists() or place.is_symlink()) and place not in self._written:
            raise OutputError(f"{text}: is there already; choose another folder or name")
        return place


def _is_store(folder: Path) -> bool:
    return folder.name.lower().endswith(".zarr")


def _has_dicom(folder: Path) -> bool:
    try:
        return any(entry.name.lower().endswith(".dcm") for entry in folder.iterdir())
    except OSError:
        return False
