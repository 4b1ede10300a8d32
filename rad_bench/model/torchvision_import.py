"""Importing torchvision, which LPIPS and diffusers need, beside any build of torch."""

from __future__ import annotations

import sys

import torch

_torchvision_operators: torch.library.Library | None = None


def import_torchvision() -> None:
    """Import torchvision, also where its compiled operators do not fit a CPU build of torch.

    Its import then fails because two operators that it annotates do not exist. They are not needed for AlexNet, so
    they are declared without an implementation, and the import is tried once more.
    """
    global _torchvision_operators
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _torchvision_operators = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            _torchvision_operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401
