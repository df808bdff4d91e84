"""Meshes: precision kept, unusable faces dropped and counted, damaged files refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_ns.errors import DataError
from dataparsers.mesh import load_mesh, mesh_files, mesh_sha256

TRIANGLE = ["0 0 0", "1 0 0", "0 1 0"]


def ply(vertices: list[str], faces: list[str], counts: tuple[int, int] | None = None, extra: str = "") -> str:
    count = counts or (len(vertices), len(faces))
    head = ["ply", "format ascii 1.0", f"element vertex {count[0]}"]
    head += [f"property double {axis}" for axis in "xyz"] + extra.splitlines()
    head += [f"element face {count[1]}", "property list uchar int vertex_indices", "end_header"]
    return "\n".join([*head, *vertices, *faces]) + "\n"


def binary_ply(vertices: np.ndarray, faces: np.ndarray, kind: str = "double") -> bytes:
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n"
    head += "".join(f"property {kind} {axis}\n" for axis in "xyz")
    head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    body = vertices.astype("<f8" if kind == "double" else "<f4").tobytes()
    return head.encode() + body + b"".join(struct.pack("<B3i", 3, *face) for face in faces.tolist())


def binary_stl(count: int, declared: int | None = None) -> bytes:
    facet = struct.pack("<12fH", 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0)
    return b"\0" * 80 + struct.pack("<I", count if declared is None else declared) + facet * count


GRID = np.stack(np.meshgrid(np.arange(4.0), np.arange(4.0), [0.0]), axis=-1).reshape(-1, 3)
GRID_FACES = np.array([[i, i + 1, i + 4] for i in range(11) if i % 4 < 3])

GOOD_PLY = ply(TRIANGLE, ["3 0 1 2"])
GOOD_OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
GOOD_OFF = "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
GOOD_STL = "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\n"
GOOD_STL += "endloop\nendfacet\nendsolid a\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ply", GOOD_PLY),
        ("a.PLY", GOOD_PLY),
        ("crlf.obj", GOOD_OBJ.replace("\n", "\r\n")),
        ("relative.obj", GOOD_OBJ.replace("f 1 2 3", "f -3 -2 -1")),
        ("a.off", GOOD_OFF),
        ("comment.off", GOOD_OFF.replace("OFF\n", "OFF\n# made by hand\n\n")),
        ("a.stl", GOOD_STL),
        ("bin.stl", binary_stl(1)),
        ("bin.ply", binary_ply(GRID[[0, 1, 4]] * [1, 1, 0], np.array([[0, 1, 2]]))),
    ],
)
def test_formats(tmp_path: Path, name: str, content: str | bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    mesh = load_mesh(path)
    np.testing.assert_array_equal(mesh.vertices[mesh.faces[0]], [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert mesh.vertices.dtype == np.float64
    assert mesh.faces.dtype == np.int64
    assert mesh.dropped_faces == 0
    assert mesh.vertex_colors is None


def test_geo_referenced_coordinates_keep_double_precision(tmp_path: Path) -> None:
    vertices = GRID * 0.01 + [512345.678901234, 5412345.123456789, 321.0123456789]
    lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in vertices.tolist()]
    lines += ["f {} {} {}".format(*(face + 1)) for face in GRID_FACES]
    (tmp_path / "a.obj").write_text("\n".join(lines) + "\n")
    (tmp_path / "a.ply").write_bytes(binary_ply(vertices, GRID_FACES))
    for name in ("a.obj", "a.ply"):
        mesh = load_mesh(tmp_path / name)
        np.testing.assert_array_equal(mesh.vertices[mesh.faces], vertices[GRID_FACES])


def test_quads_and_polygons_become_triangles_of_the_same_area(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 2 0 0\nv 2 2 0\nv 0 2 0\nv -1 1 0\nf 1 2 3 4\nf 1 4 5\n")
    (tmp_path / "b.obj").write_text("v 0 0 0\nv 2 0 0\nv 2 2 0\nv 0 2 0\nv -1 1 0\nf 1 2 3 4 5\n")
    for name in ("a.obj", "b.obj"):
        mesh = load_mesh(tmp_path / name)
        corners = mesh.vertices[mesh.faces]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
        assert len(mesh.faces) == 3
        assert area == pytest.approx(5.0)


def test_scene_is_concatenated_with_its_transforms(tmp_path: Path) -> None:
    import trimesh

    scene = trimesh.Scene()
    box = trimesh.creation.box()
    scene.add_geometry(box)
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([5, 0, 0]))
    (tmp_path / "a.glb").write_bytes(scene.export(file_type="glb"))
    mesh = load_mesh(tmp_path / "a.glb")
    assert len(mesh.faces) == 24
    np.testing.assert_allclose([mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)], [[-0.5] * 3, [5.5, 0.5, 0.5]])


def test_unusable_faces_are_dropped_and_counted(tmp_path: Path) -> None:
    vertices = [*TRIANGLE, "nan 0 0", "2 0 0", "0 inf 1", "9 9 9"]
    faces = ["3 0 1 2", "3 0 1 3", "3 0 1 1", "3 0 1 4", "3 0 1 5", "3 2 1 0"]
    (tmp_path / "a.ply").write_text(ply(vertices, faces))
    mesh = load_mesh(tmp_path / "a.ply")
    assert mesh.faces.tolist() == [[0, 1, 2], [2, 1, 0]]
    assert mesh.dropped_faces == 4
    assert len(mesh.vertices) == 3  # neither NaN nor the lone vertex can disturb the bounding box


def test_slivers_with_an_area_are_kept_even_far_from_the_origin(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 500000 4000000 0\nv 500001 4000000 0\nv 500000.5 4000000.000001 0\nf 1 2 3\n")
    assert load_mesh(tmp_path / "a.obj").dropped_faces == 0


def test_vertex_colours_follow_their_vertices(tmp_path: Path) -> None:
    extra = "\n".join(f"property uchar {name}" for name in ("red", "green", "blue"))
    rows = ["9 9 9 7 7 7", "0 0 0 255 0 1", "1 0 0 2 3 4", "0 1 0 5 6 7"]
    (tmp_path / "a.ply").write_text(ply(rows, ["3 1 2 3"], extra=extra))
    mesh = load_mesh(tmp_path / "a.ply")
    assert mesh.vertex_colors is not None
    assert mesh.vertex_colors.dtype == np.uint8
    assert mesh.vertex_colors.tolist() == [[255, 0, 1], [2, 3, 4], [5, 6, 7]]


def test_textured_obj_reads_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "a.mtl").mkdir()  # opening it would fail
    text = "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nusemtl m\nf 1/1 2/2 3/3\n"
    (tmp_path / "a.obj").write_text(text)
    assert len(load_mesh(tmp_path / "a.obj").faces) == 1


def corrupted_index(value: int) -> bytes:
    return binary_ply(GRID, GRID_FACES)[:-4] + struct.pack("<i", value)


GLB_HEAD = b"glTF" + struct.pack("<II", 2, 12)
MALFORMED: dict[str, tuple[str, str | bytes]] = {
    "zero bytes": ("a.ply", b""),
    "unknown suffix": ("a.xyzzy", GOOD_PLY),
    "no suffix": ("mesh", GOOD_PLY),
    "point list": ("a.xyz", "0 0 0\n1 0 0\n"),
    "archive": ("a.zip", b"PK\x03\x04" + b"\0" * 40),
    "pickle": ("a.pkl", b"\x80\x04cos\nsystem\n(S'touch x'\ntR."),
    "pickle called ply": ("a.ply", b"\x80\x04cos\nsystem\n(S'touch x'\ntR."),
    "text called ply": ("a.ply", "hello\n"),
    "text called obj": ("a.obj", "hello\nworld\n"),
    "text called stl": ("a.stl", "hello\n"),
    "text called off": ("a.off", "hello\n"),
    "text called glb": ("a.glb", "hello\n"),
    "text called gltf": ("a.gltf", "hello\n"),
    "photo called ply": ("a.ply", b"\xff\xd8\xff\xe0JFIF" * 50),
    "ply point cloud": ("a.ply", ply(TRIANGLE, [])),
    "obj point cloud": ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n"),
    "obj lines": ("a.obj", "v 0 0 0\nv 1 0 0\nl 1 2\n"),
    "obj face of two": ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2\n"),
    "obj two coordinates": ("a.obj", "v 0 0\nv 1 0\nv 0 1\nf 1 2 3\n"),
    "obj word for a coordinate": ("a.obj", GOOD_OBJ.replace("v 1 0 0", "v 1 0 x")),
    "obj word for an index": ("a.obj", GOOD_OBJ.replace("f 1 2 3", "f 1 2 x")),
    "obj index beyond": ("a.obj", GOOD_OBJ.replace("f 1 2 3", "f 1 2 9")),
    "obj counted from zero": ("a.obj", GOOD_OBJ.replace("f 1 2 3", "f 0 1 2")),
    "obj index zero with texture": ("a.obj", GOOD_OBJ.replace("f 1 2 3", "f 1/1 0/2 3/3")),
    "obj relative indices between vertices": ("a.obj", GOOD_OBJ.replace("f 1 2 3", "f -3 -2 -1") * 2),
    "obj without vertices": ("a.obj", "f 1 2 3\n"),
    "obj NaN": ("a.obj", GOOD_OBJ.replace("0", "nan")),
    "ply index beyond": ("a.ply", ply(TRIANGLE, ["3 0 1 7"])),
    "ply negative index": ("a.ply", ply(TRIANGLE, ["3 0 1 -1"])),
    "ply NaN": ("a.ply", ply(["nan nan nan"] * 3, ["3 0 1 2"])),
    "ply infinite": ("a.ply", ply(["inf 0 0", "0 inf 0", "0 0 inf"], ["3 0 1 2"])),
    "ply overflowing": ("a.ply", ply(["1e300 0 0", "-1e300 0 0", "0 1e300 0"], ["3 0 1 2"])),
    "ply one point": ("a.ply", ply(["1 1 1"] * 3, ["3 0 1 2", "3 2 1 0"])),
    "ply needle": ("a.ply", ply(["0 0 0", "1 1 1", "2 2 2"], ["3 0 1 2"])),
    "ply repeated index": ("a.ply", ply(TRIANGLE, ["3 0 1 1"])),
    "ply cut header": ("a.ply", "ply\nformat ascii 1.0\nelement vertex 3\n"),
    "ply without format": ("a.ply", GOOD_PLY.replace("format ascii 1.0\n", "")),
    "ply unknown type": ("a.ply", GOOD_PLY.replace("property double x", "property quux x")),
    "ply without z": ("a.ply", GOOD_PLY.replace("property double z\n", "")),
    "ply word": ("a.ply", ply(["0 0 x", *TRIANGLE[1:]], ["3 0 1 2"])),
    "ply more vertices declared": ("a.ply", ply(TRIANGLE, ["3 0 1 2"], counts=(30, 1))),
    "ply more faces declared": ("a.ply", ply(TRIANGLE, ["3 0 1 2"], counts=(3, 9))),
    "ply negative count": ("a.ply", ply(TRIANGLE, ["3 0 1 2"], counts=(-3, 1))),
    "ply count is a word": ("a.ply", GOOD_PLY.replace("element vertex 3", "element vertex three")),
    "ply cut inside the last face": ("a.ply", GOOD_PLY[:-4]),
    "binary ply cut in faces": ("a.ply", binary_ply(GRID, GRID_FACES)[:-20]),
    "binary ply cut in vertices": ("a.ply", binary_ply(GRID, GRID_FACES)[:400]),
    "binary ply header only": ("a.ply", binary_ply(GRID, GRID_FACES).split(b"end_header\n")[0] + b"end_header\n"),
    "binary ply enormous count": ("a.ply", binary_ply(GRID, GRID_FACES).replace(b"vertex 16", b"vertex 999999999999")),
    "binary ply index beyond": ("a.ply", corrupted_index(99999)),
    "binary ply negative index": ("a.ply", corrupted_index(-5)),
    "off cut": ("a.off", GOOD_OFF.rsplit("\n", 2)[0] + "\n"),
    "off index beyond": ("a.off", GOOD_OFF.replace("3 0 1 2", "3 0 1 3")),
    "off counts missing": ("a.off", "OFF\n"),
    "stl cut": ("a.stl", GOOD_STL[:70]),
    "stl no facets": ("a.stl", "solid a\nendsolid a\n"),
    "binary stl cut": ("a.stl", binary_stl(5)[:-30]),
    "binary stl wrong count": ("a.stl", binary_stl(5, declared=500)),
    "glb head only": ("a.glb", GLB_HEAD),
    "glb wrong length": ("a.glb", GLB_HEAD + struct.pack("<II", 999999, 0x4E4F534A) + b"{}"),
    "gltf empty": ("a.gltf", "{}"),
    "gltf null": ("a.gltf", "null"),
    "gltf buffer missing": (
        "a.gltf",
        '{"asset":{"version":"2.0"},"meshes":[{"primitives":[{"attributes":{"POSITION":0}}]}],'
        '"accessors":[{"bufferView":0,"componentType":5126,"count":3,"type":"VEC3"}],'
        '"bufferViews":[{"buffer":0,"byteLength":36}],"buffers":[{"uri":"absent.bin","byteLength":36}]}',
    ),
}


@pytest.mark.parametrize(("name", "content"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_meshes_give_one_complete_error(tmp_path: Path, name: str, content: str | bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = [(item.name, item.stat().st_mtime_ns) for item in tmp_path.iterdir()]
    with pytest.raises(DataError) as caught:
        load_mesh(path)
    error = caught.value
    assert error.file == str(path)
    assert all((error.place, error.problem, error.remedy))
    assert "\n" not in str(error)
    assert [(item.name, item.stat().st_mtime_ns) for item in tmp_path.iterdir()] == before


def test_there_are_as_many_malformed_cases_as_promised() -> None:
    assert len(MALFORMED) >= 30


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("ply point cloud", "3 points and no faces: a point cloud"),
        ("obj point cloud", "3 points and no faces: a point cloud"),
        ("zero bytes", "is empty (0 bytes)"),
        ("unknown suffix", "'.xyzzy' is not a known mesh format"),
        ("ply needle", "none of the 1 faces"),
        ("ply more faces declared", "declares 12 lines of vertices and faces, 4 follow"),
        ("obj counted from zero", "OBJ counts from 1"),
        ("obj relative indices between vertices", "negative indices stand between vertices"),
        ("ply index beyond", "name vertices that do not exist (there are 3)"),
    ],
)
def test_messages_say_what_is_wrong(tmp_path: Path, case: str, message: str) -> None:
    name, content = MALFORMED[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load_mesh(tmp_path / name)
    assert message in str(caught.value)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "folder.ply").mkdir()
    for name in ("folder.ply", "absent.ply"):
        with pytest.raises(DataError, match="is not a file"):
            load_mesh(tmp_path / name)


@given(st.sampled_from(["ply", "obj", "off", "stl", "bin"]), st.data())
@settings(max_examples=120, deadline=None)
def test_any_cut_or_changed_byte_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    texts = {"ply": GOOD_PLY, "obj": GOOD_OBJ, "off": GOOD_OFF, "stl": GOOD_STL}
    raw = bytearray(binary_ply(GRID, GRID_FACES) if kind == "bin" else texts[kind].encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    path = tmp_path_factory.mktemp("mesh") / f"a.{'ply' if kind == 'bin' else kind}"
    path.write_bytes(bytes(raw))
    try:
        mesh = load_mesh(path)
    except DataError:
        return
    assert np.isfinite(mesh.vertices).all()
    assert 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.vertices)


def test_mesh_files_and_hash(tmp_path: Path) -> None:
    for name in ("b.PLY", "a.obj", "a.mtl", ".tmp-1-c.ply", "notes.txt"):
        (tmp_path / name).write_text("abc")
    (tmp_path / "folder.ply").mkdir()
    assert [path.name for path in mesh_files(tmp_path)] == ["a.obj", "b.PLY"]
    assert mesh_sha256(tmp_path / "a.obj") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_castle(shared_data: Path) -> None:
    mesh = load_mesh(shared_data / "castle_mvsnet" / "castle.ply")
    assert len(mesh.vertices) == 87685
    assert len(mesh.faces) + mesh.dropped_faces == 174899
    assert mesh.dropped_faces < 10
