"""The benchmark behind `docs/evidence.md`: resuming, learning once, and what is wrong on purpose."""

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from medverse_nb.errors import ContextError
from medverse_nb.evaluation.baselines import Outcome
from medverse_nb.io import read_volume
from medverse_nb.pair import make_pair

SHAPE = (24, 6, 5)
CASES = ["case-0", "case-1", "case-2"]


@pytest.fixture
def benchmarks(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")


@pytest.fixture
def evidence(benchmarks):
    import evidence

    return evidence


@pytest.fixture
def adversarial(benchmarks):
    import adversarial

    return adversarial


@pytest.fixture
def tables(benchmarks):
    import tables

    return tables


@pytest.fixture
def kept_rows(benchmarks):
    from kept_rows import KeptRows

    return KeptRows


def plant(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A dim structure, label 1, beside a brighter one that has no label, in noise."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 1:5, 1:4] = 1
    image = np.random.default_rng(seed).random(SHAPE, np.float32) / 10 + label
    image[14:20, 1:5, 1:4] = 2
    return image, label


@pytest.fixture
def pairs():
    return [make_pair(*plant(n), name=f"pair-{n}", affine=np.eye(4)) for n in range(3)]


@dataclass
class StubCohort:
    cases: list[str] = field(default_factory=lambda: list(CASES))

    def read(self, case):
        image, label = plant(10 + self.cases.index(case))
        return read_volume(image, np.eye(4)), label > 0


@dataclass
class Copies:
    """Answers the first pair's label, and can be killed at a case."""

    name: str = "copies"
    asked: int = 0
    killed_at: int | None = None

    def predict(self, trial):
        if self.asked == self.killed_at:
            raise KeyboardInterrupt
        self.asked += 1
        return Outcome(trial.pairs[0].label.values)


@dataclass
class Learns:
    """Counts its trainings; what it learnt answers as `Copies` does."""

    name: str = "learns"
    fits: int = 0
    killed_at: int | None = None

    def fit(self, pairs, _classes, _seconds):
        if len(pairs) < 2:
            raise ContextError("learning needs 2 pairs, got 1")
        self.fits += 1
        return Copies(self.name, killed_at=self.killed_at)


def answered(evidence, kept, method, pairs):
    evidence.answer_cases(kept, {"context_size": len(pairs)}, method, pairs, StubCohort(), 1)
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in kept.rows]


def test_a_killed_run_goes_on_to_the_same_rows(evidence, kept_rows, pairs, tmp_path):
    whole = answered(evidence, kept_rows(tmp_path / "whole", {}), Copies(), pairs)
    assert [row["case"] for row in whole] == CASES
    assert [row["dice"] for row in whole] == [1, 1, 1]
    with pytest.raises(KeyboardInterrupt):
        answered(evidence, kept_rows(tmp_path / "rows", {}), Copies(killed_at=2), pairs)
    again = Copies()
    assert answered(evidence, kept_rows(tmp_path / "rows", {}), again, pairs) == whole
    assert again.asked == 1
    assert answered(evidence, kept_rows(tmp_path / "rows", {}), again, pairs) == whole
    assert again.asked == 1


def test_what_learns_does_so_once_a_context(evidence, kept_rows, pairs, tmp_path):
    method = Learns()
    for context in (pairs, pairs[:2], pairs):
        answered(evidence, kept_rows(tmp_path / "rows", {}), method, context)
    assert method.fits == 2
    assert len(kept_rows(tmp_path / "rows", {}).rows) == 2 * len(CASES)


def test_answers_of_two_trainings_never_mix(evidence, kept_rows, pairs, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        answered(evidence, kept_rows(tmp_path / "rows", {}), Learns(killed_at=2), pairs)
    assert kept_rows(tmp_path / "rows", {}).rows == []


def test_a_context_too_small_to_learn_from_is_told_and_not_tried_again(
    evidence, kept_rows, pairs, tmp_path
):
    for _ in range(2):
        rows = answered(evidence, kept_rows(tmp_path / "rows", {}), Learns(), pairs[:1])
        assert [row["error"] for row in rows] == ["learning needs 2 pairs, got 1"] * 3


def test_tuning_is_a_method_that_learns_and_needs_three_pairs(
    evidence, kept_rows, pairs, session, tmp_path
):
    tuned = evidence.Tuned("ours, tuned", session.network, evidence.Settings())
    assert isinstance(tuned, evidence.Learner)
    rows = answered(evidence, kept_rows(tmp_path / "rows", {}), tuned, pairs[:2])
    assert rows[0]["error"].startswith("tuning needs 3 pairs")


def test_a_method_that_fails_ends_the_run_and_says_why(evidence, kept_rows, pairs, tmp_path):
    class Fails:
        name = "fails"

        def predict(self, _trial):
            raise ValueError("no such thing")

    with pytest.raises(SystemExit, match="fails: ValueError: no such thing"):
        answered(evidence, kept_rows(tmp_path / "rows", {}), Fails(), pairs)


def test_a_half_written_group_is_taken_out_and_another_question_refused(kept_rows, tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    kept = kept_rows(path, {"seconds": 5})
    kept.add([{"case": "a", "dice": 0.5}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'[{"case": "b", "di')
    kept = kept_rows(path, {"seconds": 5})
    assert path.read_bytes() == whole
    assert kept.has(case="a")
    assert not kept.has(case="b")
    kept.add([{"case": "b", "dice": 0.25}])
    assert kept_rows(path, {"seconds": 5}).rows == kept.rows
    with pytest.raises(SystemExit, match="give another --work folder"):
        kept_rows(path, {"seconds": 6})


def rows_of(method, *scores, **about):
    return [
        {"method": method, "case": case, "dice": score, **about}
        for case, score in zip(CASES, scores, strict=False)
    ]


def test_methods_are_compared_case_by_case_with_draws_averaged(evidence):
    rows = [*rows_of("ours", 0.5, 0.7), *rows_of("other", 0.6, 0.9), *rows_of("other", 0.6, 1.0)]
    found = evidence.compare(rows, "method", "ours")
    assert found["ours"] == {"dice": 0.6, "difference": 0, "error": 0}
    # Differences 0.1 and 0.25, so a standard deviation of 0.15 / sqrt(2) over two cases.
    assert found["other"]["dice"] == pytest.approx(0.775)
    assert found["other"]["difference"] == pytest.approx(0.175)
    assert found["other"]["error"] == pytest.approx(0.075)
    assert evidence.compare(rows_of("ours", 0.5), "method", "ours")["ours"]["error"] is None


def test_only_the_draws_asked_for_count_and_a_failure_has_its_reason(evidence, tmp_path):
    about = {"context_size": 4, "seconds": 1.0, "once_seconds": 0.0}
    rows = [
        *rows_of("ours", 0.5, 0.7, draw=0, **about),
        *rows_of("ours", 0.1, 0.1, draw=1, **about),
        {"method": "tuned", "case": "case-0", "context_size": 4, "draw": 0, "error": "too few"},
    ]
    bench = evidence.Bench("ours", StubCohort(), tmp_path, tmp_path, 5, [4], 1)
    found = evidence.dice_at(rows, 4, bench)
    assert found["ours"]["dice"] == 0.6
    assert found["ours"]["seconds"] == 1
    assert found["tuned"] == {"failed": "too few"}


def test_a_part_that_is_measured_again_asks_nothing_and_finds_the_same(
    evidence, cohort, tiny_weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(evidence, "POOL", 2)
    monkeypatch.setattr(evidence, "CHOSEN", (1, 2))
    monkeypatch.setattr(evidence, "INVERTED_SIZE", 1)
    cases = evidence.Cohort.split(cohort.images.parent, 1)
    work = tmp_path / "work"
    bench = evidence.Bench(str(tiny_weights), cases, tmp_path, work, 5, [1], 1)
    found = evidence.retrieval(bench)
    names = {"random", "histogram", "image", "edges", "features"}
    assert set(found["sizes"]["2"]) == set(found["inverted"]) == names
    assert len({row["dice"] for row in found["sizes"]["2"].values()}) == 1  # the whole pool
    monkeypatch.setattr(evidence, "ask", None)
    assert evidence.retrieval(bench) == found


def test_labels_move_and_images_stay(adversarial, pairs):
    for before, after in zip(pairs, adversarial.move_labels(pairs), strict=True):
        assert np.array_equal(after.image, before.image)
        assert np.array_equal(after.label.values[12:16], before.label.values[2:6])
        assert not after.label.values[:12].any()
        assert before.label.values[2:6].any()


def test_another_structure_is_labelled_in_all_pairs_or_in_one(adversarial, pairs):
    changed = adversarial.label_bright(pairs)
    for before, after in zip(pairs, changed, strict=True):
        assert np.array_equal(after.image, before.image)
        assert after.label.values[15, 2, 2] == 1
        assert not (after.label.values & before.label.values).any()
    one = adversarial.label_bright_in_one(pairs)
    assert np.array_equal(one[0].label, changed[0].label)
    assert one[1:] == pairs[1:]


def test_targets_are_changed_as_their_names_say(adversarial, pairs):
    target, truth = StubCohort().read("case-0")
    image = target.values
    inverted, same = adversarial.invert(target, truth)
    assert np.allclose(inverted.values + image, image.max() + image.min())
    assert same is truth
    flipped, mirrored = adversarial.flip(target, truth)
    assert np.array_equal(flipped.values[::-1], image)
    assert np.array_equal(mirrored[::-1], truth)
    noise, nothing = adversarial.scramble(target, truth)
    assert np.array_equal(np.sort(noise.values.ravel()), np.sort(image.ravel()))
    assert not np.array_equal(noise.values, image)
    assert not nothing.any()
    assert truth.any()
    for changed in (inverted, flipped, noise):
        assert changed.dims == target.dims
        assert np.array_equal(changed.values, changed.values.copy())
        assert all(changed.coords[name].equals(target.coords[name]) for name in target.dims)


MEASURED = {
    "command": "python benchmarks/evidence.py",
    "date": "2026-01-01",
    "threads": 2,
    "processor": "one",
    "versions": {"torch": "2"},
}
ABOUT = {"model": "ours", "cases": 3, "measured": MEASURED}


def figure(dice, difference, error, **more):
    return {"dice": dice, "difference": difference, "error": error, **more}


def render(tables, name, result):
    empty = f"<!-- benchmark:{name} -->\n<!-- benchmark:end -->\n"
    assert tables.render(empty, {}) == empty
    page = tables.render(empty, {name: {**ABOUT, **result}})
    assert tables.render(page, {name: {**ABOUT, **result}}) == page
    return page


def test_the_page_says_which_methods_are_better_and_where(tables):
    spent = {"seconds": 1.5, "once_seconds": 0.0}
    sizes = {
        "1": {
            "U-Net": figure(0.5, -0.2, 0.01, seconds=0.1, once_seconds=300.0),
            "ours": figure(0.7, 0, 0, **spent),
            "tuned": {"failed": "tuning needs 3 pairs, there is 1"},
        },
        "8": {
            "U-Net": figure(0.85, 0.05, 0.02, seconds=0.1, once_seconds=301.0),
            "ours": figure(0.8, 0, 0, **spent),
            "tuned": figure(0.81, 0.01, 0.02, seconds=1.5, once_seconds=300.0),
        },
    }
    page = render(tables, "evidence_dice", {"sizes": sizes, "draws": 1, "budget": 300.0})
    assert "| method | 1 pair | 8 pairs |\n|---|---|---|\n| ours | 0.700 | 0.800 |" in page
    assert "| U-Net | 0.500 (-0.200 ± 0.010) | 0.850 (+0.050 ± 0.020) |" in page
    assert "| tuned | tuning needs 3 pairs | 0.810 (+0.010 ± 0.020) |" in page
    assert "(at so many pairs): U-Net (8)." in page
    assert "| U-Net | 301 | 0.10 | 0.10 |" in page
    assert "| tuned | 300 | - | 1.50 |" in page


def test_other_tables_render(tables):
    rows = {"affine": figure(0.7, 0, 0, seconds_a_pair=0.3)}
    page = render(tables, "evidence_registration", {"rows": rows, "pairs": 4})
    assert "| affine | 0.700 | 0.30 |" in page
    chosen = {"random": figure(0.7, 0, 0), "image": figure(0.75, 0.05, 0.01)}
    result = {"pool": 40, "random_draws": 3, "sizes": {"1": chosen}, "inverted": chosen}
    page = render(tables, "evidence_retrieval", {**result, "inverted_size": 4})
    assert page.count("0.750 (+0.050 ± 0.010)") == 2
    answer = {"dice": 0.5, "volume": 1.25}
    rows = {"as it is": {"mean label": answer, "ours": answer, "U-Net": answer}}
    rows["moved"] = {"mean label": answer, "ours": answer}
    page = render(tables, "evidence_adversarial", {"rows": rows, "pairs": 8, "seconds": 60})
    assert "| Dice, volume | ours | mean label | U-Net |" in page
    assert "| moved | 0.500, 1.25 | 0.500, 1.25 | - |" in page
    psnr = {"spoilt": 10.0, "restored": 20.0, "median_filter": 15.0}
    psnr |= {"wrong_context": 12.0, "clean_target": 25.0}
    page = render(tables, "evidence_enhance", {"rows": {"noise": psnr}, "subjects": 4})
    assert "| noise | 10.0 | 20.0 | 15.0 | 12.0 | 25.0 |" in page


def test_figures_that_are_recorded_are_plain_json(evidence):
    found = evidence.compare([*rows_of("ours", 0.5, 0.7, 0.9)], "method", "ours")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert not math.isnan(found["ours"]["dice"])
