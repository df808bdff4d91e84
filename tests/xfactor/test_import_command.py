"""``ns-xfactor import`` and ``export`` as functions; the console command is run by the command tests."""

from __future__ import annotations

import pytest
from small_networks import random_network

from core_ns.errors import DataError
from xfactor_ns.checkpoint_import import load_weights
from xfactor_ns.flax_file import write_flax
from xfactor_ns.import_command import Export, Import
from xfactor_ns.parameter_names import flax_names


def test_import_and_export_say_what_they_did(tmp_path, capsys):
    state = random_network().state_dict()
    flat = {theirs: state[ours].T.numpy() if theirs.endswith("/kernel") else state[ours].numpy()
            for ours, theirs in flax_names(2).items()}  # fmt: skip
    write_flax(tmp_path / "ckpt-3.flax", flat)
    assert Import(tmp_path, tmp_path / "a.safetensors", 3).main() == 0
    said = capsys.readouterr().out
    assert "91 weights; width 16, 2 heads, 2 + 2 blocks, patch 4, pose 6, 3 registers" in said
    for name in ("b.flax", "b.safetensors"):
        assert Export(tmp_path / "a.safetensors", tmp_path / name).main() == 0
        assert "MB" in capsys.readouterr().out
        again = load_weights(tmp_path / name)[1]
        assert all((again[key] == value).all() for key, value in state.items())
    with pytest.raises(DataError, match="names no kind of file"):
        Export(tmp_path / "a.safetensors", tmp_path / "b.pt").main()
