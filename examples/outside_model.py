"""Answer the questions of `rad-bench tasks` with a stand-in for your model, which needs numpy and nothing else.

    python examples/outside_model.py TASKS ROLLOUTS

The stand-in remembers every frame that it is given, and shows the one whose pose is nearest to the pose asked for. Your
model would take `frames` and the motion (`actions`, `egomotion` or `poses`) and generate the frames instead.
"""

import json
import sys
from pathlib import Path

import numpy as np


def generate(memory: dict[str, np.ndarray], poses: np.ndarray) -> np.ndarray:
    """Return a frame for each pose [H, 3], uint8 [H, height, width, 3], out of an episode's memory."""
    known = memory["poses"][: len(memory["frames"])]
    far = np.linalg.norm(poses[:, None, :2] - known[None, :, :2], axis=-1)
    turn = np.abs((poses[:, None, 2] - known[None, :, 2] + np.pi) % (2 * np.pi) - np.pi)
    return memory["frames"][(far + turn).argmin(1)]


def main(tasks: Path, rollouts: Path) -> None:
    index = json.loads((tasks / "index.json").read_text(encoding="utf-8"))
    for task in index["tasks"]:
        questions = [dict(np.load(tasks / episode["folder"] / "question.npz")) for episode in task["episodes"]]
        for episode, question in zip(task["episodes"], questions, strict=True):
            asked = question["poses"][task["context"] :]
            # Once with its own memory, and once with that of another episode, which shows whether memory is used.
            for name, source in (("keep", episode["episode"]), ("swap", episode["swap_partner"])):
                folder = rollouts / name / task["name"]
                folder.mkdir(parents=True, exist_ok=True)
                np.savez(folder / f"{episode['episode']:03d}.npz", frames=generate(questions[source], asked))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
