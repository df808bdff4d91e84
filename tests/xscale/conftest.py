"""A small generated scene and one trained run, shared by the command tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_scene(tmp_path_factory) -> Path:
    """A generated monument: 12 views of 120x90 in MVSNet layout, three held out."""
    from core_ns.demo_scenes import make_demo_scene

    folder = tmp_path_factory.mktemp("scene") / "monument"
    make_demo_scene(folder, views=12, test_views=3, width=120, height=90, supersample=2, mesh_faces=8000)
    return folder


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """The folder commands run in, which is not the repository."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def trained(demo_scene, work) -> Path:
    """A run folder of xscale-nvs-tiny after 150 steps, made by ``ns-train``."""
    from commands import run

    output = run(
        "ns-train", "xscale-nvs-tiny", "--data", demo_scene, "--output-dir", work / "outputs", "--timestamp", "first",
        "--max-num-iterations", "150", "--vis", "tensorboard", "--steps-per-eval-image", "100",
        "--steps-per-eval-batch", "50", "--steps-per-eval-all-images", "149",
        "--pipeline.model.levels", "8", "--pipeline.datamanager.train-num-rays-per-batch", "2048",
        "--pipeline.model.output-face-id", "True", cwd=work,
    )  # fmt: skip
    folder = work / "outputs" / "monument" / "xscale-nvs-tiny" / "first"
    (folder / "train.log").write_text(output)
    return folder
