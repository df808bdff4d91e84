"""Generated clips and one trained run, shared by the tests of viewing and of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> Path:
    """Walks through generated rooms: 6 clips of 12 frames, 32x32, with poses; the last two are held out."""
    from dataparsers.demo_clips import make_demo_clips

    folder = tmp_path_factory.mktemp("clips") / "rooms"
    make_demo_clips(folder, kind="room", clips=6, frames=12, size=32, seed=3)
    return folder


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """The folder commands run in, which is not the repository."""
    return tmp_path_factory.mktemp("work")


TINY = (
    "--vis", "tensorboard", "--pipeline.model.width", "32", "--pipeline.model.heads", "2",
    "--pipeline.model.blocks", "1", "--pipeline.model.pose", "6", "--pipeline.datamanager.batch-size", "8",
    "--optimizers.xfactor.scheduler.warmup-steps", "10",
)  # fmt: skip
"""Options of ``ns-train`` with which an update takes some 20 ms."""


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """`TINY`."""
    return TINY


@pytest.fixture(scope="session")
def trained(rooms, work) -> Path:
    """A run folder of xfactor-tiny after 300 updates, made by ``ns-train``."""
    from commands import run

    output = run(
        "ns-train", "xfactor-tiny", "--data", rooms, "--output-dir", work / "outputs", "--timestamp", "first",
        "--max-num-iterations", "300", "--steps-per-eval-batch", "100", "--steps-per-eval-image", "200",
        "--steps-per-eval-all-images", "299", *TINY, cwd=work,
    )  # fmt: skip
    folder = work / "outputs" / "rooms" / "xfactor-tiny" / "first"
    (folder / "train.log").write_text(output)
    return folder
