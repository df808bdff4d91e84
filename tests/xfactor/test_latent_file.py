"""Camera motions as files."""

from __future__ import annotations

import numpy as np
import pytest

from core_ns.errors import DataError
from xfactor_ns.latent_file import LatentFile, read_latents, write_latents


def content(**changes) -> LatentFile:
    latents = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    return LatentFile(latents, 2, 12.5, "abc", "kitchen")._replace(**changes)


def test_they_come_back(tmp_path):
    file = tmp_path / "new" / "motion.npz"
    write_latents(file, content())
    read = read_latents(file, "abc", 4)
    assert read[1:] == content()[1:]
    assert np.array_equal(read.latents, content().latents)
    assert [path.name for path in file.parent.iterdir()] == ["motion.npz"]


@pytest.mark.parametrize(
    "what",
    ["absent", "text", "truncated", "pickle", "field", "format", "shape", "nan", "reference", "width", "encoder"],
)
def test_other_files_are_refused(tmp_path, what):
    file = tmp_path / "motion.npz"
    changes = {
        "shape": {"latents": np.zeros(4, np.float32)}, "nan": {"latents": np.full((2, 4), np.nan, np.float32)},
        "reference": {"reference": 5},
    }  # fmt: skip
    write_latents(file, content(**changes.get(what, {})))
    if what == "absent":
        file.unlink()
    elif what == "text":
        file.write_text("x")
    elif what == "truncated":
        file.write_bytes(file.read_bytes()[:300])
    elif what == "pickle":
        np.savez(file, format=np.array({"a": 1}, dtype=object), latents=1, reference=1, fps=1, encoder="", clip="")
    elif what == "field":
        np.savez(file, latents=np.zeros((2, 4), np.float32))
    elif what == "format":
        np.savez(file, format="other", latents=1, reference=1, fps=1, encoder="", clip="")
    with pytest.raises(DataError) as caught:
        read_latents(file, "other" if what == "encoder" else "abc", 5 if what == "width" else 4)
    assert caught.value.file == str(file)
