"""Data managers over small generated clips, for tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    import nerfstudio.scripts.render  # noqa: F401

    from xfactor_ns.data_config import ClipDataManagerConfig

NOISE = "ignore:Using a non-tuple sequence:UserWarning"
"""nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1)."""


def manager_config(data: Path, run_dir: Path | None = None, **options: Any) -> ClipDataManagerConfig:
    """16 pixels, 8 samples an update; options of the data parser begin with ``parser_``."""
    config = ClipDataManagerConfig(data=data, image_size=16, batch_size=8, run_dir=run_dir, end=20, warmup_updates=10)
    for name, value in options.items():
        holder = config.dataparser if name.startswith("parser_") else config
        name = name.removeprefix("parser_")
        assert hasattr(holder, name), name
        setattr(holder, name, value)
    return config


def open_manager(data: Path, run_dir: Path | None = None, test_mode: str = "val", **options: Any) -> Any:
    """A data manager; end its threads with `close`."""
    return manager_config(data, run_dir, **options).setup(device="cpu", test_mode=test_mode)
