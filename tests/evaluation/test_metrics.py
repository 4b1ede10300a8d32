import hashlib

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from rad_bench.evaluation import perceptual
from rad_bench.evaluation.metrics import metric_card, mse, psnr, ssim
from rad_bench.model.torchvision_import import import_torchvision


def pairs(size, count=4):
    generator = torch.Generator().manual_seed(size)
    truth = torch.rand(count, 3, size, size, generator=generator)
    truth[0] = 0.5  # flat frames are where variance formulas lose their digits
    return (truth + 0.1 * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


@pytest.mark.parametrize("size", [11, 32, 64])
def test_psnr_and_ssim_equal_scikit_image(size):
    frames, truth = pairs(size)
    for x, y, our_psnr, our_ssim in zip(frames, truth, psnr(frames, truth), ssim(frames, truth), strict=True):
        a, b = x.permute(1, 2, 0).double().numpy(), y.permute(1, 2, 0).double().numpy()
        assert abs(our_psnr - peak_signal_noise_ratio(b, a, data_range=1.0)) < 1e-5
        theirs = structural_similarity(
            b,
            a,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert abs(our_ssim - theirs) < 1e-5


def test_identical_frames_have_the_psnr_of_one_grey_level_and_ssim_one():
    frames, _ = pairs(32)
    torch.testing.assert_close(psnr(frames, frames), torch.full((4,), 48.1308, dtype=torch.float64))
    torch.testing.assert_close(ssim(frames, frames), torch.ones(4, dtype=torch.float64))
    assert not mse(frames, frames).any()


def test_ssim_refuses_frames_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(*pairs(10))


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for cached in (perceptual.lpips_unavailable, perceptual._network):
        cached.cache_clear()
    yield tmp_path / "checkpoints"
    monkeypatch.undo()
    for cached in (perceptual.lpips_unavailable, perceptual._network):
        cached.cache_clear()


def seeded_weights(folder):
    """Write random AlexNet weights under the published name; return the file's SHA-256."""
    import_torchvision()
    import torchvision

    generator = torch.Generator().manual_seed(0)
    shapes = torchvision.models.alexnet(weights=None).state_dict()
    folder.mkdir()
    path = folder / perceptual.WEIGHTS
    torch.save({k: torch.randn(v.shape, generator=generator) * 0.05 for k, v in shapes.items()}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_lpips_is_unavailable_without_weights_and_says_where_they_belong(weights_folder):
    reason = perceptual.lpips_unavailable()
    assert reason is not None
    assert str(weights_folder) in reason
    assert metric_card()["lpips"].startswith("unavailable")


def test_linear_weights_other_than_the_packages_published_ones_are_refused(weights_folder, tmp_path, monkeypatch):
    weights_folder.mkdir()
    (weights_folder / perceptual.WEIGHTS).write_bytes(b"the published ones")
    monkeypatch.setattr(perceptual, "BACKBONE_SHA256", hashlib.sha256(b"the published ones").hexdigest())
    assert perceptual.lpips_unavailable() is None  # the installed package's are the published ones
    changed = tmp_path / "alex.pth"
    changed.write_bytes(perceptual.linear_weights_path().read_bytes()[:-1] + b"?")
    monkeypatch.setattr(perceptual, "linear_weights_path", lambda: changed)
    perceptual.lpips_unavailable.cache_clear()
    assert "unverified: SHA-256 of alex.pth" in perceptual.lpips_unavailable()
    assert metric_card()["lpips"].startswith("unavailable")


def test_unverified_weights_are_refused_and_verified_ones_used(weights_folder, monkeypatch):
    digest = seeded_weights(weights_folder)
    assert "unverified" in perceptual.lpips_unavailable()
    card_without = metric_card()["card"]
    perceptual.lpips_unavailable.cache_clear()
    monkeypatch.setattr(perceptual, "BACKBONE_SHA256", digest[:8] + "0" * 56)  # what a file name can tell is not enough
    assert "unverified" in perceptual.lpips_unavailable()
    perceptual.lpips_unavailable.cache_clear()
    monkeypatch.setattr(perceptual, "BACKBONE_SHA256", digest)  # as if this file were the published one
    assert perceptual.lpips_unavailable() is None
    assert metric_card()["card"] != card_without
    frames, truth = pairs(32)
    scores = perceptual.lpips(frames, truth)
    assert not perceptual.lpips(frames, frames).any()
    assert (scores > 0).all()

    assert "at least 31 pixels, at their own size" in metric_card()["lpips"]

    import lpips as package

    theirs = package.LPIPS(net="alex", version="0.1", verbose=False).eval()
    with torch.no_grad():
        expected = theirs(frames * 2 - 1, truth * 2 - 1).flatten()
    np.testing.assert_allclose(scores, expected, atol=1e-6)
