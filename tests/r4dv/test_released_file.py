"""Files of the original are untrusted: what is missing, foreign or damaged ends in one error (acceptance A22)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import capture_runs  # noqa: F401  (silences nerfstudio's imports first)
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from released_checkpoints import Tensors, make_state, save_npz, save_pt

from core_ns.errors import DataError
from r4dv_ns.points import normalise
from r4dv_ns.released_file import read_released

BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


def some_state(**options) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    clouds = [torch.rand(20 + frame, 3, generator=generator) - 0.5 for frame in range(3)]
    return make_state(clouds, BOX, 4, **options)


def test_both_kinds_of_file_hold_the_same(tmp_path):
    state = some_state(motion=True)
    one, other = (
        read_released(file)
        for file in (save_npz(tmp_path / "a.npz", state, half=False), save_pt(tmp_path / "a.pt", state))
    )
    bare = tmp_path / "bare.pth"
    torch.save(state, bare)
    for found, epoch in ((one, 1599), (other, 1599), (read_released(bare), -1)):
        assert found.epoch == epoch
        assert [len(cloud) for cloud in found.points] == [20, 21, 22]
        assert found.motion is not None
        assert (found.motion.levels, found.motion.aggregate, found.planes.aggregate) == (2, "sum", "cat")
        assert found.cameras is None, "all corrections are zero"
        assert not found.left_out
        assert not found.joint
        assert torch.equal(found.blend["hidden.weight"], state["sampler.ibr_regressor.rgb_mlp.mlp.linears.0.weight"])
        assert torch.equal(found.feature_net["laterals.2.bias"], state["sampler.ibr_embedder.feat_reg.toplayer.bias"])
        assert torch.equal(
            found.feature_net["stages.1.0.norm.weight"], state["sampler.ibr_embedder.feat_reg.conv1.0.bn.weight"]
        )


def test_the_planes_of_released_models_are_recognised(tmp_path):
    """Four levels of 2^16 rows joined by sum, 2^14 and two levels joined side by side ("tiny")."""
    for levels, log2_table, aggregate in ((4, 16, "sum"), (2, 14, "cat")):
        state = some_state(levels=levels, log2_table=log2_table, aggregate=aggregate)
        planes = read_released(save_npz(tmp_path / "a.npz", state)).planes
        assert (planes.levels, planes.aggregate, planes.base) == (levels, aggregate, 64)
        assert planes.spatial[-1].shape == (3, (64 << levels - 1) + 1, (64 << levels - 1) + 1, 8)


def broken(state: Tensors, name: str, value: torch.Tensor | None) -> Tensors:
    return {key: tensor for key, tensor in {**state, name: value}.items() if tensor is not None}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("sampler.geo_regressor.mlp.linears.1.bias", None, "is missing"),
        ("sampler.geo_regressor.mlp.linears.1.bias", torch.zeros(63), r"has the shape \[63\], not 64"),
        ("sampler.geo_regressor.mlp.linears.1.bias", torch.zeros(64, dtype=torch.int64), "holds torch.int64"),
        ("sampler.geo_regressor.mlp.linears.1.bias", torch.full((64,), torch.nan), "not finite"),
        ("sampler.ibr_embedder.feat_reg.conv2.1.bn.weight", None, "conv2.1.bn.weight.*missing"),
        ("sampler.ibr_embedder.feat_reg.smooth0.weight", torch.zeros(8, 32, 1, 1), "not 8 x 32 x 3 x 3"),
        ("sampler.ibr_regressor.rgb_mlp.mlp.linears.0.weight", torch.zeros(64, 7), "-4 inputs"),
        ("sampler.ibr_regressor.sh_mlp.mlp.linears.1.weight", torch.zeros(27, 64), "not 48 x 64"),
        ("sampler.pcds.1", None, "numbered"),
        ("sampler.pcds.1", torch.zeros(5, 2), "not n x 3"),
        ("sampler.pcds.1", torch.zeros(1, 3), "holds 1 points"),
        ("sampler.xyz_embedder.bounds", BOX.flip(0), "smallest and a largest corner"),
        ("sampler.xyz_embedder.spatial_embedding.0.tcnn_encoding.params", torch.zeros(1000), "fit no 96 channels"),
        ("sampler.xyz_embedder.temporal_embedding.2.tcnn_encoding.params", torch.zeros(8), "temporal_embedding.2"),
        ("sampler.xyz_embedder.spatial_embedding.0.tcnn_encoding.params", None, "unknown kind"),
        ("camera.pose_resd", torch.ones(2, 6), "has the shape"),
    ],
)
def test_a_tensor_that_does_not_belong_is_named(tmp_path, name, value, problem):
    file = save_npz(tmp_path / "a.npz", broken(some_state(), name, value), half=False)
    with pytest.raises(DataError, match=problem) as caught:
        read_released(file)
    assert str(caught.value).startswith(str(file))


def test_dense_planes_must_belong_together(tmp_path):
    state = some_state(dense=True)
    assert read_released(save_npz(tmp_path / "a.npz", state)).planes.dense is not None
    name = "sampler.xyz_embedder.spatial_embedding.1"
    with pytest.raises(DataError, match="not the planes of one field"):
        read_released(save_npz(tmp_path / "b.npz", broken(state, name, torch.zeros(3, 8, 30, 30))))
    less = broken(broken(state, name, None), "sampler.xyz_embedder.temporal_embedding.1", None)
    with pytest.raises(DataError, match="do not give 96 channels"):
        read_released(save_npz(tmp_path / "c.npz", less))
    planes = read_released(save_npz(tmp_path / "a.npz", state)).planes
    with pytest.raises(ValueError, match="planes for 3 frames, not 2"):
        planes.field([0.0, 1.0])


def test_dense_planes_give_the_numbers_that_the_original_computed(shared_fixtures, tmp_path):
    """A22: points inside and outside of the box, at the frames and between them."""
    state = torch.load(shared_fixtures / "r4dv" / "kplanes_state.pt", weights_only=True)
    numbers = np.load(shared_fixtures / "r4dv" / "kplanes.npz")
    clouds = [torch.rand(9, 3) for _ in range(5)]
    xyz, times = (torch.from_numpy(numbers[name][0]).float() for name in ("xyz", "t"))
    for aggregate, width in (("sum", 12), ("cat", 72)):
        file = save_pt(tmp_path / "a.pt", make_state(clouds, BOX, 4, embedder=(state, width)))
        found = read_released(file)
        assert found.planes.aggregate == aggregate
        assert torch.equal(found.bounds, state["bounds"])
        field = found.planes.field([0, 0.25, 0.5, 0.75, 1])
        features = field(normalise(xyz, found.bounds), times[:, 0]).detach()
        np.testing.assert_allclose(features.numpy(), numbers[f"out_{aggregate}"][0], atol=1e-5)


class Trap:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_run(tmp_path):
    sprung = tmp_path / "sprung"
    archive = tmp_path / "a.npz"
    arrays: dict[str, Any] = {"sampler.pcds.0": np.array([Trap(sprung)], dtype=object)}
    np.savez(archive, **arrays)
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        read_released(archive)
    for suffix in (".pt", ".pth"):
        file = tmp_path / f"a{suffix}"
        torch.save({"model": some_state(), "trap": Trap(sprung)}, file)
        with pytest.raises(DataError, match="not readable as tensors and plain values"):
            read_released(file)
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError, match="not readable"):
        read_released(tmp_path / "p.pt")
    assert not sprung.exists()


def test_foreign_files(tmp_path):
    with pytest.raises(DataError, match="is not a file"):
        read_released(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.pt").write_text("no archive")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({3: torch.zeros(1)}, tmp_path / "number.pt")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    for name in ("text.npz", "text.pt", "array.npz", "list.pt", "number.pt", "other.npz"):
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read_released(tmp_path / name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The bytes of a small file."""
    state = {name: value for name, value in some_state(levels=2, log2_table=12).items() if "pcd_embedder" not in name}
    return save_npz(tmp_path_factory.mktemp("whole") / "a.npz", state).read_bytes()


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1), flips=st.lists(st.floats(0, 1), max_size=3), cut=st.booleans())
def test_a_damaged_archive_is_read_or_refused_but_nothing_else(whole, tmp_path_factory, share, flips, cut):
    file = tmp_path_factory.getbasetemp() / "damaged.npz"
    content = bytearray(whole[: int(share * len(whole))] if cut else whole)
    for place in flips:
        if content:
            content[int(place * (len(content) - 1))] ^= 0x41
    file.write_bytes(bytes(content))
    try:
        found = read_released(file)
    except DataError:
        return
    assert all(bool(cloud.isfinite().all()) for cloud in found.points)
