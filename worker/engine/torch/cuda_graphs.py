"""CUDA graphs: a captured step runs with one launch instead of one launch for each of its kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Reads its inputs from fixed addresses and returns its output.
Step = Callable[[], Tensor]


class CudaGraphs:
    """Captures steps. All share one memory pool: they run in turn, and each output is used before the next."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, step: Step) -> Step:
        """Capture `step`. The result runs the same operations on whatever its inputs contain by then.

        Raises RuntimeError if `step` cannot be captured or memory is short. The device is as usable as before, unless
        the error was one of the device itself; the next use of the device then raises too.
        """
        # The first run loads kernels and allocates workspaces, which must not happen during the capture. It needs its
        # own stream.
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
