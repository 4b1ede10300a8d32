import pytest
import torch

from rad_bench.config import DiffusionConfig
from rad_bench.model.diffusion import HIGHEST, Diffusion
from rad_bench.model.rollout import frame_noise


@pytest.mark.parametrize("schedule", ["cosine", "sigmoid"])
@pytest.mark.parametrize("shift", [1.0, 0.125, 3.0])
def test_signal_and_noise_power_add_to_one_and_fall_from_clean_to_noise(schedule, shift):
    level = torch.linspace(0, 1, 101)
    alpha, sigma = Diffusion(DiffusionConfig(schedule=schedule, shift=shift)).alpha_sigma(level)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(101))
    assert (alpha.diff() < 0).all()
    assert alpha[0] == 1
    assert alpha[-1] < 1e-3


@pytest.mark.parametrize("schedule", ["cosine", "sigmoid"])
@pytest.mark.parametrize("shift", [1.0, 0.125])
def test_a_shift_multiplies_signal_over_noise_at_every_level(schedule, shift):
    level = torch.linspace(0.01, 0.99, 50).double()
    alpha, sigma = Diffusion(DiffusionConfig(schedule=schedule, shift=shift)).alpha_sigma(level)
    plain_alpha, plain_sigma = Diffusion(DiffusionConfig(schedule=schedule)).alpha_sigma(level)
    torch.testing.assert_close(alpha / sigma, shift * plain_alpha / plain_sigma)


@pytest.mark.parametrize("schedule", ["cosine", "sigmoid"])
@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("shift", [1.0, 0.125])
def test_sampling_with_the_true_answer_returns_it(prediction, schedule, shift):
    diffusion = Diffusion(DiffusionConfig(prediction=prediction, schedule=schedule, shift=shift, sampler_steps=5))
    target = torch.rand(2, 1, 3, 8, 8) * 1.6 - 0.8

    def oracle(x, level):
        alpha, sigma = (part[..., None, None, None] for part in diffusion.alpha_sigma(level))
        return target if prediction == "x0" else (alpha * x - target) / sigma

    found = diffusion.sample(oracle, torch.randn(target.shape))
    torch.testing.assert_close(found, target, atol=2e-4, rtol=0)


def test_ddim_follows_the_deterministic_path_between_levels():
    """With a fixed x0 the sample keeps its noise: at each level x = alpha x0 + sigma noise."""
    diffusion = Diffusion(DiffusionConfig(sampler_steps=3))
    x0, visited = torch.full((1, 1, 1, 2, 2), 0.5), []
    noise = torch.randn(1, 1, 1, 2, 2)

    def watch(x, level):
        alpha, sigma = diffusion.alpha_sigma(level[0, 0])
        visited.append((x - alpha * x0) / sigma)
        return x0

    alpha, sigma = diffusion.alpha_sigma(torch.tensor(HIGHEST))
    diffusion.sample(watch, alpha * x0 + sigma * noise)
    for implied in visited:
        torch.testing.assert_close(implied, noise, atol=1e-4, rtol=1e-4)


def test_noise_depends_on_its_whole_key_and_nothing_else():
    shape = (3, 8, 8)
    base = frame_noise(0, "retrieval", 1, 2, shape)
    torch.randn(7)
    assert torch.equal(base, frame_noise(0, "retrieval", 1, 2, shape))
    for key in [
        (1, "retrieval", 1, 2),
        (0, "continuation", 1, 2),
        (0, "retrieval", 2, 2),
        (0, "retrieval", 1, 3),
    ]:
        assert not torch.equal(base, frame_noise(*key, shape))
