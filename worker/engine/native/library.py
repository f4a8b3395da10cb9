"""The compiled kernels: built once for this processor, kept in the user's cache, and called through ctypes.

Without a C compiler, or on a processor for which there are no flags here, there are none, and the model runs on torch
alone: the same texts, more slowly. An image can build them beforehand (`python -m worker.engine.native.library FOLDER`)
for every kind of processor that it may meet.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

#: By machine and best first: what the processor must say of itself (/proc/cpuinfo), and what the compiler is told.
#: Levels of x86-64 are those of its ABI; level 3 is AVX2 with fused products, level 4 is AVX-512.
_KINDS: dict[str, tuple[tuple[str, frozenset[str]], ...]] = {
    "x86_64": (
        ("x86-64-v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi2"})),
        ("x86-64-v3", frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"})),
    ),
    "aarch64": (("armv8-a", frozenset()),),
}
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread")
_COMPILERS = ("cc", "gcc", "clang")
_SOURCES = Path(__file__).parent
#: Seconds; it takes about two.
_COMPILE_TIMEOUT_S = 120

Pointer = ctypes.c_void_p
Long = ctypes.c_long


class Matrix(ctypes.Structure):
    """A packed matrix; see gemm.h."""

    _fields_ = (("outputs", Long), ("depth", Long), ("panels", Pointer), ("group", Long))


class Table(ctypes.Structure):
    """A table with a row for each id, fp32 or bf16."""

    _fields_ = (("rows", Pointer), ("bf16", Long))


class Layer(ctypes.Structure):
    """See kernels.c, as for all that follow."""

    _fields_ = (
        ("qkv", Matrix),
        ("attention_out", Matrix),
        ("mlp_in", Matrix),
        ("mlp_out", Matrix),
        ("window", Long),
        ("mixes", Long),
        ("mix_stream", ctypes.c_float),
        ("mix_embedding", ctypes.c_float),
        ("value_table", Table),
        ("value_gate", Pointer),
    )


class ModelData(ctypes.Structure):
    """The model of kernels.c."""

    _fields_ = (
        ("layers", Long),
        ("channels", Long),
        ("heads", Long),
        ("groups", Long),
        ("dim", Long),
        ("ids", Long),
        ("epsilon", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("qk_scale", ctypes.c_float),
        ("gate_scale", ctypes.c_float),
        ("gate_width", Long),
        ("smear_width", Long),
        ("smear_gate", Pointer),
        ("smear_strength", ctypes.c_float),
        ("backout", ctypes.c_float),
        ("table", Table),
        ("head", Matrix),
        ("cosines", Pointer),
        ("sines", Pointer),
        ("layer", ctypes.POINTER(Layer)),
    )


class Pass(ctypes.Structure):
    """A batch on its way through the model."""

    _fields_ = (
        ("positions", Long),
        ("outputs", Long),
        ("tokens", Pointer),
        ("previous", Pointer),
        ("position", Pointer),
        ("place", Pointer),
        ("wanted", Pointer),
        ("first", Long),
        ("cache", Pointer),
        ("places", Long),
        ("logits", Pointer),
    )


class Row(ctypes.Structure):
    """What the request of a row says of its next token; see sampling.h."""

    _fields_ = (
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("top_k", Long),
        ("seed", ctypes.c_uint64),
        ("index", ctypes.c_uint64),
        ("forbidden", Pointer),
    )


_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "celeriac_reserve": (Pointer, (Long,)),
    "celeriac_enlarge_pages": (None, (Pointer, Long)),
    "celeriac_release": (None, (Pointer, Long)),
    "celeriac_packed_bytes": (Long, (Long, Long, Long)),
    "celeriac_pack": (None, (Pointer, Long, Pointer, Long, Long, ctypes.c_int)),
    "celeriac_workspace_bytes": (Long, (Pointer, Long, Long, ctypes.c_int)),
    "celeriac_forward": (None, (Pointer, Pointer, Pointer, Long, ctypes.c_int, Pointer)),
    "celeriac_product": (ctypes.c_int, (Pointer, Pointer, Long, Pointer, ctypes.c_int)),
    "celeriac_draw_bytes": (Long, (Long,)),
    "celeriac_draw": (None, (Pointer, Long, Long, Pointer, Pointer, Pointer, ctypes.c_int)),
    "celeriac_uniform": (ctypes.c_double, (ctypes.c_uint64, ctypes.c_uint64)),
    "celeriac_invert_cdf": (Long, (Pointer, Long, ctypes.c_double)),
}


@cache
def library() -> ctypes.CDLL | None:
    """The kernels for this processor; None, with the reason in the log, where there are none."""
    kinds = processor_kinds()
    if not kinds:
        log.info("no kernels for this processor: the model runs on torch alone")
        return None
    try:
        return opened(built(kinds[0]))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        log.warning("the kernels cannot be built (%s): the model runs on torch alone, more slowly", detail)
        return None


def opened(path: Path) -> ctypes.CDLL:
    """A built library with its functions' types. OSError where it is none."""
    found = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def processor_kinds() -> list[str]:
    """The kinds that this processor is of, the best one first."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = frozenset(cpuinfo.read_text().split()) if cpuinfo.exists() else frozenset()
    kinds = _KINDS.get(platform.machine(), ())
    return [name for name, needed in kinds if needed <= flags]


def built(kind: str) -> Path:
    """The library for a kind of processor: that of the image, or of the cache, or built now.

    OSError or SubprocessError where it cannot be.
    """
    name = f"kernels-{kind}-{_digest()}.so"
    beforehand = _SOURCES / "built" / name
    if beforehand.exists():
        return beforehand
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "celeriac" / "kernels"
    if not (folder / name).exists():
        build(kind, folder)
    return folder / name


def build(kind: str, folder: Path) -> Path:
    """Compile the kernels into `folder`."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError(f"no C compiler is on PATH (looked for {', '.join(_COMPILERS)})")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"kernels-{kind}-{_digest()}.so"
    # Several processes may build at once; each puts a whole file in place.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / target.name
        command = [compiler, *_FLAGS, f"-march={kind}", "-o", str(made), str(_SOURCES / "kernels.c"), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
        made.replace(target)
    return target


def _digest() -> str:
    """Changes with the sources and the flags."""
    parts = [path.read_bytes() for path in sorted(_SOURCES.glob("*.[ch]"))]
    return hashlib.sha256(b"\0".join([*parts, " ".join(_FLAGS).encode()])).hexdigest()[:12]


def main() -> None:
    """Build for every kind of processor of this machine's architecture."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else _SOURCES / "built"
    for kind, _ in _KINDS.get(platform.machine(), ()):
        print(build(kind, folder))


if __name__ == "__main__":
    main()
