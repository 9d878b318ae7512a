from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eeg_encoder.errors import InputError
from eeg_encoder.recordings.unpickle import load_npy, load_pickle


class Payload:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def content(n=3):
    generator = np.random.default_rng(0)
    return {
        "data": generator.normal(size=(n, 40, 100)),
        "fortran": np.asfortranarray(generator.normal(size=(30, 7)).astype(np.float32)),
        "names": np.array(["a", "bc"]),
        "objects": np.array(["x", None, 3], dtype=object),
        "list": [np.float64(2.5), np.int64(3), {"deep": (np.arange(3, dtype=">i4"), b"x")}],
        "ordered": OrderedDict(a=1),
        "set": {1, 2},
    }


def assert_same(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_reads_what_numpy_pickles(tmp_path, protocol):
    path = tmp_path / "a.npy"
    path.write_bytes(pickle.dumps(content(), protocol=protocol))
    assert_same(load_npy(path), content())
    assert_same(load_pickle(path), content())


def test_reads_numpy_files_of_objects(tmp_path):
    np.save(tmp_path / "a.npy", content(), allow_pickle=True)
    assert_same(load_npy(tmp_path / "a.npy"), content())
    np.save(tmp_path / "b.npy", np.array(["a", 1], dtype=object), allow_pickle=True)
    assert load_npy(tmp_path / "b.npy").tolist() == ["a", 1]
    lists = np.empty(2, dtype=object)
    lists[0], lists[1] = [1, 2], [np.float32(3), "x"]
    np.save(tmp_path / "c.npy", lists, allow_pickle=True)
    assert load_npy(tmp_path / "c.npy").tolist() == [[1, 2], [3.0, "x"]]


def test_large_arrays_are_mapped(tmp_path):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        pickle.dump(content(), file, protocol=4)
    data = load_npy(path)["data"]
    owner = data
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, memoryview)
    assert type(owner.obj).__name__ == "mmap"
    assert not data.flags.writeable
    np.save(tmp_path / "b.npy", np.ones((3, 4)))
    assert isinstance(load_npy(tmp_path / "b.npy"), np.memmap)


EVIL = {
    f"{os.name}.system": lambda p: Payload(os.system, f"touch {p}"),
    "builtins.eval": lambda p: Payload(eval, f"open({str(p)!r}, 'w')"),
    "builtins.getattr": lambda p: Payload(getattr, "text", "upper"),
    "numpy.savetxt": lambda p: Payload(np.savetxt, str(p), [1.0]),
    "subprocess.Popen": lambda p: Payload(__import__("subprocess").Popen, ["touch", str(p)]),
}


@pytest.mark.parametrize("wrapped", ["bare", "npy", "inside"])
@pytest.mark.parametrize("name", EVIL)
def test_a_malicious_pickle_does_not_run(tmp_path, name, wrapped):
    touched, path = tmp_path / "touched", tmp_path / "evil.npy"
    payload = EVIL[name](touched)
    if wrapped == "npy":
        np.save(path, np.array([payload], dtype=object), allow_pickle=True)
    else:
        value = payload if wrapped == "bare" else {"preprocessed_eeg_data": [np.ones(3), payload]}
        path.write_bytes(pickle.dumps(value, protocol=4))
    with pytest.raises(InputError) as caught:
        load_npy(path)
    assert not touched.exists()
    assert str(path) in str(caught.value)
    assert f"the global {name}" in str(caught.value)


@pytest.mark.parametrize(
    "stream",
    [
        b"cnumpy\nndarray\n}X\x0c\x00\x00\x00__setstate__N}s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02Pname\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00ab.",
        b"\x80\x02cnumpy\nndarray\n.",
        b"\x80\x02](h\x00" + b"]" * 10 + b".",
    ],
    ids=["state of a class", "state of a dict", "persistent", "extension", "bomb", "class", "junk"],
)
def test_odd_streams_are_refused(tmp_path, stream):
    (tmp_path / "a.pkl").write_bytes(stream)
    with pytest.raises(InputError, match="pickle"):
        load_pickle(tmp_path / "a.pkl")


def test_endless_nesting_is_refused(tmp_path):
    cycle: list = []
    cycle.append(cycle)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(cycle))
    with pytest.raises(InputError, match="nested"):
        load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("keep", [0, 3, 60, 500, 5000, -1])
@pytest.mark.parametrize("how", ["bare", "object", "plain"])
def test_truncated_files_are_named(tmp_path, how, keep):
    path = tmp_path / "a.npy"
    if how == "bare":
        path.write_bytes(pickle.dumps(content()))
    else:
        np.save(path, content() if how == "object" else content()["data"], allow_pickle=True)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.npy") as caught:
        load_npy(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int16, np.dtype(">f8"), np.bool_, "U3"]),
        hnp.array_shapes(min_dims=0, max_dims=4, max_side=5),
    ),
    st.sampled_from(range(2, pickle.HIGHEST_PROTOCOL + 1)),
)
def test_any_array_comes_back(tmp_path_factory, array, protocol):
    path = tmp_path_factory.mktemp("p") / "a.pkl"
    path.write_bytes(pickle.dumps({"a": array}, protocol=protocol))
    found = load_pickle(path)["a"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_spoiled_bytes_never_escape(tmp_path_factory, place, junk):
    whole = bytearray(pickle.dumps({"a": np.arange(9.0), "b": ["x", 1.5]}))
    place %= len(whole)
    whole[place : place + len(junk)] = junk
    path = tmp_path_factory.mktemp("p") / "a.pkl"
    path.write_bytes(bytes(whole))
    with suppress(InputError):
        load_pickle(path)
