"""`ICLSession`: a model, a context and a target, joined; no algorithm of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch

from .acceptance import accepted_pair
from .bank import SavedSession, lasting_name, open_bank, write_bank
from .bank_file import LARGEST_BANK
from .checks import collected_warnings
from .classes import Classes, ClassSpec, read_class_table, resolve_classes
from .cohort import Sources, cases_of
from .comparison import Comparison
from .context import Change, ContextSet
from .errors import ContextError, InputError, WeightsError, missing_extra
from .evaluation.answers import PredictFrom, predictor
from .evaluation.baselines import Baseline, Trial, find_baselines
from .evaluation.baselines.in_context import ThisNetwork, name_of_weights
from .evaluation.doctor import Report, examine
from .evaluation.side_by_side import run_methods, table_of
from .evaluation.trust.calibration import read_calibration
from .geometry import ALIGNS, Align
from .inference.autoregressive import OnProgress, Step, plan_run, run
from .inference.engine import run_threads
from .inference.estimate import Estimate, check_memory, estimate_run
from .inference.recipe import Settings, choose_recipe
from .inference.recorder import Record, Recorder, has_attention, windows_of
from .inference.runner import name_of_network, network_called
from .inference.storage import RunFolder, Storage, storage_of
from .io import Source, name_of, read_volume, source_of
from .judge import Judge, TrustLevel, check_level
from .manifest import describe_run
from .many import Case, CaseTask, Row, predict_cases
from .many import table_of as table_of_cases
from .model.device import choose_device, choose_precision
from .model.registry import find_weights, load_model
from .model.weights import network_hash, weights_hash
from .pair import ContextPair, Task, make_pair, make_pairs
from .pair_folder import find_class_table, find_pairs
from .prediction import Prediction
from .progress import Progress, counting, in_seconds, reporting, shown
from .question import Question
from .registration import Register, check_kind
from .tuning import Tuning, tune_on_pairs
from .volume import with_data

if TYPE_CHECKING:
    from .inference.cluster import Cluster


class ICLSession:
    """Segment or transform scans from a handful of examples, without training.

    Parameters
    ----------
    model : a name of `available_models`, or a path to `.safetensors` or a released `.ckpt`.
    task : "segmentation" (integer labels) or "image" (labels are images).
    device : "auto", "cpu", "cuda", "cuda:N" or "mps".
    precision : "auto" (bfloat16 where the hardware has it), "float32" or "bfloat16".
    align : how a pair is placed on the target: "box", "center" or "world".
    client : a Dask `distributed.Client`; its workers run the windows, and in `predict_many`
        whole scans (extra `distributed`).

    Raises
    ------
    WeightsError : no such model, or weights that cannot be loaded.
    InputError : an unknown setting.
    """

    def __init__(
        self,
        model: str | Path = "medverse-tiny",
        *,
        task: Task = "segmentation",
        device: str = "auto",
        precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        align: Align = "box",
        client: Any = None,
    ) -> None:
        for name, value, allowed in (
            ("task", task, ("segmentation", "image")),
            ("align", align, ALIGNS),
        ):
            if value not in allowed:
                raise InputError(f"{name}={value!r} is not one of {allowed}")
        self.model_name = str(model)
        weights = find_weights(model)
        self.weights_hash = weights_hash(weights)
        self.judge = Judge(read_calibration(weights, self.weights_hash))
        self.network = load_model(model, device)
        self.device = next(self.network.parameters()).device
        self.precision = choose_precision(precision, self.device)
        if self.precision != "float32":  # 2 to 3 times faster there, slower in float32
            self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.cluster = _open_cluster(client, device)
        self.task: Task = task
        self.align: Align = align
        self.context = ContextSet()
        self.last: Prediction | None = None
        self.tuning: Tuning | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The session's settings as plain JSON values."""
        return {
            "task": self.task,
            "align": self.align,
            "device": str(self.device),
            "precision": self.precision,
            "tuning": self.tuning.to_dict() if self.tuning else None,
        }

    def add_context(
        self,
        image: Source,
        label: Source,
        *,
        name: str | None = None,
        affine: Any = None,
        label_threshold: float | None = None,
    ) -> ContextPair:
        """Add one labelled volume; nothing is added if it cannot be used.

        Parameters
        ----------
        image, label : path, nibabel image, `DataArray` or array; one grid.
        affine : for arrays and `.npy`.
        label_threshold : turns a fractional label into a mask of what exceeds it.

        Raises
        ------
        InputError, ContextError : unreadable, of different shapes, fractional labels, or a
            name that is taken.
        """
        pair = make_pair(
            image,
            label,
            name=name or self.context.free_name(name_of(image)),
            task=self.task,
            affine=affine,
            label_threshold=label_threshold,
        )
        self.context.add(pair)
        return pair

    def add_context_folder(
        self,
        images: str | Path,
        labels: str | Path,
        *,
        names: list[str] | None = None,
        label_threshold: float | None = None,
    ) -> list[ContextPair]:
        """Add the pairs of an nnU-Net folder, all of them or only `names`.

        Class names come from a `dataset.json` in or beside the folders. Nothing is added
        if one of the pairs cannot be used.

        Raises
        ------
        ContextError : no folder, unmatched names, or a pair that cannot be used.
        """
        found = find_pairs(images, labels)
        missing = sorted(set(names or ()) - set(found))
        if missing:
            raise ContextError(f"no such cases in {images}: {missing}")
        pairs = make_pairs(
            {name: found[name] for name in names or found},
            task=self.task,
            label_threshold=label_threshold,
        )
        self.context.add(*pairs, table=find_class_table(labels, images))
        return pairs

    def remove_context(self, name: str) -> ContextPair:
        """Take a pair out of the context and return it; `undo` brings it back.

        Raises
        ------
        ContextError : no pair of that name.
        """
        return self.context.remove(name)

    def undo(self) -> Change:
        """Take back the last change of the context and return it.

        A change is a pair that was added, accepted or removed, or a folder with its class
        names. The last `context.MOST_CHANGES` can be taken back, one after the other, also
        after `save` and `load`.

        Raises
        ------
        ContextError : nothing to take back.
        """
        return self.context.undo()

    def read_class_names(self, path: str | Path) -> None:
        """Take class names and colours from `dataset.json`, a FreeSurfer or ITK-SNAP table."""
        self.context.table.update(read_class_table(path))

    def check(self, target: Source | None = None) -> Report:
        """Ask the context doctor, before anything runs.

        Raises
        ------
        InputError : a target that cannot be read.
        """
        volume = None if target is None else read_volume(target)
        return examine(self.context.pairs, volume, self.align)

    def resolve(self, classes: Classes) -> list[ClassSpec]:
        """Return what a request for classes means with this context; empty for an image task.

        Raises
        ------
        ContextError : no foreground, or a class that no pair has.
        InputError : a malformed request.
        """
        if self.task == "image":
            if classes is not None:
                raise InputError(
                    'classes= is for task="segmentation"; this session transforms images'
                )
            return []
        return resolve_classes(classes, self.context.values, self.context.table)

    def predict(
        self,
        target: Source,
        *,
        classes: Classes = None,
        record: Record = False,
        truth: Source | None = None,
        trust: TrustLevel = "off",
        register: Register = "off",
        affine: Any = None,
        name: str | None = None,
        skip_empty: bool = False,
        folder: str | Path | None = None,
        cancel: Event | None = None,
        on_progress: Progress | Literal["bar"] | None = "bar",
    ) -> Prediction:
        """Predict the label of one scan, on the scan's own grid.

        Parameters
        ----------
        target : path, nibabel image, `DataArray` or array.
        classes : None for every value in the context; `[1, 2]` keeps those values;
            `{"hippocampus": (1, 2)}` names a union.
        record : True keeps every scale in `.steps` and where blocks look in `.attention`, of
            `{"windows": [0, 5]}` only for these, counted through all scales. A window that ran
            on a `client`'s worker runs once more here.
        truth : the known label; fills `.score` with Dice (or PSNR) beside the mean label's.
        trust : "fast" or "full" fills `.trust`: the Dice to expect of each class, and why. Both
            cost a few runs of one window, however large the scan; "full" answers each pair from
            the others, once a context, and from halves of the context (`docs/trust.md`).
        register : "affine" or "deformable" lays every pair on the scan first, for this prediction
            alone: surer where pairs show one anatomy in one contrast, at the price of a second or
            so a pair (extra `registration`).
        affine : for arrays and `.npy`.
        name : what the scan is called in titles, messages and the manifest; None for its file's.
        skip_empty : do not look again where the coarser scale found no class at all; faster for
            small structures in large scans, but what was missed there stays missed.
        folder : keeps every scale as it grows; a run that was cut short goes on from there.
            None keeps them in memory, large ones in scratch space.
        cancel : a `threading.Event`; once set, the run ends after the window it is at.
        on_progress : called with what is being done, windows done, and of how many; "bar" shows
            a bar in a terminal or a notebook, for what takes longer than two seconds.

        Raises
        ------
        InputError : a target or truth that cannot be read, a `folder` of another run, or a
            window to record that the run does not have.
        ContextError : no pairs, no foreground, or a class that no pair has.
        OutputError : no space left for the run.
        ClusterError : workers of `client` that could not do it.
        Cancelled : by `cancel`.

        Source: Medverse Eqs. 2-4 through `predict_array`.
        """
        check_level(trust, self.task)
        check_kind(register)
        started = time.perf_counter()
        with collected_warnings() as messages:
            question = self._ask(target, classes, affine, name)
            known = None if truth is None else question.read_truth(truth)
        if skip_empty and not question.classes:
            raise InputError("skip_empty= is for segmentation; an image has no empty parts")
        if register != "off":
            with shown(on_progress, "pair") as progress:
                before = counting("registration", len(self.context), progress, cancel)
                question = question.registered(register, before)
        settings = Settings(precision=self.precision, skip_empty=skip_empty)
        recorder = self._recorder(question, settings, record)
        with shown(on_progress, "window") as progress:
            steps = self._run(question, settings, folder, recorder, reporting(progress, cancel))
        seconds = time.perf_counter() - started
        probability, image = question.answer(steps[-1])
        prediction = Prediction(
            target=question.target,
            classes=question.classes,
            probability=probability,
            image=image,
            manifest=describe_run(
                model={"name": self.model_name, "weights_sha256": self.weights_hash},
                context=self.context,
                target=question.target,
                scale=question.scale,
                settings={
                    **self.settings,
                    "skip_empty": skip_empty,
                    "register": register,
                    "classes": [spec.to_dict() for spec in question.classes],
                },
                steps=steps,
                seconds=seconds,
            ),
            steps=question.recorded(steps, known) if record else (),
            attention=recorder.dataset() if recorder else None,
            warnings=(*messages, *question.warnings),
            inputs=(
                *(source_of(one) for one in (target, truth) if one is not None),
                *self.context.sources,
            ),
        )
        if known is not None:
            prediction = replace(prediction, score=question.score(prediction, known))
        if trust != "off":
            with shown(on_progress, "run") as progress:
                found = self.judge.score(
                    question, steps, self.network, settings, trust, progress, cancel
                )
            prediction = replace(prediction, trust=found)
        self.last = prediction
        return prediction

    def predictor(
        self,
        target: Source,
        *,
        classes: Classes = None,
        affine: Any = None,
        cancel: Event | None = None,
        on_progress: Progress | None = None,
    ) -> PredictFrom:
        """Return what answers one scan from any pairs, as the measures of `evaluation` ask for.

        Its answers are probabilities (class, x, y, z) on the scan's grid, not yet a mask; of an
        image task (1, x, y, z), the labels' intensities scaled to [0, 1].

        Parameters
        ----------
        target, classes, affine, cancel : as in `predict`; classes are those of the whole context.
        on_progress : called with what is being done, windows done, and of how many.

        Raises
        ------
        InputError, ContextError : as `predict`.
        """
        question = self._ask(target, classes, affine)
        return predictor(
            self.network,
            question.target,
            question.wanted,
            names=[spec.name for spec in question.classes],
            align=self.align,
            settings=Settings(precision=self.precision),
            on_progress=reporting(on_progress, cancel),
        )

    def estimate(self, target: Source, *, classes: Classes = None, affine: Any = None) -> Estimate:
        """Tell what `predict` will take on this machine: windows, seconds, memory, scratch.

        One window is really run; with a `client`, in this process all the same.

        Parameters
        ----------
        target, classes, affine : as in `predict`.

        Raises
        ------
        InputError : a target that cannot be read, or a window that does not fit in memory.
        ContextError : no pairs, no foreground, or a class that no pair has.
        """
        question = self._ask(target, classes, affine)
        return estimate_run(self.network, question.inputs, Settings(precision=self.precision))

    def predict_many(
        self,
        targets: Sources,
        *,
        out: str | Path | None = None,
        classes: Classes = None,
        truths: str | Path | Mapping[str, Source] | None = None,
        trust: TrustLevel = "off",
        register: Register = "off",
        on_progress: Progress | Literal["bar"] | None = "bar",
    ) -> pd.DataFrame:
        """Predict a cohort; a bad scan is told in the table and the rest go on.

        With a `client` its workers take a scan each, read it and write its result; they then
        need the same file system.

        Parameters
        ----------
        targets : a folder of scans (`NAME_0000.nii.gz` is called NAME, as in nnU-Net), scans, or
            scans by name; files serve best with a client.
        out : folder for `NAME.nii.gz` and `NAME.json`; None keeps the table alone.
        classes : as in `predict`.
        truths : known labels by name, or a folder of them; they fill the score columns.
        trust, register : as in `predict`; trust fills the columns of the Dice to expect.
        on_progress : called with a scan's name, scans done, and of how many; "bar" as in
            `predict`.

        Returns
        -------
        A line a scan and class: `case`, `class`, statistics, scores, `seconds`, `output`,
        `error`.

        Raises
        ------
        InputError : two scans of one name, or a truth without a scan.
        ContextError : no pairs, a class that no pair has, or a folder without scans.
        OutputError : a result would overwrite its scan, or cannot be written.
        """
        cases = cases_of(targets, truths)
        with shown(on_progress, "scan") as progress:
            return table_of_cases(
                self.predict_cases(
                    cases,
                    out=out,
                    classes=classes,
                    trust=trust,
                    register=register,
                    on_progress=progress,
                )
            )

    def predict_cases(
        self,
        cases: Sequence[Case],
        *,
        out: str | Path | None = None,
        classes: Classes = None,
        trust: TrustLevel = "off",
        register: Register = "off",
        on_progress: Progress | None = None,
    ) -> list[Row]:
        """Predict a cohort as `predict_many` does; a row a scan, all that is known of it.

        Raises
        ------
        InputError, ContextError, OutputError : as `predict_many`.
        """
        self._check_context()
        self.resolve(classes)
        check_level(trust, self.task)
        check_kind(register)
        if self.cluster:
            self.cluster.send(self.network)
        task = CaseTask(self, classes, Path(out) if out else None, trust, register)
        return predict_cases(task, cases, cluster=self.cluster, on_progress=on_progress)

    def compare(
        self,
        target: Source,
        truth: Source,
        *,
        classes: Classes = None,
        baselines: Sequence[str | Path | Baseline] = ("mean label", "best pair"),
        seconds: float = 60,
        seed: int = 0,
        affine: Any = None,
        cancel: Event | None = None,
        on_progress: Progress | Literal["bar"] | None = "bar",
    ) -> Comparison:
        """Answer one scan by this model and by baselines, from the same pairs, and score all.

        The session stays as it is: `.last` too, and nothing can be accepted from it.

        Parameters
        ----------
        target, classes, affine : as in `predict`.
        truth : the known label, on the target's grid.
        baselines : names of `evaluation.baselines.BASELINES` ("mean label", "best pair",
            "registration", "U-Net", "Swin UNETR"), paths of other in-context weights, or
            objects with a `name` and `predict(trial)`.
        seconds : for each baseline that trains or searches; others take what they take.
        cancel : a `threading.Event`; once set, the comparison ends.
        on_progress : called with a method's name, methods done, and of how many; "bar" as in
            `predict`.

        Returns
        -------
        A table, masks and a picture. A method that fails is told there, and the others go on.

        Raises
        ------
        InputError : a target or truth that cannot be read, a truth with NaN or of another shape,
            an unknown baseline, `seconds` that are not positive, or an image task. Told before
            any method runs.
        ContextError : no pairs, no foreground, or a class that no pair has.
        Cancelled : by `cancel`.
        """
        if self.task == "image":
            raise InputError('compare is for task="segmentation"; this session transforms images')
        if not 0 < seconds < float("inf"):
            raise InputError(f"seconds={seconds} must be a positive number")
        name = name_of_weights(self.model_name)
        others = find_baselines(baselines, name)
        question = self._ask(target, classes, affine)
        known = question.read_truth(truth)
        trial = Trial(
            question.target,
            tuple(self.context.pairs),
            question.classes,
            self.align,
            seconds,
            seed,
            cancel,
        )
        ours = ThisNetwork(name, self.network, Settings(precision=self.precision))
        with shown(on_progress, "method") as progress:
            runs = run_methods(trial, [ours, *others], progress)
        return Comparison(
            target=question.target,
            truth=with_data(question.target, trial.numbers(known), "truth"),
            classes=question.classes,
            table=table_of(runs, known, trial, name),
            masks={
                run.name: with_data(question.target, run.mask, "mask")
                for run in runs
                if run.mask is not None
            },
        )

    def tune(
        self,
        seconds: float = 60,
        *,
        classes: Classes = None,
        keep: bool | None = None,
        seed: int = 0,
        on_progress: Progress | Literal["bar"] | None = "bar",
    ) -> Tuning:
        """Train a copy of the network on the session's own pairs, and show what it gains.

        A quarter of the pairs is held out and measured before and after. The weights file
        and the network of other sessions are never touched; `Tuning.save` writes a file of the
        tuned ones.

        Parameters
        ----------
        seconds : for training and measuring; the first measurement comes on top.
        classes : as in `predict`; those the tuning is for.
        keep : True predicts with the tuned network from now on, False does not; None keeps
            it where the held-out pairs gained.
        on_progress : called with "tuning", seconds used, and of how many; "bar" as in
            `predict`.

        Raises
        ------
        ContextError : fewer than three pairs, or a class that no pair has.
        InputError : `seconds` that are not positive.
        """
        specs = self.resolve(classes)
        with shown(on_progress, "s") as progress:
            tuning = tune_on_pairs(
                self.network,
                self.context.pairs,
                [spec.values for spec in specs] or [None],
                self.align,
                Settings(precision=self.precision),
                seconds,
                seed,
                in_seconds("tuning", progress),
            )
        if tuning.gain > 0 if keep is None else keep:
            if tuning.tuned.network is not self.network:
                self.judge = Judge(None)  # the calibration was of other weights
            self.network, self.tuning = tuning.tuned.network, tuning
        return tuning

    def accept(
        self, prediction: Prediction | None = None, mask: Source | None = None
    ) -> ContextPair:
        """Make a prediction, or its corrected mask, a context pair.

        Parameters
        ----------
        prediction : None for the last one.
        mask : the corrected mask (class numbers as in `Prediction.mask`) or image, on the
            target's grid; None for the answer as it is.

        Raises
        ------
        ContextError : nothing predicted yet, an empty mask, or one of another shape; nothing
            changes.
        """
        chosen = prediction or self.last
        if chosen is None:
            raise ContextError("nothing to accept: predict first")
        pair = accepted_pair(chosen, mask, self.context, self.task)
        self.context.add(pair)
        return pair

    def save(self, path: str | Path, *, images: bool = True, removed: bool = True) -> Path:
        """Write the session's context, class names, settings and history as a bank.

        The bank is a zip of JSON and NIfTI. Of the model it has name and weights hash; a tuned
        network is not kept, with a warning.

        Parameters
        ----------
        path : ends in `.mvctx`; what is there is replaced at the very end.
        images : False keeps the labels alone: the images must stay at the paths they came from,
            unchanged, which is checked now and on loading.
        removed : keep the pairs that were removed, so that `undo` can bring them back. False,
            for a bank to give away, keeps no voxel of them; the history then begins after the
            last removal, as it does without images.

        Raises
        ------
        InputError : a pair that cannot be kept: an image that came from no file, without images.
        OutputError : the place cannot be written; what was there is as it was.
        """
        saved = SavedSession(
            model=lasting_name(self.model_name),
            weights_sha256=self.weights_hash,
            task=self.task,
            align=self.align,
            device=self.device.type,
            precision=self.precision,
            tuning=self.settings["tuning"],
        )
        return write_bank(Path(path), self.context, saved, images=images, removed=removed)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: str | Path | None = None,
        device: str = "auto",
        precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        client: Any = None,
        max_bytes: int = LARGEST_BANK,
    ) -> ICLSession:
        """Make a session from a bank; on the same device it predicts bit for bit as the saved one.

        Warns where the weights are not the saved ones, and where those were tuned.

        Parameters
        ----------
        model : None for the saved one.
        device, client : as for a new session.
        precision : "auto" is the saved one on the same kind of device.
        max_bytes : that may be inside the bank, unpacked.

        Raises
        ------
        InputError : no bank, a damaged or unsafe one, of a newer version or too large; an image
            that was not kept and is no longer what it was.
        WeightsError : the model is not where it was; pass `model`.
        OutputError : no scratch space for large volumes.
        """
        with open_bank(Path(path), max_bytes) as bank:
            saved = bank.session
            if precision == "auto":
                precision = saved.precision_on(choose_device(device).type)
            try:
                session = cls(
                    model or saved.model,
                    task=saved.task,
                    device=device,
                    precision=precision,
                    align=saved.align,
                    client=client,
                )
            except WeightsError as error:
                raise WeightsError(f"{path}: {error}; or pass model=") from error
            session.context = bank.read_context()
        saved.tell_differences(Path(path), session.weights_hash)
        return session

    def explore_context(
        self,
        target: Source | None = None,
        truth: Source | None = None,
        backend: str = "auto",
        *,
        classes: Classes = None,
    ) -> Any:
        """Open the context workbench: choose pairs, see what each does, compare two choices.

        Parameters
        ----------
        target : a scan to answer; without one the pairs are only looked at.
        truth : its known label.
        backend : "canvas", "static" (a picture of the pairs) or "auto".
        classes : as in `predict`; what is measured and compared.

        Raises
        ------
        ContextError : no pairs, no foreground, or a class that no pair has.
        InputError : a target or truth that cannot be read, a truth alone, another backend,
            malformed classes.
        """
        from .ui.context_explorer import explore_context

        return explore_context(self, target, truth, backend, classes)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what a worker has or does not need: network, cluster, last answer."""
        state = {**self.__dict__, "cluster": None, "last": None}
        return state | {"network": name_of_network(self.network) or self.network}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.network, str):
            self.network = network_called(self.network)
        self.device = next(self.network.parameters()).device

    def __repr__(self) -> str:
        return (
            f"<ICLSession {self.model_name} on {self.device} in {self.precision}: "
            f"{len(self.context)} pairs, values {self.context.values}>"
        )

    def _check_context(self) -> None:
        if not len(self.context):
            raise ContextError("there are no context pairs; add_context a labelled pair first")

    def _ask(
        self, target: Source, classes: Classes, affine: Any, name: str | None = None
    ) -> Question:
        self._check_context()
        specs = self.resolve(classes)
        volume = read_volume(target, affine, name=name)
        return Question(volume, tuple(specs), self.context, self.task, self.align)

    def _recorder(self, question: Question, settings: Settings, record: Record) -> Recorder | None:
        """Return what records attention, where that is asked for and the network has any."""
        chosen = windows_of(record)
        if record is False or not has_attention(self.network):
            return None
        recipe = choose_recipe(self.network.config, question.inputs.shape, settings)
        names = [pair.name for pair in self.context]
        return Recorder(self.network, plan_run(recipe, settings), names, question.names, chosen)

    def _run(
        self,
        question: Question,
        settings: Settings,
        folder: str | Path | None,
        recorder: Recorder | None,
        on_progress: OnProgress,
    ) -> list[Step]:
        """Run the network over all scales, here or on the workers."""
        storage: Storage = storage_of((len(question.wanted), *question.inputs.shape))
        if folder:
            asked = {
                "medverse_nb": version("medverse_nb"),
                "weights": network_hash(self.network),
                "settings": asdict(settings),
                **question.to_dict(),
            }
            storage = RunFolder(Path(folder), asked).storage
        if self.cluster:
            self.cluster.send(self.network)
        else:
            recipe = choose_recipe(self.network.config, question.inputs.shape, settings)
            check_memory(self.network, recipe, settings)
        return run(
            self.network,
            question.inputs,
            settings,
            storage=storage,
            executor=self.cluster or run_threads,
            recorder=recorder,
            on_progress=on_progress,
        )


def _open_cluster(client: Any, device: str) -> Cluster | None:
    if client is None:
        return None
    try:
        from .inference.cluster import Cluster
    except ModuleNotFoundError as error:
        raise missing_extra("client=", error, "distributed") from error
    return Cluster(client, device)
