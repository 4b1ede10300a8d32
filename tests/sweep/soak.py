"""A soak: hundreds of tiny runs on a real SLURM while random faults fall on jobs and launchers. Run it by hand:

    python -m tests.sweep.soak FOLDER --runs 300 --seed 0

Ends with a table of faults, and compares a sample of disturbed runs with undisturbed ones, bit for bit.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd

from tests.sweep import faults
from tests.sweep.slurm import Slurm
from tests.sweep.tiny import ON_SLURM, command, rad_bench

SAMPLE = 12  # disturbed runs that are run again, undisturbed
SECONDS_BETWEEN = (4.0, 12.0)  # faults


def kill_launcher(slurm, sweep, launcher):
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()


def second_launcher(slurm, folder):
    rad_bench("sweep", "tiny.yaml", cwd=folder, environment=slurm.environment, expect=2)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=4)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    seeds = list(range(options.runs // 2))
    yaml = ON_SLURM.replace("seed: [0, 1]", f"seed: {seeds}").replace("parallel: 2", f"parallel: {options.parallel}")
    (options.folder / "tiny.yaml").write_text(yaml)
    slurm = Slurm(options.folder / "slurm")
    slurm.start()
    try:
        began = time.monotonic()
        injected = soak(slurm, options.folder, random.Random(options.seed))
        seconds = time.monotonic() - began
    finally:
        slurm.stop()
    account(options.folder, injected, seconds, options)


def soak(slurm, folder, chance):
    """Launch, disturb, launch again, until a launcher ends by itself; return how often each fault was injected."""
    sweep = folder / "results" / "tiny"
    kinds = [*faults.IN_A_JOB, kill_launcher, second_launcher]
    injected = collections.Counter()
    argv, environment = command("sweep", "tiny.yaml", environment=slurm.environment)
    with (folder / "launcher.log").open("w") as log:

        def launch():
            return subprocess.Popen(
                argv, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )  # fmt: skip

        launcher = launch()
        while launcher.poll() is None:
            time.sleep(chance.uniform(*SECONDS_BETWEEN))
            fault = chance.choice(kinds)
            try:
                if fault is kill_launcher:
                    fault(slurm, sweep, launcher)
                    launcher = launch()
                elif fault is second_launcher:
                    if launcher.poll() is None and (sweep / "launchers").exists():
                        fault(slurm, folder)
                elif faults.live_claims(sweep):
                    fault(slurm, sweep)
                else:
                    continue
            except (OSError, RuntimeError, StopIteration, AssertionError, subprocess.TimeoutExpired) as error:
                injected[f"{fault.__name__} (came too late: {type(error).__name__})"] += 1
                continue
            injected[fault.__name__] += 1
        print((folder / "launcher.log").read_text()[-600:])
    return injected


def account(folder, injected, seconds, options):
    """Print what was injected, what was lost and redone, and what a run took beside its training."""
    sweep = folder / "results" / "tiny"
    results = {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("runs/*/result.json")}
    frames = pd.read_parquet(sweep / "frames.parquet")
    key = ["block", "seed", "task", "intervention", "episode", "frame"]
    attempts = {path.parents[1].name: int(path.name) for path in sweep.glob("runs/*/attempts/*")}
    again = [name for name, number in attempts.items() if number > 1]
    doubled = [name for name, r in results.items() if r["training"]["steps"] != 30]
    print(f"{len(results)} of {options.runs} runs have a result; {frames.duplicated(key).sum()} rows are double")
    print(
        f"runs begun more than once: {len(again)}, at most {max(attempts.values())} times; step counts off: {doubled}"
    )
    for name, count in sorted(injected.items()):
        print(f"  {count:4d} {name}")
    training = sum(result["training"]["seconds"] for result in results.values()) / len(results)
    print(
        f"{seconds:.0f} s in all, {seconds * options.parallel / len(results):.1f} s of a slot a run, "
        f"of which {training:.2f} s training"
    )
    sample = random.Random(options.seed).sample(again, min(SAMPLE, len(again)))
    other = folder / "undisturbed"
    other.mkdir()
    chosen = sorted({results[name]["seed"] for name in sample})
    text = (folder / "tiny.yaml").read_text()
    text = text[: text.index("  seed:")] + f"  seed: {chosen}\nlaunch: {{calibrate: false}}\n"
    (other / "tiny.yaml").write_text(text)
    rad_bench("sweep", "tiny.yaml", "--cluster", "local", cwd=other)
    ours = frames[frames["seed"].isin(chosen) & (frames["block"] != "copy-last")]
    theirs = pd.read_parquet(other / "results" / "tiny" / "frames.parquet")
    theirs = theirs[theirs["block"] != "copy-last"]
    same = (f.sort_values(key).reset_index(drop=True) for f in (ours, theirs))
    pd.testing.assert_frame_equal(*same)
    print(f"{len(sample)} disturbed runs compared with undisturbed ones: the same frames to the bit")


if __name__ == "__main__":
    main()
