"""A CPU stand-in for a CUDA graph: it records the operations of a step with their tensors, and runs them again.

As in a real graph, everything except the content of tensors is fixed at capture, each result is written to the same
memory again, and no data may pass between device and host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operations that copy a value to the host or from it, or whose result has a shape that depends on values.
FORBIDDEN = {
    "aten::_local_scalar_dense": "it copies a value to the host",
    "aten::item": "it copies a value to the host",
    "aten::nonzero": "its shape depends on values",
    "aten::masked_select": "its shape depends on values",
    "aten::lift_fresh": "it creates a tensor from values of the host",
}


class FakeGraph(TorchDispatchMode):
    """Records operations while it is entered. Raises RuntimeError for those that a CUDA graph cannot contain."""

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
            reason = "its shape depends on values"
        if reason:
            raise RuntimeError(f"{name} cannot be captured: {reason}")
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, dict(kwargs or {}), result))
        return result

    def replay(self) -> None:
        """Run all operations again."""
        for func, args, kwargs, result in self.operations:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    @classmethod
    def capture(cls, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Like `worker.engine.torch.cuda_graphs.CudaGraphs.capture`."""
        step()
        graph = cls()
        with graph:
            output = step()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
