"""The convolutional autoencoder: its training resumes, its latents are scaled, and runs are made in them."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from rad_bench.config import AutoencoderConfig, MemoryMazeData
from rad_bench.data import open_dataset, open_folder
from rad_bench.errors import UserError
from rad_bench.evaluation.controls import CEILING
from rad_bench.model.autoencoder import read_record
from rad_bench.model.codec import Conv, open_codec, to_input
from rad_bench.run.autoencoder import make_autoencoder
from rad_bench.training.autoencoder import CHECKPOINT, Settings, spread
from tests.runs import finished
from tests.sweep.tiny import run_here

CPU = torch.device("cpu")
SMALL = Settings(size=16, channels=4, width=16, steps=110, batch=8, learning_rate=1e-2, seed=3)
SAME = ("--size", "16", "--width", "16", "--batch", "8", "--seed", "3", "--threads", "1")


class Killed(BaseException):
    pass


def walls(number, frames=24, side=16):
    """Pictures of two plain walls, of other colours in each frame: few numbers can tell them."""
    rng, pixels = np.random.default_rng(number), np.zeros((frames, side, side, 3), np.uint8)
    for t in range(frames):
        left, right = rng.integers(0, 256, (2, 3))
        border = (number + t) % side
        pixels[t, :, :border], pixels[t, :, border:] = left, right
    return pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("walls")
    for number in range(5):
        pixels = walls(number)
        heading = 0.3 * np.arange(len(pixels))
        np.savez(
            out / f"{number}.npz", image=pixels, action=np.eye(6)[np.zeros(len(pixels), int)],
            agent_pos=np.full((len(pixels), 2), 1.5), agent_dir=np.column_stack([np.cos(heading), np.sin(heading)]),
            maze_layout=np.ones((3, 3), bool),
        )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("autoencoder") / "ae"
    make_autoencoder(open_folder(folder, 16), SMALL, out, CPU, lambda step, loss: None)
    return out


def codec(folder, shape=(3, 16, 16)):
    return open_codec(AutoencoderConfig(name="conv", path=str(folder)), shape)


def test_training_brings_held_out_frames_back_and_says_how_well(folder, trained, tmp_path):
    record, data = read_record(trained), open_folder(folder, 16)
    untrained = make_autoencoder(data, replace(SMALL, steps=1), tmp_path / "ae", CPU, lambda step, loss: None)
    assert record["ceiling"]["psnr"] > untrained["psnr"] + 2
    video = spread(data, data.held_out_items[0], 24)
    back = codec(trained).decode(codec(trained).encode(video))
    error = ((back.double() - video.double()) / 255).square().mean((1, 2, 3))
    assert abs(float((-10 * error.log10()).mean()) - record["ceiling"]["psnr"]) < 0.01
    assert record["data"]["identity"] == data.identity and record["data"]["training_recordings"] == 4
    assert not (trained / CHECKPOINT).exists()


def test_latents_have_zero_mean_and_unit_variance_over_training_frames(folder, trained):
    data, own = open_folder(folder, 16), codec(trained)
    latents = torch.cat([own.encode(spread(data, item, 24)) for item in data.training]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(1), torch.ones(4), atol=1e-4, rtol=0)


def test_a_token_stands_for_eight_by_eight_pixels_whatever_else_is_encoded_with_it(trained):
    own, frames = codec(trained), torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    assert isinstance(own, Conv) and own.frame_shape == (4, 2, 2) and not own.lossless
    latents = own.encode(frames)
    assert latents.shape == (2, 3, 4, 2, 2)
    torch.testing.assert_close(own.encode(frames[1, 2:]), latents[1, 2:])
    assert own.decode(latents).shape == frames.shape and own.decode(latents).dtype == torch.uint8
    assert to_input(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(folder, trained, tmp_path):
    def die(step, loss):
        if step == 105:
            raise Killed

    data, out = open_folder(folder, 16), tmp_path / "ae"
    with pytest.raises(Killed):
        make_autoencoder(data, SMALL, out, CPU, die)
    resumed = []
    make_autoencoder(data, SMALL, out, CPU, lambda step, loss: resumed.append(step))
    assert resumed[0] == 101
    assert (out / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    again = make_autoencoder(data, SMALL, out, CPU, lambda step, loss: pytest.fail("trained again"))
    assert again == read_record(trained)["ceiling"]


def test_a_run_in_latents_has_the_ceiling_as_a_control(folder, trained, tmp_path):
    frames = pd.read_parquet(
        finished(
            tmp_path / "run", data={"name": "memory_maze", "path": str(folder), "size": 16, "held_out": 0.4},
            autoencoder={"name": "conv", "path": str(trained)}, trunk={"patch": 1}, training={"steps": 2},
            evaluation={"interventions": ("keep",), "context": 6, "horizon": 6, "episodes": 2},
        )
        / "frames.parquet"
    )  # fmt: skip
    ceiling = frames[frames["block"] == CEILING]
    assert len(ceiling) and (ceiling["psnr_decoded"] > 48).all() and (ceiling["psnr"] < 48).any()


def test_mistakes_are_told_before_anything_is_trained(folder, trained, tmp_path):
    def told(*arguments):
        return run_here("autoencoder", "train", folder, *arguments, cwd=tmp_path, expect=2).stderr

    assert "multiples of 8; give --size" in told("--out", "ae", "--size", "12")
    assert "--width 12: must be a multiple of 8" in told("--out", "ae", "--width", "12")
    assert "a different channels, steps" in told("--out", trained, *SAME)
    assert not (tmp_path / "ae").exists()
    with pytest.raises(UserError, match="divides sides by 8"):
        codec(trained, (3, 12, 12))
    with pytest.raises(UserError, match="rad-bench autoencoder train"):
        codec(tmp_path)
    (tmp_path / "autoencoder.json").write_text(json.dumps({"channels": "4", "width": 8}))
    with pytest.raises(UserError, match="whole numbers"):
        codec(tmp_path)


def test_the_verb_says_how_far_it_is_and_what_the_ceiling_is(folder, tmp_path):
    told = run_here(
        "autoencoder", "train", folder, "--out", "ae", *SAME, "--steps", "3",
        cwd=tmp_path,
    ).stdout  # fmt: skip
    assert "step 3/3, loss" in told and "held-out frames come back with psnr" in told
    assert (
        open_dataset(MemoryMazeData(name="memory_maze", path=str(folder), size=16)).identity
        in (tmp_path / "ae" / "settings.json").read_text()
    )
