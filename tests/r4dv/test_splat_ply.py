"""Splat files: what other programs find in them, and what is refused (spec r4dv 5.3, acceptance A21)."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_ns.errors import DataError
from dataparsers.point_ply import write_vertices
from r4dv_ns.splat_ply import SHARE, Splats, read_splats, splats_of_points, write_splats


def some_splats(n: int = 6, k: int = 9, seed: int = 0) -> Splats:
    rng = np.random.default_rng(seed)
    rotation = rng.normal(size=(n, 4))
    rotation /= np.linalg.norm(rotation, axis=1, keepdims=True)
    return Splats(
        rng.normal(size=(n, 3)).astype(np.float32), np.exp(rng.normal(size=(n, 3))).astype(np.float32),
        rotation.astype(np.float32), rng.uniform(0.05, 0.95, n).astype(np.float32),
        rng.normal(size=(n, k, 3)).astype(np.float32),
    )  # fmt: skip


def reference_read(path: Path) -> dict[str, np.ndarray]:
    """A PLY reader of its own: header line by line, floats with struct, as 3DGS loaders take them."""
    data = path.read_bytes()
    head, body = data.split(b"end_header\n", 1)
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = int(lines[2].split()[2])
    names = [line.split()[2] for line in lines[3:]]
    assert all(line.split()[:2] == ["property", "float"] for line in lines[3:])
    assert len(body) == 4 * count * len(names)
    rows = list(struct.iter_unpack(f"<{len(names)}f", body))
    return {name: np.array([row[index] for row in rows]) for index, name in enumerate(names)}


def test_the_columns_are_those_of_gaussian_splatting(tmp_path):
    """A21: names and order of the reference layout; f_rest channel by channel; logits and logarithms."""
    splats = some_splats()
    write_splats(tmp_path / "a.ply", splats)
    found = reference_read(tmp_path / "a.ply")
    expected = [*"xyz", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(24))]
    expected += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    assert list(found) == expected
    for channel in range(3):
        np.testing.assert_array_equal(found[f"f_dc_{channel}"], splats.sh[:, 0, channel])
        for term in range(1, 9):
            np.testing.assert_array_equal(found[f"f_rest_{8 * channel + term - 1}"], splats.sh[:, term, channel])
    np.testing.assert_allclose(1 / (1 + np.exp(-found["opacity"])), splats.opacity, atol=1e-6)
    np.testing.assert_allclose(np.exp(found["scale_1"]), splats.scale[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(found["rot_0"], splats.rotation[:, 0])
    assert not found["nx"].any()


@pytest.mark.parametrize("k", [1, 4, 9, 16])
def test_what_was_written_is_read(tmp_path, k):
    splats = some_splats(k=k)
    write_splats(tmp_path / "a.ply", splats)
    found = read_splats(tmp_path / "a.ply")
    np.testing.assert_array_equal(found.xyz, splats.xyz)
    np.testing.assert_array_equal(found.sh, splats.sh)
    np.testing.assert_allclose(found.scale, splats.scale, rtol=1e-6)
    np.testing.assert_allclose(found.rotation, splats.rotation, atol=1e-6)
    np.testing.assert_allclose(found.opacity, splats.opacity, atol=1e-6)


def test_a_disc_becomes_a_round_splat_of_0_46_radii(tmp_path):
    splats = splats_of_points(np.zeros((2, 3)), np.array([0.5, 1.0]), np.array([0.0, 1.0]), np.zeros((2, 1, 3)))
    write_splats(tmp_path / "a.ply", splats)
    found = read_splats(tmp_path / "a.ply")
    np.testing.assert_allclose(found.scale, SHARE * np.array([[0.5] * 3, [1.0] * 3]), rtol=1e-6)
    np.testing.assert_array_equal(found.rotation, [[1, 0, 0, 0]] * 2)
    np.testing.assert_allclose(found.opacity, [0, 1], atol=2e-6)


def test_splats_that_cannot_be_are_not_written(tmp_path):
    splats = some_splats()
    file = tmp_path / "a.ply"
    with pytest.raises(ValueError, match="harmonics"):
        write_splats(file, replace(splats, sh=splats.sh[:, :5]))
    with pytest.raises(ValueError, match="size"):
        write_splats(file, replace(splats, scale=0 * splats.scale))
    with pytest.raises(ValueError, match="rotation: expected"):
        write_splats(file, replace(splats, rotation=splats.rotation[:, :3]))
    with pytest.raises(ValueError, match="finite"):
        write_splats(file, replace(splats, xyz=np.full((6, 3), np.nan)))
    assert not list(tmp_path.iterdir())


def columns(**changes: np.ndarray | None) -> dict[str, tuple[str, np.ndarray]]:
    names = [*"xyz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
    values = {name: np.zeros(2, np.float32) for name in names} | {
        f"rot_{i}": np.eye(4)[0, i] * np.ones(2) for i in range(4)
    }
    return {name: ("f4", value) for name, value in (values | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"opacity": None}, "opacity"),
        ({"f_rest_0": np.zeros(2)}, "1 properties f_rest"),
        ({f"f_rest_{i}": np.zeros(2) for i in range(1, 10)}, "9 properties f_rest"),
        ({"rot_0": np.zeros(2)}, "length zero"),
        ({"scale_1": np.full(2, 200.0)}, "beyond all numbers"),
    ],
)
def test_a_file_that_is_no_splat_file_is_one_error(tmp_path, changes, problem):
    write_vertices(tmp_path / "a.ply", columns(**changes))
    with pytest.raises(DataError, match=problem) as caught:
        read_splats(tmp_path / "a.ply")
    assert "a.ply" in str(caught.value)


def test_numbers_that_are_not_finite_and_torn_files_are_refused(tmp_path):
    file = tmp_path / "a.ply"
    write_splats(file, some_splats())
    data = file.read_bytes()
    file.write_bytes(data[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(DataError, match="not finite"):
        read_splats(file)
    file.write_bytes(data[:-5])
    with pytest.raises(DataError, match="bytes are there"):
        read_splats(file)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200), cut=st.integers(0, 900), flip=st.integers(0, 899))
def test_a_damaged_file_is_read_or_refused_but_nothing_else(tmp_path_factory, data, cut, flip):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    file = folder / "a.ply"
    write_splats(file, some_splats(2, 1))
    whole = bytearray(file.read_bytes())
    whole[flip % len(whole)] ^= 0x55
    for content in (bytes(whole), bytes(whole[:cut]) + data):
        file.write_bytes(content)
        with suppress(DataError):
            assert np.isfinite(read_splats(file).sh).all()
