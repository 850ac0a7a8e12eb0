"""The pickles of CIFAR are read by an interpreter that can run nothing: what is hostile is refused, and stays unrun."""

import contextlib
import os
import pickle
import pickletools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restrain.data.packing.pickles import read
from restrain.errors import UserError
from tests.data import originals
from tests.data.test_packing import packed

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 12)
WHOLE = originals.python2({"data": ARRAY})


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


class Builds:
    def __init__(self):
        self.x = 1


HOSTILE = {
    "system": (b"cos\nsystem\n(S'mkdir evil'\ntR.", "names 'os.system'"),
    "reduce": (pickle.dumps({"data": Evil()}, 2), "names '(posix|os).mkdir'"),
    "protocol 4": (pickle.dumps({"data": Evil()}, 4), "names '(posix|os).mkdir'"),
    "builtins": (b"cbuiltins\neval\n(S'1'\ntR.", "names 'builtins.eval'"),
    "numpy's own": (b"cnumpy\nload\n(S'x'\ntR.", "names 'numpy.load'"),
    "inst": (b"(S'mkdir evil'\nios\nsystem\n.", "opcode INST"),
    "obj": (b"(cnumpy\nndarray\nK\x01o.", "opcode OBJ"),
    "newobj": (pickle.dumps(Builds(), 2), "names 'copy_reg._reconstructor'|names .*Builds"),
    "persistent": (b"S'x'\nQ.", "opcode BINPERSID"),
    "extension": (b"\x82\x01.", "opcode EXT1"),
    "set": (pickle.dumps({"a": {1}}, 4), "opcode EMPTY_SET"),
    "object array": (pickle.dumps({"data": np.array([Evil(), 1], object)}, 2), "names|arguments"),
    "other dtype": (pickle.dumps({"data": np.array(["a"])}, 2), "arguments that no array of numbers has"),
    "reduce of a value": (b"K\x01)R.", "REDUCE of something else"),
    "build of a dict": (b"}}b.", "BUILD of something else"),
    "call of the array class": (b"cnumpy\nndarray\n(K\x05tR.", "arguments that no array"),
    "wrong size": (WHOLE.replace(b"\x02\x00\x00\x00J\x0c", b"\x09\x00\x00\x00J\x0c"), "reshape"),
    "cut": (WHOLE[:-40], "is no pickle"),
    "empty": (b"", "is no pickle"),
    "text": (b"<html>", "is no pickle"),
    "stack": (b"\x80\x02u.", "is no pickle"),
    "global alone": (b"\x80\x02}U\x01acnumpy\nndarray\ns.", "object without content"),
    "list": (b"\x80\x02].", "is no pickle"),
    "memo": (b"\x80\x02h\x07.", "is no pickle"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pickle, "loads", None)
    data, said = HOSTILE[what]
    with pytest.raises(UserError, match=said):
        read(data, "data_batch_1")
    assert not list(tmp_path.iterdir())


def test_a_hostile_archive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    originals.cifar(tmp_path / "src", lambda found: originals.python2(found) if "data" not in found else EVIL)
    with pytest.raises(UserError, match=r"data_batch_1 names '(posix|os)\.mkdir', .* nothing was run"):
        packed(tmp_path / "src" / "cifar-10-python.tar.gz", tmp_path / "out")
    assert not (tmp_path / "evil").exists()


EVIL = pickle.dumps({"data": Evil()}, 2)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_equal_to_unpickling(protocol):
    found = {"data": ARRAY, "labels": [3, 500, 70000, -1], "name": "ü", b"raw": b"\0\xff", "none": None, "t": (1, True)}
    if protocol == 0:
        found.pop(b"raw"), found.pop("data")  # arrays of protocol 0 escape their bytes otherwise
    found["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3)) if protocol else 0
    got = read(pickle.dumps(found, protocol), "x")
    assert got.keys() == found.keys()
    for key, value in found.items():
        assert np.array_equal(got[key], value), key


def test_equal_to_unpickling_python_2():
    data = originals.python2({"data": ARRAY, "labels": [1, 2], "name": "training batch 1 of 5"})
    got, real = read(data, "x"), pickle.loads(data, encoding="bytes")
    assert got.keys() == real.keys()
    assert np.array_equal(got[b"data"], real[b"data"])
    assert (got[b"labels"], got[b"name"]) == (real[b"labels"], real[b"name"])


@given(st.binary(max_size=200))
def test_anything_is_read_or_refused(data):
    with contextlib.suppress(UserError):  # and no other
        assert isinstance(read(data, "x"), dict)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(at, value):
    data = bytearray(originals.python2({"data": ARRAY, "labels": [1, 2]}))
    data[at % len(data)] = value
    with contextlib.suppress(UserError):
        assert isinstance(read(bytes(data), "x"), dict)


def test_every_opcode_is_known_or_refused():
    """None of the opcodes that call, import or look up is taken but numpy's GLOBAL, REDUCE and BUILD."""
    from restrain.data.packing import pickles

    taken = pickles.VALUES | set(pickles.CONSTANTS) | set(pickles.EMPTY) | set(pickles.TUPLES)
    assert taken | pickles.PUTS | pickles.GETS <= {opcode.name for opcode in pickletools.opcodes}
    assert not taken & {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "PERSID"}
