import shutil

import pytest

from medverse_nb.cohort import mean_scores, plan_cohort
from medverse_nb.errors import ContextError, InputError, OutputError
from medverse_nb.many import Case, CaseTask, predict_cases
from medverse_nb.session import ICLSession


def plan(cohort, *targets, **options):
    return plan_cohort(targets or [cohort.scan], cohort.images, cohort.labels, **options)


def test_without_a_size_every_labelled_case_serves(cohort):
    made = plan(cohort)
    assert made.context == ["one", "three", "two"]
    assert made.cases == [Case("scan", cohort.scan, None)]


def test_a_named_target_is_kept_out_of_the_context_and_brings_its_truth(cohort):
    image = cohort.images / "two_0000.nii.gz"
    made = plan(cohort, image)
    assert made.context == ["one", "three"]
    assert made.cases == [Case("two", image, cohort.labels / "two.nii.gz")]


def test_the_seed_alone_chooses_the_context(cohort):
    chosen = {tuple(plan(cohort, context_size=2, seed=seed).context) for seed in range(20)}
    assert chosen == {("one", "three"), ("one", "two"), ("three", "two")}
    again = [plan(cohort, context_size=2, seed=3).context for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize("seed", range(5))
def test_a_folder_that_is_also_the_context_is_split(cohort, seed):
    made = plan(cohort, cohort.images, context_size=1, seed=seed)
    names = [case.name for case in made.cases]
    assert len(made.context) == 1
    assert sorted(names + made.context) == ["one", "three", "two"]
    assert all(case.truth for case in made.cases)


def test_the_limit_counts_cases(cohort):
    made = plan(cohort, cohort.images, cohort.scan, context_size=1, limit=2, seed=0)
    assert len(made.cases) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"context_size": 0}, InputError, "context_size must be at least 1"),
        ({"limit": 0}, InputError, "limit must be at least 1"),
        ({"context_size": 4}, ContextError, "3 labelled cases .* 4 wanted"),
    ],
)
def test_sizes_out_of_range(cohort, options, error, message):
    with pytest.raises(error, match=message):
        plan(cohort, **options)


def test_nothing_left_to_predict_or_to_learn_from(cohort):
    with pytest.raises(ContextError, match="no case is left"):
        plan(cohort, cohort.images)
    with pytest.raises(ContextError, match="none is left as context"):
        plan(cohort, *sorted(cohort.images.iterdir()))


def test_a_target_that_is_not_there(cohort):
    with pytest.raises(InputError, match=r"none\.nii\.gz: no such file"):
        plan(cohort, cohort.scan, cohort.root / "none.nii.gz")


def test_two_targets_of_one_name_are_not_one(cohort):
    other = cohort.root / "other"
    other.mkdir()
    shutil.copy(cohort.scan, other / "scan.nii.gz")
    with pytest.raises(ContextError, match="two files are the case 'scan'"):
        plan(cohort, cohort.scan, other)
    assert len(plan(cohort, cohort.scan, cohort.scan).cases) == 1


@pytest.mark.parametrize("where", ["root", "labels"])
def test_an_input_is_never_overwritten(cohort, tiny_weights, where):
    session = ICLSession(tiny_weights, device="cpu")
    target = cohort.scan if where == "root" else cohort.images / "two_0000.nii.gz"
    made = plan(cohort, target)
    session.add_context_folder(cohort.images, cohort.labels, names=made.context)
    folder = getattr(cohort, where)
    before = {path: path.read_bytes() for path in cohort.root.rglob("*.nii.gz")}
    with pytest.raises(OutputError, match="is an input"):
        predict_cases(CaseTask(session, None, folder), made.cases)
    assert {path: path.read_bytes() for path in cohort.root.rglob("*.nii.gz")} == before


def test_mean_scores_worked_out_by_hand():
    rows = [
        {"score": [{"class": "a", "dice": 0.5, "mean_label_dice": 0.25}]},
        {"score": [{"class": "a", "dice": 1.0, "mean_label_dice": None}]},
        {"score": None},
        {"error": "unreadable"},
        {"score": [{"class": "b", "dice": 0.125, "mean_label_dice": 0}]},
    ]
    assert mean_scores(rows) == {
        "a": {"dice": 0.75, "mean_label_dice": 0.25},
        "b": {"dice": 0.125, "mean_label_dice": 0},
    }
    assert mean_scores([]) == {}
