"""Files of the original: a trained ``.pt`` or a charged ``.npz``, read into this package's names (spec r4dv 5.1).

Such a file is untrusted input: nothing in it is executed, every tensor is looked up by its name, and its shape and its
numbers are checked before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from core_ns.errors import DataError
from r4dv_ns.appearance import SAMPLE, BlendHead, ShHead
from r4dv_ns.feature_net import FeatureNet
from r4dv_ns.field import relu_mlp
from r4dv_ns.planes import Aggregate, PlaneField, import_planes
from r4dv_ns.vertex_planes import VertexPlanes, at_times, find_log2_table, vertex_tables

FEATURES, BASE = 8, 64
"""Channels per level and vertices per axis of the first level: constants of the original's configuration."""
_FOREIGN = "Give the .npz of a released model, or the .pt of a training of the original's 4k4d configurations."
_HISTORICAL = ("rgbws.", "shs.", "cents.", "rads.", "occs.", "sh_mlp.", "pulsar.", "ibr_regressor.feat_agg")
"""Beginnings of names that the original itself drops when it loads a file."""
_UNUSED = (".running_mean", ".running_var", ".num_batches_tracked", ".xy", ".xz", ".yz", ".bounds")
_UNUSED_LAYERS = ("feat_reg.smooth1",)
"""Coarser feature maps, which no point looks up."""


@dataclass(frozen=True, eq=False)
class PlaneTables:
    """Planes of one field, time not resampled yet."""

    aggregate: Aggregate
    dense: PlaneField | None
    """Of the original's ``torch`` backend; the other three are of no meaning then."""
    base: int = BASE
    spatial: tuple[Float[Tensor, "3 r r c"], ...] = ()
    """Per level; plane, second axis, first axis, channel: vertices of `VertexPlanes`."""
    temporal: tuple[Float[Tensor, "3 r v c"], ...] = ()
    """Per level; plane, axis, vertex in time, channel."""

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.spatial) if self.dense is None else len(self.dense.spatial)

    def field(self, times: list[float]) -> PlaneField:
        """Planes with one row per frame.

        Args:
            times: of the frames, as the original counted them.

        Raises:
            ValueError: planes of the ``torch`` backend for another number of frames.
        """
        if self.dense is not None:
            if self.dense.frames not in (None, len(times)):
                raise ValueError(f"planes for {self.dense.frames} frames, not {len(times)}")
            return self.dense
        found = VertexPlanes(self.levels, self.spatial[0].shape[-1], self.base, len(times), self.aggregate)
        with torch.no_grad():
            for level in range(self.levels):
                found.spatial[level].copy_(self.spatial[level])
                rows = torch.stack([at_times(plane, times) for plane in self.temporal[level]])
                found.temporal[level].copy_(rows.transpose(1, 2))
        return found


@dataclass(frozen=True, eq=False)
class Released:
    """A model of the original; float32 on the CPU, the states under this package's names."""

    points: tuple[Float[Tensor, "n 3"], ...]
    """Of each frame."""
    bounds: Float[Tensor, "2 3"]
    """Box in which the planes are read."""
    planes: PlaneTables
    motion: PlaneTables | None
    """None where the residual was folded into the points."""
    motion_mlp: dict[str, Tensor]
    geometry: dict[str, Tensor]
    feature_net: dict[str, Tensor]
    blend: dict[str, Tensor]
    sh: dict[str, Tensor]
    cameras: Float[Tensor, "f v 6"] | None
    """Corrections, multiplied to world-to-camera from the left: translation, rotation vector. None: all are zero."""
    epoch: int
    joint: bool
    """A background was beside it in the file."""
    left_out: tuple[str, ...] = field(default=())
    """Names in the file that nothing was made of, beyond those that the original drops as well."""


# ---------------------------------------------------------------------- the file


class _Tensors:
    """The tensors of a file by name, read when asked for."""

    def __init__(self, path: Path, names: list[str], read: Callable[[str], Any]) -> None:
        self.path, self._read, self.used = path, read, set[str]()
        self.names = {name.removeprefix("module."): name for name in names}

    def starting(self, prefix: str) -> list[str]:
        return [name for name in self.names if name.startswith(prefix)]

    def get(self, name: str, *shape: int | None) -> Tensor:
        """A float32 tensor of finite numbers; None stands for any length.

        Raises:
            DataError: it is not there, has another shape, or holds something else.
        """
        if name not in self.names:
            raise DataError(self.path, name, "is missing.", _FOREIGN)
        self.used.add(name)
        with self._readable(name):
            value = torch.as_tensor(self._read(self.names[name]))
        if not value.dtype.is_floating_point:
            raise DataError(self.path, name, f"holds {value.dtype}, not floating point numbers.", _FOREIGN)
        value = value.detach().to("cpu", torch.float32).contiguous()
        if len(shape) != value.ndim or any(
            want not in (None, have) for want, have in zip(shape, value.shape, strict=True)
        ):
            wanted = " x ".join("n" if want is None else str(want) for want in shape)
            raise DataError(self.path, name, f"has the shape {list(value.shape)}, not {wanted}.", _FOREIGN)
        if not bool(value.isfinite().all()):
            raise DataError(self.path, name, "holds numbers that are not finite.", "Take another checkpoint.")
        return value

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a dozen kinds, depending on where a damaged archive stops making sense
            raise _unreadable(self.path, error, name) from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[_Tensors, int]]:
    """The tensors of a file and its epoch, while the file is open."""
    if not path.is_file():
        raise DataError(path, "", "is not a file.", _FOREIGN)
    if path.suffix != ".npz":
        yield _checkpoint(path)
        return
    with ExitStack() as stack:
        try:
            # numpy leaves a damaged archive open that it has opened itself.
            handle = stack.enter_context(open(path, "rb"))
            archive = stack.enter_context(np.load(handle, allow_pickle=False))
            names = list(archive.files)
            epoch = int(archive["epoch"]) if "epoch" in names else -1
        except Exception as error:  # as in _Tensors
            raise _unreadable(path, error) from error
        yield _Tensors(path, names, lambda name: archive[name]), epoch


def _checkpoint(path: Path) -> tuple[_Tensors, int]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # as in _Tensors
        raise _unreadable(path, error) from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise DataError(path, "top level", "holds no named tensors.", _FOREIGN)
    epoch = content.get("epoch", -1)
    return _Tensors(path, list(state), lambda name: state[name]), epoch if isinstance(epoch, int) else -1


def _unreadable(path: Path, error: Exception, place: str = "") -> DataError:
    first = (str(error).strip().splitlines() or [""])[0]
    problem = f"is not readable as tensors and plain values ({type(error).__name__}: {first})."
    return DataError(
        path, "", problem, "Copy the file again; of a file of your own, save the model's state dict alone."
    )


# ---------------------------------------------------------------------- its parts


def read_released(path: str | Path) -> Released:
    """Read a checkpoint or a charged model of the original. Of one with a background, the subject.

    Raises:
        DataError: unreadable, tensors missing or of another shape, planes of an unknown kind, numbers not finite.
    """
    with _opened(Path(path)) as (tensors, epoch):
        return _released(tensors, epoch)


def _released(tensors: _Tensors, epoch: int) -> Released:
    joint = bool(tensors.starting("sampler.fg_sampler."))
    prefix = "sampler.fg_sampler." if joint else "sampler."
    points = _points(tensors, prefix)
    blend = _load(tensors, f"{prefix}ibr_regressor.rgb_mlp.", BlendHead, _TWO_LAYERS)
    width = blend["hidden.weight"].shape[1] - SAMPLE
    motion, motion_mlp = None, {}
    if tensors.starting(f"{prefix}pcd_embedder.") and tensors.starting(f"{prefix}resd_regressor."):
        motion_mlp = _load(tensors, f"{prefix}resd_regressor.mlp.", lambda n: relu_mlp(n, 64, 3), _THREE_LAYERS)
        motion = _planes(tensors, f"{prefix}pcd_embedder.", motion_mlp["0.weight"].shape[1])
    found = Released(
        points=points,
        bounds=_bounds(tensors, f"{prefix}xyz_embedder.bounds"),
        planes=_planes(tensors, f"{prefix}xyz_embedder.", width),
        motion=motion,
        motion_mlp=motion_mlp,
        geometry=_load(tensors, f"{prefix}geo_regressor.", lambda n: relu_mlp(n, 64, 2), _THREE_LAYERS, width),
        feature_net=_feature_net(tensors, f"{prefix}ibr_embedder.feat_reg."),
        blend=blend,
        sh=_load(tensors, f"{prefix}ibr_regressor.sh_mlp.", ShHead, _TWO_LAYERS, width),
        cameras=_cameras(tensors),
        epoch=epoch,
        joint=joint,
    )
    return Released(**{**vars(found), "left_out": _left_out(tensors, prefix)})


_TWO_LAYERS = ("hidden", "out")
_THREE_LAYERS = ("0", "2", "4")


def _points(tensors: _Tensors, prefix: str) -> tuple[Tensor, ...]:
    names = tensors.starting(f"{prefix}pcds.")
    numbers = sorted(int(name.rpartition(".")[2]) for name in names if name.rpartition(".")[2].isdecimal())
    if not numbers or len(numbers) != len(names) or numbers != list(range(len(numbers))):
        problem = "are missing" if not names else f"are numbered {numbers[:3]} ..., not 0, 1, 2, ..."
        raise DataError(tensors.path, f"{prefix}pcds.*", f"{problem}.", _FOREIGN)
    points = tuple(tensors.get(f"{prefix}pcds.{index}", None, 3) for index in numbers)
    for index, cloud in enumerate(points):
        if len(cloud) < 2:
            raise DataError(tensors.path, f"{prefix}pcds.{index}", f"holds {len(cloud)} points.", _FOREIGN)
    return points


def _bounds(tensors: _Tensors, name: str) -> Tensor:
    bounds = tensors.get(name, 2, 3)
    if not bool((bounds[0] < bounds[1]).all()):
        raise DataError(tensors.path, name, "is not a smallest and a largest corner.", _FOREIGN)
    return bounds


def _load(
    tensors: _Tensors, prefix: str, make: Callable[[int], nn.Module], layers: tuple[str, ...], width: int | None = None
) -> dict[str, Tensor]:
    """The layers of a network under this package's names; the original calls them ``linears.0``, ``linears.1``, ...,
    some files ``mlp.linears.0``."""
    inner = prefix if prefix.endswith("mlp.") and f"{prefix}linears.0.weight" in tensors.names else f"{prefix}mlp."
    inputs = tensors.get(f"{inner}linears.0.weight", None, width).shape[1] - (SAMPLE if make is BlendHead else 0)
    if inputs < 1:
        raise DataError(tensors.path, f"{inner}linears.0.weight", f"has {inputs} inputs for features.", _FOREIGN)
    with torch.device("meta"):
        wanted = make(inputs).state_dict()
    found = {}
    for index, layer in enumerate(layers):
        for kind in ("weight", "bias"):
            found[f"{layer}.{kind}"] = tensors.get(f"{inner}linears.{index}.{kind}", *wanted[f"{layer}.{kind}"].shape)
    return found


def _feature_net(tensors: _Tensors, prefix: str) -> dict[str, Tensor]:
    """The original's batch norms use the statistics of the one photo they see: the affine part is all they have."""
    theirs = {"norm": "bn", "laterals.0": "lat0", "laterals.1": "lat1", "laterals.2": "toplayer", "smooth": "smooth0"}
    found = {}
    with torch.device("meta"):
        wanted = FeatureNet().state_dict()
    for name, value in wanted.items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("stages."):
            _, stage, block, part = layer.split(".")
            layer = f"conv{stage}.{block}.{theirs.get(part, part)}"
        found[name] = tensors.get(f"{prefix}{theirs.get(layer, layer)}.{kind}", *value.shape)
    return found


def _planes(tensors: _Tensors, prefix: str, width: int) -> PlaneTables:
    """The planes of one embedder whose features have ``width`` channels."""
    name = f"{prefix}spatial_embedding.0"
    if f"{name}.tcnn_encoding.params" not in tensors.names:
        return _dense_planes(tensors, prefix, width)
    length = tensors.get(f"{name}.tcnn_encoding.params", None).numel()
    layout = _layout(width, length)
    if layout is None:
        problem = f"holds {length} numbers, which fit no {width} channels of {BASE} vertices and more."
        raise DataError(tensors.path, name, problem, "Only the resolutions of the released models can be imported.")
    aggregate, levels, log2_table = layout

    def level_tables(kind: str) -> tuple[Tensor, ...]:
        each = [
            vertex_tables(
                tensors.get(f"{prefix}{kind}_embedding.{plane}.tcnn_encoding.params", length),
                levels, FEATURES, BASE, log2_table,
            )
            for plane in range(3)
        ]  # fmt: skip
        return tuple(torch.stack([plane[level] for plane in each]) for level in range(levels))

    return PlaneTables(aggregate, None, BASE, level_tables("spatial"), level_tables("temporal"))


def _layout(width: int, length: int) -> tuple[Aggregate, int, int] | None:
    """How planes are joined, levels, and log2 of a level's longest table, from the lengths of a feature and of a plane.

    A product of planes has the lengths of a sum; the original's configurations use none.
    """
    kinds: tuple[tuple[Aggregate, int], ...] = (("sum", 1), ("cat", 6))
    for aggregate, planes in kinds:
        levels, rest = divmod(width, FEATURES * planes)
        if 0 < levels < 12 and not rest:
            log2_table = find_log2_table(length, levels, FEATURES, BASE)
            if log2_table is not None:
                return aggregate, levels, log2_table
    return None


def _dense_planes(tensors: _Tensors, prefix: str, width: int) -> PlaneTables:
    names = [name for kind in ("spatial", "temporal") for name in tensors.starting(f"{prefix}{kind}_embedding.")]
    if not names or any(not name.rpartition(".")[2].isdecimal() for name in names):
        raise DataError(tensors.path, f"{prefix}spatial_embedding.*", "are planes of an unknown kind.", _FOREIGN)
    state = {name.removeprefix(prefix): tensors.get(name, 3, None, None, None) for name in names}
    for aggregate in ("sum", "cat"):
        try:
            planes = import_planes(state, aggregate)  # type: ignore[arg-type]
        except ValueError as error:
            raise DataError(tensors.path, f"{prefix}spatial_embedding.*", f"{error}.", _FOREIGN) from error
        if planes.width == width:
            return PlaneTables(aggregate, planes)  # type: ignore[arg-type]
    raise DataError(tensors.path, f"{prefix}spatial_embedding.*", f"do not give {width} channels.", _FOREIGN)


def _cameras(tensors: _Tensors) -> Tensor | None:
    if "camera.pose_resd" not in tensors.names:
        return None
    found = tensors.get("camera.pose_resd", None, None, 6)
    return found if bool(found.any()) else None


def _left_out(tensors: _Tensors, prefix: str) -> tuple[str, ...]:
    """Names that were neither used nor are known to be of no use."""
    found = []
    for name in tensors.names:
        short = name.removeprefix(prefix)
        known = (
            short.startswith(_HISTORICAL) or short.endswith(_UNUSED) or any(part in short for part in _UNUSED_LAYERS)
        )
        if name not in tensors.used and name != "epoch" and not known and not name.startswith("sampler.bg_sampler."):
            found.append(name)
    return tuple(found)
