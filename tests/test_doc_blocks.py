"""Every code block of README and docs does what the page says; see `doc_blocks.py`."""

import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from doc_blocks import LAYOUT, ROOT, Bench, Block, BrokenBlock, blocks_of
from test_baselines import released_universeg

import medverse_nb as mv
from medverse_nb.model.registry import SHIPPED
from medverse_nb.model.weights import load_network, save_network

PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "tutorials/*.md", "notebooks/*.md")
    for page in ROOT.glob(pattern)
    if "_build" not in page.parts and any(block.language not in LAYOUT for block in blocks_of(page))
)

# What a page takes for granted, as its reader has it: a session with pairs, and so on.
GIVEN = {
    "docs/baselines.md": ("mv", "session", "model"),
    "docs/scaling.md": ("mv", "session"),
    "docs/training.md": ("session",),
    "docs/trust.md": ("session", "scans"),
    "docs/weights.md": (),
}

# Seconds in place of minutes; nothing else of a block is changed.
SHORTER = {
    "seconds=60": "seconds=1",
    "seconds=90": "seconds=1",
    "seconds=300": "seconds=1",
    "spacing_mm=3.0": "spacing_mm=8.0",
    "side=48": "side=24",
    "--test 40": "--test 1",
    "--sizes 1,2,4,8,16": "--sizes 1,2",
    "--draws 10": "--draws 1",
    "draws=10": "draws=1",
}

# Only read: syntax, imports, keywords.
NOT_RUN = {
    'Client("scheduler-host:8786")': "needs a scheduler on another machine",
    "SSHCluster(": "needs machines to log in to",
    "SLURMCluster(": "needs SLURM, and dask-jobqueue, which is in no extra",
    "KubeCluster(": "needs Kubernetes, and dask-kubernetes, which is in no extra",
    'ICLSession("medverse.ckpt")': "needs the released weights; test_parity.py loads such files",
    'load_model("medverse.ckpt")': "the same",
}


def draw(seed: int):
    """Return image and label of a turned block with the values 1 and 2, in noise."""
    rng = np.random.default_rng(seed)
    label = np.zeros((26, 22, 20), np.uint8)
    x, y, z = rng.integers(4, 8, 3)
    label[x : x + 12, y : y + 9, z : z + 8] = 1
    label[x : x + 6, y : y + 9, z : z + 8] = 2
    return (100 * label + rng.normal(0, 8, label.shape)).astype(np.float32), label


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 1.2, 1.0])), path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with every file that the pages name."""
    folder = tmp_path_factory.mktemp("drawn")
    for place, cases in ((folder, 4), (folder / "Task04_Hippocampus", 9)):
        for number in range(1, 1 + cases):
            image, label = draw(number)
            write(place / "imagesTr" / f"sub-{number:02d}.nii.gz", image)
            write(place / "labelsTr" / f"sub-{number:02d}.nii.gz", label)
    for name in ("sub-01", "sub-09"):
        image, label = draw(int(name[-2:]) + 10)
        write(folder / f"{name}_T1w.nii.gz", image)
        write(folder / f"{name}_seg.nii.gz", label)
    for name in ("sub-09", "sub-10", "noisy-01", "noisy-02", "clean-01", "large"):
        write(folder / f"{name}.nii.gz", draw(20)[0])
    for name in ("sub-09", "large"):
        scan = mv.read_volume(folder / f"{name}.nii.gz")
        mv.write_volume(scan, folder / f"{name}.ome.zarr")
    torch.save(released_universeg(), folder / "universeg_v1_nf64_ss64_STA.pt")
    (folder / "labels.txt").write_text("1 left 255 0 0 0\n2 right 0 255 0 0\n", encoding="utf-8")
    (folder / "my_study").mkdir()
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder


@pytest.fixture(scope="module")
def small_model(tmp_path_factory, tiny_weights):
    """A folder with a medverse-tiny that answers at once, and "yes" everywhere."""
    folder = tmp_path_factory.mktemp("shipped")
    network = load_network(tiny_weights)
    with torch.no_grad():
        network.target_decoder.head.bias.fill_(5)  # never an empty mask: `accept` refuses those
    save_network(network, folder / "medverse-tiny.safetensors")
    shutil.copy(SHIPPED / "medverse-tiny.json", folder)
    return folder


@pytest.fixture
def bench(drawn, small_model, tmp_path, monkeypatch, one_thread, cli):
    """Run blocks in a copy of the drawn folder, on the small model, without serving or training."""
    from dicom_files import save_series

    folder = tmp_path / "reader"
    shutil.copytree(drawn, folder)
    save_series(folder / "dicom" / "T1w")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("medverse_nb.model.registry.SHIPPED", small_model)
    # Each has tests of its own: a server that never ends, hours of training, the real demo.
    monkeypatch.setattr("medverse_nb.app.serve", lambda *_, **__: None)
    monkeypatch.setattr("medverse_nb.training.run.train", lambda _: None)
    monkeypatch.setattr("medverse_nb.demo.run_demo", lambda *_: [])

    def run_command(words):
        outcome = cli(*words)
        return outcome.code, outcome.err

    return Bench({}, run_command, SHORTER, NOT_RUN)


def given(page):
    """Return the names that a page takes for granted."""
    wanted = GIVEN.get(page, ())
    names = {"mv": mv, "model": lambda target, *_: torch.ones_like(target)}
    names["scans"] = ["sub-09.nii.gz", "sub-10.nii.gz"]
    if "session" in wanted:
        names["session"] = mv.ICLSession("medverse-tiny", device="cpu")
        names["session"].add_context_folder("imagesTr", "labelsTr")
    return {name: names[name] for name in wanted}


def run_page(bench, name, blocks):
    bench.names = given(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of drawn files and random weights; the pages tell them
        for block in blocks:
            bench.run(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_of_a_page_runs(page, bench):
    run_page(bench, page.relative_to(ROOT).as_posix(), blocks_of(page))


def test_exceptions_are_needed_and_pages_are_there():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [rule for rule in (*SHORTER, *NOT_RUN) if rule not in text] == []
    assert [page for page in GIVEN if ROOT / page not in PAGES] == []
    assert sum(len(blocks_of(page)) for page in PAGES) > 50


@pytest.mark.parametrize(
    ("language", "text", "told"),
    [
        ("python", "import medverse_nb as mv\nmv.ICLSesion()", "has no attribute 'ICLSesion'"),
        ("python", "mv.read_volume('sub-09.nii.gz', spacing=1)", "unexpected keyword"),
        ("python", "mv.read_volume('not-drawn.nii.gz')", "no such file"),
        ("python", "cluster = SSHCluster(\n", "SyntaxError"),
        ("python", "from dask.distributed import Client, SSHCluter\nSSHCluster(", "SyntaxError"),
        ("python", "from dask.distributed import SSHKluster\nSSHCluster([])", "no SSHKluster"),
        ("python", "mv.load_model('x', devise=1)  # SSHCluster(", "takes no devise="),
        ("python", "mv.load_modl('x')  # SSHCluster(", "has no load_modl"),
        ("console", "medverse-nb predict sub-09.nii.gz --bnak bank.mvctx", "ended with 2"),
        ("console", "python -m medverse_nb infoo sub-09.nii.gz", "ended with 2"),
        ("console", "make dmeo     # a target", "no ['dmeo']"),
        ("console", 'cd x && pip install -e ".[dicon]"', "no extra ['dicon']"),
        ("console", "pip install torhc", "not in constraints.txt"),
        ("console", "jupyter lab tutorials/99.ipynb", "no tutorials/99.ipynb"),
        ("console", "python benchmarks/tables.py --chek", "knows no ['--chek']"),
        ("console", "python benchmarks/table.py", "no benchmarks/table.py"),
        ("console", "rm -rf imagesTr", "nobody knows"),
        ("pyhton", "1", "unknown language"),
    ],
)  # fmt: skip
def test_a_broken_block_is_noticed(language, text, told, bench):
    bench.names = {"mv": mv}
    with pytest.raises(BrokenBlock) as raised:
        bench.run(Block("page.md", 7, language, text))
    assert str(raised.value).startswith("page.md:7: ")
    assert told in str(raised.value)


def test_a_broken_page_fails_where_it_stands_in_the_page(bench):
    page = ROOT / "docs" / "trust.md"
    text = page.read_text(encoding="utf-8").replace('trust="full")', 'truts="full")')
    (block, *_) = blocks_of(page, text)
    with pytest.raises(BrokenBlock, match=rf"docs/trust.md:{block.line}: .*truts"):
        run_page(bench, "docs/trust.md", [block])


def test_blocks_are_found_in_order_and_in_lists():
    text = "a\n```python\n1\n```\n\n- b\n  ```console\n  make x\n  ```\n\n````md\n```python\n2\n```\n````\n"
    found = blocks_of(ROOT / "README.md", text)
    assert [(block.line, block.language) for block in found] == [
        (2, "python"), (7, "console"), (11, "md"),
    ]  # fmt: skip
