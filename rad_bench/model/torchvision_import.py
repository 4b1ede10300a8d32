"""Import torchvision, which LPIPS and diffusers need, with any build of torch."""

from __future__ import annotations

import sys

import torch

_torchvision_operators: torch.library.Library | None = None


def import_torchvision() -> None:
    """Import torchvision even if its compiled operators do not match a CPU build of torch.

    The import then fails because two operators that it registers do not exist. AlexNet does not need them, so they are
    declared without an implementation and the import is tried again.
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
