"""Write clips of your own in a layout that rad-bench reads, and train on them. Needs the extra `video`.

    python examples/own_clips.py                          # two runs: about two minutes on two CPU cores
    python examples/own_clips.py run.training.steps=1000  # with any setting of the sweep changed

A clip is a video `NAME.mp4` and, beside it, `NAME.npz` with the array `actions`: 8 numbers a frame. The first four are
keys, here 0, because the motion is taken from the poses. The others are the pose: x, y, z and yaw, as in Minecraft.
"""

import sys
from pathlib import Path

import av
import numpy as np
from rich.console import Console

from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.launch import run_sweep
from rad_bench.sweep.load import load_sweep

CLIPS, FRAMES, SIZE = 8, 300, 32
FOLDER = Path("data/own")
SWEEP = Path(__file__).parents[1] / "sweeps" / "memory_maze.yaml"  # its trunk, training and evaluation fit small frames
SETTINGS = [
    "name=own",
    f"run.data={{name: minecraft, path: {FOLDER}, size: {SIZE}}}",
    "grid.memory=[none, lstm]",
    "grid.seed=[0]",
    "run.training.steps=200",
    "run.evaluation.at=[]",
]


def save(path: Path, frames: np.ndarray, x: np.ndarray, y: np.ndarray, heading: np.ndarray) -> None:
    """Write a clip: frames uint8 [T, height, width, 3] and the camera's place and heading, each [T].

    The heading is in radians and grows counter-clockwise as seen from above.
    """
    with av.open(f"{path}.mp4", "w") as file:
        stream = file.add_stream("libx264", rate=20, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    keys = np.zeros((len(x), 4))
    poses = np.stack([y, 0 * x, x, -np.degrees(heading)], 1)  # Minecraft's x, y (height), z and yaw
    np.savez(f"{path}.npz", actions=np.concatenate([keys, poses], 1))


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for clip in range(CLIPS):  # a camera that turns to and fro before a picture of noise
        wall = np.random.default_rng(clip).integers(0, 255, (SIZE, 6 * SIZE, 3), np.uint8)
        heading = 2.5 * np.sin(np.arange(FRAMES) / 4 + clip)
        columns = (80 - 32 * heading).astype(int)
        frames = np.stack([wall[:, column : column + SIZE] for column in columns])
        save(FOLDER / f"clip-{clip}", frames, 0 * heading, 0 * heading, heading)

    sweep = load_sweep(SWEEP, [*SETTINGS, *sys.argv[1:]])
    runs, folder = plan_runs(sweep), Path("results") / sweep.name
    outcome = run_sweep(sweep, runs, {}, folder, "local", detach=False, console=Console())
    print(f"report: {outcome.report}")


if __name__ == "__main__":
    main()
