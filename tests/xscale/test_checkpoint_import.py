"""Upstream checkpoints: same colours as the original to 1e-5, and every odd key or shape refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from core_ns.errors import DataError
from xscale_ns.checkpoint_import import (
    UPSTREAM_PER_LEVEL_SCALE,
    ImportedShader,
    infer_log2_table,
    load_upstream_checkpoint,
)
from xscale_ns.shading import linear_from_srgb, srgb_from_linear

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(shared_fixtures: Path) -> Path:
    return shared_fixtures / "xscale" / "shader"


@pytest.fixture(scope="module")
def imported(folder: Path) -> ImportedShader:
    return load_upstream_checkpoint(folder / "epoch:00200.pth.tar")


@pytest.fixture(scope="module")
def io(folder: Path) -> dict[str, torch.Tensor]:
    with np.load(folder / "io.npz") as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


@pytest.fixture
def content(folder: Path) -> dict:
    return torch.load(folder / "epoch:00200.pth.tar", weights_only=True)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


def rays_of(io: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean feature and normalised sum of directions over the sub-samples (spec xscale 3.3)."""
    return io["sub_features"].mean(2), normalize(io["sub_dirs"].sum(2), dim=-1)


@pytest.mark.parametrize("light", [0, 1])
@torch.no_grad()
def test_imported_head_reproduces_the_original_for_each_lighting(imported, io, light) -> None:
    head = imported.build_head()
    features, directions = rays_of(io)
    for view in range(5):
        codes = (imported.exposure_codes[view], imported.lighting_codes[light])
        close(head(features[view], directions[view], *codes), io[f"rgb_lit{light}"][view])
        linear = head.shade_linear(head.condition(features[view], *codes), directions[view])
        close(linear, io[f"linear_lit{light}"][view])


@torch.no_grad()
def test_all_views_at_once_through_the_code_tables(imported, io) -> None:
    head, exposure, lighting = imported.build_head(), imported.build_exposure_codes(), imported.build_lighting_codes()
    features, directions = (x.flatten(0, 1) for x in rays_of(io))
    view = torch.arange(5).repeat_interleave(24)
    rgb = head(features, directions, exposure.table(), lighting(torch.tensor([1])), exposure_index=view)
    close(rgb, io["rgb_lit1"].flatten(0, 1))


@torch.no_grad()
def test_the_mean_exposure_is_the_originals_test_time_code(imported, io) -> None:
    exposure = imported.build_exposure_codes()
    close(exposure.mean(), io["exposure_mean"])
    features, directions = rays_of(io)
    head = imported.build_head()
    rgb = torch.stack(
        [head(f, d, exposure.mean(), imported.lighting_codes[0]) for f, d in zip(features, directions, strict=True)]
    )
    close(rgb, io["rgb_mean_exposure"])


def test_codes_are_the_renormalised_ones(imported, io, content) -> None:
    close(imported.exposure_codes, io["embedding_weights_renormalised_x"])
    close(imported.exposure_codes, io["exposure_codes"])
    for light in range(2):
        close(imported.lighting_codes[light].expand(5, 8), io[f"light_code_lit{light}"])
    stored = content["x_embeddings_list"]["0.weight"]
    # The fixture must exercise the trap: some stored row is longer than 1, some is not.
    assert (stored.norm(dim=-1) > 1.005).any()
    assert (stored.norm(dim=-1) < 0.9).any()


def test_the_transfer_curve_is_the_originals(io) -> None:
    close(srgb_from_linear(io["srgb_in"]), io["srgb_out"])
    close(linear_from_srgb(io["srgb_out"]), io["srgb_in"])


def test_counters_sizes_and_state_are_complete(imported, folder) -> None:
    sizes = json.loads((folder / "params.json").read_text())
    assert (imported.epoch, imported.iteration) == (200, 3800)
    head = imported.build_head()
    assert sum(p.numel() for p in head.parameters()) == 63_683
    assert head.feature_dim == sizes["hash_n_levels"] * sizes["z_length_s"]
    assert imported.exposure_codes.shape == (len(sizes["training_view_list"]), sizes["z_length_x"])
    assert imported.lighting_codes.shape == (sizes["num_lit"], sizes["z_length_l"])


def test_hash_parameters_round_trip_through_our_grid(imported, folder, content) -> None:
    sizes = json.loads((folder / "params.json").read_text())
    grid = imported.build_hash_grid()
    assert torch.equal(grid.to_tcnn_params(), content["spatial_encoding_dict"]["spatial_enc.params"])
    assert grid.output_dim == 128
    assert all(level.entries == 2 ** sizes["log2_hashmap_size"] for level in grid.layout)


def test_a_grid_of_another_configuration_is_refused(imported) -> None:
    with pytest.raises(DataError, match=r"spatial_enc\.params.*2048 parameters fit no grid of 3 levels"):
        imported.build_hash_grid(levels=3)
    cut = replace(imported, hash_params=imported.hash_params[:-8])
    with pytest.raises(DataError, match=r"2040 parameters fit no grid of 16 levels x 8 features"):
        cut.build_hash_grid()


def test_table_size_is_inferred_for_the_upstream_default_and_only_for_real_sizes() -> None:
    # Entries per level of the default grid, from exact arithmetic on 1.4768261459394993, independently of hash_grid.
    base, total = Fraction(UPSTREAM_PER_LEVEL_SCALE), 0
    for level in range(16):
        scale = 16 * base**level - 1
        resolution = -(-scale.numerator // scale.denominator) + 1
        total += min(2**22, -(-(resolution**3) // 8) * 8)
    assert total == pytest.approx(44.04e6, rel=1e-3)
    assert infer_log2_table(total * 8, 16, 8, 16, UPSTREAM_PER_LEVEL_SCALE) == 22
    assert infer_log2_table(total * 8 + 8, 16, 8, 16, UPSTREAM_PER_LEVEL_SCALE) is None


def save(content: object, tmp_path: Path) -> Path:
    path = tmp_path / "epoch-00001.pth.tar"
    torch.save(content, path)
    return path


def edit(content: dict, place: str, change: str) -> str:
    """Apply one defect; returns the text the message has to contain."""
    group, _, key = place.partition("/")
    state = content[group] if key else content
    name = key or group
    if change == "missing":
        del state[name]
    elif change == "renamed":
        state[name + "_v2"] = state.pop(name)
        return name + "_v2"
    elif change == "added":
        state["intruder"] = state[name]
        return "intruder"
    elif change == "shape":
        state[name] = state[name][..., :-1]
    elif change == "dims":
        state[name] = state[name][None]
    elif change == "nan":
        state[name].view(-1)[0] = float("nan")
    elif change == "int":
        state[name] = state[name].long()
    elif change == "text":
        state[name] = "text"
    return name


SHADER = "shading_machine_dict/render_net_c"


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("iteration", "missing"),
        ("iteration", "added"),
        (f"{SHADER}.layer_sl.0.bias", "added"),
        ("spatial_encoding_dict/spatial_enc.params", "added"),
        ("x_embeddings_list/0.weight", "added"),
        ("epoch", "text"),
        ("lr", "renamed"),
        ("shading_machine_dict", "text"),
        ("l_embeddings_list", "missing"),
        (f"{SHADER}.mapping_network_x.2.weight", "missing"),
        (f"{SHADER}.network_dir.1.layer.bias", "renamed"),
        (f"{SHADER}.network.1.layer.weight", "shape"),
        (f"{SHADER}.layer_sl.0.weight", "shape"),
        (f"{SHADER}.layer_sl.0.bias", "dims"),
        (f"{SHADER}.network.0.layer.weight", "dims"),
        (f"{SHADER}.network.0.layer.bias", "nan"),
        (f"{SHADER}.network.0.layer.bias", "int"),
        ("spatial_encoding_dict/spatial_enc.params", "dims"),
        ("spatial_encoding_dict/spatial_enc.params", "renamed"),
        ("x_embeddings_list/0.weight", "shape"),
        ("x_embeddings_list/0.weight", "renamed"),
        ("l_embeddings_list/0.weight", "nan"),
        ("l_embeddings_list/0.weight", "text"),
    ],
)
def test_every_defect_is_refused_and_named(content, tmp_path, place, change) -> None:
    named = edit(content, place, change)
    with pytest.raises(DataError) as caught:
        load_upstream_checkpoint(save(content, tmp_path))
    assert named in str(caught.value)
    assert caught.value.remedy


class Arbitrary:
    """Something only the full unpickler could rebuild."""

    built = False

    def __reduce__(self):
        return (_build, ())


def _build() -> Arbitrary:
    Arbitrary.built = True
    return Arbitrary()


def test_objects_in_the_file_are_not_built(content, tmp_path) -> None:
    content["optimizer"] = Arbitrary()
    path = save(content, tmp_path)
    with pytest.raises(DataError, match="plain values") as caught:
        load_upstream_checkpoint(path)
    assert not Arbitrary.built
    assert "state dicts" in caught.value.remedy


def test_damaged_foreign_and_absent_files_are_refused(folder, tmp_path) -> None:
    whole = (folder / "epoch:00200.pth.tar").read_bytes()
    for name, data in {"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DataError, match="Not readable"):
            load_upstream_checkpoint(path)
    with pytest.raises(DataError, match="no such file"):
        load_upstream_checkpoint(tmp_path / "absent")
    with pytest.raises(DataError, match="not a dictionary"):
        load_upstream_checkpoint(save([1, 2], tmp_path))
