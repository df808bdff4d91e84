"""Open a trained run from its config.yml: for the packages' own commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core_ns.errors import DataError


def load_run(config_file: Path, pipeline_class: str, *others: str) -> tuple[Any, Any]:
    """Pipeline and model of a run.

    Args:
        config_file: ``config.yml`` of the run.
        pipeline_class: what the run must be of: ``module.Class`` of its pipeline's configuration.
        others: more of them, any of which will do.

    Raises:
        DataError: no such run, another method's, or one without a whole checkpoint.
    """
    if not config_file.is_file():
        raise DataError(config_file, "", "is not a file.", "Name the config.yml of a run.")
    folder = checkpoint_folder(config_file, pipeline_class, *others)

    from nerfstudio.utils.eval_utils import eval_setup  # seconds: only for what is a run

    from core_ns.trainer import valid_checkpoint

    valid_checkpoint(folder)
    _, pipeline, _, _ = eval_setup(config_file, test_mode="test")
    return pipeline, pipeline.model


def checkpoint_folder(config_file: Path, pipeline_class: str, *others: str) -> Path:
    """Where the checkpoints of a run lie, from its ``config.yml``; no object in the file is made.

    Args: as of `load_run`.

    Raises:
        DataError: it is no such file.
    """
    import yaml

    try:
        root = yaml.compose(config_file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        nodes = {key.value: node for key, node in root.value}
        foreign = not nodes["pipeline"].tag.endswith(tuple(f":{name}" for name in (pipeline_class, *others)))
        names = ("output_dir", "experiment_name", "method_name", "timestamp", "relative_model_dir")
        # A path is written as the list of its parts.
        parts = [nodes[name].value for name in names]
        folder = Path(*(Path(*(node.value for node in part)) if isinstance(part, list) else part for part in parts))
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise DataError(config_file, "", f"is no run's config.yml ({first}).", "Name the one of a run.") from error
    if foreign:
        package = pipeline_class.partition("_ns")[0]
        raise DataError(config_file, "method", f"is not a {package} run.", "Name another run.")
    return folder
