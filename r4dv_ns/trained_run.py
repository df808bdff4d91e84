"""Open a trained run of this package from its config.yml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core_ns.errors import DataError

PIPELINE = ":r4dv_ns.pipeline.R4DVPipelineConfig"


def load_run(config_file: Path) -> tuple[Any, Any]:
    """Pipeline and model of a run of this package.

    Raises:
        DataError: no such run, another method's, or one without a whole checkpoint.
    """
    if not config_file.is_file():
        raise DataError(config_file, "", "is not a file.", "Name the config.yml of a run.")
    folder = checkpoint_folder(config_file)

    from nerfstudio.utils.eval_utils import eval_setup  # seconds: only for what is a run

    from core_ns.trainer import valid_checkpoint

    valid_checkpoint(folder)
    _, pipeline, _, _ = eval_setup(config_file, test_mode="test")
    return pipeline, pipeline.model


def checkpoint_folder(config_file: Path) -> Path:
    """Where the checkpoints of a run of this package lie, from its ``config.yml``; no object in the file is made.

    Raises:
        DataError: it is no such file.
    """
    import yaml

    try:
        root = yaml.compose(config_file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        nodes = {key.value: node for key, node in root.value}
        foreign = not nodes["pipeline"].tag.endswith(PIPELINE)
        names = ("output_dir", "experiment_name", "method_name", "timestamp", "relative_model_dir")
        # A path is written as the list of its parts.
        parts = [nodes[name].value for name in names]
        folder = Path(*(Path(*(node.value for node in part)) if isinstance(part, list) else part for part in parts))
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise DataError(config_file, "", f"is no run's config.yml ({first}).", "Name the one of a run.") from error
    if foreign:
        raise DataError(config_file, "method", "is not an r4dv run.", "Name another run.")
    return folder
