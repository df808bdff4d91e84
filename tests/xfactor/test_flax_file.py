"""Files of flax, read and written without it: equal to flax's own reader and writer; damage and malice refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.serialization
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_ns.errors import DataError
from xfactor_ns.flax_file import ARRAY, read_flax, write_flax

TREE = {
    "PoseEnc": {
        "Dense_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "global_embed": np.ones((2, 2), "f4"),
    },
    "Render": {"norm": np.array(2.5, "f4")},
}
FLAT = {
    "PoseEnc/Dense_0/kernel": TREE["PoseEnc"]["Dense_0"]["kernel"],
    "PoseEnc/global_embed": TREE["PoseEnc"]["global_embed"],
    "Render/norm": TREE["Render"]["norm"],
}


def stored(values: Any) -> bytes:
    """As flax stores arrays."""
    return flax.serialization.msgpack_serialize(values)


def extension(shape: Any, dtype: Any, raw: Any, code: int = ARRAY) -> msgpack.ExtType:
    """An array in pieces of one's own."""
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, raw)))


def test_what_flax_writes_is_read(tmp_path):
    (tmp_path / "a.flax").write_bytes(
        stored({"step": 7, "opt_state": {"0": {"mu": TREE}}, "params": TREE, "key": np.zeros(2, np.uint32)})
    )
    found = read_flax(tmp_path / "a.flax")
    assert set(found) == set(FLAT)
    for path, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, FLAT[path])


def test_what_is_written_is_what_flax_writes(tmp_path):
    write_flax(tmp_path / "a.flax", FLAT)
    assert (tmp_path / "a.flax").read_bytes() == stored({"params": TREE})
    restored = flax.serialization.msgpack_restore((tmp_path / "a.flax").read_bytes())
    np.testing.assert_array_equal(restored["params"]["PoseEnc"]["global_embed"], FLAT["PoseEnc/global_embed"])


def test_short_floats_become_long_ones(tmp_path):
    import jax.numpy as jnp

    values = jnp.array([0.1, -2.5, 1e-3])
    tree = {"half": values.astype(jnp.float16), "brain": values.astype(jnp.bfloat16)}
    (tmp_path / "a.flax").write_bytes(flax.serialization.to_bytes({"params": tree}))
    found = read_flax(tmp_path / "a.flax")
    for name, value in tree.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], np.array(value.astype(jnp.float32)))


def damaged(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file after a change of its tree."""
    tree = {"step": 1, "params": {"a": {"b": extension([2], "float32", bytes(8))}}}
    changed = change(tree)
    return changed if isinstance(changed, bytes) else msgpack.packb(tree)


def weight(value: Any) -> bytes:
    """A file with one strange weight."""
    return damaged(lambda tree: tree["params"]["a"].update(b=value))


BAD = {
    "empty": (b"", "top level", "does not read"),
    "no map": (msgpack.packb([1, 2]), "top level", "does not read"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), "top level", "does not read"),
    "cut in params": (damaged(lambda tree: msgpack.packb(tree)[:-3]), "params", "does not read"),
    "more behind": (damaged(lambda tree: msgpack.packb(tree) + b"\x01"), "params", "left over"),
    "no params": (damaged(lambda tree: tree.pop("params")), "params", "missing or empty"),
    "empty params": (damaged(lambda tree: tree.update(params={})), "params", "missing or empty"),
    "params no map": (damaged(lambda tree: tree.update(params=[1])), "params", "missing or empty"),
    "unknown extension": (weight(extension([2], "float32", bytes(8), 9)), "a/b", "extension of kind 9"),
    "numpy scalar": (weight(extension([], "float32", bytes(4), 3)), "a/b", "extension of kind 3"),
    "float64": (weight(extension([1], "float64", bytes(8))), "a/b", "holds 'float64'"),
    "an object": (weight(extension([1], "object", bytes(8))), "a/b", "holds 'object'"),
    "type no name": (weight(extension([1], ["f4"], bytes(8))), "a/b", "holds"),
    "too few bytes": (weight(extension([3], "float32", bytes(8))), "a/b", "number of bytes"),
    "overflowing shape": (weight(extension([2**32, 2**32], "float32", bytes(0))), "a/b", "number of bytes"),
    "negative shape": (weight(extension([-2], "float32", bytes(8))), "a/b", "has the shape"),
    "shape no list": (weight(extension(2, "float32", bytes(8))), "a/b", "has the shape"),
    "text for bytes": (weight(extension([2], "float32", "eightchr")), "a/b", "number of bytes"),
    "torn array": (weight(msgpack.ExtType(ARRAY, b"\x93\x91")), "a/b", "shape, type and numbers"),
    "not finite": (weight(extension([1], "float32", np.array([np.nan], "<f4").tobytes())), "a/b", "not finite"),
    "a number": (weight(3), "a/b", "is no array"),
    "a list": (weight([1.0]), "a/b", "is no array"),
    "a number as name": (damaged(lambda tree: tree["params"].update({5: 1})), "params", "does not read"),
    "flax's pieces": (weight({"__msgpack_chunked_array__": True}), "a/b/__msgpack_chunked_array__", "is no array"),
    "huge map": (b"\xdf\xff\xff\xff\xff", "top level", "does not read"),
    "huge list": (damaged(lambda tree: b"\x81\xa6params\xdd\xff\xff\xff\xff"), "params", "does not read"),
    "deep": (b"\x81\xa6params" + b"\x81\xa1a" * 5000 + b"\xc0", "params", "does not read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path, name):
    content, place, problem = BAD[name]
    (tmp_path / "a.flax").write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        read_flax(tmp_path / "a.flax")
    assert caught.value.place == place


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a file"):
        read_flax(tmp_path / "a.flax")


WHOLE = stored({"step": 3, "params": TREE, "last": np.zeros(3, np.int32)})


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damage_anywhere_is_read_or_refused(tmp_path_factory, data):
    """Cut off or with a byte changed: never another exception, never a weight of another type."""
    file = tmp_path_factory.getbasetemp() / "damaged.flax"
    place = data.draw(st.integers(0, len(WHOLE) - 1))
    if data.draw(st.booleans()):
        content, whole = WHOLE[:place], False
    else:
        content, whole = WHOLE[:place] + bytes([data.draw(st.integers(0, 255))]) + WHOLE[place + 1 :], True
    file.write_bytes(content)
    try:
        found = read_flax(file)
    except DataError:
        return
    assert whole, "a file that was cut off was taken"
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in found.values())
