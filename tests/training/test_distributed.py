"""Several processes that train one run give what one process gives, and stop, fail and resume together."""

import json
import multiprocessing
import os
import signal
import socket

import pytest
import torch
import torch.distributed as dist

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.model.diffusion import Diffusion
from rad_bench.store.run_folder import RunFolder
from rad_bench.sweep.job import RunJob
from rad_bench.training import distributed, loop
from rad_bench.training.device import choose_device
from rad_bench.training.distributed import Group, check_shares, join
from rad_bench.training.loop import DivergedError, train
from rad_bench.training.trainer import Trainer
from tests.run.test_execute import start, tiny
from tests.runs import opened
from tests.sweep.tiny import TINY, run_here

DIVERGED, KILLED = 3, -signal.SIGKILL
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.run.test_execute"])


def config(block="lstm"):
    return tiny(memory=block, training={"steps": 8, "batch": 4, "checkpoint_every": 3})


def train_alone(folder, config, launch=LaunchConfig(), group=Group()):
    """Train as `execute` does, and keep the averaged weights."""
    folder.mkdir(exist_ok=True)
    with group.connected(torch.device("cpu")):
        average, _ = train(opened(config), RunFolder(folder), launch, group)
    if group.rank == 0:
        torch.save(average.state_dict(), folder / "average.pt")
    return folder


def one_of_two(rank, port, work, break_it, folder, *arguments):
    """What each process does: meet the other, perhaps come to harm, and work."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    names = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    loop.LOG_EVERY = 1
    if break_it and rank == 1:
        break_it()
    try:
        work(folder, *arguments)
    except DivergedError:
        raise SystemExit(DIVERGED) from None


def train_together(folder, *arguments):
    train_alone(folder, *arguments, group=join())


def run_job(folder):
    RunJob()(folder, LaunchConfig())


def two(work, folder, *arguments, break_it=None):
    """Work on two processes and return their exit codes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    members = [
        processes.Process(target=one_of_two, args=(rank, port, work, break_it, folder, *arguments)) for rank in (0, 1)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(120)
    return [member.exitcode for member in members]


def at_step(number, harm):
    real = Trainer.step

    def step(trainer, episodes, at):
        if at == number:
            harm()
        return real(trainer, episodes, at)

    Trainer.step = step


def dies():
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGKILL))


def raises():
    def no_luck():
        raise RuntimeError("no such luck")

    at_step(5, no_luck)


def diverges():
    def spoil():
        real = Diffusion.loss
        Diffusion.loss = lambda *arguments: real(*arguments) * float("nan")

    at_step(5, spoil)


def losses(folder):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


def weights(folder):
    return torch.cat([weight.flatten() for weight in torch.load(folder / "average.pt").values()])


@pytest.fixture
def log_every_step(monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert two(train_together, folder, config()) == [0, 0]
    return folder


def assert_same_training(folder, other):
    assert [step for step, _ in losses(folder)] == list(range(1, 9))
    ours, theirs = (torch.tensor([loss for _, loss in losses(f)]) for f in (folder, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    assert (weights(folder) - weights(other)).norm() < 1e-4 * weights(other).norm()


def test_two_processes_train_as_one(tmp_path, log_every_step, undisturbed):
    assert_same_training(undisturbed, train_alone(tmp_path / "one", config()))


# Without memory, some weights get no gradient, in one process as in several.
@pytest.mark.parametrize("block", ["none", "ttt"])
def test_micro_batches_add_up_to_the_batch_in_one_process_and_in_two(tmp_path, log_every_step, block):
    whole = train_alone(tmp_path / "whole", config(block))
    in_pieces = LaunchConfig(accumulate=4)
    assert_same_training(train_alone(tmp_path / "one", config(block), in_pieces), whole)
    assert two(train_together, tmp_path / "two", config(block), LaunchConfig(accumulate=2)) == [0, 0]
    assert_same_training(tmp_path / "two", whole)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_both_resume_to_the_same_bits(tmp_path, undisturbed):
    folder = tmp_path / "run"
    assert two(train_together, folder, config(), break_it=dies) == [1, KILLED]
    assert losses(folder)[-1][0] == 5
    assert two(train_together, folder, config()) == [0, 0]
    assert losses(folder) == losses(undisturbed)
    assert torch.equal(weights(folder), weights(undisturbed))


def test_divergence_on_one_process_stops_all(tmp_path):
    assert two(train_together, tmp_path / "run", config(), break_it=diverges) == [DIVERGED, DIVERGED]
    assert losses(tmp_path / "run")[-1][0] == 5


def test_the_failure_that_is_kept_is_that_of_the_process_that_failed_first(tmp_path):
    folder = start(tmp_path / "run", config())
    (folder / "failure.txt").write_text("of an earlier attempt")
    assert two(run_job, folder, break_it=raises) == [0, 1]  # rank 0 reports a failed run, and is no failed job
    assert "no such luck" in (folder / "failure.txt").read_text()


def test_a_second_job_finds_the_run_done_and_no_process_of_it_waits(tmp_path):
    folder = start(tmp_path / "run", config())
    (folder / "result.json").write_text("{}")
    assert two(run_job, folder) == [0, 0]
    assert not (folder / "log.jsonl").exists()


@pytest.mark.slow
def test_a_run_on_two_processes_of_this_machine_ends_with_a_result(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    shortly = ("--set", "run.evaluation.probe=0", "--set", "run.evaluation.tasks=[continuation]")
    only = ("--only", "memory=none", "--only", "seed=0", *shortly)
    run_here("sweep", "tiny.yaml", *only, "--set", "launch.processes=2", cwd=tmp_path)
    (run,) = (tmp_path / "results" / "tiny" / "runs").iterdir()
    assert json.loads((run / "result.json").read_text())["processes"] == 2
    phases = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in phases if line["phase"] == "training"] == [10, 20, 30]
    assert [(line["done"], line["of"]) for line in phases if line["phase"] == "evaluation"] == [
        (1, 3),
        (3, 3),
    ]  # `keep`, the others


def test_a_batch_that_cannot_be_shared_out_is_refused_by_its_keys():
    check_shares(config(), 2, 2)
    for number, accumulate in ((3, 1), (4, 2), (8, 1)):
        with pytest.raises(UserError, match=r"training.batch: 4 clips.*launch.processes.*launch.accumulate"):
            check_shares(config(), number, accumulate)


def test_launch_says_how_many_processes_run_where():
    launch = LaunchConfig.model_validate({"processes": 3, "slurm": {"nodes": 2}})
    assert [launch.tasks(cluster) for cluster in ("local", "slurm", "debug")] == [(1, 3), (2, 3), (1, 1)]
    on_gpus = LaunchConfig.model_validate({"processes": 3, "slurm": {"nodes": 2, "gpus": 4}})
    assert on_gpus.tasks("slurm") == (2, 4)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(4, [0, 1, 2, 3]), (1, [0, 0, 0, 0])],  # all GPUs of the node, or only the process's own
)
def test_each_process_of_a_node_gets_its_own_gpu_whichever_it_is_shown(visible, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    groups = [Group(rank=4 + local, world=8, local_rank=local) for local in range(4)]  # on the second of two nodes
    for name in ("auto", "cuda"):
        assert [choose_device(name, group) for group in groups] == [torch.device("cuda", index) for index in expected]


def test_a_process_on_a_gpu_binds_it_before_it_joins_the_others_over_nccl(monkeypatch):
    device, calls = torch.device("cuda", 3), []
    monkeypatch.setattr(torch.cuda, "set_device", lambda given: calls.append(("bind", given)))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: calls.append(("join", backend)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append(("leave", None)))
    wrapped = []
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda trunk, **given: wrapped.append(given))
    group = Group(rank=1, world=2, local_rank=3, store=Answering())
    with group.connected(device):
        group.wrap(torch.nn.Identity(), device)
    assert calls == [("bind", device), ("join", "nccl"), ("leave", None)]
    assert wrapped == [{"device_ids": [device], "find_unused_parameters": True}]


class Answering:
    """A store in which the other process has written what this one waits for."""

    def wait(self, *_):
        pass

    def set(self, *_):
        pass

    def get(self, key):
        return b"1"
