"""An exported model loads where rad-bench is not, and generates the frames that were scored."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from rad_bench.evaluation.evaluate import answer_keys
from rad_bench.evaluation.interventions import roll_out
from rad_bench.exchange.export import export
from rad_bench.look.load import load_trained
from rad_bench.model.rollout import frame_noise
from tests.runs import finished
from tests.sweep.tiny import GRU, ROOT, run_here

# Loads the model with rad_bench forbidden, and generates what the arrays beside it ask for.
ELSEWHERE = """
import sys
sys.modules["rad_bench"] = None
import numpy as np, torch
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
from load import Model
asked = {name: torch.from_numpy(array) for name, array in np.load(sys.argv[1]).items()}
frames = Model().generate(asked["context"], asked["actions"], asked["egomotion"], lambda h: asked["noise"][:, h])
np.save(sys.argv[2], frames.numpy())
print(sorted(name for name in sys.modules if name.startswith("rad_")))
"""


def elsewhere(folder, out):
    """Generate the first task's frames in a process that has the exported folder alone."""
    environment = {"PATH": "", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(out / "asked.npz"), str(out / "frames.npy")],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return np.load(out / "frames.npy"), told.stdout


def check_same_frames(run, folder, out):
    """Compare what the exported folder generates with what the run's evaluation does, to the bit."""
    trained = load_trained(run)
    key = answer_keys(trained.config, trained.dataset, trained.codec, trained.device)[0]
    task, C = key.task, key.task.context
    ours = roll_out(trained, task).frames["keep"]
    shape, seed = trained.trunk.frame_shape, trained.config.evaluation.seed
    noise = [[frame_noise(seed, task.name, e, h, shape) for h in range(task.horizon)] for e in range(len(task.truth))]
    np.savez(
        out / "asked.npz", context=task.truth[:, :C], actions=task.actions, egomotion=task.egomotion,
        noise=torch.stack([torch.stack(own) for own in noise]),
    )  # fmt: skip
    frames, told = elsewhere(folder, out)
    assert "rad_model.model.trunk" in told and "rad_bench." not in told
    assert torch.equal(torch.from_numpy(frames), ours)


@pytest.mark.parametrize("memory", ["lstm", "mamba2", "attention"])
def test_frames_are_the_same_without_rad_bench(tmp_path, memory):
    options = {"name": "lstm", "hidden": 8} if memory == "lstm" else {"name": memory}
    run = finished(tmp_path / "run", memory=options, evaluation={"batch": 96}, training={"steps": 3})
    assert export(run, tmp_path / "model") == []
    check_same_frames(run, tmp_path / "model", tmp_path)


def test_a_users_own_block_goes_with_it(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sizes.py").write_text("HIDDEN = 8\n")
    (tmp_path / "mine" / "my_gru.py").write_text(
        GRU.replace("import torch\n", "import torch\nfrom sizes import HIDDEN\n", 1).replace("int = 8", "int = HIDDEN")
    )
    memory = {"name": f"{tmp_path / 'mine' / 'my_gru.py'}:GRU"}
    run = finished(tmp_path / "run", memory=memory, evaluation={"batch": 96}, training={"steps": 3})
    export(run, tmp_path / "model")
    own = {path.name for path in (tmp_path / "model" / "rad_model" / "own").iterdir()}
    assert {"my_gru.py", "sizes.py"} <= own
    check_same_frames(run, tmp_path / "model", tmp_path)


def test_the_folder_holds_what_a_hub_wants_and_the_card_the_numbers(tiny_sweep, tmp_path):
    (run,) = (tiny_sweep / "results" / "tiny" / "runs").glob("lstm*seed0*")
    told = run_here("export", run, "--out", "model", cwd=tmp_path).stdout
    assert "load.py" in told
    folder = tmp_path / "model"
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "load.py", "README.md", "rad_model"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["format"], config["version"], config["block"]["class"]) == ("rad-bench model", 1, "LSTM")
    assert config["block"]["options"]["hidden"] == 8 and "path" not in config["data"]
    card = (folder / "README.md").read_text()
    summary = (tiny_sweep / "results" / "tiny" / "summary.csv").read_text()
    assert "library_name: pytorch" in card and "| continuation |" in card and "lost by swap" in card
    assert str(tiny_sweep) not in card + json.dumps(config) and "lstm(hidden=8)" in summary
    assert "exists already" in run_here("export", run, "--out", "model", cwd=tmp_path, expect=2).stderr
    shown = subprocess.run([sys.executable, folder / "load.py"], capture_output=True, text=True, timeout=300)
    assert "loaded without rad-bench" in shown.stdout, shown.stderr


def test_the_loader_is_short():
    lines = (ROOT / "rad_bench" / "exchange" / "standalone.py").read_text().splitlines()
    assert len(lines) < 100
