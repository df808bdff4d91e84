"""Without a held-out camera training views are judged, but no picture by the photo that it is to show (spec 4.4)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from capture_runs import NOISE, run_config, train

from r4dv_ns.drawing import pinhole

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


@pytest.fixture(scope="module")
def run(recording, tmp_path_factory) -> Any:
    """A run of the juggler that holds nothing out, drawing as the tools draw."""
    folder = tmp_path_factory.mktemp("outputs")
    config = run_config(recording, folder, 3)
    config.pipeline.datamanager.dataparser.eval_views = ("none",)
    config.pipeline.datamanager.points_dir = folder / "points"  # other tests share the recording's own
    trainer = train(config)
    trainer.pipeline.eval()
    return trainer


def test_the_photo_of_a_judged_picture_is_none_of_its_sources(run, monkeypatch):
    model, asked = run.pipeline.model, []
    get = model.sources.get
    monkeypatch.setattr(model.sources, "get", lambda frame, views: asked.extend(views) or get(frame, views))
    loader = run.pipeline.datamanager.fixed_indices_eval_dataloader
    for camera, batch in list(loader)[:4]:
        view = batch["view_idx"]
        assert view in model.sources.views, "a training view"
        asked.clear()
        model._cache._values.clear()
        picture = model.get_outputs_for_camera(camera)["rgb"]
        assert view not in asked
        assert len(set(asked)) == model.config.sources, "others take its place"
        camera.metadata = None  # somebody who happens to look from there may have it
        assert not torch.equal(model.get_outputs_for_camera(camera)["rgb"], picture)
        assert view in asked


def test_the_protocol_names_the_same_sources(run):
    pipeline = run.pipeline
    found = pipeline.get_average_image_metrics(pipeline.datamanager.fixed_indices_eval_dataloader, "", None)
    photos = found["protocol"]["photos"]
    assert len(photos) == 8 * 4
    assert not any(photo["view"] in photo["sources"] for photo in photos)


def test_the_only_photo_may_be_its_own_source(run, monkeypatch):
    model = run.pipeline.model
    centre = pinhole(run.pipeline.datamanager.eval_dataset.cameras[0:1]).centre
    monkeypatch.setattr(model.sources, "views", [3])
    monkeypatch.setattr(model.sources, "centres", lambda frame: centre.double().numpy()[None])
    assert model.nearest_views(0, centre, 3) == [3]
