"""Running windows on the workers of a Dask cluster (extra `distributed`).

The network goes to every worker once, by a plugin, and to workers that join later; tasks
only name it. What a scale reads goes to every worker once a scale. Blended chunks come back
to the client, which writes them, so that workers need no file system but the one large
scans are read from.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
from typing import Any

import torch
from distributed import Client, Future, KilledWorker, Worker, WorkerPlugin, as_completed
from distributed.client import FutureCancelledError

from ..errors import ClusterError
from ..model.device import choose_device
from ..model.network import ICLNetwork
from ..resampling import FloatArray
from .engine import Batch, OnBatch, Plan, Predict, Write, blend_chunk
from .runner import know

RETRIES = 1
GPU = "GPU"  # the resource that a worker with a GPU of its own announces


class Cluster:
    """The workers of a client; an instance is an executor for `engine.run_scale`.

    Parameters
    ----------
    client : connected. Workers started with `resources={"GPU": 1}` take one window at a time.
    device : of the networks on the workers, as in `load_model`.
    """

    def __init__(self, client: Client, device: str = "auto") -> None:
        self.client, self.device = client, device
        self.sent: set[str] = set()
        self.runs = itertools.count(1)

    def send(self, network: ICLNetwork) -> None:
        """Make a network known to every worker; once for the same weights."""
        name = f"medverse-nb-{_fingerprint(network)}"
        know(name, network)
        if name not in self.sent:
            plugin = NetworkPlugin(name, copy.deepcopy(network).cpu(), self.device)
            self.client.register_plugin(plugin, name=name)
            self.sent.add(name)

    def __call__(self, plan: Plan, predict: Predict, write: Write, on_batch: OnBatch) -> None:
        """Run a plan on the workers and write its chunks here.

        Raises
        ------
        ClusterError : no worker, or workers that died over the same task again and again.
        """
        futures: set[Future[Any]] = set()
        try:
            self._run(plan, predict, write, on_batch, futures)
        except KilledWorker as error:
            raise ClusterError(
                f"workers died {error.allowed_failures + 1} times over one batch of windows, most "
                "likely for want of memory; give them more, or lower batch or mini_context_size"
            ) from error
        except (FutureCancelledError, TimeoutError) as error:
            raise ClusterError(
                "the cluster has no worker left, or lost what was sent to it; what is finished "
                "is kept, run again to go on"
            ) from error
        finally:
            self.client.cancel(futures, force=True)

    def _run(
        self,
        plan: Plan,
        predict: Predict,
        write: Write,
        on_batch: OnBatch,
        futures: set[Future[Any]],
    ) -> None:
        options: dict[str, Any] = {"pure": False, "retries": RETRIES}
        run = next(self.runs)
        shared = self.client.scatter(predict, broadcast=True, hash=False)
        futures.add(shared)
        on_gpu = {"resources": {GPU: 1}} if self._has_gpus() else {}
        tiles = {
            i: self.client.submit(
                _predict, shared, plan.batches[i], key=f"windows-{run}-{i}", **options, **on_gpu
            )
            for i in plan.needed
        }
        chunks = {
            self.client.submit(
                blend_chunk,
                chunk.region,
                plan.over(chunk),
                [tiles[i] for i in chunk.over],
                key=f"chunk-{run}-{chunk.number}",
                **options,
            ): chunk
            for chunk in plan.chunks
        }
        batches = {tiles.pop(i): plan.batches[i] for i in plan.needed}
        futures |= {*batches, *chunks}
        for future in as_completed([*batches, *chunks]):
            if future.status == "error":
                raise future.exception()
            if future in chunks:
                write(chunks.pop(future), future.result())
            else:
                on_batch(batches.pop(future))  # its tiles stay for the chunks over them alone
            futures.remove(future)

    def _has_gpus(self) -> bool:
        workers = self.client.scheduler_info()["workers"].values()
        return any(worker.get("resources", {}).get(GPU) for worker in workers)


class NetworkPlugin(WorkerPlugin):
    """Holds a network on a worker, under its name."""

    def __init__(self, name: str, network: ICLNetwork, device: str) -> None:
        self.name, self.network, self.device, self.origin = name, network, device, os.getpid()

    def setup(self, worker: Worker) -> None:
        """Lay the network on the worker's device."""
        if os.getpid() == self.origin:
            return  # a worker in the client's own process has the client's network
        torch.set_num_threads(worker.state.nthreads)
        self.network.to(choose_device(self.device))
        know(self.name, self.network)


def _predict(predict: Predict, batch: Batch) -> FloatArray:
    return predict(batch)


def _fingerprint(network: ICLNetwork) -> str:
    """Return a hash of a network's configuration, weights and their layout."""
    digest = hashlib.sha256(repr(network.config).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.stride())}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
