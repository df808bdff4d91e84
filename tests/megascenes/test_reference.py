"""References: from photos, from views, kept in run folders (spec megascenes 8.1, 8.3)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_views import (
    CANVAS,
    moved_pose,
    slanted_depth,
    small_photo,
    small_reference,
    write_photo,
)

from core_ns.errors import DataError
from core_ns.images import write_image
from megascenes_ns.reference import (
    has_reference,
    load_reference,
    reference_of_photo,
    reference_of_view,
    save_reference,
)
from megascenes_ns.reference_shelf import ReferenceShelf
from megascenes_ns.warp import render


def test_a_photo_with_depth_beside_it(tmp_path: Path):
    found = reference_of_photo(write_photo(tmp_path), canvas=CANVAS)
    assert found.prepared.image.shape == (48, 64, 3)
    assert found.depth.values.shape == (48, 64)
    assert np.quantile(found.depth.values, 0.2) == pytest.approx(1, abs=0.01), "in units of its quantile"
    assert found.depth.q20 == pytest.approx(np.quantile(slanted_depth(), 0.2), rel=0.01)
    assert found.prepared.K[0, 0] == pytest.approx(32 / np.tan(np.radians(27.5)))


def test_without_depth_one_line_that_says_what_to_do(tmp_path: Path):
    write_image(tmp_path / "bare.png", small_photo())
    with pytest.raises(DataError, match="plane"):
        reference_of_photo(tmp_path / "bare.png")
    wall = reference_of_photo(tmp_path / "bare.png", "plane", canvas=CANVAS)
    assert (wall.depth.values == 1).all()


def test_depth_of_another_photo_is_refused(tmp_path: Path):
    file = write_photo(tmp_path)
    np.save(file.with_suffix(".npy"), slanted_depth(64, 96))
    with pytest.raises(DataError, match="another aspect"):
        reference_of_photo(file)


def test_a_run_keeps_its_reference(tmp_path: Path):
    first = reference_of_photo(write_photo(tmp_path), canvas=CANVAS)
    assert not has_reference(tmp_path / "run")
    save_reference(tmp_path / "run", first)
    again = load_reference(tmp_path / "run")
    assert again.key == first.key
    np.testing.assert_array_equal(again.prepared.image, first.prepared.image)
    np.testing.assert_array_equal(again.depth.values, first.depth.values)
    np.testing.assert_array_equal(again.prepared.K, first.prepared.K)
    assert again.depth.q20 == first.depth.q20
    content = json.loads((tmp_path / "run" / "reference.json").read_text())
    assert content["q20"] == first.depth.q20
    with pytest.raises(DataError):
        load_reference(tmp_path / "other")


@pytest.mark.parametrize("damage", ["depth", "photo", "json", "key", "missing", "format"])
def test_a_damaged_reference_is_one_error(tmp_path: Path, damage: str):
    save_reference(tmp_path, small_reference())
    assert has_reference(tmp_path)
    camera = tmp_path / "reference.json"
    content = json.loads(camera.read_text())
    if damage == "depth":
        np.save(tmp_path / "depth.npy", np.zeros((3, 3), np.float32))
    elif damage == "photo":
        write_image(tmp_path / "photo.png", small_photo(64, 48, 1.0))
    elif damage == "json":
        camera.write_text("{")
    elif damage == "missing":
        (tmp_path / "depth.npy").unlink()
    else:
        content[damage] = "other"
        camera.write_text(json.dumps(content))
    with pytest.raises(DataError):
        load_reference(tmp_path)


def test_rel_divides_by_the_unit_in_the_references_frame():
    turned = moved_pose(1.0, 2.0, 3.0)
    turned[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    reference = replace(small_reference(), pose=turned, unit=2.0)
    camera = turned @ moved_pose(0.4, 0.0, 0.6)
    np.testing.assert_allclose(reference.rel(camera), moved_pose(0.2, 0.0, 0.3), atol=1e-12)
    np.testing.assert_allclose(small_reference().rel(camera), camera, atol=1e-12)
    assert reference.key == small_reference().key


def test_a_view_becomes_the_reference_at_its_place():
    """Warped twice by half a way the photo lies where it lies warped once by all of it."""
    first = small_reference()
    half, whole = moved_pose(0.1, 0.0, 0.05), moved_pose(0.2, 0.0, 0.1)
    K, (width, height) = first.prepared.K, first.prepared.size
    warp = render(first.mesh, K, first.rel(half), height, width, spp=1)
    picture = (warp.rgb * 255 + 0.5).astype(np.uint8)
    second = reference_of_view(picture, K, warp.depth * first.unit, half, CANVAS, "view")
    direct = render(first.mesh, K, first.rel(whole), height, width, spp=1)
    twice = render(second.mesh, K, second.rel(whole), height, width, spp=1)
    both = (direct.coverage > 0) & (twice.coverage > 0)
    assert both.mean() > 0.7
    assert np.median(np.abs(twice.depth * second.unit - direct.depth * first.unit)[both]) < 0.01
    assert np.abs(twice.rgb - direct.rgb)[both].mean() < 0.06
    with pytest.raises(DataError, match="shows nothing"):
        reference_of_view(picture, K, np.zeros_like(warp.depth), half, CANVAS, "view")


def test_the_shelf_opens_once_and_forgets_the_oldest():
    opened: list[int] = []

    def open_pair(pair: int):
        opened.append(pair)
        return small_reference(pair)

    shelf = ReferenceShelf(open_pair, [4, 4, 7], range(10), capacity=2)
    assert shelf.first == 4
    assert shelf.at(4) is shelf.at(4)
    for pair in (5, 6, 4):
        shelf.at(pair)
    assert opened == [4, 5, 6, 4]
    assert [shelf.of_camera(index) for index in (0, 2, 3, -1)] == [4, 7, None, None]
    with pytest.raises(DataError, match="0 to 9"):
        shelf.at(10)
