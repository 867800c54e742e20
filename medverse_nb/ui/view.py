"""`view`: a volume and what lies over it, in the best viewer there is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import xarray as xr
from pandas import unique

from ..classes import ClassSpec, ClassTable, drawn_classes
from ..errors import GeometryError, InputError, missing_extra
from ..geometry import Reorientation
from ..io import Source, name_of, read_volume
from ..regions import Region, slabs
from ..volume import grid_of, view_of, with_data
from .display import Display, check_same_grid
from .editing import MaskEditor
from .front_end import in_notebook, installed, running_cell
from .layers import MOST_CLASSES, grey_layer, heat_layer, label_layer
from .scene import Layer, Panel, Scene
from .slices import SliceState
from .viewer import Explorer, Shown, Viewer

E = TypeVar("E", bound=Explorer)
Backend = Literal["auto", "niivue", "canvas", "static", "itk"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
PACKAGES = {"niivue": "ipyniivue", "canvas": "anywidget", "itk": "itkwidgets"}
EXTRAS = {"niivue": "jupyter", "canvas": "jupyter", "itk": "itk"}
MOST_WEBGL = 8  # Chrome takes away the oldest of more than 16, other pages' included


def view(
    volume: Source,
    overlay: Source | None = None,
    *,
    classes: Sequence[int] | Mapping[str, int] | Sequence[ClassSpec] = (),
    limits: tuple[float, float] | None = None,
    backend: str = "auto",
    roi: Region | None = None,
    edit: bool = False,
    key: str | None = None,
) -> Viewer:
    """Look at a volume, and at labels or probabilities over it.

    Parameters
    ----------
    volume : anything `read_volume` takes. More than 256^3 voxels are shown by every second,
        third, ... voxel; what is under the cursor is read from the volume itself.
    overlay : on the volume's grid: whole numbers are classes, fractions in [0, 1] are heat.
        A NumPy array lies as the volume's own.
    classes : names of the overlay's numbers, {"liver": 1}, or the numbers, or `ClassSpec`s with
        colours; by default each number that is found is a class.
    limits : the overlay is heat, see-through at the first and brightest from the second on, such
        as (0, 0.5) for `trust.uncertainty`; by default (0, 1), for fractions alone.
    backend : "auto" is NiiVue in a notebook that has it (the canvas for `edit`), else the
        canvas, else a picture; "itk" (itkwidgets) is on trial and needs the internet.
    roi : three slices of the volume's array; only that box is shown, every voxel of it.
    edit : let the overlay (or, without one, an empty mask) be drawn on; `Viewer.mask` has it.
    key : a view opened with the same key takes its place; by default the notebook's cell.

    Raises
    ------
    GeometryError : the overlay lies on another grid.
    InputError : an unknown backend, one whose package is missing, or unusable values.
    """
    chosen = choose_backend(backend, edit=edit)
    specs = drawn_classes(classes)
    if limits is not None:
        _check_limits(limits, drawn=edit or bool(specs))
    scan = _one_volume(volume, "the volume")
    display = Display.of(grid_of(scan), roi)
    grey = grey_layer(display, scan)
    if edit:
        mask = _empty(scan, specs) if overlay is None else _aligned(overlay, scan)
        editor = MaskEditor(mask, specs or _classes_in(mask), display, image=scan)
        layers: tuple[Layer, ...] = (grey, editor.layer)
    else:
        editor = None
        over = None if overlay is None else _aligned(overlay, scan)
        layers = (grey,) if over is None else (grey, _overlay_layer(display, over, specs, limits))
    scene = Scene(display, (Panel(name_of(scan), layers),))
    return open_viewer(SliceState(scene, editor=editor), chosen, key=key)


def choose_backend(backend: str, *, edit: bool = False, panels: int = 1) -> Backend:
    """Return the backend that "auto" stands for here, or the one named.

    Drawing is voxel-exact, can be undone and arrives at once in the canvas; NiiVue shows one
    panel. Both need a notebook.

    Raises
    ------
    InputError : an unknown name, or a package that is not installed.
    """
    if backend == "auto":
        usable: list[Backend] = ["canvas"] if edit or panels > 1 else ["niivue", "canvas"]
        if in_notebook() and installed("anywidget"):
            return next((one for one in usable if installed(PACKAGES[one])), "static")
        return "static"
    for known in BACKENDS:
        if backend == known:
            if known in PACKAGES and not installed(PACKAGES[known]):
                missing = ModuleNotFoundError(name=PACKAGES[known])
                raise missing_extra(f'backend="{known}"', missing, EXTRAS[known])
            return known
    raise InputError(f"backend={backend!r} is not one of {BACKENDS}")


def choose_explorer(backend: str) -> Backend:
    """Return "canvas" or "static", for what shows several panels and has controls.

    Raises
    ------
    InputError : another backend, or the package of the canvas is not installed.
    """
    if backend not in ("auto", "canvas", "static"):
        raise InputError(f'backend={backend!r} is not "auto", "canvas" or "static"')
    return choose_backend(backend, panels=2)


def open_explorer(
    explorer: type[E],
    make_state: Callable[[], Any],
    make_widget: Callable[[Any], Any],
    backend: str,
) -> E:
    """Open an explorer; one that the same cell opened before closes.

    Parameters
    ----------
    make_state : called once the backend is known to be usable.
    make_widget : called with the state, for the canvas alone.
    backend : as for `choose_explorer`, whose errors are raised.
    """
    chosen = choose_explorer(backend)
    state = make_state()
    shown = explorer(state, make_widget(state) if chosen == "canvas" else None, chosen)
    take_the_place(shown, None)
    return shown


def open_viewer(state: SliceState, backend: str = "auto", *, key: str | None = None) -> Viewer:
    """Show a state; a viewer that was opened with the same key, or by the same cell, closes.

    Parameters
    ----------
    backend, key : as for `view`.
    """
    edit, panels = state.editor is not None, len(state.scene.panels)
    chosen = choose_backend(backend, edit=edit, panels=panels)
    viewer: Viewer
    if chosen == "static":
        return Viewer(state)
    if chosen == "itk":
        from .itk import open_itk

        return open_itk(state)
    if chosen == "niivue":
        from .niivue import NiivueViewer

        viewer = NiivueViewer(state)
    else:
        from .canvas import SliceCanvas

        viewer = Viewer(state, SliceCanvas(state), "canvas")
    take_the_place(viewer, key)
    return viewer


# --- viewers that are open -----------------------------------------------------------------------

_open: dict[tuple[Any, ...], Shown] = {}  # by name, or by cell and run; the oldest first


def take_the_place(viewer: Shown, key: str | None) -> None:
    """Close what the new viewer replaces, so that a cell that runs again leaves nothing behind."""
    replaced = [place for place, other in _open.items() if other.closed]
    cell, run = running_cell() or (None, 0)
    if key is not None:
        place: tuple[Any, ...] = ("key", key)
        replaced += [place] * (place in _open)
    else:  # a cell may open several: the ones of its earlier runs close
        place = ("cell", cell, run, object())
        if cell is not None:
            replaced += [k for k in _open if k[:2] == place[:2] and k[2] != run]
    in_webgl = [k for k, v in _open.items() if v.backend == viewer.backend == "niivue"]
    replaced += in_webgl[: max(0, len(in_webgl) - MOST_WEBGL + 1)]
    for old in dict.fromkeys(replaced):
        _open.pop(old).close()
    _open[place] = viewer


# --- what lies over the volume -------------------------------------------------------------------


def _one_volume(source: Source, what: str) -> xr.DataArray:
    volume = source if isinstance(source, xr.DataArray) else read_volume(source)
    if volume.ndim != 3:
        raise InputError(
            f"{what} has the dims {volume.dims}; a view shows three: choose one of the others, "
            "such as probability.sel({'class': name})"
        )
    return volume


def _aligned(source: Source, scan: xr.DataArray) -> xr.DataArray:
    """Return an overlay in the scan's axis order; flips and permutations only.

    Raises
    ------
    GeometryError : its voxels lie elsewhere.
    """
    if isinstance(source, np.ndarray):
        if source.shape != scan.shape:
            raise GeometryError(
                f"the overlay has the shape {source.shape}, the volume {scan.shape}; an array "
                "without an affine must lie as the volume's own"
            )
        return with_data(scan, source, "overlay")
    overlay = _one_volume(source, "the overlay")
    grid, wanted = grid_of(overlay), grid_of(scan)
    turn = Reorientation.onto(grid.affine, grid.shape, wanted.affine)
    turned = overlay.transpose(*(overlay.dims[axis] for axis in turn.source_axes))
    turned = turned[tuple(slice(None, None, -1 if flip else 1) for flip in turn.flipped)]
    check_same_grid(grid_of(turned), wanted, "the overlay")
    return with_data(scan, turned.data, str(overlay.name or "overlay"))


def _overlay_layer(
    display: Display,
    overlay: xr.DataArray,
    classes: Sequence[ClassSpec],
    limits: tuple[float, float] | None,
) -> Layer:
    name = str(overlay.name or "overlay")
    if limits is not None:
        return heat_layer(display, overlay, name=name, limits=limits)
    if classes or _is_labels(display, overlay):
        specs = tuple(classes) or _classes_in(overlay)
        return label_layer(display, overlay, specs)
    shown = display.average(display.view_of(overlay))
    least, most = float(np.nanmin(shown)), float(np.nanmax(shown))
    if least < 0 or most > 1:
        raise InputError(
            f"the overlay has fractional values from {least:.4g} to {most:.4g}; give whole "
            "numbers for classes, values in [0, 1] for heat, or limits=(low, high)"
        )
    return heat_layer(display, overlay, name=name)


def _check_limits(limits: tuple[float, float], *, drawn: bool) -> None:
    if drawn:
        raise InputError("limits= shows an overlay as heat; it has no classes and is not edited")
    low, high = limits
    if not low < high:
        raise InputError(f"limits= needs a lower and a higher value, got {limits}")


def _is_labels(display: Display, overlay: xr.DataArray) -> bool:
    if overlay.dtype.kind in "iub":
        return True
    if overlay.dtype.kind != "f":
        raise InputError(f"the overlay's voxels are {overlay.dtype}, which is no number")
    shown = display.pick(display.view_of(overlay))
    shown = shown[np.isfinite(shown)]
    return bool((shown == np.rint(shown)).all())


def _classes_in(mask: xr.DataArray) -> tuple[ClassSpec, ...]:
    """Return a class for each number that is there, 0 left out."""
    found: set[int] = set()
    for slab in slabs(view_of(mask)):
        values = unique(slab.ravel())
        found.update(int(value) for value in values if np.isfinite(value) and value)
    if len(found) > MOST_CLASSES:
        raise InputError(
            f"the overlay has {len(found)} different numbers, and colours tell {MOST_CLASSES} "
            "apart: give classes, or show an image as the volume"
        )
    return tuple(ClassTable().specs(sorted(found)))


def _empty(scan: xr.DataArray, classes: Sequence[ClassSpec]) -> xr.DataArray:
    """Return a mask of nothing, to draw classes into."""
    highest = max((spec.number for spec in classes), default=0)
    return with_data(scan, np.zeros(scan.shape, np.min_scalar_type(highest)), "mask")
