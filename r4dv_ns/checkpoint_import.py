"""A model of the original becomes a run folder that every ``ns-*`` command opens (spec r4dv 5.1).

Positions, networks and planes are the file's own numbers. Limits of radius and colour, which no file says, are the
original's constants unless told otherwise.
"""

from __future__ import annotations

import copy
import shlex
from dataclasses import dataclass, fields
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from core_ns.atomic import atomic_path, write_text
from core_ns.errors import DataError
from core_ns.frames import transform_points
from dataparsers.easymocap_options import SequenceOptions
from dataparsers.easymocap_parser import EasyMocapDataParserConfig
from dataparsers.easymocap_sequence import Sequence, open_sequence
from dataparsers.object_scene import new_folder
from dataparsers.point_ply import write_ply
from r4dv_ns.hull_meta import HullOptions
from r4dv_ns.hull_run import ensure_hulls
from r4dv_ns.points import spatial_order
from r4dv_ns.released_file import BASE, FEATURES, Released, read_released

Array = np.ndarray
Alignment = Literal["auto", "none", "aligned"]
JUDGED_FRAMES, JUDGED_VIEWS, JUDGED_POINTS = 3, 8, 2000
"""What tells whether points and cameras belong together: frames, photos of each, points in each."""
BELONG = 0.5
"""Share of the points that must fall on the subject, or the file is of another recording."""


@dataclass(frozen=True)
class Constants:
    """The original's configuration, as far as files do not hold it."""

    radius_min: float = 0.001
    """Smallest radius, world units."""
    radius_max: float = 0.015
    """Largest radius; 0.25 in its "views" configuration."""
    radius_shift: float = -5.0
    """Added to the radius before the sigmoid."""
    alpha_shift: float = 5.0
    """Added to the opacity before the sigmoid."""
    sh_limit: float = 0.25
    """Largest view-dependent change of a colour; 1 in older files."""


def import_released(
    file: Path,
    sequence: Path,
    out: Path,
    *,
    options: SequenceOptions | None = None,
    alignment: Alignment = "auto",
    constants: Constants | None = None,
) -> Path:
    """Write a run of ``r4dv-released`` that holds a released or trained model of the original.

    Args:
        file: charged model (``.npz``) or checkpoint (``.pt``).
        sequence: the recording it was trained on; its photos are needed to see anything.
        out: as ``--output-dir`` of ``ns-train``.
        options: of the recording: frames and views must be those that the file was trained on.
        alignment: axes of the file's points: those of the recording's calibration (none), or turned by the original's
            ``use_aligned_cameras`` (aligned); auto: what puts the points onto the subject.
        constants: what the file does not say.

    Returns:
        The run's ``config.yml``.

    Raises:
        DataError: file or recording is unusable, or they do not belong together; nothing is written.
    """
    constants = constants or Constants()
    _check(constants)
    options = options or SequenceOptions()
    if options.orientation != "none":
        problem = f"is {options.orientation}; the axes are those of the file's points."
        raise DataError("options", "--orientation", problem, "Leave it out; --alignment says which axes these are.")
    found = read_released(file)
    # Outside of the masks the original's photos were black.
    options = changed(options, fill_outside_mask=True)
    recording, options = _aligned(file, found, sequence.expanduser().resolve(), options, alignment)
    config = run_config(found, recording, options, constants, out)
    state = tensors(file, found, recording, options, constants)
    run = config.get_base_dir()
    manager = config.pipeline.datamanager
    with new_folder(run) as draft:
        manager.points_dir = draft / "points"
        _write_points(found, recording, manager.points_dir)
        with CONSOLE.capture():  # it names the draft
            ensure_hulls(recording, manager.points_dir, HullOptions(), progress=False)  # the box of these points
        pipeline = config.pipeline.setup(device="cpu", test_mode="test", world_size=1, local_rank=0)
        whole = {**pipeline.state_dict(), **{f"_model.{name}": value for name, value in state.items()}}
        pipeline.load_pipeline(whole, 0)
        pipeline.datamanager.close()
        with atomic_path(draft / config.relative_model_dir / "step-000000000.ckpt") as path:
            torch.save({"step": 0, "pipeline": whole, "optimizers": {}, "schedulers": {}, "scalers": {}}, path)
        manager.points_dir = run / "points"
        write_text(draft / "config.yml", yaml.dump(config))
    for line in [*_report(file, found), *commands(config)]:
        CONSOLE.print(line, soft_wrap=True, highlight=False, markup=False)
    return run / "config.yml"


def _check(constants: Constants) -> None:
    """Raises DataError for limits that no points can have."""
    limits = constants.radius_min, constants.radius_max
    if not (np.isfinite(limits).all() and 0 < limits[0] < limits[1]):
        problem = f"are {limits[0]} and {limits[1]}."
        raise DataError("options", "--radius-min, --radius-max", problem, "Give two lengths above 0, in this order.")
    if not (np.isfinite([constants.radius_shift, constants.alpha_shift]).all() and constants.sh_limit >= 0):
        raise DataError("options", "--radius-shift, --alpha-shift, --sh-limit", "are no numbers.", "Give numbers.")


# ---------------------------------------------------------------------- axes


def _aligned(
    file: Path, found: Released, root: Path, options: SequenceOptions, alignment: Alignment
) -> tuple[Sequence, SequenceOptions]:
    """The recording in the axes of the file's points, and the options that open it so."""
    choices: list[tuple[float, Sequence, SequenceOptions]] = []
    for orientation in ("none", "aligned") if alignment == "auto" else (alignment,):
        opened = changed(options, orientation=orientation)
        try:
            recording = open_sequence(root, opened)
        except DataError:
            if not choices:
                raise
            continue  # a ring of cameras that the original cannot align either
        count = len(found.points)
        if len(recording.frames) != count:
            problem = f"has {count} frames, the recording {len(recording.frames)}."
            raise DataError(file, "frames", problem, f"Choose the ones it was trained on: --frame-sample 0 {count} 1.")
        choices.append((on_subject(found, recording), recording, opened))
    # Equal where the calibration is aligned already.
    share, recording, opened = max(choices, key=lambda choice: choice[0])
    if alignment == "auto":
        shares = ", ".join(f"{choice.orientation} {100 * value:.0f} %" for value, _, choice in choices)
        CONSOLE.print(f"Points on the subject by orientation: {shares}.", highlight=False)
    if share < BELONG:
        problem = f"puts {100 * share:.0f} % of its points onto the subject."
        remedy = "Name the recording it was trained on, with the same views, frames and calibration (--cameras)."
        raise DataError(file, "pcds", problem, remedy)
    return recording, opened


def on_subject(found: Released, recording: Sequence) -> float:
    """Share of points, over some photos, that fall inside the mask (inside the photo where there are no masks)."""
    back, hits = np.linalg.inv(recording.transform), []
    for frame in _spread(len(recording.frames), JUDGED_FRAMES):
        cloud = found.points[frame][:: -(-len(found.points[frame]) // JUDGED_POINTS)].double().numpy()
        world = transform_points(cloud, back)
        for view in _spread(len(recording.views), JUDGED_VIEWS):
            K, w2c = recording.camera(view, frame)
            seen = (world @ w2c[:3, :3].T + w2c[:3, 3]) @ K.T
            width, height = recording.views[view].width, recording.views[view].height
            column, row = np.nan_to_num(seen[:, :2] / np.maximum(seen[:, 2:], 1e-9), posinf=-1, neginf=-1).T
            inside = (seen[:, 2] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            mask = recording.decode(view, frame).mask
            if mask is not None:
                place = np.clip(row, 0, height - 1).astype(int), np.clip(column, 0, width - 1).astype(int)
                inside &= mask[place] > 127
            hits.append(inside.mean())
    return float(np.mean(hits))


def _spread(count: int, most: int) -> list[int]:
    """At most so many of ``count`` numbers, evenly spread."""
    return sorted(set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()))


# ---------------------------------------------------------------------- tensors


def tensors(
    file: Path, found: Released, recording: Sequence, options: SequenceOptions, constants: Constants
) -> dict[str, Tensor]:
    """The state of a `ReleasedModel` with the file's numbers; points in `spatial_order`.

    Raises:
        DataError: planes or cameras of another number than the recording's.
    """
    times = original_times(recording, options)
    state = {f"points.points.{index}": cloud[spatial_order(cloud)] for index, cloud in enumerate(found.points)}
    state["bounds"] = found.bounds
    try:
        state |= {f"planes.{name}": value for name, value in found.planes.field(times).state_dict().items()}
        if found.motion is not None:
            state |= {f"motion.planes.{name}": value for name, value in found.motion.field(times).state_dict().items()}
    except ValueError as error:
        problem = f"holds {error}."
        raise DataError(file, "temporal_embedding", problem, "Choose the frames it was trained on.") from error
    parts = {
        "motion.mlp": found.motion_mlp, "geometry.mlp": found.geometry, "feature_net": found.feature_net,
        "blend": found.blend, "sh": found.sh,
    }  # fmt: skip
    state |= {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    state["geometry.limits"] = torch.tensor([constants.radius_min, constants.radius_max])
    state["geometry.biases"] = torch.tensor([constants.radius_shift, constants.alpha_shift])
    if found.cameras is not None:
        state["camera_refinement.adjustment"] = adjustments(file, found.cameras, recording)
    return {name: value.detach().float() for name, value in state.items()}


def original_times(recording: Sequence, options: SequenceOptions) -> list[float]:
    """When the original takes the chosen frames to be: it divides by the last frame that could have been chosen, not by
    the last one chosen (spec r4dv 10.1, B7)."""
    count, sample = len(recording.frames), options.frame_sample
    steps = max(count - 1, 1)
    if len(sample) == 3 and sample[2] not in (None, 1):
        everything = open_sequence(recording.root, changed(options, frame_sample=(0, None, 1)))
        begin, end, step = slice(*sample).indices(len(everything.frames))
        if step > 1:
            return [index * step / max(end - 1 - begin, 1) for index in range(count)]
    return [index / steps for index in range(count)]


def adjustments(file: Path, corrections: Float[Tensor, "f v 6"], recording: Sequence) -> Float[Tensor, "v 6"]:
    """The original's camera corrections as `CameraRefinement` holds them.

    Theirs are multiplied to world-to-camera from the left, w2c' = [E | t] w2c; ours turn and shift camera-to-world in
    world axes: with w2c = [R | b] the turn is R^T E^T R, and the shift the way from the old centre to the new.

    Raises:
        DataError: another number of cameras, or corrections that differ between frames.
    """
    from scipy.spatial.transform import Rotation

    views = len(recording.views)
    if corrections.shape[1] != views:
        problem = f"corrects {corrections.shape[1]} cameras; the recording has {views}."
        raise DataError(file, "camera.pose_resd", problem, "Choose the ones it was trained on with --view-sample.")
    if not torch.equal(corrections, corrections[:1].expand_as(corrections)):
        problem = "differs between frames; a camera has one correction here."
        raise DataError(file, "camera.pose_resd", problem, "Only still cameras can be imported.")
    found, back = np.zeros((views, 6)), np.linalg.inv(recording.transform)
    for view, (shift, vector) in enumerate(corrections[0].double().numpy().reshape(views, 2, 3)):
        w2c = recording.views[view].w2c(0) @ back
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = Rotation.from_rotvec(vector).as_matrix(), shift
        old, new = np.linalg.inv(w2c), np.linalg.inv(step @ w2c)
        turn = w2c[:3, :3].T @ step[:3, :3].T @ w2c[:3, :3]
        found[view] = [*(new[:3, 3] - old[:3, 3]), *Rotation.from_matrix(turn).as_rotvec()]
    return torch.from_numpy(found).float()


def _write_points(found: Released, recording: Sequence, folder: Path) -> None:
    """The points as training starts from them: files' world."""
    back = np.linalg.inv(recording.transform)
    for stem, cloud in zip(recording.frames, found.points, strict=True):
        write_ply(folder / "surfs" / f"{stem}.ply", transform_points(cloud.double().numpy(), back))


# ---------------------------------------------------------------------- the run


def run_config(found: Released, recording: Sequence, options: SequenceOptions, constants: Constants, out: Path) -> Any:
    """The trainer's configuration of the run."""
    from r4dv_ns.released_config import r4dv_released

    config: Any = copy.deepcopy(r4dv_released.config)
    config.output_dir, config.data = out.expanduser().resolve(), recording.root
    manager, model = config.pipeline.datamanager, config.pipeline.model
    refined = recording.calibration_dir != recording.root
    chosen = {each.name: getattr(options, each.name) for each in fields(SequenceOptions)}
    manager.dataparser = EasyMocapDataParserConfig(
        **{**chosen, "data": recording.root, "cameras": "optimized" if refined else "plain"}
    )
    manager.data = recording.root
    planes = found.planes
    model.lattice = "vertices" if planes.dense is None else "texels"
    model.plane_levels, model.aggregate = planes.levels, planes.aggregate
    model.plane_base, model.plane_features = BASE, FEATURES
    if planes.dense is not None:
        model.plane_base, model.plane_features = planes.dense.resolutions[0], planes.dense.features
        model.static = planes.dense.frames is None
    model.motion = found.motion is not None
    if found.motion is not None:
        model.motion_levels, model.motion_aggregate = found.motion.levels, found.motion.aggregate
    model.sh_limit = constants.sh_limit
    model.radius_min, model.radius_max = constants.radius_min, constants.radius_max
    if found.cameras is not None:
        model.camera_refinement.mode = "SO3xR3"
    config.set_timestamp()
    return config


def commands(config: Any) -> list[str]:
    """What to type next; ready to paste."""
    from r4dv_ns.released_config import r4dv_released

    run, manager = config.get_base_dir(), config.pipeline.datamanager
    quoted = shlex.quote(str(run / "config.yml"))
    train = ["ns-train", config.method_name, "--data", str(config.data)]
    train += ["--load-dir", str(run / config.relative_model_dir)]
    train += ["--pipeline.datamanager.points-dir", str(manager.points_dir)]
    plain: Any = r4dv_released.config.pipeline.model
    model = config.pipeline.model
    train += flags(model, plain, "pipeline.model.")
    train += flags(model.camera_refinement, plain.camera_refinement, "pipeline.model.camera-refinement.")
    data = flags(manager.dataparser, EasyMocapDataParserConfig(data=manager.dataparser.data))
    train += ["easymocap-data", *data] if data else []
    return [
        f"View:     ns-viewer --load-config {quoted}",
        f"Evaluate: ns-eval --load-config {quoted} --output-path {shlex.quote(str(run / 'eval.json'))}",
        f"Charge:   ns-r4dv charge bake --load-config {quoted}",
        f"Train on: {shlex.join(train)}",
    ]


def flags(given: Any, default: Any, prefix: str = "") -> list[str]:
    """Console options for what differs from the defaults: numbers, texts, switches and lists of them."""
    found = []
    for each in fields(given):
        value = getattr(given, each.name)
        if value == getattr(default, each.name) or not isinstance(value, (int, float, str, tuple)):
            continue
        values = value if isinstance(value, tuple) else (value,)
        flat = [item for part in values for item in (part if isinstance(part, tuple) else (part,))]
        found += [f"--{prefix}{each.name.replace('_', '-')}", *map(str, flat)]
    return found


def _report(file: Path, found: Released) -> list[str]:
    """What was found, and what was not taken."""
    sizes = [len(cloud) for cloud in found.points]
    points = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    kind = "a charge: motion is folded into the points" if found.motion is None else "a training checkpoint"
    lines = [f"{file}: {len(sizes)} frames of {points} points, epoch {found.epoch}, {kind}."]
    if found.planes.dense is None:
        lines.append("Hashed planes are read by tiny-cuda-nn's published rule; its binary was not at hand to compare.")
    if found.joint:
        lines.append("The file also holds a background, which is left out: only the subject was imported.")
    if found.left_out:
        names = ", ".join(found.left_out[:5])
        lines.append(f"Left out: {len(found.left_out)} tensors of no known use ({names}).")
    return lines
