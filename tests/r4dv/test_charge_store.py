"""The charge on disk: what is written comes back, opening reads no points, damage is one error (acceptance A20)."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from charge_folders import make_charge, random_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from core_ns.errors import DataError
from r4dv_ns.charge_hashes import HASHES, file_sha256
from r4dv_ns.charge_manifest import write_manifest
from r4dv_ns.charge_parts import FILE
from r4dv_ns.charge_store import UNSEEN, ChargedStore, quantise, write_frame


def same(found, made, tolerance: float = 0.0) -> None:
    for key, array in made.arrays().items():
        if key != "xyz":
            np.testing.assert_array_equal(getattr(found, key), array, err_msg=key)
            assert getattr(found, key).dtype == array.dtype
    np.testing.assert_allclose(found.positions(), made.positions(), atol=tolerance)
    assert found.positions().dtype == np.float32


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("u16", [False, True])
@pytest.mark.parametrize(("s", "static"), [(3, 0), (3, 7), (0, 0)])
def test_what_is_written_is_read(tmp_path, pack, u16, s, static):
    manifest, made = make_charge(tmp_path, s=s, pack=pack, u16=u16, static=static)
    store = ChargedStore(tmp_path)
    assert len(store) == 3
    for index, frame in enumerate(made):
        # Quantised boxes of a frame contain its static points, which are stored as they are.
        same(store.frame(index), frame, 1e-4 if u16 else 0.0)
        assert store.bytes(index) == sum(array.nbytes for array in store.frame(index).arrays().values())
    store.verify()
    assert set(store.hashes) == set(manifest.paths())
    assert manifest.hashes == store.manifest.hashes == file_sha256(tmp_path / HASHES)
    with pytest.raises(IndexError):
        store.frame(3)


def test_frames_are_memory_maps(tmp_path):
    make_charge(tmp_path)
    for array in ChargedStore(tmp_path).frame(0).arrays().values():
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_opening_reads_no_points_and_does_not_depend_on_their_number(tmp_path):
    """Opening works without the frames' files and without their hashes. 3000 frames open in well under a second, and
    the manifest grows by 40 bytes for each."""
    manifest, _ = make_charge(tmp_path, frames=1)
    shutil.rmtree(tmp_path / "frames")
    (tmp_path / HASHES).unlink()
    ChargedStore(tmp_path)
    sizes = {}
    for frames in (300, 3000):
        stems, times = [f"{index:06d}" for index in range(frames)], np.linspace(0, 1, frames).tolist()
        write_manifest(tmp_path, replace(manifest, frames=stems, times=times, counts=[262144] * frames))
        start = perf_counter()
        assert len(ChargedStore(tmp_path)) == frames
        assert perf_counter() - start < 1
        sizes[frames] = (tmp_path / FILE).stat().st_size
    assert sizes[3000] - sizes[300] < 2700 * 50


def test_size_on_disk_is_the_formula(tmp_path):
    n, s = 4000, 5
    manifest, _ = make_charge(tmp_path, frames=2, n=n, s=s, views=8)
    formula = n * (12 + 2 + 2 + 16 * 3 * 2) + s * n * (3 + 2)
    for index in range(2):
        stored = sum(file.stat().st_size for file in (tmp_path / "frames" / manifest.frames[index]).iterdir())
        assert stored == pytest.approx(formula, rel=0.05)
        assert manifest.bytes(index) == pytest.approx(formula, rel=1e-3)


@pytest.mark.parametrize(("sample", "wanted"), [((0, 30, 5), 6), ((0, None, 1), 30), ((3, 1), 2), ((-1,), 1)])
def test_frame_sample(tmp_path, sample, wanted):
    manifest, made = make_charge(tmp_path, frames=30, n=5, moving=(1,))
    store = ChargedStore(tmp_path, frame_sample=sample)
    assert len(store) == wanted
    places = [manifest.frames.index(stem) for stem in store.manifest.frames]
    assert places == sorted(places)
    for index, place in enumerate(places):
        same(store.frame(index), made[place])
        np.testing.assert_array_equal(store.manifest.camera(1, index)[1], manifest.camera(1, place)[1])
    assert store.manifest.times[0] == 0
    assert store.manifest.times[-1] == (1 if wanted > 1 else 0)
    assert set(store.hashes) == {path for place in places for path in manifest.files(place).values()}
    store.verify()


def test_first_frame(tmp_path):
    _, made = make_charge(tmp_path)
    store = ChargedStore(tmp_path, frame_sample=(1, 3, 1), first_frame=True)
    assert store.manifest.frames == ["000001"]
    same(store.frame(0), made[1])
    with pytest.raises(DataError, match="chooses nothing"):
        ChargedStore(tmp_path, frame_sample=(9, 9, 1))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def other_shape(file: Path) -> None:
    with open(file, "wb") as handle:  # a name would get the suffix .npy
        np.save(handle, np.zeros((3, 2), np.float32))


def objects(file: Path) -> None:
    with open(file, "wb") as handle:
        np.save(handle, np.array([{}, 1], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("damage", [cut, other_shape, objects, Path.unlink])
@pytest.mark.parametrize("key", ["xyz", "sh", "src_rgb"])
def test_a_damaged_frame_is_one_error_that_names_the_file(tmp_path, damage, key):
    make_charge(tmp_path)
    damage(tmp_path / "frames" / "000001" / f"{key}.npy")
    store = ChargedStore(tmp_path)
    store.frame(0)
    with pytest.raises(DataError, match=rf"000001/{key}\.npy"):
        store.frame(1)
    with pytest.raises(DataError, match=rf"000001/{key}\.npy"):
        store.verify()


def test_verify_finds_a_changed_byte(tmp_path, capsys):
    make_charge(tmp_path)
    for key in ("alpha", "sh"):
        flip(tmp_path / "frames" / "000002" / f"{key}.npy")
    store = ChargedStore(tmp_path)
    store.frame(2)  # headers are as they were
    with pytest.raises(DataError, match=r"000002/alpha\.npy \(SHA-256\): is not the file that was written \(1 more"):
        store.verify(progress=True)
    ChargedStore(tmp_path, frame_sample=(0, 2, 1)).verify()


def test_verify_finds_hashes_of_another_charge(tmp_path):
    """What the files are compared with is itself what was written with the manifest."""
    make_charge(tmp_path / "one", seed=1)
    make_charge(tmp_path / "two", seed=2)
    shutil.copyfile(tmp_path / "two" / HASHES, tmp_path / "one" / HASHES)
    shutil.copytree(tmp_path / "two" / "frames", tmp_path / "one" / "frames", dirs_exist_ok=True)
    with pytest.raises(DataError, match=r"hashes\.json \(SHA-256\): is not the file that was written"):
        ChargedStore(tmp_path / "one").verify()
    for damage in (cut, Path.unlink):
        damage(tmp_path / "two" / HASHES)
        ChargedStore(tmp_path / "two").frame(0)
        with pytest.raises(DataError, match=r"hashes\.json"):
            ChargedStore(tmp_path / "two").verify()


@pytest.mark.parametrize("damage", [cut, flip, other_shape, Path.unlink])
def test_a_damaged_packed_frame_is_one_error(tmp_path, damage):
    make_charge(tmp_path, pack=True)
    damage(tmp_path / "frames" / "000001.npz")
    with pytest.raises(DataError, match=r"000001\.npz"):
        ChargedStore(tmp_path).frame(1)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255), pack=st.booleans(), length=st.integers(0, 10**6))
def test_any_changed_byte_reads_or_is_one_error(tmp_path_factory, place, value, pack, length):
    folder = charges(tmp_path_factory)[pack]
    store = ChargedStore(folder)
    file = folder / store.manifest.files(0)["alpha"]
    whole = file.read_bytes()
    data = bytearray(whole)
    data[place % len(data)] = value
    if not length % 3:
        data = data[: length % len(data)]
    try:
        file.write_bytes(data)
        store.frame(0)
    except DataError:
        pass
    finally:
        file.write_bytes(whole)


_CHARGES: dict[bool, Path] = {}


def charges(factory) -> dict[bool, Path]:
    """One plain and one packed charge for all examples."""
    for pack in (False, True):
        if pack not in _CHARGES:
            _CHARGES[pack] = factory.mktemp("charge")
            make_charge(_CHARGES[pack], frames=1, n=8, pack=pack)
    return _CHARGES


def test_an_older_frame_is_replaced_and_no_draft_is_left(tmp_path):
    rng = np.random.default_rng(0)
    branch = np.zeros(50, np.uint8)
    write_frame(tmp_path, "000000", random_frame(rng, branch=branch))
    hashes = write_frame(tmp_path, "000000", random_frame(rng))
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == ["000000"]
    assert sorted(hashes) == sorted(f"frames/000000/{file.name}" for file in (tmp_path / "frames/000000").iterdir())
    assert "frames/000000/branch.npy" not in hashes


@pytest.mark.parametrize("pack", [False, True])
def test_equal_frames_are_equal_files(tmp_path, pack):
    frame = random_frame(np.random.default_rng(0))
    strided = replace(frame, src_rgb=np.asfortranarray(frame.src_rgb), xyz=frame.xyz.astype(">f4"))
    assert write_frame(tmp_path / "a", "x", frame, pack=pack) == write_frame(tmp_path / "b", "x", strided, pack=pack)


@pytest.mark.parametrize("changes", [
    {"radius": np.zeros(49, np.float16)}, {"sh": np.zeros((50, 16), np.float16)}, {"alpha": np.zeros(50, bool)},
    {"src_id": np.zeros(2, np.uint16)}, {"branch": np.zeros((50, 1), np.uint8)},
])  # fmt: skip
def test_arrays_that_do_not_belong_together_are_refused(tmp_path, changes):
    with pytest.raises(ValueError):
        write_frame(tmp_path, "000000", random_frame(np.random.default_rng(0), **changes))
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), scale=st.floats(1e-3, 1e3), flat=st.booleans())
def test_quantised_positions_are_off_by_half_a_step(seed, n, scale, flat):
    rng = np.random.default_rng(seed)
    xyz = (rng.normal(size=(n, 3)) * scale).astype(np.float32)
    if flat:
        xyz[:, 1] = xyz[0, 1]
    steps, box = quantise(xyz)
    frame = random_frame(rng, n, xyz=steps, box=box)
    error = np.abs(frame.positions().astype(np.float64) - xyz)
    rounding = 2e-7 * np.abs(xyz).max()
    assert (error <= (box[1] - box[0]) / 131070 + rounding).all()
    with pytest.raises(ValueError, match="box"):
        replace(frame, box=None).positions()


def test_unseen_survives_half_precision():
    assert np.float16(UNSEEN) == UNSEEN
