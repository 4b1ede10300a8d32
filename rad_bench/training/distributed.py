"""Several processes that train one run: how they connect and communicate.

They first connect to a `TCPStore` on rank 0. Waiting there has no time limit, and a waiting process fails at once if
rank 0 ends. A process group exists only during training, because its collectives time out after minutes.
A single process has neither store nor process group.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import submitit
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rad_bench.config import RunConfig
from rad_bench.errors import UserError

TIMEOUT = timedelta(minutes=20)  # for all processes to start, and to end their training
FOREVER = timedelta(days=365)


@dataclass(frozen=True)
class Group:
    """The processes of one run, seen from one of them."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among those on this node
    store: dist.Store | None = None  # None: a single process

    def broadcast(self, key: str, value: bool) -> bool:
        """Return rank 0's value on every rank; the others wait for it without a time limit."""
        if self.store is None:
            return value
        if self.rank == 0:
            self.store.set(key, str(int(value)))
            self._await_others(self.store, f"{key}, received by")  # the store ends with rank 0
            return value
        self.store.wait([key], FOREVER)
        value = bool(int(self.store.get(key)))
        self.store.set(f"{key}, received by {self.rank}", "")
        return value

    def _await_others(self, store: dist.Store, key: str) -> None:
        store.wait([f"{key} {rank}" for rank in range(1, self.world)], TIMEOUT)

    @contextlib.contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Join the process group, and leave it when all processes are done.

        There is no barrier after an error: the others fail when this process ends.
        """
        if self.store is None:
            yield
            return
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "nccl"
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.world)
        yield
        # A process that left while another is still in the last collective would break that collective.
        if self.rank == 0:
            self._await_others(self.store, "trained by")
        else:
            self.store.set(f"trained by {self.rank}", "")
        self.broadcast("trained by all", True)
        dist.destroy_process_group()

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in the order of ranks. This is also a barrier."""
        if self.store is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of a tensor over processes."""
        if self.store is None:
            return x
        total = x.clone()
        dist.all_reduce(total)
        return total / self.world

    def wrap(self, trunk: nn.Module, device: torch.device) -> nn.Module:
        """Return the network whose backward pass averages the trunk's gradients over processes."""
        if self.store is None:
            return trunk
        # A block need not use all of its parameters in a step.
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(trunk, device_ids=devices, find_unused_parameters=True)

    def rows(self, batch: int) -> slice:
        """Return this process's rows of the global batch."""
        size = batch // self.world
        return slice(self.rank * size, (self.rank + 1) * size)


def join() -> Group:
    """Connect to the other processes of this run, and return when all are connected.

    In a submitit job they are its tasks. Elsewhere RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT define
    them, as set by torchrun. `choose_device` assigns GPUs.
    """
    try:
        job = submitit.JobEnvironment()
    except RuntimeError:  # not in a submitit job
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        address, port = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ.get("MASTER_PORT", 29500))
    else:
        rank, world, local_rank = job.global_rank, job.num_tasks, job.local_rank
        address = _address_of(job.hostnames[0]) if job.num_nodes > 1 else "localhost"
        port = random.Random(job.job_id).randint(20_000, 60_000)  # the same on every rank
    if world == 1:
        return Group()
    store = dist.TCPStore(address, port, world, is_master=rank == 0, timeout=TIMEOUT)
    return Group(rank, world, local_rank, store)


def _address_of(first_node: str) -> str:
    """Return the address of rank 0. Some clusters do not resolve the names of their nodes."""
    try:
        socket.getaddrinfo(first_node, None)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", first_node)  # of the batch script, which runs on that node
    return first_node


def check_shares(run: RunConfig, processes: int, accumulate: int) -> None:
    """Raise `UserError` if a batch cannot be divided evenly among processes and micro-batches."""
    batch = run.training.batch
    if batch % (processes * accumulate):
        raise UserError(
            f"run.training.batch: {batch} clips cannot be divided evenly among {processes} processes a run "
            f"(launch.processes, or launch.slurm.nodes x launch.slurm.gpus) with {accumulate} micro-batches each "
            f"(launch.accumulate); make training.batch a multiple of {processes * accumulate}."
        )
