"""Weights & Biases, offline: what is logged, and that it changes nothing."""

import builtins
import json
import struct

import pytest

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.run.execute import execute
from rad_bench.run.tracking import check_wandb
from rad_bench.store.run_folder import RunFolder, save_run
from rad_bench.store.sweep_folder import check_links
from tests.runs import tiny_run

BLOCK, FULL, LAST = 32768, 1, 4


def records(path):
    """Yield the records of an offline run: a log as LevelDB writes it, in blocks, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # too small for another part
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""


def test_offline_it_keeps_config_curves_strips_and_scores_and_changes_no_bit(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (extra: wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked, alone = tmp_path / "tracked", tmp_path / "alone"
    for folder, launch in ((tracked, LaunchConfig(strip_every=10, wandb=True)), (alone, LaunchConfig())):
        save_run(tiny_run(), folder)
        execute(RunFolder(folder), launch)
    assert (tracked / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    assert not (alone / "wandb").exists()
    check_links(tracked, tracked)  # the report refuses a run's folder with links that lead out of it

    (path,) = (tracked / "wandb").glob("offline-run-*/*.wandb")
    config, history = {}, []
    for record in records(path):
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        line = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        history += [line] if line else []
    assert config["training"]["steps"] == 20 and config["label"] == "lstm"
    assert [line["training step"] for line in history if "loss" in line] == [10, 20]
    names = [{name.partition("/")[0] for name in line} for line in history]
    assert sum("truth above, generated below" in line for line in names) == 2
    (final,) = [line for line, own in zip(history, names, strict=True) if "scores" in own]
    assert any(name.startswith("strips/continuation-truth") for name in final)
    (table,) = (tracked / "wandb").glob("offline-run-*/files/media/table/scores_*.table.json")
    assert {"task", "intervention", "kind", "psnr"} <= set(json.loads(table.read_text())["columns"])


def test_a_missing_package_is_told_before_anything_runs(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("wandb"):
            raise ImportError("No module named 'wandb'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"launch.wandb: needs the package .*rad-bench\[wandb\]"):
        check_wandb()
