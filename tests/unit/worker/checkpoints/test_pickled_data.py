"""Pickles as plain data: what is read, and pickles that were made to run code or to use up time and memory."""

from __future__ import annotations

import contextlib
import pickle
import resource
import struct
import subprocess
import sys
from collections import OrderedDict
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.processes import ROOT
from worker.checkpoints.pickled_data import (
    MAX_INTEGER_KEY,
    Call,
    PickleError,
    Reference,
    RefusedReferenceError,
    read_pickle,
)

#: Far more than any of these pickles needs on a busy machine, and far less than what they ask for.
LIMIT_S = 120
LIMIT_BYTES = 1 << 30


def read(data: bytes) -> Any:
    return read_pickle(data, references=lambda name: name in KNOWN, functions=lambda name: name in KNOWN)


KNOWN = {"collections.OrderedDict", "shop.Cart"}

OPCODES = b"(.0123N])}tuesabqrhjRcQ\x80\x81\x85\x86\x93\x94"
#: Any plain data, with keys as in state dicts and vocabularies.
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])) | st.binary() | st.integers(0, 300), inner)
    ),
)


@settings(deadline=None)
@given(value=plain, protocol=st.integers(3, pickle.HIGHEST_PROTOCOL))
def test_plain_data_is_read_as_pickle_reads_it(value: object, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


def test_shared_objects_and_long_ones_are_read() -> None:
    shared = ["a"] * 3
    found = read(pickle.dumps({"a": shared, "b": shared, "long": "x" * 70_000, "bytes": bytes(70_000)}))
    assert found["a"] is found["b"]
    assert (len(found["long"]), len(found["bytes"])) == (70_000, 70_000)
    many = list(range(5000))
    assert read(pickle.dumps({"many": many, "ordered": OrderedDict(a=1)}, 2)) == {"many": many, "ordered": {"a": 1}}


def test_a_call_is_not_made() -> None:
    data = b"\x80\x02cshop\nCart\nK\x05\x85R}X\x01\x00\x00\x00aK\x01sb."
    found = read(data)
    assert isinstance(found, Call)
    assert (found.function, found.arguments, found.state) == (Reference("shop.Cart"), (5,), {"a": 1})


@pytest.mark.parametrize(
    "data",
    [
        b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x04cshop\nCart\n)}\x92.",  # NEWOBJ_EX
        b"\x82\x01.",  # EXT1: a name from a table of the process
        b"cbuiltins\neval\n.",
        b"Pevil\n.",  # PERSID
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"cshop\nCart.__class__\n)R.",
        b"(lp0\ncos\nsystem\n.",
        b"\x80\x02cshop\nCart\n)R0cos\nsystem\n.",  # POP would hide the first object
        b"\x80\x02]2.",  # DUP
        b"\x80\x02\x8f.",  # EMPTY_SET
    ],
)
def test_what_is_not_plain_data_is_refused(data: bytes) -> None:
    with pytest.raises(PickleError):
        read(data)


def test_a_refused_name_is_in_the_error() -> None:
    with pytest.raises(RefusedReferenceError) as caught:
        read(pickle.dumps(subprocess.run))
    assert caught.value.name == "subprocess.run"


def test_only_keys_without_costly_hashes_are_accepted() -> None:
    assert read(pickle.dumps({MAX_INTEGER_KEY: 1})) == {MAX_INTEGER_KEY: 1}
    for key in (MAX_INTEGER_KEY + 1, -1, 1.5, None, True, (), ("a",)):
        with pytest.raises(PickleError, match="a key that is neither text nor bytes nor a small integer"):
            read(pickle.dumps({key: 1}))


@settings(deadline=None)
@given(
    data=st.binary(max_size=60)
    | st.lists(st.sampled_from(b"(.0123N])}tuesabqrhjRcQ\x80\x81\x85\x86\x93\x94")).map(bytes)
)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(PickleError):
        read(data)


@settings(deadline=None)
@given(st.data())
def test_a_changed_byte_is_read_or_refused(data: st.DataObject) -> None:
    original = bytearray(pickle.dumps({"a": [1, 2.5, ("b", b"c")], "d": {"e": 2**40}}))
    original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PickleError):
        read(bytes(original))


@cache
def bombs() -> dict[str, bytes]:
    """Small pickles that make Python's own unpickler, or code behind it, run for years or allocate gigabytes."""
    doubled = b"\x80\x02)q\x00" + b"".join(b"h%c\x68%c\x86q%c" % (i, i, i + 1) for i in range(100))
    number = 2**61 - 1
    colliding = b"".join(b"\x8a\x0e" + (number * i).to_bytes(14, "little") + b"N" for i in range(1, 300_000))
    return {
        "a tuple that contains itself 2**100 times, as a key": b"\x80\x02}" + doubled[2:] + b"Ns.",
        "the same in a set": b"\x80\x04\x8f(" + doubled[2:] + b"\x90.",
        "the same as a value": doubled + b".",
        "an object at index 2**32 - 1": b"\x80\x02Nr\xff\xff\xff\xff.",
        "an object at index 2**28": b"\x80\x02Nr\x00\x00\x00\x10.",
        "a text of 2**63 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**63 - 1) + b"a.",
        "bytes of 2**40": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.",
        "a bytearray of 2**40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.",
        "a frame of 2**40": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
        "an integer of 2**31 - 1 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
        "an integer of four million bytes": b"\x80\x02\x8b" + struct.pack("<i", 4_000_000) + b"\x01" * 4_000_000 + b".",
        "an integer of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "a million nested lists": b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
        "a million nested tuples": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
        "nested calls": b"\x80\x02cshop\nCart\nq\x00" + b"h\x00" * 299_999 + b")R" + b"\x85R" * 299_999 + b".",
        "a million marks": b"\x80\x02" + b"(" * 1_000_000 + b"t" * 1_000_000 + b".",
        "keys with one hash": b"\x80\x02}(" + colliding + b"u.",
        "a list that contains itself": b"\x80\x02]q\x00h\x00ah\x00ah\x00a.",
        "ten million objects": b"\x80\x02" + b"}" * 10_000_000 + b".",
        "a name without an end": b"c" + b"a" * 5_000_000,
    }


#: Reads each pickle of standard input, and prints a line for each.
PROGRAM = """
import pickle, sys
from worker.checkpoints.pickled_data import PickleError, read_pickle
for name, data in pickle.load(sys.stdin.buffer).items():
    try:
        read_pickle(data, references=lambda name: True, functions=lambda name: True)
    except PickleError as error:
        print(f"{name}: refused: {error}", flush=True)
    else:
        print(f"{name}: read", flush=True)
"""


def test_no_pickle_uses_up_time_or_memory() -> None:
    """A process with little memory reads all of them, however they end."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=pickle.dumps(bombs()),
        capture_output=True,
        timeout=LIMIT_S,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES)),
    )
    assert result.returncode == 0, result.stderr.decode()[-2000:]
    lines = result.stdout.decode().splitlines()
    assert [line.partition(":")[0] for line in lines] == list(bombs())
    harmless = {line.partition(":")[0] for line in lines if line.endswith(": read")}
    assert harmless <= {
        "the same as a value",
        "a million nested lists",
        "a million nested tuples",
        "nested calls",
        "a frame of 2**40",
        "a million marks",
        "a list that contains itself",
    }
    assert max(map(len, lines)) < 300
