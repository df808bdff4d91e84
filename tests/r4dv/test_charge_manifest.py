"""manifest.json: what is written comes back, whatever else it holds is one error that names the place (A20)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from charge_folders import make_charge, ring_views
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core_ns.errors import DataError
from r4dv_ns.charge_fields import Fields, plain_name
from r4dv_ns.charge_hashes import HASHES, file_sha256, read_hashes
from r4dv_ns.charge_manifest import EvalPhoto, Manifest, parse_manifest, read_manifest, write_manifest
from r4dv_ns.charge_parts import FILE, spread_times

SHA = "0" * 64


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Manifest, dict[str, Any]]:
    """A manifest with everything in it, and its JSON."""
    folder = tmp_path_factory.mktemp("manifest")
    manifest, _ = make_charge(folder, frames=4, n=6, u16=True, static=2, moving=(1, 2))
    photo = EvalPhoto(4, 2, "eval/image/cam_4/000002.png", "eval/mask/cam_4/000002.png", None, (1, 2, 30, 40))
    manifest = replace(
        manifest, eval_frames=[0, 2], eval_photos=(photo,), notes={"occlusion": "ignored"}, settings={"a": [1, None]},
        time_mode="blend",
    )  # fmt: skip
    manifest = write_manifest(folder, manifest, dict.fromkeys(manifest.paths(), SHA))
    return manifest, json.loads((folder / FILE).read_text())


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return equal(list(vars(one).items()), list(vars(other).items())) if hasattr(one, "__dict__") else one == other


def test_round_trip(written, tmp_path):
    manifest, content = written
    write_manifest(tmp_path, manifest)
    assert equal(read_manifest(tmp_path), manifest)
    first = (tmp_path / FILE).read_bytes()
    write_manifest(tmp_path, read_manifest(tmp_path))
    assert (tmp_path / FILE).read_bytes() == first
    assert json.loads(first) == content


def test_cameras(written):
    manifest, _ = written
    assert manifest.train_views == [0, 1, 2, 3]
    assert manifest.eval_views == [4]
    for frame in range(4):
        K, w2c = manifest.camera(1, frame)
        assert K.shape == (3, 3)
        np.testing.assert_array_equal(w2c, manifest.views[1].w2c[frame])
        np.testing.assert_allclose(np.linalg.inv(w2c)[:3, 3], manifest.centres(frame, [0, 1])[1], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(manifest.centres(0, range(5)), axis=1), 4)


@pytest.mark.parametrize(("time", "frame"), [(None, 0), (0.0, 0), (0.2, 1), (0.49, 1), (0.51, 2), (1.0, 3), (7.0, 3)])
def test_frame_at(written, time, frame):
    assert written[0].frame_at(time) == frame


def test_select(written):
    manifest, _ = written
    assert manifest.select(range(4)) is manifest
    part = manifest.select([1, 2])
    assert part.frames == ["000001", "000002"]
    assert part.times == [0, 1]
    assert part.eval_frames == [1]
    assert [photo.frame for photo in part.eval_photos] == [1]
    np.testing.assert_array_equal(part.box(1), manifest.box(2))
    np.testing.assert_array_equal(part.camera(2, 0)[1], manifest.camera(2, 1)[1])
    np.testing.assert_array_equal(part.camera(0, 0)[1], manifest.camera(0, 3)[1])
    wanted = {path for frame in (1, 2) for path in manifest.files(frame).values()}
    wanted |= {f"static/{key}.npy" for key in ("xyz", "radius", "alpha", "sh")}
    assert set(part.paths()) == wanted | {path for path in manifest.paths() if path.startswith("eval/")}
    single = manifest.select([3])
    assert single.times == [0]
    assert single.eval_photos == ()
    assert not any(path.startswith("eval/") for path in single.paths())
    parse_manifest(Fields(json.loads(json.dumps({**vars_json(single)})), "x"))  # type: ignore[arg-type]


def vars_json(manifest: Manifest) -> dict[str, Any]:
    from r4dv_ns.charge_manifest import _plain

    return _plain(manifest)


@given(st.lists(st.floats(0, 1, width=16), min_size=1, max_size=20, unique=True).map(sorted))
def test_times_of_a_choice_run_from_0_to_1(times):
    found = spread_times(times)
    assert found[0] == 0
    assert len(times) == 1 or found[-1] == 1
    assert (np.diff(found) > 0).all()


WRONG = {
    "version": [0, 2, "1", None],
    "frames": [[], ["a", "a", "b", "c"], ["../x", "a", "b", "c"], ["a/b", "c", "d", "e"], [1, 2, 3, 4], "abcd"],
    "times": [[0, 0.5, 0.5, 1], [0, 0.3, 0.6, 0.9], [0, 1], [0, 0.3, float("nan"), 1], ["0", "a", "b", "1"]],
    "counts": [[6, 6, 6], [6, 6, 6, 2], [6, 6, 6, 6.5], [6, 6, 6, True], [6, 6, 6, 2**40]],
    "bounds": [[[0, 0, 0], [1, 1, 0]], [[0, 0], [1, 1]], "box", [[0, 0, 0], [1, 1, 1e999]]],
    "views": [[], {}, [1]],
    "start": [[], {"position": [0, 0, 0], "middle": [0, 0, 0]}],
    "hashes": [{}, [], "", SHA[1:], SHA.replace("0", "A")],
    "transform": [np.zeros((4, 4)).tolist(), (2 * np.eye(4)).tolist(), np.eye(3).tolist()],
    "layers": [0, 1.5, None, True],
    "min_radius": [-1, "a"],
    "sh_degree": [4, -1, 2.0],
    "sh_limit": [-0.1],
    "background": [2, -1],
    "sources": [0],
    "stored_sources": [-1, 5],
    "source_metric": ["nearest", 3],
    "time_mode": ["linear"],
    "packed": [0, "yes"],
    "dtypes": [{}, {"xyz": "<f8"}, {"xyz": "|O"}],
    "boxes": [[[[0, 0, 0], [1, 1, 1]]], [[1], [2], [3], [4]]],
    "static_count": [-1, 1.0],
    "eval_frames": [[4], [-1], [0.5], 3],
    "eval_photos": [{}, [{}], [7]],
    "checkpoint": [5],
    "settings": [[]],
    "notes": [None],
}


def test_every_entry_is_checked(written):
    assert set(WRONG) == set(written[1])


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_entry_is_one_error_that_names_it(written, tmp_path, key):
    for value in [*WRONG[key], "absent"]:
        content = {**written[1], key: value}
        if value == "absent":
            del content[key]
        (tmp_path / FILE).write_text(json.dumps(content))
        with pytest.raises(DataError, match=key) as caught:
            read_manifest(tmp_path)
        assert caught.value.file == str(tmp_path / FILE)


@pytest.mark.parametrize(("key", "value", "match"), [
    ("name", "a/b", "name"), ("K", np.eye(2).tolist(), r"views\[0\]\.K"), ("K", (-np.eye(3)).tolist(), "K"),
    ("w2c", (2 * np.eye(4)).tolist(), "w2c"), ("w2c", [np.eye(4).tolist()] * 3, "w2c"), ("width", 0, "width"),
    ("train", 1, "train"), ("name", "cam_1", "different names"),
])  # fmt: skip
def test_a_wrong_camera(written, key, value, match):
    views = [{**written[1]["views"][0], key: value}, *written[1]["views"][1:]]
    with pytest.raises(DataError, match=match):
        parse_manifest(Fields({**written[1], "views": views}, "f"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("key", "value"), [
    ("view", 5), ("frame", 4), ("frame", -1), ("image", None), ("image", "frames/x.png"), ("mask", "eval/../x"),
    ("box", [0, 0, 0, 1]),
    ("box", [50, 0, 20, 1]), ("mask", 3),
])  # fmt: skip
def test_a_wrong_photo(written, key, value):
    photos = [{**written[1]["eval_photos"][0], key: value}]
    with pytest.raises(DataError):
        parse_manifest(Fields({**written[1], "eval_photos": photos}, "f"))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/etc/passwd", "frames/../../x", "frames//x", "other/x", "frames", "frames/./x",
                                  "frames\\x", "eval/a\0"])  # fmt: skip
def test_no_file_outside_of_the_folder(written, tmp_path, path):
    hashes = {**dict.fromkeys(written[0].paths(), SHA), path: SHA}
    with pytest.raises(DataError, match="no file of a charge"):
        write_manifest(tmp_path, written[0], hashes)
    photos = [{**written[1]["eval_photos"][0], "image": path}]
    with pytest.raises(DataError, match="no photo of a charge"):
        parse_manifest(Fields({**written[1], "eval_photos": photos}, "f"))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    text = json.dumps(hashes)
    (tmp_path / HASHES).write_text(text)
    with pytest.raises(DataError, match="no file of a charge"):
        read_hashes(tmp_path, replace(written[0], hashes=file_sha256(tmp_path / HASHES)))


def test_hashes_are_complete_and_of_the_chosen_frames(written, tmp_path):
    manifest, hashes = written[0], dict.fromkeys(written[0].paths(), SHA)
    assert read_hashes(tmp_path, write_manifest(tmp_path, manifest, hashes)) == hashes
    part = manifest.select([1, 2])
    assert list(read_hashes(tmp_path, part)) == [path for path in hashes if path in part.paths()]
    for wrong in ({"frames/000001/sh.npy": None}, {"frames/000001/sh.npy": "0"}, {"frames/000001/sh.npy": 5}):
        changed = {path: value for path, value in (hashes | wrong).items() if value is not None}
        with pytest.raises(DataError, match=r"hashes\.json \(frames/000001/sh\.npy\)"):
            write_manifest(tmp_path / "other", manifest, changed)
    assert not (tmp_path / "other").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=JSON)
def test_anything_in_any_place_reads_or_is_one_error(written, data, value):
    content = json.loads(json.dumps(written[1]))
    place: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    try:
        manifest = parse_manifest(Fields(content, "f"))  # type: ignore[arg-type]
    except DataError:
        return
    assert manifest.box(0).shape == (2, 3)
    assert manifest.bytes(0) > 0


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", "[" * 10**5, '{"version": 1' + "0" * 5000 + "}"])
def test_what_is_no_manifest(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataError):
        read_manifest(tmp_path)


def test_no_charge(tmp_path):
    with pytest.raises(DataError, match="not there"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        read_manifest(tmp_path / "absent")


def test_what_could_not_be_read_is_not_written(written, tmp_path):
    with pytest.raises(DataError, match="stored_sources"):
        write_manifest(tmp_path, replace(written[0], stored_sources=9))
    with pytest.raises(DataError, match="views"):
        write_manifest(tmp_path, replace(written[0], views=ring_views(1, 4) * 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "plain"), [
    ("000000", True), ("cam 1_a.b", True), ("", False), (".", False), ("..", False), ("a/b", False), ("a\\b", False),
    ("c:x", False), ("a\n", False), (3, False), (None, False),
])  # fmt: skip
def test_plain_names(name, plain):
    assert plain_name(name) is plain
