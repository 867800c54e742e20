"""Small fixtures that several test files share."""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest


class Outcome(NamedTuple):
    """What a run of the command line left behind."""

    code: int
    out: str
    err: str


class Cohort(NamedTuple):
    """Three labelled cases in nnU-Net layout and an unlabelled scan."""

    root: Path
    images: Path
    labels: Path
    scan: Path
    out: Path  # does not exist yet


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public data and references beside the repository."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("MEDVERSE_NB_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set MEDVERSE_NB_SHARED to its place")
    return folder


@pytest.fixture
def one_thread():
    """Threads only wait for each other on networks this small, the more so on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A network with random weights: window 8, a millisecond a pass."""
    import torch

    from medverse_nb.model.config import NetworkConfig
    from medverse_nb.model.network import ICLNetwork
    from medverse_nb.model.weights import save_network

    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ICLNetwork(NetworkConfig(channels=(4, 4), window=8, output="sigmoid"))
    save_network(network, path)
    return path


@pytest.fixture
def cohort(tmp_path) -> Cohort:
    """A noisy block with values 1 and 2, in three labelled cases and one scan."""
    rng = np.random.default_rng(0)
    images, labels = tmp_path / "imagesTr", tmp_path / "labelsTr"
    images.mkdir()
    labels.mkdir()
    affine = np.diag([2.0, 1.5, 3.0, 1.0])
    affine[:3, 3] = -10, 20, 5

    def draw(start: int) -> tuple[np.ndarray, np.ndarray]:
        label = np.zeros((9, 10, 8), np.uint8)
        label[start : start + 4, 3:7, 2:6] = 1
        label[start : start + 2, 3:7, 2:6] = 2
        image = 100 * label + rng.normal(0, 5, label.shape)
        return image.astype(np.float32), label

    for number, name in enumerate(("one", "two", "three")):
        image, label = draw(1 + number)
        nib.save(nib.Nifti1Image(image, affine), images / f"{name}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), labels / f"{name}.nii.gz")
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(draw(2)[0], affine), scan)
    return Cohort(tmp_path, images, labels, scan, tmp_path / "out")


@pytest.fixture
def session(cohort, tiny_weights):
    """A session on the random network, with the cohort's three pairs."""
    from medverse_nb import ICLSession

    session = ICLSession(tiny_weights, device="cpu", precision="float32")
    session.add_context_folder(cohort.images, cohort.labels)
    return session


@pytest.fixture
def cli(capsys):
    """Run the command line in this process, as a shell would; warnings are shown, not raised."""
    from medverse_nb.cli import main

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with pytest.raises(SystemExit) as stop:
                main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(stop.value.code or 0, captured.out, captured.err)

    return run
