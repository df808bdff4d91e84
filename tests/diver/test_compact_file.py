"""The compact export: exact where it must be, close where it is quantised, readable by the safetensors library."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_files import blob, original_state, render_fixture, save

from core_ns.errors import DataError
from diver_ns.compact_file import ids_from_runs, read_safetensors, runs_from_ids, write_safetensors
from diver_ns.formats import VoxelModel, read_original, write_weight

RESOLUTION = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VoxelModel:
    """A pruned model off the origin, with features of very different channels."""
    path = tmp_path_factory.mktemp("model") / "weight.pth"
    found = read_original(save(original_state(RESOLUTION, 32, blob(6, 1)), path))
    found.features *= torch.logspace(-3, 1, 32)
    return dataclasses.replace(found, side=3.5, center=(0.1, -2.0, 7.25), background="black")


@pytest.mark.parametrize("width", [32, 64])
def test_fp32_is_exact(tmp_path, model, width) -> None:
    if width == 64:
        model = read_original(save(original_state(RESOLUTION, 64, None), tmp_path / "dense.pth"), parity=False)
    write_safetensors(tmp_path / "m.safetensors", model, "fp32")
    back = read_safetensors(tmp_path / "m.safetensors")
    for field in ("resolution", "side", "center", "background", "width", "parity", "implicit_state"):
        assert getattr(back, field) == getattr(model, field)
    assert torch.equal(back.ids, model.ids)
    assert torch.equal(back.features, model.features)
    assert torch.equal(back.mask, model.fine_mask())
    assert back.decoder_state.keys() == model.decoder_state.keys()
    assert all(torch.equal(back.decoder_state[name], value) for name, value in model.decoder_state.items())


def test_smaller_numbers_are_as_close_as_they_can_be(tmp_path, model) -> None:
    for dtype in ("fp16", "int8"):
        write_safetensors(tmp_path / f"{dtype}.safetensors", model, dtype)
    half, byte = (read_safetensors(tmp_path / f"{dtype}.safetensors").features for dtype in ("fp16", "int8"))
    assert torch.equal(half, model.features.half().float())
    step = model.features.abs().amax(0) / 127
    assert ((byte - model.features).abs() <= 0.5 * step * (1 + 1e-5)).all()


def test_bytes_per_vertex(tmp_path) -> None:
    """Spec diver 6.3: about 69 bytes per vertex in fp16, 37 in int8; the original's file takes 133."""
    model = read_original(save(original_state(48, 32, blob(48, 2)), tmp_path / "dense.pth"))
    write_weight(tmp_path / "weight.pth", model)
    for dtype, most in (("fp32", 131), ("fp16", 67), ("int8", 35)):
        write_safetensors(tmp_path / "m.safetensors", model, dtype)
        rest = sum(value.numel() for value in model.decoder_state.values()) * 4 + 3000
        assert ((tmp_path / "m.safetensors").stat().st_size - rest) / len(model.ids) < most


@pytest.mark.parametrize(("dtype", "least"), [("fp16", 45), ("int8", 38)])
@pytest.mark.parametrize("folder", ["fine32", "fine64"])
def test_quantised_tables_render_the_same(shared_fixtures: Path, tmp_path, folder, dtype, least) -> None:
    """Spec diver 9, check 8, on the random-weight models (trained ones are smoother)."""
    whole = read_original(shared_fixtures / "diver" / folder / "weight.pth")
    write_safetensors(tmp_path / "m.safetensors", whole, dtype)
    with np.load(shared_fixtures / "diver" / folder / "rays.npz") as archive:
        rays = {name: archive[name] for name in archive.files}
    a, b = (render_fixture(one, rays)["rgb"] for one in (whole, read_safetensors(tmp_path / "m.safetensors")))
    assert -10 * torch.log10(((a - b) ** 2).mean()) >= least


@given(st.sets(st.integers(0, 400)))
@settings(deadline=None)
def test_runs_there_and_back(numbers) -> None:
    ids = torch.tensor(sorted(numbers), dtype=torch.int64)
    starts, lengths = runs_from_ids(ids)
    assert len(starts) == sum(k - 1 not in numbers for k in numbers)
    assert torch.equal(ids_from_runs(starts, lengths, len(ids)), ids)


@pytest.mark.parametrize(
    ("starts", "lengths", "count"),
    [([0, 2], [3, 1], 4), ([5, 0], [1, 1], 2), ([0], [3], 4), ([0], [0], 0), ([-1], [2], 2), ([0, 1], [1], 1)],
)
def test_impossible_runs_are_refused(starts, lengths, count) -> None:
    with pytest.raises(ValueError, match="runs"):
        ids_from_runs(torch.tensor(starts), torch.tensor(lengths), count)


def test_the_safetensors_library_reads_it(tmp_path, model) -> None:
    library = pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    write_safetensors(tmp_path / "m.safetensors", model, "int8")
    arrays = load_file(tmp_path / "m.safetensors")
    with library.safe_open(tmp_path / "m.safetensors", "pt") as handle:
        assert json.loads(handle.metadata()["diver"])["resolution"] == RESOLUTION
    features = arrays["features"].float() * arrays["scale"]
    assert torch.equal(features, read_safetensors(tmp_path / "m.safetensors").features)


def test_writing_is_deterministic_and_refuses_what_it_cannot_hold(tmp_path, model) -> None:
    for name in ("a", "b"):
        write_safetensors(tmp_path / f"{name}.safetensors", model)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    large = dataclasses.replace(model, features=model.features * 1e5)
    with pytest.raises(DataError, match="exceeds the number format"):
        write_safetensors(tmp_path / "c.safetensors", large)
    write_safetensors(tmp_path / "d.safetensors", large, "int8")
    with pytest.raises(DataError, match="missing from the table"):
        write_safetensors(
            tmp_path / "c.safetensors", dataclasses.replace(model, ids=model.ids[1:], features=model.features[1:])
        )
    with pytest.raises(ValueError, match="fp64"):
        write_safetensors(tmp_path / "c.safetensors", model, "fp64")
    assert not (tmp_path / "c.safetensors").exists()


def test_an_empty_model_is_still_a_file(tmp_path, model) -> None:
    nothing = dataclasses.replace(model, mask=torch.zeros(4, 4, 4, dtype=torch.bool))
    for dtype in ("fp16", "int8"):
        write_safetensors(tmp_path / "m.safetensors", nothing, dtype)
        back = read_safetensors(tmp_path / "m.safetensors")
        assert back.features.shape == (0, 32)
        assert not back.mask.any()


def rewritten(path: Path, change) -> Path:
    """The file with its header changed by ``change(header, about)``; the arrays stay."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["diver"])
    change(header, about)
    if "__metadata__" in header:
        header["__metadata__"]["diver"] = json.dumps(about)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda header, about: header.pop("__metadata__"),
        lambda header, about: header["__metadata__"].clear() or header.pop("__metadata__"),
        lambda header, about: about.update(format="other"),
        lambda header, about: about.update(resolution=10**9),
        lambda header, about: about.update(resolution=RESOLUTION - 3),
        lambda header, about: about.update(resolution=RESOLUTION + 5),
        lambda header, about: about.update(side=-1),
        lambda header, about: about.update(side="wide"),
        lambda header, about: about.update(side=10**400),
        lambda header, about: about.update(center=[0, 0]),
        lambda header, about: about.update(background="green"),
        lambda header, about: about.update(width=64),
        lambda header, about: about.pop("parity"),
        lambda header, about: header["features"].update(dtype="BF16"),
        lambda header, about: header["features"].update(shape=[1, 32]),
        lambda header, about: header["features"].update(shape=[-1, -32]),
        lambda header, about: header["features"].update(data_offsets=[0, 10**12]),
        lambda header, about: header["features"].update(data_offsets=[0]),
        lambda header, about: header.update(features=3),
        lambda header, about: header.update(other=header.pop("features")),
        lambda header, about: header.update(other=header.pop("lower_corners")),
        lambda header, about: header.update({"decoder.point.9.bias": header.pop("decoder.point.0.bias")}),
        lambda header, about: header.pop("run_starts"),
        lambda header, about: header["decoder.point.2.bias"].update(header["decoder.point.0.bias"]),
    ],
)
def test_inconsistent_headers_are_refused(tmp_path, model, change) -> None:
    write_safetensors(tmp_path / "m.safetensors", model, "fp32")
    with pytest.raises(DataError) as caught:
        read_safetensors(rewritten(tmp_path / "m.safetensors", change))
    assert caught.value.remedy


def test_voxels_without_their_vertices_are_refused(tmp_path, model) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, model, "fp32")
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    begin, end = json.loads(data[8 : 8 + length])["lower_corners"]["data_offsets"]
    data[8 + length + begin : 8 + length + end] = b"\xff" * (end - begin)
    path.write_bytes(data)
    with pytest.raises(DataError, match="missing from the table"):
        read_safetensors(path)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_changed_bytes_and_cut_files_give_a_model_or_a_data_error(tmp_path_factory, model, data) -> None:
    path = tmp_path_factory.mktemp("bytes") / "m.safetensors"
    write_safetensors(path, model, "int8")
    whole = bytearray(path.read_bytes())
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        last = data.draw(st.sampled_from([header - 1, len(whole) - 1]))
        whole[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.one_of(st.none(), st.integers(0, len(whole))))])
    try:
        back = read_safetensors(path)
    except DataError:
        return
    assert back.features.shape == (len(back.ids), 32)
    assert torch.isfinite(back.features).all()


def test_foreign_and_absent_files(tmp_path) -> None:
    for name, data in {"empty": b"", "text": b"hello, world", "huge": struct.pack("<Q", 2**63) + b"{}"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="Not a safetensors file"):
            read_safetensors(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_safetensors(tmp_path / "absent")
