"""Point clouds in PLY files: round trips, what other programs write, and what is no point cloud."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core_ns.errors import DataError
from dataparsers.point_ply import PointCloud, ply_comments, read_ply, write_ply

RNG = np.random.default_rng(0)
XYZ = RNG.normal(size=(40, 3)).astype(np.float32)
RGB = RNG.integers(0, 256, (40, 3), dtype=np.uint8)
RADIUS, ALPHA = RNG.random(40).astype(np.float32), RNG.random(40).astype(np.float32)


@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("extras", [{}, {"rgb": RGB}, {"rgb": RGB, "radius": RADIUS, "alpha": ALPHA}])
def test_round_trip(tmp_path: Path, ascii: bool, extras: dict) -> None:
    write_ply(tmp_path / "a.ply", XYZ, **extras, ascii=ascii)
    cloud = read_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(cloud.xyz, XYZ)
    assert cloud.xyz.dtype == np.float32
    for name in ("rgb", "radius", "alpha"):
        if name in extras:
            np.testing.assert_array_equal(getattr(cloud, name), extras[name])
        else:
            assert getattr(cloud, name) is None


@pytest.mark.parametrize("ascii", [False, True])
def test_double_precision(tmp_path: Path, ascii: bool) -> None:
    xyz = RNG.normal(size=(9, 3)) * 1e6
    write_ply(tmp_path / "a.ply", xyz, double=True, ascii=ascii)
    cloud = read_ply(tmp_path / "a.ply")
    assert cloud.xyz.dtype == np.float64
    np.testing.assert_array_equal(cloud.xyz, xyz)


@pytest.mark.parametrize("ascii", [False, True])
def test_comments(tmp_path: Path, ascii: bool) -> None:
    file = tmp_path / "a.ply"
    write_ply(file, XYZ, comment="made by hand", ascii=ascii)
    assert ply_comments(file) == ["made by hand"]
    np.testing.assert_array_equal(read_ply(file).xyz, XYZ)
    assert len(trimesh.load(file).vertices) == 40
    write_ply(file, XYZ, ascii=ascii)
    assert ply_comments(file) == []
    with pytest.raises(ValueError, match="one line"):
        write_ply(file, XYZ, comment="two\nelement face 9")
    file.write_bytes(b"no cloud")
    for wrong in (file, tmp_path / "absent.ply"):
        with pytest.raises(DataError, match=r"\.ply"):
            ply_comments(wrong)


@pytest.mark.parametrize("ascii", [False, True])
def test_no_points(tmp_path: Path, ascii: bool) -> None:
    write_ply(tmp_path / "a.ply", np.zeros((0, 3)), ascii=ascii)
    assert read_ply(tmp_path / "a.ply").xyz.shape == (0, 3)


@pytest.mark.parametrize("ascii", [False, True])
def test_trimesh_reads_ours(tmp_path: Path, ascii: bool) -> None:
    """An independent reader as oracle."""
    write_ply(tmp_path / "a.ply", XYZ, RGB, ascii=ascii)
    cloud = trimesh.load(tmp_path / "a.ply")
    assert isinstance(cloud, trimesh.PointCloud)
    np.testing.assert_array_equal(cloud.vertices, XYZ)
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], RGB)


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_we_read_trimesh(tmp_path: Path, encoding: str) -> None:
    """A mesh too: its faces follow the points."""
    sphere = trimesh.creation.icosphere(subdivisions=1)
    data = trimesh.exchange.ply.export_ply(sphere, encoding=encoding)
    (tmp_path / "a.ply").write_bytes(data)
    np.testing.assert_allclose(read_ply(tmp_path / "a.ply").xyz, sphere.vertices, atol=1e-6)


def save(path: Path, header: str, body: bytes = b"") -> Path:
    path.write_bytes(header.encode() + body)
    return path


def test_big_endian_with_something_before(tmp_path: Path) -> None:
    header = (
        "ply\nformat binary_big_endian 1.0\ncomment x y z\nelement camera 2\nproperty double f\nproperty uchar k\n"
        "element vertex 3\nproperty short id\nproperty float x\nproperty float y\nproperty double z\nend_header\n"
    )
    body = bytes(18)
    for i in range(3):
        body += (
            np.array([i], ">i2").tobytes()
            + np.array([i, 2 * i], ">f4").tobytes()
            + np.array([0.1 * i], ">f8").tobytes()
        )
    cloud = read_ply(save(tmp_path / "a.ply", header, body))
    np.testing.assert_array_equal(cloud.xyz, [[0, 0, 0], [1, 2, 0.1], [2, 4, 0.2]])


def test_ascii_of_other_programs(tmp_path: Path) -> None:
    """CRLF, colours as floats, alpha as a byte, extra columns."""
    header = (
        "ply\nformat ascii 1.0\nobj_info made elsewhere\nelement vertex 2\nproperty float x\nproperty float y\n"
        "property float z\nproperty float red\nproperty float green\nproperty float blue\nproperty uchar alpha\n"
        "property int label\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    ).replace("\n", "\r\n")
    cloud = read_ply(save(tmp_path / "a.ply", header, b"1 2 3 0 0.5 1 255 7\r\n-1e-3 2. .3 1 1 1 51 -8\r\n3 0 1 1\r\n"))
    np.testing.assert_allclose(cloud.xyz, [[1, 2, 3], [-1e-3, 2, 0.3]], rtol=1e-6)
    np.testing.assert_array_equal(cloud.rgb, [[0, 128, 255], [255, 255, 255]])
    np.testing.assert_allclose(cloud.alpha, [1, 0.2], rtol=1e-6)


HEAD = "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
MALFORMED = {
    "empty": ("", b""),
    "other file": ("PNG\nend_header\n", b""),
    "no end": (HEAD.replace("end_header\n", ""), b"1 2 3\n"),
    "end without line": (HEAD.rstrip("\n"), b""),
    "end with more": (HEAD.replace("end_header", "end_header x"), b"1 2 3\n"),
    "no format": (HEAD.replace("format ascii 1.0\n", ""), b"1 2 3\n"),
    "unknown format": (HEAD.replace("ascii", "utf"), b"1 2 3\n"),
    "unknown type": (HEAD.replace("float x", "half x"), b"1 2 3\n"),
    "unknown line": (HEAD.replace("element", "elements"), b"1 2 3\n"),
    "no vertex": (HEAD.replace("vertex", "point"), b"1 2 3\n"),
    "no z": (HEAD.replace("float z", "float w"), b"1 2 3\n"),
    "twice x": (HEAD.replace("float y", "float x"), b"1 2 3\n"),
    "negative count": (HEAD.replace("vertex 1", "vertex -1"), b"1 2 3\n"),
    "absurd count": (HEAD.replace("vertex 1", "vertex 99999999999"), b"1 2 3\n"),
    "countless": (HEAD.replace("vertex 1", "vertex 9999999999999999999999"), b"1 2 3\n"),
    "superscript count": (HEAD.replace("vertex 1", "vertex ²"), b"1 2 3\n"),
    "property before element": (HEAD.replace("element vertex 1\n", ""), b"1 2 3\n"),
    "list": (HEAD.replace("property float z", "property float z\nproperty list uchar int i"), b"1 2 3 0\n"),
    "too few lines": (HEAD.replace("vertex 1", "vertex 3"), b"1 2 3\n"),
    "blank line": (HEAD, b"\n\n"),
    "too few numbers": (HEAD, b"1 2\n"),
    "too many numbers": (HEAD, b"1 2 3 4\n"),
    "words": (HEAD, b"1 2 three\n"),
    "nan": (HEAD, b"1 2 nan\n"),
    "infinite": (HEAD, b"1 2 1e99\n"),
    "integer overflow": (HEAD.replace("float z", "uchar z"), b"1 2 256\n"),
    "fraction in an integer": (HEAD.replace("float z", "uchar z"), b"1 2 0.5\n"),
    "short body": (HEAD.replace("ascii", "binary_little_endian"), b"\0" * 11),
    "binary nan": (HEAD.replace("ascii", "binary_little_endian"), b"\xff" * 12),
    "absurd binary": (
        HEAD.replace("ascii", "binary_little_endian").replace("vertex 1", "vertex 200000000"),
        b"\0" * 99,
    ),
    "not text": ("ply\nformat ascii 1.0\ncomment \udcff\nend_header\n", b""),
    "colours": (
        HEAD.replace("end_header", "property float red\nproperty float green\nproperty float blue\nend_header"),
        b"1 2 3 9 0 0\n",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(tmp_path: Path, name: str) -> None:
    header, body = MALFORMED[name]
    (tmp_path / "a.ply").write_bytes(header.encode("utf-8", "surrogateescape") + body)
    with pytest.raises(DataError, match=r"a\.ply"):
        read_ply(tmp_path / "a.ply")


def test_absent(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.ply"):
        with pytest.raises(DataError, match="cannot be read"):
            read_ply(path)


def whole_file(ascii: bool) -> bytes:
    """One file with everything in it."""
    buffer = io.BytesIO()
    buffer.write(b"ply\nformat %s 1.0\nelement vertex 2\n" % (b"ascii" if ascii else b"binary_little_endian"))
    for name in ("x", "y", "z"):
        buffer.write(b"property float %s\n" % name.encode())
    buffer.write(b"property uchar alpha\nend_header\n")
    buffer.write(b"1 2 3 4\n5 6 7 8\n" if ascii else bytes(26))
    return buffer.getvalue()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.data())
def test_any_damage_ends_in_a_data_error(tmp_path: Path, ascii: bool, data: st.DataObject) -> None:
    content = bytearray(whole_file(ascii))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    (tmp_path / "a.ply").write_bytes(content)
    try:
        cloud = read_ply(tmp_path / "a.ply")
    except DataError:
        return
    assert isinstance(cloud, PointCloud)
    assert np.isfinite(cloud.xyz).all()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_data_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ply").write_bytes(b"ply\nformat " + content)
    with pytest.raises(DataError):
        read_ply(tmp_path / "a.ply")


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros((3, 2)),),
        (np.zeros((3, 3)), np.zeros((3, 3))),
        (np.zeros((3, 3)), np.zeros((2, 3), np.uint8)),
        (np.zeros((3, 3)), None, np.zeros(2)),
        (np.full((3, 3), np.nan),),
        (np.full((3, 3), 1e300),),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, arguments: tuple) -> None:
    with pytest.raises(ValueError, match=r"must be|finite"):
        write_ply(tmp_path / "a.ply", *arguments)
    assert not list(tmp_path.iterdir())
