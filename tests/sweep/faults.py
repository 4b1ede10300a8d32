"""What goes wrong on clusters, done on purpose to a running sweep. Each takes the cluster and the sweep's folder."""

import json
import os
import signal

from tests.sweep.tiny import wait_for


def live_claims(sweep):
    """Return (run folder, claim) of the runs that a process is at."""
    found = []
    for path in sweep.glob("runs/*/attempts/*"):
        if path.name.isdigit() and path.stat().st_mtime > 0 and not (path.parents[1] / "result.json").exists():
            try:
                found.append((path.parents[1], json.loads(path.read_text())["holder"]))
            except ValueError:
                continue  # being written
    return found


def one(sweep):
    return wait_for(lambda: live_claims(sweep))[0]


def cancel_job(slurm, sweep):
    slurm.run("scancel", one(sweep)[1]["job"])


def requeue(slurm, sweep):
    slurm.run("scontrol", "requeue", one(sweep)[1]["job"])


def time_out(slurm, sweep):
    """What SLURM sends to a job whose time is about to end; submitit answers by putting it back into the queue."""
    slurm.run("scancel", "--signal=USR2", one(sweep)[1]["job"])


def preempt(slurm, sweep):
    """Somebody with more rights asks for the whole cluster."""
    one(sweep)
    slurm.run("sbatch", "-p", "high", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")


def node_down(slurm, sweep):
    node = wait_for(lambda: slurm.run("squeue", "-h", "-t", "R", "-j", one(sweep)[1]["job"], "-o", "%N").strip())
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    wait_for(lambda: node not in slurm.run("squeue", "-h", "-t", "R,CG", "-o", "%N").split())
    slurm.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)  # it may be back by itself


def kill_job(slurm, sweep):
    """What the kernel does when memory runs out."""
    os.kill(one(sweep)[1]["process"], signal.SIGKILL)


def killed_checkpoint(slurm, sweep):
    """Kill a job; return the newest checkpoint that it left. Between two renames only the one before is there."""
    run = one(sweep)[0]
    kill_job(slurm, sweep)
    return next(run / name for name in ("checkpoint.pt", "checkpoint.before.pt") if (run / name).exists())


def truncated(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])


def corrupted(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    for place in range(len(content) // 4, len(content), 997):
        content[place] ^= 0xFF
    checkpoint.write_bytes(content)


def truncate_checkpoint(slurm, sweep):
    truncated(killed_checkpoint(slurm, sweep))


def corrupt_checkpoint(slurm, sweep):
    corrupted(killed_checkpoint(slurm, sweep))


def empty_checkpoints(slurm, sweep):
    """A file system that came back without what was written last."""
    run = one(sweep)[0]
    kill_job(slurm, sweep)
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        (run / name).write_bytes(b"")


TO_CHECKPOINTS = (truncate_checkpoint, corrupt_checkpoint, empty_checkpoints)
IN_A_JOB = (requeue, time_out, preempt, node_down, kill_job, *TO_CHECKPOINTS)
