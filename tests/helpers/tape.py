"""What a CUDA graph does, on a CPU: the operations of a step are written down with their tensors, and done again.

As in a graph, everything but the content of tensors is fixed when it is recorded, each result is put where it was then,
and nothing may go from the device to the host or the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operations that take a figure to the host, or bring one from there, or whose result's shape depends on figures.
FORBIDDEN = {
    "aten::_local_scalar_dense": "a figure goes to the host",
    "aten::item": "a figure goes to the host",
    "aten::nonzero": "a shape depends on figures",
    "aten::masked_select": "a shape depends on figures",
    "aten::lift_fresh": "a tensor is made of the host's figures",
}


class Tape(TorchDispatchMode):
    """Records while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        reason = FORBIDDEN.get(name)
        if name.startswith("aten::index") and any(
            isinstance(index, Tensor) and index.dtype is torch.bool for index in tree_leaves(args[1:])
        ):
            reason = "a shape depends on figures"
        if reason:
            raise RuntimeError(f"{name} cannot be recorded: {reason}")
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, dict(kwargs or {}), result))
        return result

    def replay(self) -> None:
        """Do it all again."""
        for func, args, kwargs, result in self.operations:
            for then, now in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(then, Tensor) and then.data_ptr() != now.data_ptr():
                    then.copy_(now)

    @classmethod
    def record(cls, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """As `worker.engine.torch.cuda_graphs.CudaGraphs.record`."""
        step()
        tape = cls()
        with tape:
            output = step()

        def replay() -> Tensor:
            tape.replay()
            return output

        return replay
