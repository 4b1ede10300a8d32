"""A real SLURM on loopback for tests: one controller, two emulated nodes, no authentication, no accounting.

It authenticates nobody, so it listens on 127.0.0.1 alone, and it lives in a temporary folder. Settings that matter are
explained where they stand; Debian 12's slurm-wlm (22.05) accepts all of them.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel", "scontrol")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
# A requeued job waits for its old credential to expire, which must outlast KillWait and two seconds.
AuthInfo=cred_expire=8
KillWait=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
# Nodes may claim more CPUs than the machine has.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ReturnToService=2
MaxArraySize={largest_array}
MinJobAge=300
SchedulerParameters=batch_sched_delay=0,sched_min_interval=50000,sched_interval=2,bf_interval=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1} CPUs=4 RealMemory=16000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2} CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES PriorityTier=1 GraceTime=20 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL Default=NO PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


class Slurm:
    """A running cluster; `environment` leads clients to it."""

    def __init__(self, folder: Path, largest_array: int = 1001) -> None:
        self.folder = folder
        for name in ("state", "spool/n1", "spool/n2"):
            (folder / name).mkdir(parents=True)
        controller, node1, node2 = _free_ports(3)
        host = socket.gethostname().split(".")[0]
        config = folder / "slurm.conf"
        config.write_text(
            CONFIG.format(
                host=host, controller=controller, node1=node1, node2=node2, user=getpass.getuser(), folder=folder,
                largest_array=largest_array,
            )
        )  # fmt: skip
        path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
        self.environment = {**os.environ, "SLURM_CONF": str(config), "PATH": path}

    def start(self) -> None:
        self.run("slurmctld")
        self.run("slurmd", "-N", "n1")
        self.run("slurmd", "-N", "n2")
        deadline = time.monotonic() + 60
        while self.run("sinfo", "-h", "-o", "%T", check=False).split() != ["idle"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"SLURM did not come up: {(self.folder / 'slurmctld.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        self.run("scancel", "-u", getpass.getuser(), check=False)
        deadline = time.monotonic() + 30
        while self.run("squeue", "-h", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.2)
        for name in ("slurmctld", "slurmd.n1", "slurmd.n2"):
            pid = self.folder / f"{name}.pid"
            if pid.exists():
                subprocess.run(["kill", "-9", pid.read_text().strip()], check=False)

    def run(self, *command: str, check: bool = True) -> str:
        # A client may block for ever on a bad node.
        result = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False, cwd=self.folder
        )
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stdout}{result.stderr}")
        return result.stdout


def installed() -> bool:
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    return all(shutil.which(program, path=path) for program in PROGRAMS)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
