"""Windows on the workers of a Dask cluster: the same answers, faults included."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import cloudpickle
import dask
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster

from medverse_nb import ICLSession
from medverse_nb.errors import ClusterError, InputError
from medverse_nb.inference import crops as crops_file
from medverse_nb.inference.autoregressive import run, take_arrays
from medverse_nb.inference.cluster import Cluster
from medverse_nb.inference.recipe import Settings
from medverse_nb.inference.storage import RunFolder
from medverse_nb.model.config import NetworkConfig
from medverse_nb.model.network import ICLNetwork
from medverse_nb.regions import read

pytestmark = pytest.mark.slow
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not have the tests
SHAPE = (60, 20, 11)
SETTINGS = Settings(scales=2, mini_context_size=1)


def draw(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


ARRAYS = draw(*SHAPE), draw(2, *SHAPE, seed=1), draw(2, *SHAPE, seed=2)


@pytest.fixture(scope="module")
def network() -> ICLNetwork:
    torch.manual_seed(1)
    return ICLNetwork(NetworkConfig(channels=(4, 8), window=8)).eval()


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def predict(network: ICLNetwork, **options) -> np.ndarray:
    inputs = take_arrays(network, *ARRAYS, SETTINGS)
    return read(run(network, inputs, SETTINGS, **options)[-1].predictions[0])


@pytest.fixture(scope="module")
def expected(network) -> np.ndarray:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    answer = predict(network)
    torch.set_num_threads(threads)
    return answer


def executor_of(client: Client, network: ICLNetwork) -> Cluster:
    cluster = Cluster(client, "cpu")
    cluster.send(network)
    return cluster


def test_two_workers_equal_one_process(client, network, expected):
    told = []
    got = predict(
        network,
        executor=executor_of(client, network),
        on_progress=lambda *progress: told.append(progress),
    )
    assert np.array_equal(got, expected)
    assert told[-1][0] == 2
    assert told[-1][2] == told[-1][3]


def test_each_network_answers_for_itself(client, network, expected):
    torch.manual_seed(2)
    other = ICLNetwork(NetworkConfig(channels=(4, 8), window=8)).eval()
    cluster = executor_of(client, network)
    cluster.send(other)
    assert np.array_equal(predict(network, executor=cluster), expected)
    assert not np.array_equal(predict(other, executor=cluster), expected)


def test_a_killed_worker_is_made_up_for(client, network, expected):
    pids = client.run(os.getpid)
    killed = []

    def kill_one(scale, _scales, _done, _count):
        if scale == 2 and not killed:
            killed.append(next(iter(pids.values())))
            os.kill(killed[0], signal.SIGKILL)

    got = predict(network, executor=executor_of(client, network), on_progress=kill_one)
    assert killed
    assert np.array_equal(got, expected)
    client.wait_for_workers(2, timeout=180)
    assert np.array_equal(predict(network, executor=executor_of(client, network)), expected)


def test_what_progress_raises_ends_the_run_and_what_is_finished_stays(
    client, network, expected, tmp_path
):
    def cancel(scale, *_):
        if scale == 2:
            raise KeyboardInterrupt

    folder = RunFolder(tmp_path / "run", {})
    cluster = executor_of(client, network)
    with pytest.raises(KeyboardInterrupt):
        predict(network, executor=cluster, storage=folder.storage, on_progress=cancel)
    counts = []
    got = predict(
        network,
        executor=cluster,
        storage=folder.storage,
        on_progress=lambda scale, *_: counts.append(scale),
    )
    assert np.array_equal(got, expected)
    assert set(counts) == {2}
    until = time.monotonic() + 20
    while any(client.run(lambda dask_worker: len(dask_worker.data)).values()):  # freed in time
        assert time.monotonic() < until
        time.sleep(0.1)


@dataclass
class Broken:
    """A target that cannot be read, or takes its reader's process down."""

    deadly: bool
    shape = SHAPE
    ndim = 3

    def __array__(self, dtype=None, copy=None):
        return ARRAYS[0]

    def __getitem__(self, region):
        if self.deadly:
            os._exit(9)
        raise InputError("scan.nii: damaged or cut short")


def predict_broken(client: Client, network: ICLNetwork, monkeypatch, *, deadly: bool) -> None:
    monkeypatch.setattr(crops_file, "LARGEST_KEPT", 0)  # read by the workers
    settings = replace(SETTINGS, scales=1)  # a coarser scale would be read here
    inputs = take_arrays(network, Broken(deadly), *ARRAYS[1:], settings)
    run(network, inputs, settings, executor=executor_of(client, network))


def test_what_a_worker_raises_arrives_as_it_is(client, network, monkeypatch):
    with pytest.raises(InputError, match=r"^scan\.nii: damaged or cut short$"):
        predict_broken(client, network, monkeypatch, deadly=False)


def test_a_batch_that_kills_its_workers_is_told(network, monkeypatch):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        pytest.raises(ClusterError, match="workers died 1 times over one task"),
    ):
        predict_broken(client, network, monkeypatch, deadly=True)


def test_no_worker_is_told(network):
    with (
        LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        Client(cluster, timeout=2) as client,
        pytest.raises(ClusterError, match="no worker left"),
    ):
        predict(network, executor=executor_of(client, network))


# --- through a session -----------------------------------------------------------------------------


def open_session(cohort, weights, client=None) -> ICLSession:
    session = ICLSession(weights, device="cpu", precision="float32", client=client)
    session.add_context_folder(cohort.images, cohort.labels)
    return session


@pytest.mark.usefixtures("one_thread")
def test_a_session_predicts_the_same_with_a_client(client, cohort, tiny_weights):
    alone = open_session(cohort, tiny_weights).predict(cohort.scan)
    spread = open_session(cohort, tiny_weights, client).predict(cohort.scan)
    # Exactly, at an equal mini-context size; here each side chooses its own by free memory.
    assert np.allclose(spread.probability.values, alone.probability.values, atol=1e-6)


@pytest.mark.usefixtures("one_thread")
def test_a_cohort_is_spread_over_the_workers(client, cohort, tiny_weights, tmp_path):
    scans = {f"scan-{i}": cohort.scan for i in range(4)} | {"none": cohort.root / "none.nii.gz"}
    truths = {"scan-0": cohort.labels / "one.nii.gz"}
    alone = open_session(cohort, tiny_weights).predict_many(scans, truths=truths)
    killed = []

    def kill_one(*_progress):
        if not killed:
            killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    session = open_session(cohort, tiny_weights, client)
    spread = session.predict_many(scans, truths=truths, out=tmp_path / "out", on_progress=kill_one)
    assert killed
    columns = ["case", "class", "voxels", "dice", "mean_label_dice", "error"]
    pd.testing.assert_frame_equal(spread[columns], alone[columns])
    assert "no such file" in spread.iloc[-1]["error"]
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4
    client.wait_for_workers(2, timeout=180)


def test_the_command_line_starts_workers(cli, cohort, tiny_weights):
    arguments = [
        "predict", cohort.scan, "--images", cohort.images, "--labels", cohort.labels,
        "--out", cohort.out, "--model", tiny_weights, "--workers", 1, "--json",
    ]  # fmt: skip
    command = [sys.executable, "-m", "medverse_nb", *map(str, arguments)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert (cohort.out / "scan.nii.gz").is_file()
    assert "distributed" not in outcome.stderr, "no log of connections that come and go"
    assert "--workers" in cli("predict", "x", "--workers", 0).err
