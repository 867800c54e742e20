"""Context workbench, the state: which pairs are used, what each does, and two choices compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import traitlets
import xarray as xr

from ..classes import Classes, ClassSpec
from ..errors import ContextError, InputError
from ..evaluation.answers import Answer, PredictFrom
from ..evaluation.how_many import draw_contexts, how_many
from ..evaluation.influence import influence
from ..evaluation.similarity import DESCRIPTORS, feature_descriptor, similarity
from ..evaluation.wrong_context import shuffle_labels, swap_labels, wrong_context
from ..io import Source, read_volume
from ..pair import ContextPair
from ..progress import Progress
from ..question import Question
from ..volume import grid_of, with_data
from .choices import ClassChoice
from .display import Display
from .gallery import Card, make_card, pair_scene
from .job import Job
from .layers import grey_layer, label_layer, signed_layer
from .scene import Layer, Panel, Scene
from .slices import SliceState

if TYPE_CHECKING:
    from ..session import ICLSession

SIDES = ("A", "B")
FEATURES = "features"  # the descriptor that asks the session's network
MOST_CHANGE = 1.0  # of a probability, and of an image in [0, 1]


@dataclass(frozen=True, eq=False)
class Measured:
    """A table, and the names of the pairs it was measured with."""

    names: tuple[str, ...]
    table: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Choice:
    """Some pairs and what they answer."""

    names: tuple[str, ...]
    answer: Answer


class WorkbenchState(ClassChoice):
    """What the context workbench shows.

    Ticking pairs changes nothing but `used`; only `keep` changes the session's context. What
    takes long runs on `job`, one at a time, with the pairs that are ticked when it starts.
    Classes are those asked for, or all of the context as it was opened.

    Traits
    ------
    gallery : a `Card` for each pair, in the context's order.
    used : names of the ticked pairs, in that order.
    shown : the pair that is looked at, "" for none; `pair` has its planes.
    descriptor : what `similarity` compares, one of `descriptors`.
    influence, curve, wrong : `Measured`, None before.
    a, b : the two choices that were run; `comparing` has the planes of their answers.
    class_name : the class whose difference is drawn.

    Raises
    ------
    ContextError : the session has no pairs, none has any foreground, or a class that no pair has.
    InputError : a target or truth that cannot be read, a truth without a target, or malformed
        classes.
    """

    gallery = traitlets.Tuple()
    used = traitlets.Tuple()
    shown = traitlets.Unicode("")
    pair = traitlets.Instance(SliceState, allow_none=True)
    descriptor = traitlets.Unicode("image")
    influence = traitlets.Instance(Measured, allow_none=True)
    curve = traitlets.Instance(Measured, allow_none=True)
    wrong = traitlets.Instance(Measured, allow_none=True)
    a = traitlets.Instance(Choice, allow_none=True)
    b = traitlets.Instance(Choice, allow_none=True)
    comparing = traitlets.Instance(SliceState, allow_none=True)

    def __init__(
        self,
        session: ICLSession,
        target: Source | None = None,
        truth: Source | None = None,
        classes: Classes = None,
    ) -> None:
        if not len(session.context):
            raise ContextError("there are no pairs to look at; add_context a labelled pair first")
        if truth is not None and target is None:
            raise InputError("a truth is of a target; give the target too")
        self.session = session
        self.classes: tuple[ClassSpec, ...] = tuple(session.resolve(classes))
        self.class_names = [spec.name for spec in self.classes] or ["image"]
        self.descriptors = (*DESCRIPTORS, FEATURES)
        self.target: xr.DataArray | None = None if target is None else read_volume(target)
        self.truth: Answer | None = None if truth is None else self._read_truth(truth)
        self.job = Job()
        self._similarities: dict[str, Measured] = {}
        super().__init__(class_name=self.class_names[0], gallery=self._cards())
        self.used = self.names

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all pairs of the gallery."""
        return tuple(card.name for card in self.gallery)

    @property
    def caption(self) -> str:
        """Say in one line what is chosen of what."""
        scan = "no target" if self.target is None else f"target {self.target.name}"
        return f"{len(self.used)} of {len(self.gallery)} pairs used, {scan}"

    # --- choosing ------------------------------------------------------------------------------

    @traitlets.validate("used")
    def _known(self, proposal: Any) -> tuple[str, ...]:
        wanted = set(proposal["value"])
        if unknown := sorted(wanted - set(self.names)):
            raise ContextError(f"no pairs called {unknown}; there are {list(self.names)}")
        return tuple(name for name in self.names if name in wanted)

    @traitlets.validate("descriptor")
    def _a_descriptor(self, proposal: Any) -> str:
        name: str = proposal["value"]
        if name not in self.descriptors:
            raise InputError(f"descriptor={name!r} is not one of {', '.join(self.descriptors)}")
        return name

    @traitlets.validate("shown")
    def _a_pair(self, proposal: Any) -> str:
        name: str = proposal["value"]
        if name:
            self._check_known(name)
        return name

    def _check_known(self, name: str) -> None:
        if name not in self.names:
            raise ContextError(f"no pair called {name!r}; there are {list(self.names)}")

    def tick(self, name: str, use: bool = True) -> None:
        """Use a pair, or not.

        Raises
        ------
        ContextError : no pair of that name.
        """
        self._check_known(name)
        self.used = (*self.used, name) if use else tuple(n for n in self.used if n != name)

    def keep(self) -> None:
        """Leave the pairs that are not ticked out of the session's context, as one change.

        `session.undo()` and then `refresh` bring them back.

        Raises
        ------
        ContextError : none is ticked, the one that is looked at would go, or the context is no
            longer the one of the gallery.
        InputError : work is under way.
        """
        self.job.check_free()
        pairs = self._ticked()
        if self.shown and self.shown not in self.used:
            raise ContextError(
                f"pair {self.shown!r} is being looked at and would be left out; tick it or look "
                "at another one"
            )
        self.session.context.keep([pair.name for pair in pairs])
        self.refresh()

    def refresh(self) -> None:
        """Show the session's pairs as they are now; ticks stay where their pairs do.

        Pairs that came in are not ticked. Measures that name a pair which is gone go too.
        """
        before = {card.name: card.pair for card in self.gallery}
        cards = self._cards()
        same = {card.name for card in cards if before.get(card.name) is card.pair}
        if self.shown not in same:
            self.shown = ""
        self.used = tuple(name for name in self.used if name in same)
        self._similarities = {}
        self.gallery = cards
        for trait in ("influence", "curve", "wrong", "a", "b"):
            found: Measured | Choice | None = getattr(self, trait)
            if found is not None and not set(found.names) <= same:
                setattr(self, trait, None)

    @traitlets.observe("shown")
    def _open_pair(self, _change: Any) -> None:
        cards = [card for card in self.gallery if card.name == self.shown]
        self.pair = SliceState(pair_scene(cards[0].pair, self._by_value)) if cards else None

    # --- measuring -----------------------------------------------------------------------------

    @property
    def similarity(self) -> Mapping[str, float]:
        """How alike each pair is to the target; empty without a target. Takes seconds at first."""
        if self.target is None or not self.gallery:
            return {}
        if self.descriptor not in self._similarities:
            named: Any = self.descriptor
            if named == FEATURES:
                named = feature_descriptor(self.session.network)
            pairs = [card.pair for card in self.gallery]
            table = similarity(self.target, pairs, named, align=self.session.align)
            self._similarities[self.descriptor] = Measured(self.names, table)
        table = self._similarities[self.descriptor].table
        return dict(zip(table["pair"], table["similarity"], strict=True))

    @property
    def influences(self) -> Mapping[str, float]:
        """The largest influence of each pair on any class; of the pairs it was measured with."""
        if self.influence is None:
            return {}
        return self.influence.table.groupby("pair", sort=False)["influence"].max().to_dict()

    def measure_influence(self) -> None:
        """Leave out each ticked pair in turn: one prediction more than pairs.

        Raises
        ------
        ContextError : fewer than two ticked pairs, or pairs that are gone.
        InputError : no target, or work is under way.
        """
        pairs = self._ready("influence")
        if len(pairs) < 2:
            raise ContextError(
                "influence needs two ticked pairs or more: one is left out at a time"
            )

        def measure(predict: PredictFrom, tell: Progress, cancel: Event) -> pd.DataFrame:
            return influence(
                predict, pairs, truth=self._known_truth, on_progress=tell, cancel=cancel
            )

        self._measure("influence", pairs, measure)

    def measure_how_many(self, draws: int = 3, seed: int = 0) -> None:
        """Measure the answer against the number of ticked pairs, with the truth where known.

        Raises
        ------
        ContextError : none is ticked, or pairs that are gone.
        InputError : no target, no draw, or work is under way.
        """
        pairs = self._ready("the how-many curve")
        contexts = draw_contexts(pairs, draws=draws, seed=seed)

        def measure(predict: PredictFrom, tell: Progress, cancel: Event) -> pd.DataFrame:
            known = self._known_truth
            return how_many(predict, contexts, truth=known, on_progress=tell, cancel=cancel)

        self._measure("curve", pairs, measure)

    def check_wrong_context(self, structures: Mapping[int, int] | None = None) -> None:
        """Answer from the ticked pairs and from the same with wrong labels.

        Parameters
        ----------
        structures : label values to exchange; None exchanges a value of the first class with
            one of no part in it, and where there is none gives each image the label of another.

        Raises
        ------
        ContextError : labels that cannot be exchanged, or pairs that are gone.
        InputError : no target, or work is under way.
        """
        pairs = self._ready("the wrong-context check")
        values = sorted({value for pair in pairs for value in pair.values})
        asked = self.classes[0].values if self.classes else ()
        inside = [value for value in values if value in asked]
        outside = [value for value in values if value not in asked]
        if structures is None and inside and outside:
            structures = {inside[0]: outside[0]}
        wrong = swap_labels(pairs, structures) if structures else shuffle_labels(pairs)

        def measure(predict: PredictFrom, tell: Progress, cancel: Event) -> pd.DataFrame:
            known = self._known_truth
            return wrong_context(
                predict, pairs, wrong, truth=known, on_progress=tell, cancel=cancel
            ).table

        self._measure("wrong", pairs, measure)

    def run(self, side: str = "A") -> None:
        """Answer the target from the ticked pairs; two sides can be compared.

        Parameters
        ----------
        side : "A" or "B"; what it had is replaced.

        Raises
        ------
        ContextError : none is ticked, or pairs that are gone.
        InputError : no target, another side, or work is under way.
        """
        if side not in SIDES:
            raise InputError(f"side={side!r} is not one of {SIDES}")
        pairs = self._ready(f"choice {side}")
        session, target = self.session, self.target
        assert target is not None

        def work(tell: Progress, cancel: Event) -> Choice:
            predict = session.predictor(
                target, classes=self._asked, cancel=cancel, on_progress=tell
            )
            return Choice(_names_of(pairs), Answer.of(predict(pairs), session.task))

        self.job.start(work, then=lambda choice: setattr(self, side.lower(), choice))

    # --- comparing -----------------------------------------------------------------------------

    @property
    def scores(self) -> pd.DataFrame:
        """Compare the choices that were run, a row a class.

        `A`, `B`: Dice (or PSNR in dB) with the truth, where it is known and the choice was run;
        `agreement` is the Dice of A and B, of an image task `difference` the mean absolute one.
        """
        table = pd.DataFrame({"class": self.class_names})
        for side, choice in (("A", self.a), ("B", self.b)):
            if choice is not None and self.truth is not None:
                table[side] = choice.answer.score(self.truth)
        if self.a is not None and self.b is not None:
            if self.classes:
                table["agreement"] = self.b.answer.score(self.a.answer)
            else:
                table["difference"] = self.b.answer.change(self.a.answer)
        return table.set_index("class")

    @traitlets.observe("a", "b", "class_name")
    def _compare(self, _change: Any) -> None:
        ran = [(s, c) for s, c in zip(SIDES, (self.a, self.b), strict=True) if c is not None]
        if not ran:
            self.comparing = None
            return
        scene = self._comparison(ran)
        if self.comparing is None:
            self.comparing = SliceState(scene)
        else:  # the same grid: the cursor stays
            self.comparing.scene = scene

    def _comparison(self, ran: Sequence[tuple[str, Choice]]) -> Scene:
        assert self.target is not None
        target, display = self.target, Display.of(grid_of(self.target))
        grey = grey_layer(display, target)
        panels = [Panel(f"answer {s}", self._answer(display, grey, c.answer)) for s, c in ran]
        if len(ran) == len(SIDES):
            number = self.class_names.index(self.class_name)
            first, second = (choice.answer.volumes[number] for _, choice in ran)
            less = with_data(target, np.subtract(second, first, dtype=np.float32), "difference")
            change = signed_layer(display, less, name="B - A", limit=MOST_CHANGE)
            panels.append(Panel(f"difference B - A, {self.class_name}", (grey, change)))
        return Scene(display, tuple(panels))

    def _answer(self, display: Display, grey: Layer, answer: Answer) -> tuple[Layer, ...]:
        assert self.target is not None
        if not self.classes:
            image = with_data(self.target, answer.volumes[0], "answer")
            return (grey_layer(display, image, name="answer", window=(0, 1)),)
        numbers = np.zeros(self.target.shape, np.int32)
        for spec, mask in zip(self.classes, answer.masks, strict=True):
            numbers[mask] = spec.number
        return grey, label_layer(display, with_data(self.target, numbers, "mask"), self.classes)

    # --- within --------------------------------------------------------------------------------

    @property
    def _by_value(self) -> tuple[ClassSpec, ...]:
        return tuple(self.session.context.table.specs(self.session.context.values))

    @property
    def _asked(self) -> dict[str, tuple[int, ...]] | None:
        """The classes as they were when the workbench opened, whatever has left since."""
        return {spec.name: spec.values for spec in self.classes} or None

    @property
    def _known_truth(self) -> Any:
        return None if self.truth is None else self.truth.volumes

    def _cards(self) -> tuple[Card, ...]:
        """Return a card for each pair of the session; those that are there are not drawn again."""
        drawn = {id(card.pair): card for card in self.gallery}
        return tuple(
            drawn.get(id(pair)) or make_card(pair, self._by_value) for pair in self.session.context
        )

    def _read_truth(self, truth: Source) -> Answer:
        assert self.target is not None
        session = self.session
        question = Question(self.target, self.classes, session.context, session.task, session.align)
        labels = question.read_truth(truth)
        if not self.classes:
            return Answer.of(question.label_scale.apply(labels), session.task)
        masks = [np.isin(labels, spec.values) for spec in self.classes]
        return Answer.of(np.stack(masks).astype(np.float32), session.task)

    def _ticked(self) -> list[ContextPair]:
        """Return the ticked pairs.

        Raises
        ------
        ContextError : none, or some that the session no longer has.
        """
        there = {id(pair) for pair in self.session.context}
        if gone := [card.name for card in self.gallery if id(card.pair) not in there]:
            raise ContextError(
                f"the session no longer has {', '.join(gone)}; refresh() shows what it has now"
            )
        if not self.used:
            raise ContextError("no pair is ticked; tick one or more")
        return [card.pair for card in self.gallery if card.name in self.used]

    def _ready(self, what: str) -> list[ContextPair]:
        """Return the ticked pairs, once all is there that a run needs."""
        if self.target is None:
            raise InputError(
                f"{what} needs a scan to answer; open explore_context(target) with one"
            )
        self.job.check_free()
        return self._ticked()

    def _measure(
        self,
        trait: str,
        pairs: Sequence[ContextPair],
        measure: Callable[[PredictFrom, Progress, Event], pd.DataFrame],
    ) -> None:
        session, target, names = self.session, self.target, _names_of(pairs)
        assert target is not None

        def work(tell: Progress, cancel: Event) -> Measured:
            predict = session.predictor(target, classes=self._asked, cancel=cancel)
            return Measured(names, measure(predict, tell, cancel))

        self.job.start(work, then=lambda found: setattr(self, trait, found))


def _names_of(pairs: Sequence[ContextPair]) -> tuple[str, ...]:
    return tuple(pair.name for pair in pairs)
