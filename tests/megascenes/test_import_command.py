"""``ns-megascenes import`` as its dataclass."""

from __future__ import annotations

import pytest
from original_networks import FOLDER, HAVE, imported

from core_ns.errors import DataError
from megascenes_ns.import_command import Import
from megascenes_ns.weights_folder import read_info


@pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")
def test_it_writes_the_folder_and_says_what_to_type_next(tmp_path, capsys):
    out = tmp_path / "weights"
    assert Import(FOLDER / "warp_plus_pose" / "iter_112000", out, "fp16").main() == 0
    printed = capsys.readouterr().out
    assert "11 input channels" in printed
    assert f"ns-train megascenes-nvs --data DATA --pipeline.model.weights {out}" in printed
    total = sum(imported("warp_plus_pose").info.accounted.values())
    assert f"{total} tensors of iter_112000/pytorch_model.bin" in printed
    assert read_info(out)[0] == imported("warp_plus_pose").networks.sizes
    with pytest.raises(DataError, match="is there already"):
        Import(FOLDER / "zeronvs" / "iter_0", out).main()


@pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")
def test_the_pose_only_model_is_named(tmp_path, capsys):
    assert Import(FOLDER / "zeronvs" / "iter_0", tmp_path / "w", pose_squash="zeronvs").main() == 0
    assert "ns-train megascenes-zeronvs" in capsys.readouterr().out
    assert read_info(tmp_path / "w")[1].pose_squash == "zeronvs"
