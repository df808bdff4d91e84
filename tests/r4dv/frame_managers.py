"""Data managers over small recordings, their batches as comparable values, and a count of decoded photos."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from frame_sequences import QUICK

from dataparsers.easymocap_view import View

with warnings.catch_warnings():  # nerfstudio's own imports warn
    warnings.simplefilter("ignore")
    from dataparsers.easymocap_parser import EasyMocapDataParserConfig
    from r4dv_ns.datamanager import R4DVDataManager, R4DVDataManagerConfig


def open_manager(
    folder: Path, mode: str = "val", parser: dict[str, Any] | None = None, **options: Any
) -> R4DVDataManager:
    config = R4DVDataManagerConfig(
        data=folder, dataparser=EasyMocapDataParserConfig(data=folder, **(parser or {})), hull=QUICK, cache_gb=0.01
    )
    for name, value in options.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    return config.setup(device="cpu", test_mode=mode)


def stream(manager: R4DVDataManager, steps: range) -> list[dict[str, Any]]:
    """Batches with what the camera says, closed under comparison by `same`."""
    result = []
    for step in steps:
        camera, batch = manager.next_train(step)
        result.append(
            {**batch, "c2w": camera.camera_to_worlds, "K": camera.get_intrinsics_matrices(), "t": camera.times}
        )
    manager.close()
    return result


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a) for a, b in zip(first, second, strict=True)
    )


class CountedDecodes:
    """How many photos are decoded, and by which threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.threads, self._lock = 0, set(), threading.Lock()
        decode = View.decode

        def counted(view: View, frame: int, with_mask: bool = True) -> Any:
            with self._lock:
                self.count += 1
                self.threads.add(threading.get_ident())
            return decode(view, frame, with_mask)

        monkeypatch.setattr(View, "decode", counted)
