"""Several processes that train one run: how they find each other, and the little they say to each other.

First they meet at a `TCPStore` that rank 0 serves, and may wait there as long as they like: who waits learns at once if
rank 0 ends. Collectives, which give up after minutes, connect them for the time of the training alone.
One process is alone: no store, no process group, none of this.
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

MEETING = timedelta(minutes=20)  # for all processes to have started, and to have ended their training
FOREVER = timedelta(days=365)


@dataclass(frozen=True)
class Group:
    """The processes of one run, seen from one of them."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among those on this node
    store: dist.Store | None = None  # None: alone

    def told(self, key: str, value: bool) -> bool:
        """Return rank 0's value on every rank, however long rank 0 takes to know it."""
        if self.store is None:
            return value
        if self.rank == 0:
            self.store.set(key, str(int(value)))
            self._await_others(self.store, f"{key}, heard by")  # its end would be the store's
            return value
        self.store.wait([key], FOREVER)
        value = bool(int(self.store.get(key)))
        self.store.set(f"{key}, heard by {self.rank}", "")
        return value

    def _await_others(self, store: dist.Store, said: str) -> None:
        store.wait([f"{said} {rank}" for rank in range(1, self.world)], MEETING)

    @contextlib.contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Join the process group, and leave it together.

        After an error there is no leave-taking: the others notice when this process ends.
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
        # Who closes its connections while another is still in the last collective would break that one.
        if self.rank == 0:
            self._await_others(self.store, "trained by")
        else:
            self.store.set(f"trained by {self.rank}", "")
        self.told("trained by all", True)
        dist.destroy_process_group()

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in the order of ranks. None goes on before all have come here."""
        if self.store is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of every process's tensor."""
        if self.store is None:
            return x
        total = x.clone()
        dist.all_reduce(total)
        return total / self.world

    def wrap(self, trunk: nn.Module, device: torch.device) -> nn.Module:
        """Return the network whose backward pass leaves the mean of all processes' gradients in the trunk."""
        if self.store is None:
            return trunk
        # A block may leave parameters out of a step, as it may in one process.
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(trunk, device_ids=devices, find_unused_parameters=True)

    def rows(self, batch: int) -> slice:
        """Return which rows of the global batch are this process's."""
        size = batch // self.world
        return slice(self.rank * size, (self.rank + 1) * size)


def join() -> Group:
    """Find the other processes of this run, and return when all are there.

    They are the tasks of the submitit job that this is; outside of one, what RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
    and MASTER_PORT say, as torchrun sets them. GPUs are left as the scheduler shows them: see `choose_device`.
    """
    try:
        job = submitit.JobEnvironment()
    except RuntimeError:  # not a job of submitit's
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        address, port = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ.get("MASTER_PORT", 29500))
    else:
        rank, world, local_rank = job.global_rank, job.num_tasks, job.local_rank
        address = _address_of(job.hostnames[0]) if job.num_nodes > 1 else "localhost"
        port = random.Random(job.job_id).randint(20_000, 60_000)  # the same on every rank
    if world == 1:
        return Group()
    store = dist.TCPStore(address, port, world, is_master=rank == 0, timeout=MEETING)
    return Group(rank, world, local_rank, store)


def _address_of(first_node: str) -> str:
    """Return where rank 0 is found. Not every cluster has its nodes' names in the name service."""
    try:
        socket.getaddrinfo(first_node, None)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", first_node)  # of the batch script, which runs on that node
    return first_node


def check_shares(run: RunConfig, processes: int, accumulate: int) -> None:
    """Raise `UserError` if a step's clips cannot be shared out evenly."""
    batch = run.training.batch
    if batch % (processes * accumulate):
        raise UserError(
            f"run.training.batch: {batch} clips cannot be shared out evenly to {processes} processes a run "
            f"(launch.processes, or launch.slurm.nodes x launch.slurm.gpus) with {accumulate} micro-batches each "
            f"(launch.accumulate); make training.batch a multiple of {processes * accumulate}."
        )
