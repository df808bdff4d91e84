"""Texture baking: an analytic colour must come back out of the GLB, read by the glTF specification and by trimesh."""

from __future__ import annotations

import io
import json
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core_ns.errors import DataError
from xscale_ns import unwrap as unwrap_module
from xscale_ns.bake import MAX_FACES, bake, barycentric, dilate, rasterize, write_mesh_nerfstudio
from xscale_ns.unwrap import split_faces, unwrap


def wave(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(3 * points + np.roll(points, 1, axis=1))


def read_glb(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
    """Positions, faces, texture coordinates, image and material by the glTF 2.0 text, without trimesh."""
    data = path.read_bytes()
    assert struct.unpack_from("<III", data) == (0x46546C67, 2, len(data))
    length, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    document = json.loads(data[20 : 20 + length])
    binary = data[20 + length + 8 :]

    def chunk(view: int) -> bytes:
        entry = document["bufferViews"][view]
        return binary[entry.get("byteOffset", 0) : entry.get("byteOffset", 0) + entry["byteLength"]]

    def accessor(number: int) -> np.ndarray:
        entry = document["accessors"][number]
        kind = {5123: "<u2", 5125: "<u4", 5126: "<f4"}[entry["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[entry["type"]]
        raw = np.frombuffer(chunk(entry["bufferView"])[entry.get("byteOffset", 0) :], dtype=kind)
        return raw[: entry["count"] * width].reshape(-1, width)

    assert all(np.allclose(node.get("matrix", np.eye(4).ravel()), np.eye(4).ravel()) for node in document["nodes"])
    (primitive,) = document["meshes"][0]["primitives"]
    positions, uv = (accessor(primitive["attributes"][key]).astype(float) for key in ("POSITION", "TEXCOORD_0"))
    picture = document["images"][document["textures"][0]["source"]]
    image = np.asarray(Image.open(io.BytesIO(chunk(picture["bufferView"]))).convert("RGB"))
    faces = accessor(primitive["indices"]).reshape(-1, 3).astype(np.int64)
    return positions, faces, uv, image, document["materials"][primitive["material"]]


def bilinear(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Texture filter of glTF: (0, 0) is the outer corner of the upper left texel."""
    height, width = image.shape[:2]
    x, y = uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - column)[:, None], (y - row)[:, None]

    def at(dy: int, dx: int) -> np.ndarray:
        return image[np.clip(row + dy, 0, height - 1), np.clip(column + dx, 0, width - 1)] / 255.0

    return (1 - fy) * ((1 - fx) * at(0, 0) + fx * at(0, 1)) + fy * ((1 - fx) * at(1, 0) + fx * at(1, 1))


def sample(path: Path, count: int, edges_only: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random surface points by area, the colour the GLB shows there, and their faces."""
    positions, faces, uv, image, _ = read_glb(path)
    rng = np.random.default_rng(0)
    corners = positions[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    face = rng.choice(len(faces), count, p=area / area.sum())
    weights = rng.dirichlet(np.ones(3), count)
    if edges_only:
        weights[np.arange(count), rng.integers(0, 3, count)] = 0
        weights /= weights.sum(axis=1, keepdims=True)
    points = np.einsum("nk,nkc->nc", weights, corners[face])
    return points, bilinear(image, np.einsum("nk,nkc->nc", weights, uv[faces[face]])), face


@pytest.mark.parametrize(
    "mesh", [trimesh.creation.icosphere(3), trimesh.creation.box((1.0, 0.6, 1.4))], ids=["sphere", "box"]
)
def test_baked_colours_are_the_analytic_ones_inside_and_on_every_edge(mesh, tmp_path) -> None:
    # 8-bit rounding alone gives 0.001 on average; half a texel of misplacement gives more than 0.003.
    path = tmp_path / "mesh.glb"
    report = bake(np.asarray(mesh.vertices), np.asarray(mesh.faces), wave, 512, path, padding=4)
    assert report.covered_share > 0.3
    assert report.dilated > 0
    for edges_only in (False, True):
        points, colours, face = sample(path, 20_000, edges_only)
        error = np.abs(colours - wave(points, points))
        assert error.mean() < 0.002
        assert error.max() < 0.025
        assert len(np.unique(face)) == len(mesh.faces)
    positions, faces, *_, material = read_glb(path)
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0.0
    assert material["pbrMetallicRoughness"].get("roughnessFactor", 1.0) == 1.0
    np.testing.assert_allclose(positions[faces], mesh.vertices[mesh.faces], atol=1e-6)


def test_trimesh_reads_the_same_colours_back(tmp_path) -> None:
    mesh, path = trimesh.creation.icosphere(3), tmp_path / "sphere.glb"
    bake(np.asarray(mesh.vertices), np.asarray(mesh.faces), wave, 256, path)
    loaded = trimesh.load(path, force="mesh", process=False)
    points = np.asarray(loaded.triangles_center)
    uv = np.asarray(loaded.visual.uv)[loaded.faces].mean(axis=1)
    colours = loaded.visual.material.baseColorTexture
    # In trimesh's memory v points up.
    error = np.abs(
        bilinear(np.asarray(colours.convert("RGB")), np.stack([uv[:, 0], 1 - uv[:, 1]], 1)) - wave(points, points)
    )
    assert error.mean() < 0.01


def test_normals_handed_to_the_colour_function_are_unit_outward_and_smooth(tmp_path) -> None:
    mesh, path = trimesh.creation.icosphere(4), tmp_path / "sphere.glb"
    worst = []

    def colour(points: np.ndarray, normals: np.ndarray) -> torch.Tensor:
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-12)
        worst.append(np.abs(normals - points / np.linalg.norm(points, axis=1, keepdims=True)).max())
        return torch.from_numpy(0.5 + 0.5 * normals).float()

    bake(np.asarray(mesh.vertices), np.asarray(mesh.faces), colour, 128, path)
    assert max(worst) < 0.01
    points, colours, _ = sample(path, 2000)
    assert np.abs(colours - (0.5 + 0.5 * points)).mean() < 0.02


def test_a_sheet_whose_vertex_normals_cancel_gets_face_normals(tmp_path) -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])

    def colour(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        np.testing.assert_allclose(np.abs(normals), np.tile([0.0, 0, 1], (len(points), 1)))
        return 0.5 + 0.4 * normals[:, [2, 2, 2]]

    bake(vertices, np.array([[0, 1, 2], [0, 2, 1]]), colour, 64, tmp_path / "sheet.glb")
    _, colours, face = sample(tmp_path / "sheet.glb", 500)
    np.testing.assert_allclose(colours, np.where(face == 0, 0.9, 0.1)[:, None].repeat(3, 1), atol=0.005)


def twin_cover(corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Texel centres strictly inside, and those inside or on the border, one triangle, one texel at a time."""
    strict, closed = np.zeros((size, size), bool), np.zeros((size, size), bool)
    (ax, ay), (bx, by), (cx, cy) = corners
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    for row in range(size):
        for column in range(size):
            x, y = column + 0.5, row + 0.5
            sides = [
                ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) * np.sign(area),
                ((cx - bx) * (y - by) - (cy - by) * (x - bx)) * np.sign(area),
                ((ax - cx) * (y - cy) - (ay - cy) * (x - cx)) * np.sign(area),
            ]
            strict[row, column] = area != 0 and min(sides) > 1e-9
            closed[row, column] = area != 0 and min(sides) > -1e-9
    return strict, closed


@settings(deadline=None, max_examples=120)
@given(st.lists(st.integers(-8, 72), min_size=6, max_size=6))
def test_a_triangle_owns_exactly_the_centres_inside_it(quarters: list[int]) -> None:
    size, corners = 16, np.array(quarters, dtype=float).reshape(3, 2) / 4
    owned = rasterize(corners[None], size) == 0
    strict, closed = twin_cover(corners, size)
    centre = np.clip(np.floor(corners.mean(axis=0)).astype(int), 0, size - 1)
    closed[centre[1], centre[0]] = True
    assert owned[strict].all()
    assert not owned[~closed].any()
    assert owned[centre[1], centre[0]]


def test_faces_that_tile_the_texture_leave_no_texel_free_and_no_face_without_one() -> None:
    rng = np.random.default_rng(1)
    line = np.linspace(0, 64, 41)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1)
    grid[1:-1, 1:-1] += rng.uniform(-0.5, 0.5, grid[1:-1, 1:-1].shape)
    index = np.arange(41 * 41).reshape(41, 41)
    a, b, c, d = (x.ravel() for x in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    corners = grid.reshape(-1, 2)[faces]
    owner = rasterize(corners, 64)
    assert (owner >= 0).all()
    centre = np.floor(corners.mean(axis=1)).astype(int)
    assert (owner[centre[:, 1], centre[:, 0]] >= 0).all()


def test_a_face_thinner_than_a_texel_gets_the_one_under_its_centroid() -> None:
    owner = rasterize(np.array([[[3.1, 3.1], [3.2, 3.1], [3.1, 3.2]], [[9.0, 9.0], [9.0, 9.0], [9.0, 9.0]]]), 16)
    assert owner[3, 3] == 0
    assert owner[9, 9] == 1
    assert (owner >= 0).sum() == 2


def test_barycentric_weights_reproduce_points_and_stay_in_the_triangle() -> None:
    rng = np.random.default_rng(0)
    corners, weights = rng.uniform(0, 50, (200, 3, 2)), rng.dirichlet(np.ones(3), 200)
    points = np.einsum("nk,nkc->nc", weights, corners)
    np.testing.assert_allclose(barycentric(points, corners), weights, atol=1e-9)
    outside = barycentric(points + 1000, corners)
    assert (outside >= 0).all()
    np.testing.assert_allclose(outside.sum(1), 1)
    np.testing.assert_allclose(barycentric(np.zeros((1, 2)), np.ones((1, 3, 2))), 1 / 3)


def test_dilation_equals_the_loop_over_texels_and_the_rest_is_the_mean() -> None:
    rng = np.random.default_rng(3)
    covered = rng.random((20, 20)) < 0.04
    covered[0, 0] = covered[19, 7] = True
    image = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    image[~covered] = 0
    mean = image[covered].mean(axis=0).round()
    expected, known = image.astype(float), covered.copy()
    for _ in range(2):
        before, old = expected.copy(), known.copy()
        for y in range(20):
            for x in range(20):
                near = [
                    (v, u)
                    for v in range(max(y - 1, 0), min(y + 2, 20))
                    for u in range(max(x - 1, 0), min(x + 2, 20))
                    if old[v, u]
                ]
                if not old[y, x] and near:
                    expected[y, x] = np.mean([before[v, u] for v, u in near], axis=0).round()
                    known[y, x] = True
    expected[~known] = mean
    reach = covered.copy()
    added = dilate(image, reach, 2)
    np.testing.assert_array_equal(image, expected.astype(np.uint8))
    np.testing.assert_array_equal(reach, known)
    assert added == known.sum() - covered.sum() > 50


def test_the_gap_around_every_chart_is_coloured_up_to_the_padding(tmp_path) -> None:
    """Red everywhere: no texel within one step of a chart may be anything else, and no black is left at all."""
    mesh = trimesh.creation.box()
    path = tmp_path / "box.glb"
    bake(
        np.asarray(mesh.vertices), np.asarray(mesh.faces), lambda p, n: np.tile([1.0, 0.2, 0.0], (len(p), 1)), 128, path
    )
    image = read_glb(path)[3]
    assert (image == [255, 51, 0]).all()


@pytest.mark.slow
def test_a_mesh_that_crashes_xatlas_in_one_piece_is_baked(tmp_path) -> None:
    mesh = trimesh.creation.icosphere(6)
    bake(np.asarray(mesh.vertices), np.asarray(mesh.faces), wave, 1024, tmp_path / "sphere.glb", padding=2)
    points, colours, _ = sample(tmp_path / "sphere.glb", 5000)
    assert np.abs(colours - wave(points, points)).mean() < 0.004


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_charts_do_not_depend_on_the_unit_of_the_mesh(scale: float) -> None:
    mesh = trimesh.creation.icosphere(2)
    atlas = unwrap(np.asarray(mesh.vertices) * scale + 3 * scale, np.asarray(mesh.faces), 256, 4, "mesh")
    np.testing.assert_array_equal(atlas.source[atlas.faces], mesh.faces)
    assert ((atlas.texels > 0) & (atlas.texels < 256)).all()
    area = np.abs(
        np.cross(
            *(
                np.pad(atlas.texels[atlas.faces[:, i]] - atlas.texels[atlas.faces[:, 0]], ((0, 0), (0, 1)))
                for i in (1, 2)
            )
        )[:, 2]
    )
    true = np.linalg.norm(
        np.cross(mesh.triangles[:, 1] - mesh.triangles[:, 0], mesh.triangles[:, 2] - mesh.triangles[:, 0]), axis=1
    )
    # Charts keep areas within a small factor: no face is squeezed to nothing.
    assert np.ptp(np.log(area / true)) < 1.5


def test_faces_without_area_take_the_place_of_a_corner() -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [5, 5, 5]])
    faces = np.array([[0, 1, 2], [0, 1, 3], [1, 1, 2], [4, 4, 4]])
    atlas = unwrap(vertices, faces, 64, 2, "mesh")
    np.testing.assert_array_equal(atlas.source[atlas.faces], faces)
    place = atlas.texels[atlas.faces]
    assert ((place >= 0) & (place <= 64)).all()
    for face, corner in ((1, 0), (2, 1)):
        np.testing.assert_array_equal(place[face], np.tile(place[0, corner], (3, 1)))


def test_blocks_partition_the_faces_and_are_compact() -> None:
    points = np.random.default_rng(0).random((5000, 3)) * [10, 1, 1]
    blocks = split_faces(points, 100)
    np.testing.assert_array_equal(np.sort(np.concatenate(blocks)), np.arange(5000))
    assert max(map(len, blocks)) <= 100
    assert np.mean([np.ptp(points[b], axis=0).prod() for b in blocks]) < 2 * 10 / len(blocks)
    assert split_faces(np.zeros((10, 3)), 3)


def tetrahedron() -> tuple[np.ndarray, np.ndarray]:
    return np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]), np.array(
        [[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]
    )


@pytest.mark.parametrize(
    ("defect", "text"),
    [
        ("many", "decimation"),
        ("empty", "no faces"),
        ("nan", "not finite"),
        ("range", "out of range"),
        ("negative", "out of range"),
        ("shape", r"not \[V, 3\]"),
        ("size", "texture size"),
        ("padding", "padding"),
    ],
)
def test_unusable_input_is_refused_before_anything_is_written(tmp_path, defect, text) -> None:
    vertices, faces = tetrahedron()
    size, padding = 64, 2
    if defect == "many":
        faces = np.zeros((MAX_FACES + 1, 3), dtype=np.int64)
    elif defect == "empty":
        faces = faces[:0]
    elif defect == "nan":
        vertices[0, 0] = np.nan
    elif defect == "range":
        faces[0, 0] = 4
    elif defect == "negative":
        faces[0, 0] = -1
    elif defect == "shape":
        vertices = vertices[:, :2]
    elif defect == "size":
        size = 8
    elif defect == "padding":
        padding = 0
    with pytest.raises(DataError, match=text):
        bake(vertices, faces, wave, size, tmp_path / "out.glb", padding)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("colour", [lambda p, n: p[:, :2], lambda p, n: p * np.nan])
def test_a_colour_function_that_returns_nonsense_leaves_the_old_file(tmp_path, colour) -> None:
    path = tmp_path / "out.glb"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="colour_of"):
        bake(*tetrahedron(), colour, 64, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_or_a_hang_of_xatlas_is_an_error_of_the_data_not_of_the_process(monkeypatch, tmp_path) -> None:
    def crash(command, **options):
        return subprocess.CompletedProcess(command, -11, "", "")

    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, 1)

    for run, text in ((crash, "exit code -11"), (hang, "did not finish")):
        monkeypatch.setattr(unwrap_module.subprocess, "run", run)
        with pytest.raises(DataError, match=text) as caught:
            bake(*tetrahedron(), wave, 64, tmp_path / "out.glb")
        assert "decimate" in caught.value.remedy


def test_a_texture_too_small_for_its_charts_is_refused(tmp_path) -> None:
    rng = np.random.default_rng(0)
    vertices = (rng.random((3000, 1, 3)) * 100 + rng.random((3000, 3, 3))).reshape(-1, 3)
    with pytest.raises(DataError, match="larger texture size"):
        bake(vertices, np.arange(9000).reshape(-1, 3), wave, 32, tmp_path / "soup.glb", padding=1)


def test_ply_for_camera_authoring_reads_back_exactly(tmp_path) -> None:
    mesh = trimesh.creation.icosphere(2)
    vertices, faces = np.asarray(mesh.vertices) * 0.7 + 0.1, np.asarray(mesh.faces)
    path = tmp_path / "run" / "mesh_nerfstudio.ply"
    write_mesh_nerfstudio(path, vertices, faces)
    loaded = trimesh.load(path, process=False)
    np.testing.assert_array_equal(loaded.vertices, vertices.astype(np.float32))
    np.testing.assert_array_equal(loaded.faces, faces)
    for bad_vertices, bad_faces in (
        (vertices * np.nan, faces),
        (vertices, faces + len(vertices)),
        (vertices[:, :2], faces),
    ):
        with pytest.raises(DataError, match="triangle mesh"):
            write_mesh_nerfstudio(tmp_path / "bad.ply", bad_vertices, bad_faces)
    assert not (tmp_path / "bad.ply").exists()
