"""CUDA graphs: a step that was recorded once is repeated by one launch, instead of one for each of its kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Reads its inputs where they lie, and returns its output.
Step = Callable[[], Tensor]


class CudaGraphs:
    """Records steps. All share their memory: they run one after the other, and each output is used before the next."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Step) -> Step:
        """A callable that does on the device what `step` does, with whatever lies at the same addresses by then.

        RuntimeError where `step` cannot be captured, or memory is short; the device is as usable as before, unless the
        error was one of the device's own, which the next use of it would tell.
        """
        # The first run loads kernels and takes workspaces, which must not happen during a capture; it wants a stream
        # of its own.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = step()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
