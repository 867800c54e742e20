"""Multi-atlas registration: each pair is warped onto the target, and the warped labels vote.

Affine by mutual information, then a dense deformation by demons. A B-spline by mutual
information would bear a change of contrast between pair and target, which demons do not; in
SimpleITK it took 10 s to begin and 0.2 s an iteration on 40 x 36 x 32 voxels, demons 0.03 s.

Source: Mattes et al. 2003 (mutual information); Vercauteren et al. 2009 (symmetric forces
demons); Heckemann et al. 2006 (voting over propagated labels). All by SimpleITK.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...context import ContextPair
from ...errors import missing_extra
from ...geometry import Grid, Shape
from ...placement import place
from ...regions import read
from ...resampling import FloatArray
from ..similarity import choose
from .protocol import Outcome, Trial

WORKING_SIDE = 96  # voxels: deformations are smooth, and the time grows with the cube
SAMPLES = 20_000  # voxels that mutual information looks at
AFFINE_ITERATIONS, DEMONS_ITERATIONS = 60, 40  # at most, a resolution
CHUNK = 5  # iterations of demons between two looks at the clock
# Of the deformation, after each iteration of demons: of 0.7, 1, 1.5 and 2 the best on real
# hippocampus. Histograms matched first, diffeomorphic demons and a B-spline did worse.
SMOOTHING_VOX = 1.0
AFFINE_SHARE = 0.5  # of a pair's seconds, at most


@dataclass(frozen=True)
class Registration:
    """Labels propagated from every pair and averaged, the most alike pairs first.

    The seconds are shared by the pairs: a registration that runs out of its part is used as far
    as it came, and what is left of it goes to the next. At least one pair is registered.

    deform : False for the affine step alone.
    """

    name: str = "registration"
    deform: bool = True
    clock: Callable[[], float] = time.monotonic

    def predict(self, trial: Trial) -> Outcome:
        """Return the vote.

        Raises
        ------
        InputError : SimpleITK is not installed.
        """
        try:
            import SimpleITK  # noqa: F401, the functions below need it
        except ModuleNotFoundError as error:
            raise missing_extra("the baseline 'registration'", error, "baselines") from error
        pairs = choose(trial.target, trial.pairs, len(trial.pairs), align=trial.align)
        end = self.clock() + trial.seconds
        grid = trial.canonical.grid
        scan = read(trial.canonical.view).astype(np.float32, copy=False)
        total = np.zeros((len(trial.classes), *grid.shape), np.float32)
        used = cut_short = 0
        for pair in pairs:
            trial.check()
            left = end - self.clock()
            if used and left <= 0:
                break
            until = self.clock() + left / (len(pairs) - used)
            transform, finished = self._register(trial, scan, pair, until)
            for number, spec in enumerate(trial.classes):
                label = read(pair.label_on(grid, trial.align, spec.values))
                total[number] += _warp(label, grid, transform)
            used += 1
            cut_short += not finished
        notes = []
        if used < len(pairs):
            notes.append(f"time for {used} of {len(pairs)} pairs, the most alike")
        if cut_short:
            notes.append(f"{cut_short} of {used} registrations cut short")
        return Outcome(trial.mask(total / np.float32(used)), "; ".join(notes))

    def _register(
        self, trial: Trial, scan: FloatArray, pair: ContextPair, until: float
    ) -> tuple[Any, bool]:
        """Return the SimpleITK transform from target to pair, and whether it had the time.

        The pair comes as it is placed on the target, so the search starts where the model does.
        """
        import SimpleITK as sitk  # noqa: N813, as everyone writes it

        grid = trial.canonical.grid
        work = _coarse(grid)
        fixed = _to_itk(place(scan, grid, work, "box"), work)
        placed_pair = read(pair.image_on(grid, trial.align)).astype(np.float32, copy=False)
        moving = _to_itk(place(placed_pair, grid, work, "box"), work)

        def out_of_time(share: float = 1.0) -> bool:
            cancelled = trial.cancel is not None and trial.cancel.is_set()
            return cancelled or self.clock() > until - (1 - share) * (until - started)

        started = self.clock()
        affine = sitk.AffineTransform(3)
        affine.SetCenter([extent / 2 for extent in work.extent_mm])
        _fit_affine(fixed, moving, affine, trial.seed, lambda: out_of_time(AFFINE_SHARE))
        trial.check()
        if not self.deform:
            return affine, not out_of_time(AFFINE_SHARE)
        halfway = sitk.Resample(moving, fixed, affine, sitk.sitkLinear, 0.0)
        field, finished = _fit_demons(fixed, halfway, out_of_time)
        trial.check()
        deformation = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
        return sitk.CompositeTransform([affine, deformation]), finished  # the last goes first


def _fit_affine(
    fixed: Any, moving: Any, affine: Any, seed: int, out_of_time: Callable[[], bool]
) -> None:
    """Fit `affine` in place, coarse to fine, by Mattes' mutual information."""
    import SimpleITK as sitk  # noqa: N813

    shrinks = _shrinks(fixed.GetSize(), (4, 2, 1))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    share = min(0.999, SAMPLES / fixed.GetNumberOfPixels())
    method.SetMetricSamplingPercentage(share, seed + 1)  # 0 would be the time of day
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(shrinks)
    method.SetSmoothingSigmasPerLevel([0.5 * (shrink - 1) for shrink in shrinks])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    step_mm = max(fixed.GetSpacing())
    method.SetOptimizerAsRegularStepGradientDescent(step_mm, 1e-3 * step_mm, AFFINE_ITERATIONS, 0.5)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(affine, inPlace=True)
    method.AddCommand(
        sitk.sitkIterationEvent, lambda: method.StopRegistration() if out_of_time() else None
    )
    method.Execute(fixed, moving)


def _fit_demons(fixed: Any, moving: Any, out_of_time: Callable[[], bool]) -> tuple[Any, bool]:
    """Return the displacement field in mm on the fixed grid, and whether it had the time."""
    import SimpleITK as sitk  # noqa: N813

    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(CHUNK)
    demons.SetSmoothDisplacementField(True)
    demons.SetStandardDeviations(SMOOTHING_VOX)
    field = sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat64, 3)
    field.CopyInformation(fixed)
    finished = True
    for shrink in _shrinks(fixed.GetSize(), (2, 1)):
        still, moved = (_shrunk(image, shrink) for image in (fixed, moving))
        field = sitk.Resample(field, still, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear)
        for _ in range(DEMONS_ITERATIONS // CHUNK):
            if out_of_time():
                finished = False
                break
            field = demons.Execute(still, moved, field)
    return sitk.Resample(field, fixed, sitk.Transform(3, sitk.sitkIdentity)), finished


def _shrunk(image: Any, shrink: int) -> Any:
    """Smooth by a voxel and shrink; unsmoothed, demons follow the noise of flat regions."""
    import SimpleITK as sitk  # noqa: N813

    return sitk.Shrink(
        sitk.SmoothingRecursiveGaussian(image, max(image.GetSpacing())), [shrink] * 3
    )


def _shrinks(size: tuple[int, ...], wanted: tuple[int, ...]) -> list[int]:
    """Return the shrink factors that leave enough voxels to register."""
    return [shrink for shrink in wanted if min(size) // shrink >= 8] or [1]


def _coarse(grid: Grid) -> Grid:
    x, y, z = (min(side, WORKING_SIDE) for side in grid.shape)
    shape: Shape = (x, y, z)
    return grid.resized(shape)


def _to_itk(array: FloatArray, grid: Grid) -> Any:
    """Return a SimpleITK image in millimetres from the corner of the target's box.

    Target and pair lie on one grid, so its direction and place in space do not matter.
    """
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T, np.float32))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin([step / 2 for step in grid.spacing_mm])
    return image


def _warp(label: FloatArray, grid: Grid, transform: Any) -> FloatArray:
    """Return a soft label (X, Y, Z) as the transform lays it on the target, linearly."""
    import SimpleITK as sitk  # noqa: N813

    image = _to_itk(label, grid)
    warped = sitk.Resample(image, image, transform, sitk.sitkLinear, 0.0)
    return np.asarray(sitk.GetArrayFromImage(warped), np.float32).T
