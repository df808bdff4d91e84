"""Checkpoints of the original: every tensor accounted for, EMA never used, hostile and damaged files refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from original_networks import CHECKPOINTS, FOLDER, HAVE, VARIANTS, arrays, checkpoint, imported, largest

from core_ns.errors import DataError
from megascenes_ns.checkpoint_import import checkpoint_file, import_checkpoint, read_original, read_state
from megascenes_ns.noise_schedule import schedule_buffers
from megascenes_ns.weights_folder import load, read_info

pytestmark = pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")
State = dict[str, Any]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_of_a_checkpoint_is_accounted_for(variant):
    state = read_state(checkpoint(variant))
    found = imported(variant).info
    assert sum(found.accounted.values()) == len(state)
    assert found.accounted["schedule"] == 12
    assert found.accounted["ema"] == 2 + sum(name.startswith("model.diffusion_model.") for name in state)
    assert found.sha256
    assert found.uncond == "legacy"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ema_copies_are_never_used(variant):
    """They are constant in the fixtures: an importer that prefers them makes constant networks."""
    state = read_state(checkpoint(variant))
    copies = [value for name, value in state.items() if name.startswith("model_ema.diffusion_model")]
    assert all(bool((value == copies[0].flatten()[0]).all()) for value in copies)
    weight = imported(variant).networks.unet.conv_in.weight
    assert torch.equal(weight, state["model.diffusion_model.input_blocks.0.0.weight"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_imported_folder_computes_what_the_original_computes(variant, tmp_path):
    out, sizes, info = import_checkpoint(FOLDER / variant / CHECKPOINTS[variant], tmp_path / "w")
    assert read_info(out) == (sizes, info)
    assert info.step == (112_000 if variant == "warp_plus_pose" else 0)
    nets, io = load(out), arrays(variant)
    with torch.no_grad():
        found = nets.predict_noise(io["unet_x_t"], io["unet_t"], io["c_crossattn"], io["c_concat"])
    assert largest(found, io["unet_eps"]) < 2e-5
    encoded = nets.encode_reference(io["image_ref_u8"])
    assert largest(encoded.latent, io["vae_mode"]) < 5e-5
    assert largest(encoded.embedding, io["clip_embed"]) < 1e-5


def test_zeronvs_weights_start_the_warp_model(tmp_path):
    """Spec 4.3: new input channels begin at zero."""
    out, _, _ = import_checkpoint(checkpoint("zeronvs"), tmp_path / "w")
    nets, io = load(out, in_channels=11), arrays("zeronvs")
    assert nets.sizes.variant == "warp_plus_pose"
    concat = torch.cat([io["c_concat"], torch.randn(1, 3, *io["c_concat"].shape[2:])], 1)
    with torch.no_grad():
        found = nets.predict_noise(io["unet_x_t"], io["unet_t"], io["c_crossattn"], concat)
    assert largest(found, io["unet_eps"]) < 2e-5


@cache
def stored() -> State:
    """The smaller checkpoint without most of what is not read, which takes time to write."""
    state = read_state(checkpoint("zeronvs"))
    names = [name for name in state if not name.startswith("model_ema.") or "time_embed" in name]
    return {name: state[name].clone() for name in names}


def variant_file(tmp_path: Path, change: Callable[[State], Any], name: str = "w.ckpt") -> Path:
    """The smaller checkpoint with a change, written again."""
    file = tmp_path / name
    torch.save(change(dict(stored())), file)
    return file


def pruned(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith(("model_ema.", "betas", "alphas"))}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": state, "epoch": 3, "callbacks": {}},
        pruned,
        lambda state: {name: value.half() for name, value in pruned(state).items() if name not in schedule_buffers()},
    ],
    ids=["of several processes", "of Lightning", "without EMA", "in half precision"],
)
def test_other_containers_hold_the_same_networks(tmp_path, change):
    found = read_original(variant_file(tmp_path, change)).networks
    wanted = imported("zeronvs").networks.state_dict()
    assert all(largest(value, wanted[name]) < 2e-3 for name, value in found.state_dict().items())


def test_a_folder_with_safetensors_is_read_before_others(tmp_path):
    from safetensors.torch import save_file

    state = {name: value.contiguous().clone() for name, value in read_state(checkpoint("zeronvs")).items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    (tmp_path / "random_states_0.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    assert checkpoint_file(tmp_path).name == "model.safetensors"
    found = read_original(tmp_path)
    assert found.info.accounted == imported("zeronvs").info.accounted


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def replaced(name: str, value: Callable[[torch.Tensor], Any]) -> Callable[[State], State]:
    return lambda state: {**state, name: value(state[name])}


CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
IN_PROJ = "cond_stage_model.model.visual.transformer.resblocks.0.attn.in_proj_weight"
BAD: dict[str, tuple[Callable[[State], Any], str]] = {
    "a missing weight": (without(ATTENTION), "to_q.weight.*missing"),
    "a missing first weight": (without(CONV_IN), "input_blocks.0.0.weight.*missing"),
    "an unknown tensor": (lambda state: {**state, "lora.up": torch.zeros(3)}, "lora.up.*not a tensor of this"),
    "an unknown EMA copy": (
        lambda state: {**state, "model_ema.diffusion_modelnew": torch.zeros(3)}, "diffusion_modelnew",
    ),
    "a wrong shape": (replaced(ATTENTION, lambda value: value[:5]), r"to_q.weight.*\[5, 32\]"),
    "rows of no three matrices": (replaced(IN_PROJ, lambda value: value[:-1]), "in_proj_weight.*three matrices"),
    "numbers that are not finite": (replaced(ATTENTION, lambda value: value / 0), "to_q.weight.*not finite"),
    "integers": (replaced(ATTENTION, lambda value: value.long()), "to_q.weight.*int64"),
    "no tensor": (replaced(ATTENTION, lambda value: 3), "to_q.weight.*is a int"),
    "another noise schedule": (replaced("betas", lambda value: value * 1.01), "betas.*another noise schedule"),
    "a list": (lambda state: [1, 2], "list in place"),
    "an empty dictionary": (lambda state: {}, "in place of named tensors"),
    "numbered tensors": (lambda state: {1: torch.zeros(3)}, r"\(1\)"),
    "a nested list": (lambda state: {"state_dict": [torch.zeros(3)]}, "list in place"),
    "widths that no norm divides": (replaced(CONV_IN, lambda value: value[:20]), "make no networks|does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_checkpoint_is_one_error_and_writes_nothing(tmp_path, case):
    change, message = BAD[case]
    file = variant_file(tmp_path, change)
    with pytest.raises(DataError, match=message) as raised:
        import_checkpoint(file, tmp_path / "out")
    assert raised.value.file == str(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


class Gadget:
    """Runs a command when a plain unpickler reads it."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("where", ["beside the tensors", "among them"])
def test_a_checkpoint_that_runs_code_is_refused_and_runs_nothing(tmp_path, where):
    victim = tmp_path / "owned"
    for function, argument in ((os.mkdir, str(victim)), (eval, f"__import__('os').mkdir({str(victim)!r})")):
        gadget = Gadget(function, argument)
        file = variant_file(
            tmp_path, lambda state, gadget=gadget: {"state_dict": state, "x": gadget} if where != "among them"
            else {**state, "x": gadget},
        )  # fmt: skip
        with pytest.raises(DataError, match=r"names '.*nothing was run"):
            import_checkpoint(file, tmp_path / "out")
        assert not victim.exists()
        assert not (tmp_path / "out").exists()


def test_classes_that_lightning_leaves_are_placeholders(tmp_path, monkeypatch):
    import sys
    import types

    module: Any = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": module.__name__, "__qualname__": "ModelCheckpoint"})
    module.ModelCheckpoint = kind
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    made: Any = kind()
    made.best = 3
    file = variant_file(tmp_path, lambda state: {"state_dict": state, "callbacks": {kind: {"a": 1}, "b": made}})
    assert sum(read_original(file).info.accounted.values()) == len(stored())


@pytest.mark.parametrize("cut", [0, 10, 5000, -1, -100])
def test_a_cut_file_is_refused(tmp_path, cut):
    file = tmp_path / "w.ckpt"
    file.write_bytes(checkpoint("zeronvs").read_bytes()[:cut])
    with pytest.raises(DataError):
        read_original(file)


def test_paths_that_mean_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_original(tmp_path / "nothing.ckpt")
    with pytest.raises(DataError, match="holds none of"):
        read_original(tmp_path)
    (tmp_path / "random_states_0.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(DataError, match="no file of weights"):
        read_original(tmp_path / "random_states_0.pkl")
    for name in ("a.ckpt", "b.ckpt"):
        shutil.copyfile(checkpoint("zeronvs"), tmp_path / name)
    with pytest.raises(DataError, match=r"2 \.ckpt"):
        read_original(tmp_path)


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="is there already"):
        import_checkpoint(checkpoint("zeronvs"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
