"""A small generated object and one trained run, shared by the command tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def monument(tmp_path_factory) -> Path:
    """A generated object: 16 views of 64x64 in NeRF-synthetic layout, and two each to validate and to test."""
    from diver_runs import write_object

    return write_object(tmp_path_factory.mktemp("scene") / "monument")


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """The folder commands run in, which is not the repository."""
    return tmp_path_factory.mktemp("work")


SMALL = (
    "--vis", "tensorboard", "--pipeline.model.resolution", "32", "--pipeline.model.coarse-resolution", "8",
    "--pipeline.model.coarse-rays", "512", "--pipeline.model.fine-rays", "512",
)  # fmt: skip
"""Options of ``ns-train`` with which a step takes some 20 ms."""


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """`SMALL`."""
    return SMALL


@pytest.fixture(scope="session")
def trained(monument, work) -> Path:
    """A run folder of diver-tiny after 150 steps through all stages, made by ``ns-train``."""
    from commands import run

    output = run(
        "ns-train", "diver-tiny", "--data", monument, "--output-dir", work / "outputs", "--timestamp", "first",
        "--max-num-iterations", "150", "--steps-per-eval-batch", "50", "--steps-per-eval-image", "100",
        "--steps-per-eval-all-images", "149", *SMALL, cwd=work,
    )  # fmt: skip
    folder = work / "outputs" / "monument" / "diver-tiny" / "first"
    (folder / "train.log").write_text(output)
    return folder
