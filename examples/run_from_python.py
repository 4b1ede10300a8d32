"""Run a small sweep from Python, print a metric, and load a trained model.

python examples/run_from_python.py                          # two runs: about a minute on two CPU cores
python examples/run_from_python.py run.training.steps=800   # with any setting of the sweep changed
"""

import sys
from pathlib import Path

import pandas as pd
from rich.console import Console

from rad_bench.look.load import load_trained
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.launch import run_sweep
from rad_bench.sweep.load import load_sweep

SWEEP = Path(__file__).parents[1] / "sweeps" / "memory_blocks.yaml"
SETTINGS = [
    "name=from_python", "grid.memory=[none, lstm]", "grid.seed=[0]", "run.training.steps=200", "run.evaluation.at=[]",
]  # fmt: skip


def main() -> None:
    sweep = load_sweep(SWEEP, [*SETTINGS, *sys.argv[1:]])
    runs = plan_runs(sweep)
    folder = Path("results") / sweep.name
    run_sweep(sweep, runs, trials={}, sweep_folder=folder, cluster="local", detach=False, console=Console())

    # One row a block and task. `frames.parquet` beside it has one row a frame.
    summary = pd.read_csv(folder / "summary.csv")
    for row in summary[summary.task == "continuation"].itertuples():
        print(f"{row.block}: revisit PSNR {row.revisit_psnr:.1f} dB")

    trained = load_trained(folder / "runs" / runs[-1].name)
    count = sum(parameter.numel() for _, parameter in trained.trunk.memory_parameters())
    print(f"{trained.name}: a torch module with {count:,} memory parameters")


if __name__ == "__main__":
    main()
