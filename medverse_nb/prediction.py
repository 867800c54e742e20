"""What a session answers: masks and probabilities on the target's own grid."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from .classes import ClassSpec, likeliest
from .dicom_seg import write_dicom_seg
from .errors import ContextError, InputError, OutputError
from .evaluation.records import records_of
from .evaluation.trust.score import Trust
from .files import check_writable, found_among, write_atomically
from .geometry import Grid
from .inference.autoregressive import Step
from .inference.windows import Window, cut
from .io import check_output, stem_of, write_volume
from .regions import View, read, slabs
from .stored import LAZY_CHUNK, is_large
from .views import as_dask, resized
from .volume import affine_of, make_volume, same_voxels, values_of, view_of, with_data


@dataclass(frozen=True)
class WindowCrops:
    """What one window of a run read and answered for one class, each (X, Y, Z) float32.

    context_images, context_labels : (L, X, Y, Z), pairs in the session's order.
    ar_image, ar_label : the coarser scale's image and answer; None at the first scale.
    answer : the window's part of the scale's answer, blended with its neighbours'.
    """

    window: Window
    target: NDArray[np.float32]
    context_images: NDArray[np.float32]
    context_labels: NDArray[np.float32]
    ar_image: NDArray[np.float32] | None
    ar_label: NDArray[np.float32] | None
    answer: NDArray[np.float32]


@dataclass(frozen=True)
class PredictionStep:
    """One scale of a recorded run, of one class.

    `image` (x, y, z) and `prediction` (x, y, z) lie in canonical axis order at the
    scale's resolution, with an affine of their own; so does `truth`, in the answer's units,
    where it was given. `pairs` are the names of the context's.
    """

    scale: int
    class_name: str
    image: xr.DataArray
    prediction: xr.DataArray
    truth: xr.DataArray | None
    windows: tuple[Window, ...]
    pairs: tuple[str, ...]
    question: int
    run: Step

    def read_window(self, number: int) -> WindowCrops:
        """Return what a window of this scale read and answered; volumes are read again.

        Raises
        ------
        InputError : no such window, or a volume that is no longer what the run read.
        """
        if not 0 <= number < len(self.windows):
            raise InputError(
                f"no window {number}: scale {self.scale} has {len(self.windows)}, counted from 0"
            )
        window, seen = self.windows[number], self.run.seen
        fed = seen.feedback
        return WindowCrops(
            window,
            cut(seen.target, [window])[0],
            np.stack([cut(image, [window])[0] for image in seen.images]),
            np.stack([cut(label, [window])[0] for label in seen.labels[self.question]]),
            cut(fed[0], [window])[0] if fed else None,
            cut(fed[1][self.question], [window])[0] if fed else None,
            cut(self.run.blended[self.question], [window])[0],
        )


def recorded_steps(
    steps: Sequence[Step],
    names: Sequence[str],
    pairs: Sequence[str],
    truths: Sequence[View] | None,
    grid: Grid,
) -> tuple[PredictionStep, ...]:
    """Give every scale of every class a geometry of its own, from the full grid's.

    Parameters
    ----------
    names, pairs : of the classes and of the context's pairs.
    truths : what each class's answer should be, on the full grid.
    """
    recorded = []
    for number, name in enumerate(names):
        for step in steps:
            x, y, z = step.image.shape
            affine = grid.resized((x, y, z)).affine
            truth = None if truths is None else resized(truths[number], (x, y, z))
            recorded.append(
                PredictionStep(
                    step.scale,
                    name,
                    make_volume(_kept(step.image), affine, name="image"),
                    make_volume(_kept(step.predictions[number]), affine, name="prediction"),
                    make_volume(_kept(truth), affine, name="truth") if truth is not None else None,
                    step.windows,
                    tuple(pairs),
                    number,
                    step,
                )
            )
    return tuple(recorded)


@dataclass(frozen=True)
class Prediction:
    """The answer for one target, on the target's grid and in its axis order.

    Parameters
    ----------
    target : (x, y, z) the scan as it was read.
    classes : what the numbers in `mask` mean; empty for an image task.
    probability : (class, x, y, z) float32 in [0, 1], or None for an image task.
    image : (x, y, z) float32 in the context labels' units, or None for segmentation.
    manifest : versions, hashes, settings, timings and what was changed; plain JSON values.
    steps : one entry for each scale and class where the run was recorded, else empty.
    attention : where blocks looked, as `Recorder.dataset` says, where the run was recorded and
        the network has attention, else None.
    score : one row a class where a truth was given, else None.
    trust : how far to believe it, where that was asked for, else None.
    inputs : paths of the files it was made from; `write` replaces none of them.
    """

    target: xr.DataArray
    classes: tuple[ClassSpec, ...]
    probability: xr.DataArray | None
    image: xr.DataArray | None
    manifest: dict[str, Any]
    steps: tuple[PredictionStep, ...] = ()
    attention: xr.Dataset | None = None
    warnings: tuple[str, ...] = ()
    score: pd.DataFrame | None = None
    trust: Trust | None = None
    inputs: tuple[str, ...] = ()

    @cached_property
    def mask(self) -> xr.DataArray:
        """Integer mask (x, y, z): the likeliest class, background where none exceeds 0.5."""
        if self.probability is None:
            raise InputError("an image task has no mask; its answer is .image")
        highest = max(spec.number for spec in self.classes)
        dtype = np.uint8 if highest < 2**8 else np.uint16 if highest < 2**16 else np.int32
        numbers: NDArray[Any] = np.array([spec.number for spec in self.classes], dtype)
        data = self.probability.data
        if isinstance(data, np.ndarray):
            return with_data(self.target, likeliest(data, numbers), "mask")
        whole = data.rechunk({0: -1})  # all classes of a voxel
        lazy = whole.map_blocks(likeliest, numbers, dtype=dtype, drop_axis=0)
        return with_data(self.target, lazy, "mask")

    @property
    def answer(self) -> xr.DataArray:
        """`mask`, or `image` for an image task."""
        return self.mask if self.image is None else self.image

    def to_label_values(self, mask: NDArray[Any]) -> NDArray[np.int32]:
        """Turn class numbers into the context's label values; a union takes its first.

        Raises
        ------
        ContextError : a number that is no class of this prediction.
        """
        known = {0: 0} | {spec.number: spec.values[0] for spec in self.classes}
        unknown = sorted({int(n) for n in np.unique(mask)} - set(known))
        if unknown:
            raise ContextError(f"the mask has {unknown}; this prediction's classes are {known}")
        labels = np.zeros(mask.shape, np.int32)
        for number, value in known.items():
            labels[mask == number] = value
        return labels

    @cached_property
    def statistics(self) -> pd.DataFrame:
        """Voxels, millilitres, mean and spread of the target's intensity, one row a class."""
        voxel_ml = abs(np.linalg.det(affine_of(self.target)[:3, :3])) / 1000
        sums = dict.fromkeys([spec.number for spec in self.classes], np.zeros(3))
        if self.classes:
            views = view_of(self.target), view_of(self.mask)
            for scan, mask in zip(*map(slabs, views), strict=True):
                for number in sums:
                    inside = scan[mask == number].astype(np.float64)
                    sums[number] = sums[number] + (inside.size, inside.sum(), (inside**2).sum())
        rows = []
        for spec in self.classes:
            voxels, total, squares = sums[spec.number]
            mean = total / voxels if voxels else float("nan")
            rows.append(
                {
                    "class": spec.name,
                    "number": spec.number,
                    "voxels": int(voxels),
                    "millilitres": round(voxels * voxel_ml, 6),
                    "mean": mean,
                    "spread": np.sqrt(max(0.0, squares / voxels - mean**2)) if voxels else mean,
                }
            )
        columns = ["class", "number", "voxels", "millilitres", "mean", "spread"]
        return pd.DataFrame(rows, columns=columns).set_index("class")

    def with_mask(self, mask: xr.DataArray) -> Prediction:
        """Return this answer with a corrected mask, to be written; the manifest tells of it.

        mask : class numbers on the target's grid. Score and trust, of the mask before, are left
            out.

        Raises
        ------
        InputError : an image task, or a mask of another shape.
        ContextError : a number that is no class of this prediction.
        """
        before = self.mask
        if mask.shape != before.shape:
            raise InputError(f"the mask has the shape {mask.shape}, the target {before.shape}")
        values = values_of(mask)
        self.to_label_values(values)
        corrected = not same_voxels(mask, before)
        manifest = {**self.manifest, "corrected": corrected}
        other = replace(
            self,
            manifest=manifest,
            score=None if corrected else self.score,
            trust=None if corrected else self.trust,
        )
        other.__dict__["mask"] = with_data(self.target, values.astype(before.dtype), "mask")
        return other

    def write(self, path: str | Path) -> Path:
        """Write the answer on the target file's own grid, and `NAME.json` beside it.

        `.nii`, `.nii.gz`, `.npy` and `.zarr` take any answer; `.dcm` is a DICOM Segmentation, for a
        mask of a target that was read from a DICOM folder. The JSON sidecar holds class
        names and colours, statistics and the manifest.

        Raises
        ------
        OutputError : the place cannot be written, or holds the scan, its known label, or a file of
            the context; what was there is as it was.
        InputError : `.dcm` for an image, or for a target that was no DICOM series.
        """
        as_dicom = Path(path).name.lower().endswith(".dcm")
        path = check_writable(Path(path)) if as_dicom else check_output(path)
        if found_among([path], self.inputs):
            raise OutputError(
                f"{path}: is a scan or label that this answer was made from; choose another place"
            )
        sidecar = check_writable(path.with_name(stem_of(path) + ".json"))
        text = json.dumps(self.to_dict(), indent=2)

        def write_both(partial: Path) -> None:
            partial.write_text(text, encoding="utf-8")
            if as_dicom:
                self._write_dicom(path)
            else:
                write_volume(self.answer, path)

        write_atomically(sidecar, write_both)
        return path

    def _write_dicom(self, path: Path) -> Path:
        folder = self.target.attrs.get("dicom_folder")
        if folder is None:
            raise InputError(
                f"{path.name}: a DICOM segmentation refers to the series it was made on, and "
                f"{self.target.name} was not read from a DICOM folder; write .nii.gz instead"
            )
        return write_dicom_seg(self.mask, self.classes, Path(folder), path)

    def to_dict(self) -> dict[str, Any]:
        """Return classes, statistics, score and manifest as plain JSON values."""
        return {
            "classes": [spec.to_dict() for spec in self.classes],
            "statistics": records_of(self.statistics),
            "score": None if self.score is None else records_of(self.score),
            "trust": None if self.trust is None else self.trust.to_dict(),
            "warnings": list(self.warnings),
            "manifest": self.manifest,
        }

    def picture(self) -> bytes:
        """Return a PNG: three planes of the scan with the answer over it."""
        from .ui.static import three_planes, to_png

        name = str(self.target.name or "target")
        if self.image is not None:
            return to_png(three_planes(self.image, title=f"{name}: answer"))
        return to_png(three_planes(self.target, self.mask, self.classes, title=name))

    def view(self, backend: str = "auto", *, edit: bool = False) -> Any:
        """Look at the answer over the target; the answer itself for an image task.

        Parameters
        ----------
        backend : as for `mv.view`, whose `Viewer` is returned.
        edit : let the mask be corrected; the viewer's `.mask` is for `session.accept(mask=...)`.
        """
        from .ui.view import view

        if self.image is not None and not edit:
            return view(self.image, backend=backend)
        return view(self.target, self.mask, classes=self.classes, backend=backend, edit=edit)

    def explore_steps(self, backend: str = "auto") -> Any:
        """Scrub through the scales of a recorded run, and look into its windows.

        Parameters
        ----------
        backend : "canvas", "static" (a picture, a row a scale) or "auto".

        Raises
        ------
        InputError : the run was not recorded.
        """
        from .ui.step_explorer import explore_steps

        return explore_steps(self, backend)

    def explore_attention(self, backend: str = "auto") -> Any:
        """See which block of a recorded window looked where.

        Parameters
        ----------
        backend : "canvas", "static" (a picture, a row a plane) or "auto".

        Raises
        ------
        InputError : the run was not recorded, or its network has no attention.
        """
        from .ui.attention_explorer import explore_attention

        return explore_attention(self, backend)

    def __repr__(self) -> str:
        what = ", ".join(spec.name for spec in self.classes) or "image"
        return f"<Prediction of {self.target.name}: {what}, {tuple(self.target.shape)}>"

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.picture()).decode("ascii")
        alt = escape(f"three planes of {self.target.name} with the prediction")
        parts = [f'<img alt="{alt}" src="data:image/png;base64,{picture}"/>']
        if self.classes:
            parts.append(self.statistics.to_html(float_format="{:.4g}".format))
        if self.trust is not None:
            parts.append(self.trust._repr_html_())
        if self.score is not None:
            parts.append(self.score.to_html(float_format="{:.3f}".format))
        parts += [f"<p><b>Warning:</b> {escape(text)}</p>" for text in self.warnings]
        return "\n".join(parts)


def _kept(view: View) -> Any:
    """Return a volume in memory, a large one as a dask array."""
    return as_dask(view, LAZY_CHUNK) if is_large(view.shape) else read(view)
