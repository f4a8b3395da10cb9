"""The HTTP client of the benchmarks. Without its package, a benchmark ends with a message that says what to install."""

from __future__ import annotations

import sys

try:
    import aiohttp
except ModuleNotFoundError as error:
    if error.name != "aiohttp":
        raise
    sys.exit("Error: This benchmark needs aiohttp. Install with: pip install '.[bench]'.")

__all__ = ["aiohttp"]
