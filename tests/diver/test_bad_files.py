"""Files that are hostile, damaged, foreign or inconsistent: each is refused with a name, and nothing in it runs."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_files import lightning, load, original_state, save

from core_ns.errors import DataError
from diver_ns.formats import read_original, write_serialize


def test_settings_are_taken_only_when_they_make_sense(tmp_path) -> None:
    state = original_state(4, 32, None)
    for side, expected in (
        (3.5, 3.5),
        (4, 4.0),
        (-1.0, 2.8),
        (float("nan"), 2.8),
        ("2", 2.8),
        (True, 2.8),
        (10**400, 2.8),
    ):
        content = lightning(state, grid_size=side, voxel_num=99, white_back="no")
        model = read_original(save(content, tmp_path / "last.ckpt"))
        assert (model.side, model.resolution, model.background) == (expected, 4, "white")
    content = lightning(state) | {"hyper_parameters": None}
    assert read_original(save(content, tmp_path / "last.ckpt")).side == 2.8


class Bomb:
    """Runs a command when it is unpickled freely."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Stranger:
    """A class the reader does not know."""


@pytest.mark.parametrize("place", ["top", "hyper_parameters", "callbacks"])
def test_nothing_in_a_file_runs(tmp_path, place) -> None:
    content = lightning(original_state(4, 32, None))
    bomb = Bomb(tmp_path / "ran")
    if place == "top":
        content["extra"] = bomb
    elif place == "hyper_parameters":
        content[place].evil = bomb
    else:
        content[place] = {Stranger: 1}
    known = set(torch.serialization.get_safe_globals())
    with pytest.raises(DataError, match="Not readable as tensors and plain values") as caught:
        read_original(save(content, tmp_path / "last.ckpt"))
    assert "state_dict" in caught.value.remedy
    if place == "callbacks":
        assert "Stranger" in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert set(torch.serialization.get_safe_globals()) == known


def test_lightning_names_stand_for_nothing(tmp_path, monkeypatch) -> None:
    """Classes of that name, even ones that would do something, are replaced on reading."""
    built = []

    class ModelCheckpoint:
        def __setstate__(self, state):
            built.append(state)

    class AttributeDict(dict):
        def __setitem__(self, key, value):
            built.append(key)

    cls: type
    for cls, module in (
        (ModelCheckpoint, "pytorch_lightning.callbacks.model_checkpoint"),
        (AttributeDict, "pytorch_lightning.utilities.parsing"),
    ):
        fake = ModuleType(module)
        setattr(fake, cls.__name__, cls)
        cls.__module__, cls.__qualname__ = module, cls.__name__
        monkeypatch.setitem(sys.modules, module, fake)
        for parent in ("pytorch_lightning", module.rpartition(".")[0]):
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    content = lightning(original_state(4, 32, None))
    callback = ModelCheckpoint()
    callback.best = 1.0
    hyper = AttributeDict(grid_size=3.0, white_back=False)
    content |= {"callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(1.0)}, "again": callback}}
    content["hyper_parameters"] = hyper
    model = read_original(save(content, tmp_path / "last.ckpt"))
    assert (model.side, model.background) == (3.0, "black")
    assert not built


def edit(state: dict, name: str) -> str:
    """One defect of an original state dict; the text that the message must contain."""
    table = state["voxels"]
    if name == "missing table":
        del state["voxels"]
        return "voxels"
    if name == "missing decoder":
        del state["mlp1.0.weight"]
        return "mlp1.0.weight"
    if name == "missing bias":
        del state["mlp2.2.bias"]
        return "mlp2.2.bias"
    if name == "unknown key":
        state["mlp3.0.weight"] = torch.zeros(2)
        return "mlp3.0.weight"
    if name == "other width":
        state["mlp1.0.weight"] = torch.zeros(48, 32)
        return "mlp1.0.weight"
    if name == "layer shape":
        state["mlp2.0.weight"] = torch.zeros(32, 60)
        return "mlp2.0.weight"
    if name == "whole numbers":
        state["mlp2.0.bias"] = torch.zeros(32, dtype=torch.long)
        return "mlp2.0.bias"
    if name == "nan in decoder":
        state["mlp1.2.bias"][0] = float("nan")
        return "mlp1.2.bias"
    if name == "nan in table":
        table[0, 0, 0, 0] = float("inf")
        return "voxels"
    if name == "channels":
        state["voxels"] = table[..., :16].clone()
        return "voxels"
    if name == "not a cube":
        state["voxels"] = table[:-1].clone()
        return "voxels"
    if name == "text":
        state["voxels"] = "table"
        return "voxels"
    if name == "expanded":
        state["voxels"] = torch.zeros(1, 1, 1, 32).expand(1000, 1000, 1000, 32)
        return "voxels"
    if name == "all sparse":
        state["voxels"] = table.to_sparse(4)
        return "voxels"
    if name == "index":
        where = torch.tensor([[0], [0], [9]])
        state["voxels"] = torch.sparse_coo_tensor(where, torch.ones(1, 32), (5, 5, 5, 32), check_invariants=False)
        return "voxels"
    if name == "mask type":
        state["voxel_mask"] = torch.zeros(4, 4, 4)
        return "voxel_mask"
    if name == "mask shape":
        state["voxel_mask"] = torch.zeros(4, 4, 2, dtype=torch.bool)
        return "voxel_mask"
    if name == "mask finer":
        state["voxel_mask"] = torch.zeros(8, 8, 8, dtype=torch.bool)
        return "voxel_mask"
    raise AssertionError(name)


DEFECTS = (
    "missing table", "missing decoder", "missing bias", "unknown key", "other width", "layer shape", "whole numbers",
    "nan in decoder", "nan in table", "channels", "not a cube", "text", "expanded", "all sparse", "index", "mask type",
    "mask shape", "mask finer",
)  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
@pytest.mark.parametrize("form", ["plain", "lightning"])
def test_every_defect_is_refused_and_named(tmp_path, name, form) -> None:
    state = original_state(4, 32, None)
    named = edit(state, name)
    with pytest.raises(DataError) as caught:
        read_original(save(state if form == "plain" else lightning(state), tmp_path / "file.pth"))
    assert named in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("p", torch.zeros(3140), "packed decoder"),
        ("p", torch.ones(3168), "last 28"),
        ("p", None, "Is missing or not a tensor"),
        ("f", torch.zeros(8, 16), "row of f"),
        ("f", torch.zeros(27, 16), "not \\(V, 32\\)"),
        ("i", torch.arange(27).float(), "row of f"),
        ("i", torch.zeros(27, dtype=torch.int32), "repeated"),
        ("i", torch.arange(-1, 26, dtype=torch.int32), "negative"),
        ("m", torch.ones(26, dtype=torch.bool), "row of f"),
        ("m", torch.ones(27, dtype=torch.bool), "no size"),
    ],
)
def test_defects_of_serialized_files(tmp_path, key, value, text) -> None:
    write_serialize(tmp_path / "whole.pth", read_original(save(original_state(2, 32, None), tmp_path / "dense.pth")))
    content = load(tmp_path / "whole.pth")
    content[key] = value
    with pytest.raises(DataError, match=text):
        read_original(save(content, tmp_path / "serialize.pth"))


def test_damaged_foreign_and_absent_files_are_refused(shared_fixtures, tmp_path) -> None:
    whole = (shared_fixtures / "diver" / "fine32" / "weight.pth").read_bytes()
    cases = {"half": whole[: len(whole) // 2], "text": b"hello", "empty": b""}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="Not readable"):
            read_original(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_original(tmp_path / "absent")
    with pytest.raises(DataError, match="not a dictionary"):
        read_original(save([1, 2], tmp_path / "list.pth"))
    with pytest.raises(DataError, match="state_dict"):
        read_original(save({"state_dict": 3}, tmp_path / "number.pth"))


@given(st.data())
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_changed_bytes_give_a_model_or_a_data_error(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    state = original_state(2, 32, torch.ones(2, 2, 2, dtype=torch.bool), sparse=True)
    whole = bytearray(save(state, folder / "weight.pth").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (folder / "changed.pth").write_bytes(whole)
    try:
        model = read_original(folder / "changed.pth")
    except DataError:
        return
    assert model.features.shape == (len(model.ids), 32)
    assert torch.isfinite(model.features).all()


def test_a_legacy_file_without_archive_is_read_too(tmp_path) -> None:
    state = original_state(3, 64, None)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_original(tmp_path / "old.pth").features, state["voxels"].reshape(-1, 32))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"width": 48}, "32 or 64"),
        ({"features": torch.zeros(26, 32)}, "do not fit"),
        ({"features": torch.zeros(27, 16)}, "do not fit"),
        ({"ids": torch.arange(27).flip(0)}, "ascend"),
        ({"ids": torch.arange(1, 28)}, "grid of 2"),
        ({"mask": torch.ones(4, 4, 4, dtype=torch.bool)}, "does not fit 2"),
        ({"mask": torch.ones(2, 2, dtype=torch.bool)}, "does not fit 2"),
    ],
)
def test_a_model_whose_sizes_contradict_one_another_is_refused(tmp_path, change, text) -> None:
    model = read_original(save(original_state(2, 32, None), tmp_path / "dense.pth"))
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(model, **change)
