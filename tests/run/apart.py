"""A device without a GPU: PyTorch's meta device, kept apart from the host as a GPU is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
READS = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.nonzero.default}


class Apart(TorchDispatchMode):
    """Refuses operations on tensors of host and device, and counts where the host waits for the device.

    Values that are read from the device are zeros. Numbers without a dimension may be on the host, as on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.operations: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = [tensor for tensor in tensors if tensor.device == META]
        if on_device and function in COPIES:
            target = kwargs.get("device") if function is aten._to_copy.default else args[0].device
            if target is not None and torch.device(target).type == "cpu":
                self.waits += 1
                if function is aten.copy_.default:
                    return args[0].zero_()
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        elif on_device:
            mixed = [tensor for tensor in tensors if tensor.device != META and tensor.ndim]
            assert not mixed, f"{function} on tensors of host and device, {[tuple(t.shape) for t in tensors]}"
            self.operations.add(str(function))
            if function in READS:
                self.waits += 1
                return 0
        return function(*args, **kwargs)
