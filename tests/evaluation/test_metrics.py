import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from rad_bench.evaluation.metrics import mse, psnr, ssim


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
