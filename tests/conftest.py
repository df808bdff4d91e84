"""Shared fixtures: where the real data lie, and a guard that keeps two-core machines from oversubscribing."""

from __future__ import annotations

from pathlib import Path

import pytest

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
