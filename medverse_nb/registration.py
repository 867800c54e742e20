"""Registration: pairs deformed so that they lie on the target; by SimpleITK.

Affine by mutual information, then a dense deformation by demons. A B-spline by mutual
information would bear a change of contrast between pair and target, which demons do not; in
SimpleITK it took 10 s to begin and 0.2 s an iteration on 40 x 36 x 32 voxels, demons 0.03 s.

Source: Mattes et al. 2003 (mutual information); Vercauteren et al. 2009 (symmetric forces
demons).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, missing_extra
from .files import in_words
from .geometry import Align, Grid, Shape
from .pair import ContextPair
from .placement import CanonicalVolume, place
from .regions import read
from .resampling import FloatArray
from .stored import LARGEST_LOADED, is_large
from .volume import make_volume

Kind = Literal["affine", "deformable"]
Register = Literal["off", "affine", "deformable"]
Stop = Callable[[float], bool]  # whether to end: given the share of the time that may be used

WORKING_SIDE = 96  # voxels: deformations are smooth, and the time grows with the cube
SAMPLES = 20_000  # voxels that mutual information looks at
AFFINE_ITERATIONS, DEMONS_ITERATIONS = 60, 40  # at most, a resolution
CHUNK = 5  # iterations of demons between two looks at the clock
# Of the deformation, after each iteration of demons: of 0.7, 1, 1.5 and 2 the best on real
# hippocampus. Histograms matched first, diffeomorphic demons and a B-spline did worse.
SMOOTHING_VOX = 1.0
AFFINE_SHARE = 0.5  # of the time, at most


@dataclass(frozen=True, eq=False)
class Warp:
    """Lays volumes of a grid on others of the same grid.

    finished : False where the search was stopped.
    """

    transform: Any
    grid: Grid
    finished: bool

    def apply(self, volume: FloatArray) -> FloatArray:
        """Return a volume (X, Y, Z) of the grid where it belongs, linearly; outside it is 0."""
        import SimpleITK as sitk  # noqa: N813, as everyone writes it

        image = _to_itk(volume, self.grid)
        warped = sitk.Resample(image, image, self.transform, sitk.sitkLinear, 0.0)
        return np.asarray(sitk.GetArrayFromImage(warped), np.float32).T


def check_kind(register: str) -> None:
    """Raise an `InputError` for what is no `Register`."""
    if register not in get_args(Register):
        raise InputError(f"register={register!r} is not one of {get_args(Register)}")


def require_simpleitk(what: str) -> None:
    """Raise an `InputError` that names the extra where SimpleITK is not installed."""
    try:
        import SimpleITK  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra(what, error, "registration") from error


def register(
    fixed: FloatArray,
    moving: FloatArray,
    grid: Grid,
    kind: Kind = "deformable",
    *,
    seed: int = 0,
    stop: Stop = lambda _share: False,
) -> Warp:
    """Find what lays `moving` on `fixed`, both (X, Y, Z) in [0, 1] on one grid.

    Parameters
    ----------
    stop : asked often; once it is true the search ends as far as it came.
    """
    import SimpleITK as sitk  # noqa: N813

    work = _coarse(grid)
    still, moved = (_to_itk(place(one, grid, work, "box"), work) for one in (fixed, moving))
    affine = sitk.AffineTransform(3)
    affine.SetCenter([extent / 2 for extent in work.extent_mm])
    _fit_affine(still, moved, affine, seed, lambda: stop(AFFINE_SHARE))
    if kind == "affine":
        return Warp(affine, grid, not stop(AFFINE_SHARE))
    halfway = sitk.Resample(moved, still, affine, sitk.sitkLinear, 0.0)
    field, finished = _fit_demons(still, halfway, lambda: stop(1.0))
    deformation = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    # the last goes first
    return Warp(sitk.CompositeTransform([affine, deformation]), grid, finished)


def register_pairs(
    target: CanonicalVolume,
    pairs: Sequence[ContextPair],
    kind: Kind,
    align: Align,
    before: Callable[[], None] = lambda: None,
) -> list[ContextPair]:
    """Return the pairs as they lie on the target, on its canonical grid: held in memory.

    Parameters
    ----------
    target : scaled to [0, 1].
    align : where a pair begins from.
    before : called before each pair; may raise to end it.

    Raises
    ------
    InputError : no SimpleITK, or a target too large to hold pairs of its size in memory.
    """
    require_simpleitk("register=")
    if is_large(target.grid.shape):
        raise InputError(
            f"register= holds every pair in memory at the target's size; "
            f"{' x '.join(map(str, target.grid.shape))} voxels are too many (at most "
            f"{in_words(LARGEST_LOADED)} in float32); crop the target, or register beforehand"
        )
    fixed = read(target.view).astype(np.float32, copy=False)
    registered = []
    for pair in pairs:
        before()
        moving = read(pair.image_on(target.grid, align)).astype(np.float32, copy=False)
        warp = register(fixed, moving, target.grid, kind)
        registered.append(
            replace(
                pair,
                image=make_volume(warp.apply(moving), target.grid.affine, name=pair.name),
                label=make_volume(_label(pair, align, warp), target.grid.affine, name="label"),
                changes=(*pair.changes, f"registered to the target: {kind}"),
            )
        )
    return registered


def _label(pair: ContextPair, align: Align, warp: Warp) -> NDArray[Any]:
    """Return a pair's label as it lies on the target, in its own values."""
    if pair.task == "image":
        scaled = warp.apply(read(pair.label_on(warp.grid, align)).astype(np.float32, copy=False))
        return pair.label_scale.invert(scaled)
    labels, largest = np.zeros(warp.grid.shape, np.int32), np.full(warp.grid.shape, 0.5, np.float32)
    for value in pair.values:
        soft = warp.apply(read(pair.label_on(warp.grid, align, (value,))))
        here = soft > largest
        labels[here], largest[here] = value, soft[here]
    return labels


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
    """Return a SimpleITK image in millimetres from the corner of the grid's box.

    All volumes lie on one grid, so its direction and place in space do not matter.
    """
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T, np.float32))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin([step / 2 for step in grid.spacing_mm])
    return image
