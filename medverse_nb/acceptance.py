"""How an answer becomes a context pair, and what must be told of it."""

from __future__ import annotations

from dataclasses import replace

from .checks import tell
from .context import ContextSet
from .errors import ContextError
from .io import Source, name_of
from .pair import ContextPair, Task, make_pair
from .prediction import Prediction
from .provenance import accepted
from .volume import same_voxels, values_of, with_data


def accepted_pair(
    prediction: Prediction, mask: Source | None, context: ContextSet, task: Task
) -> ContextPair:
    """Return the pair that a prediction makes; the context stays as it is.

    Warns of classes that the new pair's label does not tell apart or leaves out, and of a scan
    that the context has already.

    Parameters
    ----------
    mask : the corrected answer, on the target's grid; None for the answer as it is.
    context : that the pair is for: names, classes.

    Raises
    ------
    InputError, ContextError : as `make_pair`, or an empty mask.
    """
    label = prediction.answer if mask is None else mask
    name = context.free_name(name_of(prediction.target))
    pair = make_pair(prediction.target, label, name=name, task=task)
    origin = accepted(
        pair.provenance.image,
        "prediction" if mask is None else pair.provenance.label,
        target=str(prediction.target.name),
        manifest=prediction.manifest,
        corrected=mask is not None and not same_voxels(pair.label, prediction.answer),
    )
    pair = replace(pair, provenance=origin)
    if prediction.image is None:
        if not pair.values:
            raise ContextError(
                f"nothing to accept: the mask of {prediction.target.name} is empty. Draw the "
                "structure first; a scan that truly lacks it is added with "
                "add_context(image, label)"
            )
        values = prediction.to_label_values(values_of(pair.label))
        pair = replace(pair, label=with_data(pair.label, values, "label"))
        _tell_of_classes(prediction, context, name)
    if twins := [one.name for one in context if one.image_hash == pair.image_hash]:
        tell(f"{name}: this scan is in the context already, as {twins[0]}; undo() takes it out")
    return pair


def _tell_of_classes(prediction: Prediction, context: ContextSet, name: str) -> None:
    for spec in prediction.classes:
        if len(spec.values) > 1:
            values = " and ".join(map(str, spec.values))
            tell(
                f"{name}: {values} were asked for as one, {spec.name}, and the new pair has "
                f"{spec.values[0]} for all of it; it is no example for one of them alone"
            )
    asked = {value for spec in prediction.classes for value in spec.values}
    unasked = [value for value in context.values if value not in asked]
    if unasked:
        others = ", ".join(spec.name for spec in context.table.specs(unasked))
        tell(
            f"{name}: {others} was not asked for, and the new pair passes for an example "
            "without it; predict all classes before accepting"
        )
