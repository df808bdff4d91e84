"""What is opened as a run, and what is refused before anything in it is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from core_ns.errors import DataError
from core_ns.runs import checkpoint_folder, load_run


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a file"):
        load_run(tmp_path / "config.yml", "diver_ns.pipeline.DiverPipelineConfig")
    for text in ("", "{", "a: 1", "- 1", "!!python/object:diver_ns.config.X {}\n"):
        (tmp_path / "config.yml").write_text(text)
        with pytest.raises(DataError, match=r"no run's config\.yml"):
            load_run(tmp_path / "config.yml", "diver_ns.pipeline.DiverPipelineConfig")
    (tmp_path / "config.yml").write_text(
        "!!python/object:nerfstudio.engine.trainer.TrainerConfig\n"
        "output_dir: out\nexperiment_name: e\nmethod_name: m\ntimestamp: t\nrelative_model_dir: d\n"
        "pipeline: !!python/object:nerfstudio.pipelines.base_pipeline.VanillaPipelineConfig {}\n"
    )
    with pytest.raises(DataError, match="not a diver run"):
        load_run(tmp_path / "config.yml", "diver_ns.pipeline.DiverPipelineConfig")


def test_any_of_several_methods_will_do(tmp_path):
    file = tmp_path / "config.yml"
    file.write_text(
        "!!python/object:nerfstudio.engine.trainer.TrainerConfig\n"
        "output_dir: out\nexperiment_name: e\nmethod_name: m\ntimestamp: t\nrelative_model_dir: d\n"
        "pipeline: !!python/object:second_ns.b.Config {}\n"
    )
    for names in (("second_ns.b.Config",), ("first_ns.a.Config", "second_ns.b.Config")):
        assert checkpoint_folder(file, *names) == Path("out/e/m/t/d")
    with pytest.raises(DataError, match="not a first run"):
        checkpoint_folder(file, "first_ns.a.Config", "third_ns.c.Config")
