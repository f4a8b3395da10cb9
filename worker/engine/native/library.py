"""The compiled kernels. They are built once for this processor, kept in the user's cache, and called through ctypes.

Without a C compiler, or on a processor that is not in `_KINDS`, there are no kernels. The model then runs only
on torch, and gives the same texts more slowly. An image can contain kernels for every kind of processor that it may run
on: `python -m worker.engine.native.library FOLDER` builds them.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import platform
import shutil
import subprocess
import sys
import tempfile
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import NamedTuple

from worker.engine.architecture.config import Activation
from worker.engine.native.kernel_cache import KernelCache

log = logging.getLogger(__name__)

_LEVEL_4 = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi2"})
_LEVEL_3 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"})


class Kind(NamedTuple):
    """A kind of processor that the kernels are built for."""

    name: str
    #: Options of the compiler.
    options: tuple[str, ...]
    #: The flags that /proc/cpuinfo must list.
    flags: frozenset[str]


#: For each machine type, kinds of processors, the best first. Those of x86-64 are the levels of its ABI, level 3 with
#: AVX2 and FMA, level 4 with AVX-512; and these levels with instructions for dot products (see dot.h).
_KINDS: dict[str, tuple[Kind, ...]] = {
    "x86_64": (
        Kind(
            "x86-64-v4-bf16",
            ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
            _LEVEL_4 | {"avx512_vnni", "avx512_bf16"},
        ),
        Kind("x86-64-v4-vnni", ("-march=x86-64-v4", "-mavx512vnni"), _LEVEL_4 | {"avx512_vnni"}),
        Kind("x86-64-v4", ("-march=x86-64-v4",), _LEVEL_4),
        Kind("x86-64-v3-vnni", ("-march=x86-64-v3", "-mavxvnni"), _LEVEL_3 | {"avx_vnni"}),
        Kind("x86-64-v3", ("-march=x86-64-v3",), _LEVEL_3),
    ),
    "aarch64": (Kind("armv8-a", ("-march=armv8-a",), frozenset()),),
}
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread")
_COMPILERS = ("cc", "gcc", "clang")
_SOURCES = Path(__file__).parent
#: A build takes about four seconds.
_COMPILE_TIMEOUT_S = 120

Pointer = ctypes.c_void_p
Long = ctypes.c_long


#: The numbers of an enum in activation.h.
ACTIVATIONS: dict[Activation, int] = {"relu_squared": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3}


class QkNormPlace(IntEnum):
    """Whether queries and keys are normalized, and when (`QkNorm` in model.h)."""

    NONE = 0
    BEFORE_ROTATION = 1
    AFTER_ROTATION = 2


class PackTarget(IntEnum):
    """Where the rows of a plain matrix go: to outputs in a row, or to the first or the second halves of panels.

    This is `Target` in kernels.c.
    """

    IN_A_ROW = 0
    FIRST_HALVES = 1
    SECOND_HALVES = 2


class MatrixKind(IntEnum):
    """Number format of a packed matrix (`Kind` in matrix.h)."""

    FP32 = 0
    BF16 = 1
    FP16 = 2
    INT8 = 3
    BF16_DOT = 4
    INT8_DOT = 5


class Matrix(ctypes.Structure):
    """A packed matrix. The C struct is in matrix.h."""

    _fields_ = (("outputs", Long), ("depth", Long), ("panels", Pointer), ("kind", Long), ("group", Long))


class Table(ctypes.Structure):
    """An embedding table: one row for each id. This and other C structs without a remark are in model.h."""

    _fields_ = (("rows", Pointer), ("kind", Long))


class Norm(ctypes.Structure):
    """An RMS norm, or a layer norm if it centers. This C struct and the following one are in norm.h."""

    _fields_ = (("centers", Long), ("epsilon", ctypes.c_float))


class NormWeights(ctypes.Structure):
    """The learned factors and summands of a norm; NULL: none."""

    _fields_ = (("weights", Pointer), ("biases", Pointer))


class Linear(ctypes.Structure):
    """A matrix and its biases."""

    _fields_ = (("matrix", Matrix), ("bias", Pointer), ("gate_bias", Pointer))


class Layer(ctypes.Structure):
    """The weights and settings of a layer."""

    _fields_ = (
        ("qkv", Linear),
        ("attention_out", Linear),
        ("mlp_in", Linear),
        ("mlp_out", Linear),
        ("attention_norm", NormWeights),
        ("mlp_norm", NormWeights),
        ("q_norm", Pointer),
        ("k_norm", Pointer),
        ("rotates", Long),
        ("window", Long),
        ("mixes", Long),
        ("mix_stream", ctypes.c_float),
        ("mix_embedding", ctypes.c_float),
        ("value_table", Table),
        ("value_gate", Pointer),
    )


class ModelData(ctypes.Structure):
    """The weights and settings of a model (`Model` in model.h)."""

    _fields_ = (
        ("layers", Long),
        ("channels", Long),
        ("heads", Long),
        ("groups", Long),
        ("dim", Long),
        ("hidden", Long),
        ("ids", Long),
        ("norm", Norm),
        ("qk_norm", Long),
        ("qk_epsilon", ctypes.c_float),
        ("activation", Long),
        ("gated", Long),
        ("attention_scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("embedding_norm", Long),
        ("gate_scale", ctypes.c_float),
        ("gate_width", Long),
        ("smear_width", Long),
        ("smear_gate", Pointer),
        ("smear_strength", ctypes.c_float),
        ("backout", ctypes.c_float),
        ("table", Table),
        ("positions", Table),
        ("final_norm", NormWeights),
        ("head", Linear),
        ("cosines", Pointer),
        ("sines", Pointer),
        ("layer", ctypes.POINTER(Layer)),
    )


class Pass(ctypes.Structure):
    """The batch of one step."""

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
        ("alone", Long),
        ("logits", Pointer),
    )


#: Result type and argument types of each function in kernels.c.
_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "celeriac_reserve": (Pointer, (Long,)),
    "celeriac_enlarge_pages": (None, (Pointer, Long)),
    "celeriac_free": (None, (Pointer, Long)),
    "celeriac_dot_kinds": (Long, ()),
    "celeriac_packed_bytes": (Long, (Pointer,)),
    "celeriac_pack": (None, (Pointer, ctypes.c_int, Long, Pointer, Long, ctypes.c_int, ctypes.c_int)),
    "celeriac_workspace_bytes": (Long, (Pointer, Long, Long, ctypes.c_int)),
    "celeriac_forward": (None, (Pointer, Pointer, Pointer, Long, ctypes.c_int, Pointer)),
    "celeriac_gemm": (ctypes.c_int, (Pointer, Pointer, Long, Pointer, ctypes.c_int)),
    "celeriac_activate": (None, (Long, Pointer, Long, Pointer)),
    "celeriac_draw_bytes": (Long, (Long,)),
    "celeriac_draw": (None, (Pointer, Long, Long, Pointer, Pointer, Pointer, ctypes.c_int)),
    "celeriac_uniform": (ctypes.c_double, (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)),
    "celeriac_invert_cdf": (Long, (Pointer, Long, ctypes.c_double)),
}


@cache
def library() -> ctypes.CDLL | None:
    """The kernels for this processor. None if there are none; the log says why."""
    kinds = processor_kinds()
    if not kinds:
        log.info("no kernels for this processor: the model runs on torch")
        return None
    for kind in kinds:
        try:
            return load(kind)
        except (OSError, subprocess.SubprocessError, AttributeError) as error:
            if kind != kinds[-1] and isinstance(error, subprocess.CalledProcessError):
                # The compiler may be older than the processor.
                log.info("the compiler cannot build the kernels for %s", kind)
                continue
            detail = getattr(error, "stderr", None) or error
            log.warning("the kernels cannot be built or loaded (%s): the model runs on torch, which is slower", detail)
            break
    return None


def load(kind: str) -> ctypes.CDLL:
    """The library for a kind of processor: from the image, from the user's cache, or built now.

    Raises OSError or SubprocessError if it cannot be built or loaded, and AttributeError if the image's library is one
    of other sources.
    """
    stem = _stem(kind)
    # Its files are not checked: they are as trustworthy as the code of this package.
    in_image = _SOURCES / "built" / f"{stem}.so"
    if in_image.exists():
        return opened(in_image)
    try:
        cached = KernelCache.of_user()
        paths = list(cached.find(stem))
    except OSError as error:
        log.warning("the cache of kernels cannot be used (%s): they are built at every start", error)
        cached, paths = None, []
    for path in paths:
        try:
            return opened(path)
        except (OSError, AttributeError) as error:
            log.warning("%s cannot be loaded (%s): the kernels are built again", path, error)
    with tempfile.TemporaryDirectory(prefix="celeriac-kernels-") as scratch:
        compiled = _compile(kind, Path(scratch) / "kernels.so")
        if cached is not None:
            try:
                # A temporary folder may not allow programs to be run from it, so the copy is loaded.
                return opened(cached.add(compiled, stem))
            except OSError as error:
                log.warning("the kernels cannot be kept in the cache (%s): they are built at every start", error)
        return opened(compiled)


def opened(path: Path) -> ctypes.CDLL:
    """Load a library and declare the types of its functions.

    Raises OSError if the file is not a library, and AttributeError if it lacks a function.
    """
    kernels = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(kernels, name)
        function.restype, function.argtypes = result, arguments
    return kernels


def processor_kinds() -> list[str]:
    """The kinds of kernels that this processor can run, the best one first."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = frozenset(cpuinfo.read_text().split()) if cpuinfo.exists() else frozenset()
    return [kind.name for kind in _KINDS.get(platform.machine(), ()) if kind.flags <= flags]


def build(kind: str, folder: Path) -> Path:
    """Compile the kernels for a kind of processor into a folder of an image. Returns the path of the library.

    Raises OSError or SubprocessError if that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        return _compile(kind, Path(scratch) / "kernels.so").replace(folder / f"{_stem(kind)}.so")


def _compile(kind: str, target: Path) -> Path:
    """Compile the kernels for a kind of processor to `target`, and return it. Raises OSError or SubprocessError."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError(f"no C compiler is on PATH (looked for {', '.join(_COMPILERS)})")
    command = [compiler, *_FLAGS, *_options(kind), "-o", str(target), str(_SOURCES / "kernels.c"), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
    return target


def _stem(kind: str) -> str:
    """The name of a library without its ending. A change of the sources or of the flags leads to another name."""
    parts = [path.read_bytes() for path in sorted(_SOURCES.glob("*.[ch]"))]
    digest = hashlib.sha256(b"\0".join([*parts, " ".join((*_FLAGS, *_options(kind))).encode()])).hexdigest()[:12]
    return f"kernels-{kind}-{digest}"


def _options(kind: str) -> tuple[str, ...]:
    """The compiler's options for a kind. For one that is not listed, the name is the value of -march."""
    found = (known.options for known in _KINDS.get(platform.machine(), ()) if known.name == kind)
    return next(found, (f"-march={kind}",))


def main() -> None:
    """Build the kernels for every kind of processor that has this machine's type."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else _SOURCES / "built"
    for kind in _KINDS.get(platform.machine(), ()):
        print(build(kind.name, folder))


if __name__ == "__main__":
    main()
