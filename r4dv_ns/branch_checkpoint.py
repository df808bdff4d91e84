"""One branch of a model from the checkpoint of another run (spec r4dv 4.9: loaders of foreground and background)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from core_ns.errors import DataError
from core_ns.trainer import read_checkpoint

if TYPE_CHECKING:
    from r4dv_ns.joint_model import JointModel

MODEL = "_model."
SUBJECT = ("bounds", "points.", "planes.", "motion.", "geometry.", "feature_net.", "blend.", "sh.")
"""Beginnings of the names of what the subject's branch consists of."""
ROOM = "room."


def stored_branch(file: Path, subject: bool) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a branch, by its name in the model.

    Args:
        file: a checkpoint of r4dv (subject only) or r4dv-bg.
        subject: which branch.

    Raises:
        DataError: the file does not load, or holds nothing of the branch.
    """
    names = SUBJECT if subject else (ROOM,)
    stored = read_checkpoint(Path(file))["pipeline"]
    found = {name.removeprefix(MODEL): value for name, value in stored.items() if name.startswith(MODEL)}
    found = {name: value for name, value in found.items() if name.startswith(names)}
    if not found:
        raise _refused(file, subject, "does not hold this branch.")
    return found


def _refused(file: Path, subject: bool, problem: str) -> DataError:
    place = f"pipeline.model.{'foreground' if subject else 'background'}-checkpoint"
    return DataError(file, place, problem, "Name a run on the same frames with the same settings of planes and motion.")


def load_branch(model: JointModel, file: Path, subject: bool) -> None:
    """Take over the subject or the background of a run on the same recording.

    Args:
        model: receives it; its optimisers stay valid.
        file, subject: as of `stored_branch`.

    Raises:
        DataError: see `stored_branch`; or the branch has other sizes or another box.
    """
    taken = stored_branch(file, subject)
    names = SUBJECT if subject else (ROOM,)
    own = {name: value for name, value in model.state_dict().items() if name.startswith(names)}
    missing, unknown = sorted(set(own) - set(taken)), sorted(set(taken) - set(own))
    if missing or unknown:
        raise _refused(file, subject, f"does not hold this branch: missing {missing[:3]}, unknown {unknown[:3]}.")
    if subject and not torch.allclose(taken["bounds"].to(own["bounds"]), own["bounds"], rtol=1e-3, atol=1e-6):
        raise _refused(file, subject, "belongs to another box of the subject (other hulls).")
    try:
        model.load_state_dict(taken, strict=False)
    except RuntimeError as error:
        raise _refused(file, subject, f"does not fit: {str(error).strip().splitlines()[-1].strip()}.") from error
