"""A small generated recording and trained runs, shared by the tests of the model and the commands."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def recording(tmp_path_factory) -> Path:
    """The generated juggler: 8 cameras (one is held out), 4 frames, 72x96."""
    from dataparsers.moving_scene import make_moving_scene

    folder = tmp_path_factory.mktemp("recorded") / "juggler"
    make_moving_scene(folder, 8, 4, (72, 96), supersample=2)
    return folder


@pytest.fixture(scope="session")
def ball(tmp_path_factory) -> Path:
    """A patchwork ball that moves: 10 cameras, 6 frames, 64x64, black around it."""
    from dataparsers.moving_scene import make_moving_scene

    folder = tmp_path_factory.mktemp("recorded") / "ball"
    make_moving_scene(folder, 10, 6, (64, 64), subject="ball", background="black", supersample=2)
    return folder


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """The folder commands run in, which is not the repository."""
    return tmp_path_factory.mktemp("work")


SMALL = (
    "--vis", "tensorboard", "--pipeline.datamanager.hull.points", "2000", "--pipeline.model.plane-base", "32",
    "--pipeline.model.cnn-grad-warmup", "20",
)  # fmt: skip
"""Options of ``ns-train`` with which a step takes some 50 ms."""


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """`SMALL`."""
    return SMALL


@pytest.fixture(scope="session")
def trained(recording, work) -> Path:
    """A run folder of r4dv-tiny after 120 steps, made by ``ns-train``."""
    from commands import run

    output = run(
        "ns-train", "r4dv-tiny", "--data", recording, "--output-dir", work / "outputs", "--timestamp", "first",
        "--max-num-iterations", "120", "--steps-per-eval-image", "60", "--steps-per-eval-all-images", "119",
        *SMALL, cwd=work,
    )  # fmt: skip
    folder = work / "outputs" / "juggler" / "r4dv-tiny" / "first"
    (folder / "train.log").write_text(output)
    return folder
