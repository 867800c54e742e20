"""Running windows, or whole cases, on the workers of a Dask cluster (extra `distributed`).

A network goes to every worker once, by a plugin, and to workers that join later; tasks only
name it. What all tasks of a job share goes to every worker once a job. Blended chunks come
back to the client, which writes them, so that workers need no file system but the one large
scans are read from.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from distributed import Client, Future, KilledWorker, Worker, WorkerPlugin, as_completed
from distributed.client import FutureCancelledError

from ..errors import ClusterError, InputError
from ..model.device import choose_device
from ..model.network import ICLNetwork
from ..model.weights import network_hash
from .engine import OnBatch, Predict, Write, blend_chunk
from .plan import Plan
from .runner import know

T = TypeVar("T")
R = TypeVar("R")
RETRIES = 1  # of a task that failed; a worker that died is made up for anyway
GPU = "GPU"  # the resource that a worker with a GPU of its own announces
_jobs = itertools.count(1)


class Cluster:
    """The workers of a client; an instance is an executor for `engine.run_scale`.

    Parameters
    ----------
    client : connected. Workers started with `resources={"GPU": 1}` take one task at a time.
    device : of the networks on the workers, as in `load_model`.

    Raises
    ------
    InputError : a client that is none, or an asynchronous one.
    """

    def __init__(self, client: Client, device: str = "auto") -> None:
        if not isinstance(client, Client) or client.asynchronous:
            raise InputError(f"client={client!r} is no synchronous dask.distributed.Client")
        self.client, self.device = client, device
        self.sent: set[str] = set()

    def send(self, network: ICLNetwork) -> None:
        """Make a network known to every worker; once for the same weights."""
        name = f"medverse-nb-{network_hash(network)[:16]}"
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
        with _job(self.client, predict) as job:
            tiles = {i: job.call("windows", i, plan.batches[i]) for i in plan.needed}
            chunks = {
                job.submit(
                    "chunk",
                    chunk.number,
                    blend_chunk,
                    chunk.region,
                    plan.over(chunk),
                    [tiles[i] for i in chunk.over],
                ): chunk
                for chunk in plan.chunks
            }
            numbers = {future.key: i for i, future in tiles.items()}
            awaited = Counter(i for chunk in plan.chunks for i in chunk.over)
            for future in job.finished():
                if future.status == "error":
                    raise future.exception()
                if future.key in numbers:
                    on_batch(plan.batches[numbers[future.key]])
                    continue
                chunk = chunks.pop(future)
                write(chunk, future.result())
                awaited.subtract(chunk.over)
                for i in chunk.over:
                    if not awaited[i]:
                        tiles.pop(i, None)  # not before: the scheduler may not know the chunk yet

    def each(
        self, function: Callable[[T], R], items: Sequence[T]
    ) -> Iterator[tuple[T, R | ClusterError]]:
        """Call a function of every item on the workers; yield items and results as they come.

        An item over which workers died has a `ClusterError` for a result; what the function
        raises is raised here.
        """
        with _job(self.client, function) as job:
            futures = {job.call("case", i, item): item for i, item in enumerate(items)}
            for future in job.finished():
                error = future.exception() if future.status == "error" else None
                if isinstance(error, KilledWorker):
                    yield futures.pop(future), _died(error)
                elif error:
                    raise error
                else:
                    yield futures.pop(future), future.result()


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


class _Job:
    """Tasks that belong together, and a function that is sent to every worker for them."""

    def __init__(self, client: Client, function: Callable[[Any], Any]) -> None:
        self.client, self.number = client, next(_jobs)
        workers = client.scheduler_info()["workers"].values()
        has_gpus = any(worker.get("resources", {}).get(GPU) for worker in workers)
        self.resources = {GPU: 1} if has_gpus else None
        self.open: set[Future[Any]] = set()
        self.function = client.scatter(function, broadcast=True, hash=False)

    def call(self, name: str, number: int, item: Any) -> Future[Any]:
        """Call the function of an item, where there are GPUs on a worker with one."""
        return self.submit(name, number, _call, self.function, item, resources=self.resources)

    def submit(self, name: str, number: int, *call: Any, resources: Any = None) -> Future[Any]:
        """Call something; the dashboard shows tasks by name."""
        future = self.client.submit(
            *call,
            key=f"{name}-{self.number}-{number}",
            pure=False,
            retries=RETRIES,
            resources=resources,
        )
        self.open.add(future)
        return future

    def finished(self) -> Iterator[Future[Any]]:
        """Yield tasks as they end, well or not; the job lets go of them."""
        for future in as_completed(list(self.open)):
            self.open.remove(future)
            yield future


@contextmanager
def _job(client: Client, function: Callable[[Any], Any]) -> Iterator[_Job]:
    """Open a job, and cancel what is left of it at the end."""
    job = None
    try:
        job = _Job(client, function)
        yield job
    except KilledWorker as error:
        raise _died(error) from error
    except (FutureCancelledError, TimeoutError) as error:
        raise ClusterError(
            "the cluster has no worker left, or lost what was sent to it; what is finished is "
            "kept, run again to go on"
        ) from error
    finally:
        if job and job.open:
            client.cancel(list(job.open))  # only what is held here: others upset the scheduler


def _died(error: KilledWorker) -> ClusterError:
    return ClusterError(
        f"workers died {error.allowed_failures + 1} times over one task, most likely for want of "
        "memory; give them more"
    )


def _call(function: Callable[[T], R], item: T) -> R:
    return function(item)
