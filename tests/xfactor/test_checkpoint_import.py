"""Weights from the original's files, safetensors and runs (spec xfactor 5; 12, check 4)."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import optax
import pytest
import torch
from flax import struct
from safetensors.torch import save_file
from small_networks import SMALL, random_network
from torch import Tensor

from core_ns.errors import DataError
from xfactor_ns.checkpoint_import import checkpoint_file, export_checkpoint, import_checkpoint, load_weights
from xfactor_ns.flax_file import read_flax, write_flax
from xfactor_ns.flax_reference.parameters import from_torch
from xfactor_ns.network import XFactorNet
from xfactor_ns.parameter_names import flax_names


@struct.dataclass
class TrainState:
    """What the original saves, with the keys of spec 5."""

    step: Any
    opt_state: Any
    params: Any
    lpips_params: Any
    key: Any
    multi_steps: Any
    train_metrics: Any
    eval_metrics: Any


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(random_network().state_dict())


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory) -> Path:
    """A training state as flax itself writes it, MultiSteps around clip and AdamW included."""
    params = from_torch(state)
    rule = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)), 2)
    whole = TrainState(
        np.int32(12),
        rule.init(params),
        params,
        {"vgg": np.zeros(3, "f4")},
        np.zeros(2, np.uint32),
        2,
        {"loss": 0.5},
        {},
    )
    file = tmp_path_factory.mktemp("flax") / "checkpoints-0" / "ckpt-12.flax"
    file.parent.mkdir()
    file.write_bytes(flax.serialization.to_bytes(whole))
    return file


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_training_state_is_imported_exactly(state, saved):
    size, found = load_weights(saved)
    assert (size, equal(found, state)) == (SMALL, True)
    XFactorNet(size).load_state_dict(found)


def test_our_reader_is_flaxs_reader(saved, shared_fixtures):
    for file in (saved, *sorted((shared_fixtures / "xfactor").glob("*/checkpoints-0/*.flax"))):
        wanted = flax.serialization.msgpack_restore(file.read_bytes())["params"]
        found = read_flax(file)
        for path, value in found.items():
            node = wanted
            for part in path.split("/"):
                node = node[part]
            np.testing.assert_array_equal(value, node)
        assert len(found) == len(flax_names(2)) == 91


def test_import_export_import_is_bit_equal(state, saved, tmp_path):
    ours = import_checkpoint(saved, tmp_path / "a.safetensors")
    theirs = export_checkpoint(ours, tmp_path / "a.flax")
    again = import_checkpoint(theirs, tmp_path / "b.safetensors")
    assert ours.read_bytes() == again.read_bytes()
    assert equal(load_weights(again)[1], state)
    restored = flax.serialization.from_bytes({"params": from_torch(state)}, theirs.read_bytes())
    for a, b in zip(*(flax_leaves(tree) for tree in (restored["params"], from_torch(state))), strict=True):
        np.testing.assert_array_equal(a, b)
    export_checkpoint(again, tmp_path / "b.flax")
    assert (tmp_path / "b.flax").read_bytes() == theirs.read_bytes()


def flax_leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def test_the_json_says_what_was_imported(saved, tmp_path):
    import_checkpoint(saved.parent, tmp_path / "a.safetensors")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["size"] == {"width": 16, "heads": 2, "blocks": 2, "patch": 4, "pose": 6, "registers": 3}
    assert found["weights"] == 91
    assert found["parameters"] == sum(value.numel() for value in random_network().parameters())
    assert found["source"] == {"name": "ckpt-12.flax", "sha256": hashlib.sha256(saved.read_bytes()).hexdigest()}
    assert load_weights(tmp_path / "a.json")[0] == SMALL


def test_a_run_is_read(state, tmp_path):
    """Checkpoints of ns-train, so that the multi-view stage starts from a stereo run."""
    with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets)
        warnings.simplefilter("ignore")
        import core_ns.trainer  # noqa: F401
    pipeline = {f"_model.net.{name}": value for name, value in state.items()} | {"_model.other": torch.zeros(1)}
    for step in (4, 20):
        torch.save({"step": step, "pipeline": pipeline, "optimizers": {}}, tmp_path / f"step-{step:09d}.ckpt")
    for path in (tmp_path, tmp_path / "step-000000020.ckpt"):
        assert equal(load_weights(path)[1], state)
        import_checkpoint(path, tmp_path / "a.safetensors")
        assert json.loads((tmp_path / "a.json").read_text())["source"]["name"] == "step-000000020.ckpt"
    torch.save({"step": 1, "pipeline": {"x": torch.zeros(1)}, "optimizers": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(DataError, match="no networks of XFactor"):
        load_weights(tmp_path / "foreign.ckpt")


# ---------------------------------------------------------------------- which file of a folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three checkpoints, none of them more than a name."""
    made = tmp_path / "run" / "checkpoints-0"
    made.mkdir(parents=True)
    for number in (1, 9, 10):
        (made / f"ckpt-{number}.flax").write_bytes(b"")
    return made


def test_the_newest_checkpoint_of_a_folder_is_taken(folder):
    for path in (folder, folder.parent):
        assert checkpoint_file(path).name == "ckpt-10.flax"
    (folder / "checkpoint").write_text('model_checkpoint_path: "ckpt-9"\nall_model_checkpoint_paths: "ckpt-1"\n')
    assert checkpoint_file(folder).name == "ckpt-9.flax"
    assert checkpoint_file(folder, 1).name == "ckpt-1.flax"
    (folder / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/checkpoints-0/ckpt-1"\n')
    assert checkpoint_file(folder) == folder / "ckpt-1.flax"


@pytest.mark.parametrize("text", ["ckpt-77", "../ckpt-77"])
def test_a_named_checkpoint_that_is_gone_is_an_error(folder, text):
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{text}"\n')
    with pytest.raises(DataError, match="named but not there"):
        checkpoint_file(folder)


def test_other_paths_are_refused(folder, tmp_path):
    for path, number, problem in (
        (folder, 5, "is missing"), (tmp_path / "none", None, "is not a file"), (tmp_path, None, "holds no ckpt-N"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=problem):
            checkpoint_file(path, number)
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(DataError, match="no file of weights"):
        load_weights(tmp_path / "a.pth")


# ---------------------------------------------------------------------- foreign content


def broken(state: dict[str, Tensor], name: str) -> dict[str, Any]:
    """Weights by flax's paths, one of them spoilt."""
    flat = {theirs: state[ours].T.numpy() if theirs.endswith("/kernel") else state[ours].numpy()
            for ours, theirs in flax_names(2).items()}  # fmt: skip
    if name == "missing":
        del flat["Render/LayerNorm_0/bias"]
    elif name == "unknown":
        flat["Render/AdaLN_0/bias"] = np.zeros(3, "f4")
    elif name == "transposed":
        flat["Render/MLP2_1/Dense_0/kernel"] = flat["Render/MLP2_1/Dense_0/kernel"].T
    elif name == "flat kernel":
        flat["PoseEnc/Dense_0/kernel"] = flat["PoseEnc/Dense_0/kernel"].reshape(-1)
    elif name == "other patch":
        flat["Render/MLP3_0/Dense_2/kernel"] = np.zeros((16, 27), "f4")
    elif name == "fewer layers":
        flat = {path: value for path, value in flat.items() if not path.startswith("Render/layers_1/")}
    elif name == "a gap":
        flat = {path.replace("layers_1", "layers_5"): value for path, value in flat.items()}
    elif name == "odd heads":
        flat["PoseEnc/layers_0/RMSNorm_0/alpha"] = np.ones((3, 5), "f4")
    elif name == "vector of registers":
        flat["PoseEnc/global_embed"] = np.ones(16, "f4")
    return flat


@pytest.mark.parametrize(
    ("name", "place", "problem"),
    [
        ("missing", "Render/LayerNorm_0/bias", "is missing"),
        ("unknown", "Render/AdaLN_0/bias", "is not a weight"),
        ("transposed", "Render/MLP2_1/Dense_0/kernel", r"has the shape \[64, 6\], not \[6, 64\]"),
        ("flat kernel", "PoseEnc/Dense_0/kernel", "has the shape"),
        ("other patch", "Render/MLP3_0/Dense_2/kernel", r"has the shape \[16, 27\], not \[16, 48\]"),
        ("fewer layers", "Render/layers_1/LayerNorm_0/scale", "is missing"),
        ("a gap", "PoseEnc/layers_1/LayerNorm_0/scale", "is missing"),
        ("odd heads", "shapes", "3 heads of 5 channels"),
        ("vector of registers", "PoseEnc/global_embed", "has the shape"),
    ],
)
def test_foreign_flax_files_are_refused_before_anything_is_written(state, tmp_path, name, place, problem):
    write_flax(tmp_path / "a.flax", broken(state, name))
    with pytest.raises(DataError, match=problem) as caught:
        import_checkpoint(tmp_path / "a.flax", tmp_path / "out" / "a.safetensors")
    assert caught.value.place == place
    assert not (tmp_path / "out").exists()


def test_foreign_safetensors_are_refused(state, tmp_path):
    file = tmp_path / "a.safetensors"
    first = min(state)
    for change, problem in (
        ({first: None}, "is missing"),
        ({"renderer.extra": torch.zeros(2)}, "is not a weight"),
        ({"renderer.norm.bias": torch.zeros(3)}, "has the shape"),
        ({"renderer.norm.bias": torch.zeros(16, dtype=torch.int32)}, "holds torch.int32"),
        ({"renderer.norm.bias": torch.full((16,), torch.inf)}, "not finite"),
    ):
        save_file({k: v for k, v in (state | change).items() if v is not None}, file)
        with pytest.raises(DataError, match=problem):
            load_weights(file)
    save_file(state, file)
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[:-1], b"\xff" * 64):
        file.write_bytes(content)
        with pytest.raises(DataError, match="not a whole safetensors file"):
            load_weights(file)
    save_file({name: value.half() for name, value in state.items()}, file)
    assert all(value.dtype == torch.float32 for value in load_weights(file)[1].values())
    with pytest.raises(DataError, match="is not a file"):
        load_weights(tmp_path / "none.safetensors")


def test_wrong_endings_are_refused(saved, tmp_path):
    with pytest.raises(DataError, match=r"End it in \.safetensors"):
        import_checkpoint(saved, tmp_path / "a.bin")
    with pytest.raises(DataError, match=r"End it in \.flax"):
        export_checkpoint(saved, tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_without_its_note_still_imports(shared_fixtures, tmp_path):
    """The original's folder as it is, and with the text file left behind."""
    source = shared_fixtures / "xfactor" / "stereo_monocular"
    size, wanted = load_weights(source)
    assert (size.width, size.heads, size.blocks, size.patch, size.pose, size.registers) == (16, 2, 2, 8, 8, 32)
    shutil.copyfile(source / "checkpoints-0" / "ckpt-1.flax", tmp_path / "ckpt-1.flax")
    assert equal(load_weights(tmp_path)[1], wanted)
