"""Shared fixtures: where the real data lie, and a guard that keeps two-core machines from oversubscribing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _event_writers_end_with_their_test() -> Iterator[None]:
    """nerfstudio keeps every trainer's tensorboard writer in one list, and later trainers write to all of them."""
    yield
    writer = sys.modules.get("nerfstudio.utils.writer")
    if writer is not None:
        for each in writer.EVENT_WRITERS:
            if hasattr(each, "tb_writer"):
                each.tb_writer.close()
        writer.EVENT_WRITERS.clear()


SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(folder: str) -> Path:
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"the project's shared {folder} is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos, cameras and meshes; skips where they are absent."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """Checkpoints and outputs computed by the originals; skips where they are absent."""
    return _shared("fixtures")
