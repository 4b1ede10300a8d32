"""Export a trained model to a folder that loads without rad-bench, as one uploads it to a hub.

model.safetensors   the averaged weights
config.json         all that is needed to build the model, and what it was trained on
load.py             loads it and generates frames (`standalone.py`)
rad_model/          the sources that it needs: the trunk, the memory block, the sampler
autoencoder/        the autoencoder of ours, if the trunk models its latents
README.md           the model card, with the numbers
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from rad_bench.errors import UserError, unwritten
from rad_bench.exchange.card import model_card
from rad_bench.exchange.sources import OWN, RENAMED, needed_sources
from rad_bench.look.load import Trained, load_trained
from rad_bench.model.registry import block_files, find_block, is_built_in
from rad_bench.report.reading import read_run
from rad_bench.store.result import Result, read_result

FORMAT, VERSION = "rad-bench model", 1
ROOTS = ("config", "model.codec", "model.diffusion", "model.motion", "model.rollout", "model.trunk")


def export(run: Path, out: Path) -> list[str]:
    """Export a finished run to `out`, which must not exist, and return what is not in it. Raises `UserError`."""
    if out.exists():
        raise UserError(f"{out}: exists already. Export to a new folder, or remove this one first.")
    trained = load_trained(run)
    result, frames = read_result(trained.folder.result), read_run(run)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        shutil.copyfile(trained.folder.weights, temporary / "model.safetensors")
        left_out = _copy_autoencoder(trained, temporary)
        config = _config(trained, result)
        (temporary / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        _copy_sources(trained, temporary)
        (temporary / "README.md").write_text(model_card(trained, result, frames, config, left_out), encoding="utf-8")
        temporary.rename(out)
    except OSError as error:
        raise unwritten(error, out) from None
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)
    return left_out


def _config(trained: Trained, result: Result) -> dict[str, Any]:
    run, memory = trained.config, trained.config.memory
    block = find_block(memory.name)
    module = f"{RENAMED}.blocks.{memory.name}" if is_built_in(memory) else f"{RENAMED}.{OWN}.{_own_file(trained).stem}"
    autoencoder = run.autoencoder.model_dump()
    if run.autoencoder.path is not None:
        autoencoder["path"] = "autoencoder"
    return {
        "format": FORMAT, "version": VERSION, "name": trained.name,
        "block": {"module": module, "class": block.__name__, "options": result.memory.options},
        "trunk": run.trunk.model_dump(mode="json"), "diffusion": run.diffusion.model_dump(mode="json"),
        "autoencoder": autoencoder, "frame_shape": trained.dataset.frame_shape,
        "action_size": trained.dataset.action_size, "pose_size": trained.dataset.pose_size, "seed": run.seed,
        "data": run.data.model_dump(mode="json", exclude={"path", "layout"}) | {"identity": trained.dataset.identity},
        "training": run.training.model_dump(mode="json"),
        "evaluation": run.evaluation.model_dump(mode="json"), "commit": result.commit,
    }  # fmt: skip


def _own_file(trained: Trained) -> Path:
    """Return the file of a user's block."""
    memory = trained.config.memory
    files = block_files(memory)
    source = Path(memory.name.rpartition(":")[0])
    return next((file for file in files if file.stem in (source.stem, source.name.rpartition(".")[2])), files[0])


def _copy_sources(trained: Trained, folder: Path) -> None:
    memory = trained.config.memory
    own = [] if is_built_in(memory) else block_files(memory)
    roots = [*ROOTS, *([f"blocks.{memory.name}"] if is_built_in(memory) else [])]
    for name, text in needed_sources(roots, own).items():
        path = folder / RENAMED / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for package in (path.parent, *path.parent.parents):
            if package.is_relative_to(folder / RENAMED):
                (package / "__init__.py").touch()
        path.write_text(text, encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("standalone.py"), folder / "load.py")


def _copy_autoencoder(trained: Trained, folder: Path) -> list[str]:
    """Copy an autoencoder of ours; one of diffusers' is another's work, and stays where it is."""
    config = trained.config.autoencoder
    if config.name == "conv":
        assert config.path is not None
        shutil.copytree(config.path, folder / "autoencoder", ignore=shutil.ignore_patterns("checkpoint*", "*.lock"))
    if config.name == "kl":
        return [f"the autoencoder {config.path}: give its folder as Model(autoencoder=...)"]
    return []
