"""Pixels and latents: what the trunk works on, and the way back."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from rad_bench.config import AutoencoderConfig, LaunchConfig, MemoryMazeData
from rad_bench.data import open_dataset
from rad_bench.data.encoded import Encoded
from rad_bench.errors import UserError
from rad_bench.model.codec import KL, Pixels, open_codec
from rad_bench.model.torchvision_import import import_torchvision
from rad_bench.run.execute import execute
from rad_bench.store.run_folder import RunFolder, save_run
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep

pytest.importorskip("diffusers", reason="diffusers is not installed (extra: latents)")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A random autoencoder, saved as real ones are: sides divided by two, four channels."""
    import_torchvision()
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4, scaling_factor=0.5,
        shift_factor=0.25,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder, model.eval()


def kl(folder, shape=(3, 16, 16)):
    return open_codec(AutoencoderConfig(name="kl", path=str(folder)), shape)


@pytest.fixture
def episodes(tmp_path):
    folder = tmp_path / "maze"
    folder.mkdir()
    for number in range(3):
        rng, frames = np.random.default_rng(number), 30
        np.savez(
            folder / f"{number}.npz",
            image=rng.integers(0, 256, (frames, 16, 16, 3), np.uint8),
            action=np.eye(6)[rng.integers(0, 6, frames)],
            agent_pos=np.full((frames, 2), 1.5),
            agent_dir=np.column_stack([np.cos(0.8 * np.arange(frames)), np.sin(0.8 * np.arange(frames))]),
            maze_layout=np.ones((3, 3), bool),
        )
    return folder


def test_pixels_come_back_as_they_were():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, -1, -1)
    codec = Pixels((3, 16, 16))
    assert torch.equal(codec.decode(codec.encode(frames)), frames)
    assert codec.encode(frames).abs().max() <= codec.bound


def test_latents_are_the_scaled_posterior_mean_and_decode_as_the_model_does(vae):
    folder, model = vae
    codec = kl(folder)
    assert isinstance(codec, KL) and codec.frame_shape == (4, 8, 8)
    frames = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    latents = codec.encode(frames)
    with torch.no_grad():
        mean = model.encode(frames.flatten(0, 1).float() / 127.5 - 1).latent_dist.mode()
        torch.testing.assert_close(latents.flatten(0, 1), (mean - 0.25) * 0.5)
        image = (model.decode(mean).sample + 1) * 127.5
    assert (codec.decode(latents).flatten(0, 1).int() - image.round().clamp(0, 255).int()).abs().max() <= 1


def test_episodes_are_encoded_once_and_kept(vae, episodes):
    data = open_dataset(MemoryMazeData(name="memory_maze", path=str(episodes)))
    codec, calls = kl(vae[0]), []

    @dataclasses.dataclass
    class Counting:
        identity: str = codec.identity

        def encode(self, frames):
            calls.append(len(frames))
            return codec.encode(frames)

    encoded = Encoded(data, Counting(), torch.device("cpu"))
    batches = [encoded.training_batch(0, step, 4, 7) for step in range(5)]
    assert calls == [30, 30]  # two training episodes, whole
    Encoded(data, Counting(), torch.device("cpu")).training_batch(0, 9, 4, 7)
    assert calls == [30, 30]  # read from disk by whoever comes next
    for batch in batches:
        torch.testing.assert_close(batch.latents, codec.encode(batch.frames), atol=1e-5, rtol=1e-5)


def test_a_run_on_latents_is_scored_against_raw_and_decoded_truth_with_its_ceiling(vae, episodes, tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"""
name: latents
run:
  data: {{name: memory_maze, path: {episodes}}}
  autoencoder: {{name: kl, path: {vae[0]}}}
  trunk: {{width: 16, depth: 1, patch: 4, window: 2}}
  training: {{steps: 3, batch: 2, frames: 12, loss_from: 4}}
  evaluation: {{episodes: 2, context: 6, horizon: 8, strips: 1}}
  memory: {{name: lstm, hidden: 8}}
""")
    (run,) = plan_runs(load_sweep(sweep))
    save_run(run, tmp_path / run.name)
    execute(RunFolder(tmp_path / run.name), LaunchConfig(device="cpu"))
    frames = pd.read_parquet(tmp_path / run.name / "frames.parquet")
    assert set(frames["block"]) == {"lstm(hidden=8)", "copy-last", "autoencoder"}
    ceiling = frames[frames["block"] == "autoencoder"]
    assert (ceiling["psnr_decoded"] > 48).all() and (ceiling["psnr"] < 48).all()
    assert {"psnr_decoded", "ssim_decoded", "mse_decoded"} <= set(frames.columns)
    codec = kl(vae[0])
    truth = open_dataset(run.config.data).held_out(2, 14, 6).frames[1, 6:]
    through = codec.decode(codec.encode(truth))
    mse = (through.double() - truth.double()).div(255).square().mean((1, 2, 3))
    own = ceiling[(ceiling["task"] == "continuation") & (ceiling["episode"] == 1)]
    np.testing.assert_allclose(own["psnr"], -10 * np.log10(mse.numpy()), rtol=1e-6)


def test_identity_is_the_weights_not_their_place(vae, episodes, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(vae[0], copy)

    def key(path):
        text = f"name: a\nrun: {{data: {{name: memory_maze, path: {episodes}}}, trunk: {{patch: 4}}, autoencoder: "
        (tmp_path / "a.yaml").write_text(text + (f"{{name: kl, path: {path}}}}}" if path else "none}"))
        return plan_runs(load_sweep(tmp_path / "a.yaml"))[0].key

    assert key(copy) == key(vae[0]) != key(None)
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "scaling_factor": 0.7}))
    from rad_bench.model import codec

    codec._hash_files.cache_clear()
    assert key(copy) != key(vae[0])


def test_a_folder_that_is_no_autoencoder_is_named(vae, tmp_path):
    with pytest.raises(UserError, match=r"config.json is not that of an AutoencoderKL \(No such file"):
        kl(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden": 3}')
    with pytest.raises(UserError, match=r"config.json is not that"):
        kl(tmp_path)
    (tmp_path / "config.json").write_text((vae[0] / "config.json").read_text())
    with pytest.raises(UserError, match="has no weights"):
        kl(tmp_path)
    with pytest.raises(UserError, match=r"divides sides by 2.*15 x 15"):
        kl(vae[0], (3, 15, 15))
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        kl(tmp_path).encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
