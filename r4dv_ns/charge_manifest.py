"""``manifest.json``: everything about a charged recording but its points and their hashes (spec r4dv 5.2).

All places and cameras lie in nerfstudio's world, the one that the run was trained in; ``transform`` leads there from
the world of the recording's files. Cameras are OpenCV world-to-camera. "frame" and "view" are positions in ``frames``
and ``views``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from core_ns.atomic import write_text
from core_ns.errors import DataError
from r4dv_ns.charge_fields import Fields, inside, plain_name, read_fields
from r4dv_ns.charge_hashes import is_sha256, write_hashes
from r4dv_ns.charge_parts import (
    ARRAYS,
    DTYPES,
    FILE,
    GEOMETRY,
    VERSION,
    Array,
    ChargedView,
    EvalPhoto,
    Start,
    spread_times,
)

__all__ = ["ChargedView", "EvalPhoto", "Manifest", "Start", "parse_manifest", "read_manifest", "write_manifest"]


@dataclass(frozen=True, eq=False)
class Manifest:
    """See the module. Write with `write_manifest`, read with `read_manifest`."""

    frames: list[str]
    """Names of the frames, which their folders bear."""
    times: list[float]
    """Of each frame, in [0, 1], from 0 to 1 over these frames; rising."""
    counts: list[int]
    """Points of each frame, the background's included."""
    bounds: Float[Array, "2 3"]
    """Smallest and largest corner of the subject, world."""
    views: tuple[ChargedView, ...]
    start: Start
    hashes: str = ""
    """SHA-256 (hexadecimal) of ``hashes.json``, which has that of every file of points and photos."""
    transform: Float[Array, "4 4"] = field(default_factory=lambda: np.eye(4))
    """Rigid map from the files' world to this one."""
    layers: int = 12
    """Points blended per pixel."""
    min_radius: float = 0.75
    """Pixels; smaller discs are drawn at this size and fainter; 0: as they are."""
    sh_degree: int = 3
    sh_limit: float = 0.25
    """Largest view-dependent change of a colour; of no meaning where no source is stored (see `ChargedFrame`)."""
    background: float = 0.0
    """Grey behind the subject."""
    sources: int = 4
    """Photos that a picture is coloured from."""
    stored_sources: int = 0
    """Photos stored per frame, S; 0: harmonics alone."""
    source_metric: Literal["distance", "angle"] = "distance"
    time_mode: Literal["nearest", "blend"] = "nearest"
    packed: bool = False
    """Each frame is one compressed file."""
    dtypes: dict[str, str] = field(default_factory=lambda: {key: kinds[0] for key, kinds in DTYPES.items()})
    """Of each array, as numpy writes it: ``<f2``. ``branch`` only where it is stored."""
    boxes: tuple[Float[Array, "2 3"], ...] = ()
    """Smallest and largest corner of each frame's points, to which quantised positions refer; empty: ``bounds``."""
    static_count: int = 0
    """The last points of every frame are these many of the background, whose geometry lies in ``static/``."""
    eval_frames: list[int] = field(default_factory=list)
    """Frames to evaluate."""
    eval_photos: tuple[EvalPhoto, ...] = ()
    checkpoint: str = ""
    """SHA-256 of the checkpoint that was baked."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How it was baked; plain values."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else a reader may want to know (motion, occlusion, trained times...); plain values."""
    version: int = VERSION

    # ------------------------------------------------------------------ cameras and time

    @property
    def train_views(self) -> list[int]:
        """Views that were trained on."""
        return [index for index, view in enumerate(self.views) if view.train]

    @property
    def eval_views(self) -> list[int]:
        """Views that were held out."""
        return [index for index, view in enumerate(self.views) if not view.train]

    def camera(self, view: int, frame: int) -> tuple[Float[Array, "3 3"], Float[Array, "4 4"]]:
        """(K, w2c) of a view at a frame."""
        return self.views[view].camera(frame)

    def centres(self, frame: int, views: Items[int]) -> Float[Array, "v 3"]:
        """Centres of views at a frame, world."""
        return np.stack([self.views[view].centre(frame) for view in views])

    def frame_at(self, time: float | None) -> int:
        """The frame nearest to a time; the first for None."""
        return 0 if time is None else int(np.abs(np.asarray(self.times) - time).argmin())

    # ------------------------------------------------------------------ what is stored

    def box(self, frame: int) -> Float[Array, "2 3"]:
        """What quantised positions of a frame refer to."""
        return self.boxes[frame] if self.boxes else self.bounds

    def array_names(self) -> list[str]:
        """Arrays that every frame has, in the order of `ARRAYS`."""
        return [key for key in ARRAYS if key != "branch" or key in self.dtypes]

    def shape(self, key: str, frame: int) -> tuple[int, ...]:
        """Of an array in a frame's file; the background's geometry is not there."""
        n, s, k = self.counts[frame], self.stored_sources, (self.sh_degree + 1) ** 2
        own = n - self.static_count
        return {
            "xyz": (own, 3), "radius": (own,), "alpha": (own,), "sh": (own, k, 3),
            "src_rgb": (s, n, 3), "src_logit": (s, n), "src_id": (s,), "branch": (n,),
        }[key]  # fmt: skip

    def files(self, frame: int) -> dict[str, str]:
        """Array to path of a frame, relative to the folder; of a packed one the same path for all."""
        stem = self.frames[frame]
        return {key: f"frames/{stem}.npz" if self.packed else f"frames/{stem}/{key}.npy" for key in self.array_names()}

    def static_files(self) -> dict[str, str]:
        """Array to path of the background; empty without one."""
        return {key: f"static/{key}.npy" for key in GEOMETRY} if self.static_count else {}

    def array_bytes(self, frame: int) -> dict[str, int]:
        """Of a frame's arrays by name, without the background's geometry."""
        return {key: math.prod(self.shape(key, frame)) * np.dtype(kind).itemsize for key, kind in self.dtypes.items()}

    def bytes(self, frame: int) -> int:
        """Of all of them."""
        return sum(self.array_bytes(frame).values())

    def paths(self) -> list[str]:
        """All files of frames, background and photos, relative to the folder, with slashes; each once."""
        found = [path for frame in range(len(self.frames)) for path in self.files(frame).values()]
        found += self.static_files().values()
        for photo in self.eval_photos:
            found += [path for path in (photo.image, photo.mask, photo.valid) if path is not None]
        return list(dict.fromkeys(found))

    # ------------------------------------------------------------------ other manifests

    def select(self, chosen: Items[int]) -> Manifest:
        """The same for some of the frames, in this order: times, cameras, photos with their new numbers.

        Args:
            chosen: rising positions, at least one.
        """
        chosen = list(chosen)
        if chosen == list(range(len(self.frames))):
            return self
        new = {old: index for index, old in enumerate(chosen)}
        photos = tuple(replace(photo, frame=new[photo.frame]) for photo in self.eval_photos if photo.frame in new)

        def cut(matrices: Array) -> Array:
            return matrices if matrices.ndim == 2 else matrices[chosen]

        return replace(
            self,
            frames=[self.frames[frame] for frame in chosen],
            times=spread_times([self.times[frame] for frame in chosen]),
            counts=[self.counts[frame] for frame in chosen],
            views=tuple(replace(view, K=cut(view.K), w2c=cut(view.w2c)) for view in self.views),
            boxes=tuple(self.boxes[frame] for frame in chosen) if self.boxes else (),
            eval_frames=[new[frame] for frame in self.eval_frames if frame in new],
            eval_photos=photos,
        )


def write_manifest(folder: Path, manifest: Manifest, hashes: Mapping[str, str] | None = None) -> Manifest:
    """Write ``manifest.json`` atomically; the last file of a charge, whose presence says that it is whole.

    Args:
        hashes: SHA-256 of every file by its path relative to the folder: ``hashes.json`` is written first. None: that
            file stays as the manifest knows it.

    Returns:
        The manifest as it is written.

    Raises:
        DataError: it would not be read again; nothing is written.
    """
    folder = Path(folder)
    if hashes is not None:
        parse_manifest(Fields(json.loads(_text(replace(manifest, hashes="0" * 64))), folder / FILE))
        manifest = replace(manifest, hashes=write_hashes(folder, manifest, hashes))
    text = _text(manifest)
    parse_manifest(Fields(json.loads(text), folder / FILE))
    write_text(folder / FILE, text)
    return manifest


def _text(manifest: Manifest) -> str:
    return json.dumps(_plain(manifest), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """Dataclasses and arrays as what JSON has."""
    if isinstance(value, (Manifest, ChargedView, EvalPhoto, Start)):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, np.ndarray):
        return value.astype(np.float64).tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a charge; no other file is looked at.

    Raises:
        DataError: it is absent, of another version, or one of its entries cannot be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(folder, "", "is not a folder.", "Name the folder that `ns-r4dv charge bake` made.")
    return parse_manifest(read_fields(folder / FILE))


def parse_manifest(fields: Fields) -> Manifest:
    """`read_manifest` of the object that the file holds."""
    version = fields["version"]
    if version != VERSION:
        raise fields.wrong("version", f"is {version!r}; this program reads version {VERSION}")
    frames = fields.items("frames")
    if not frames or not all(map(plain_name, frames)) or len(set(frames)) != len(frames):
        raise fields.wrong("frames", "are not different plain names")
    count = len(frames)
    times = fields.array("times", (count,)).tolist()
    if times[0] != 0 or (count > 1 and times[-1] != 1) or (np.diff(times) <= 0).any():
        raise fields.wrong("times", "do not rise from 0 to 1")
    static = fields.whole("static_count", 0)
    counts = fields.items("counts")
    if len(counts) != count or not all(type(each) is int and static < each < 2**31 for each in counts):
        raise fields.wrong("counts", f"are not {count} numbers of points")
    manifest = Manifest(
        version=version,
        frames=frames,
        times=times,
        counts=counts,
        bounds=_box(fields, "bounds"),
        views=tuple(_view(each, count) for each in fields.objects("views")),
        start=Start(*(fields.child("start").array(key, (3,)) for key in ("position", "middle", "up"))),
        hashes=_sha256(fields, "hashes"),
        transform=_rigid(fields),
        layers=fields.whole("layers", 1),
        min_radius=fields.number("min_radius", 0),
        sh_degree=fields.whole("sh_degree", 0, 3),
        sh_limit=fields.number("sh_limit", 0),
        background=fields.number("background", 0, 1),
        sources=fields.whole("sources", 1),
        stored_sources=fields.whole("stored_sources", 0, 65535),
        source_metric=fields.text("source_metric", ("distance", "angle")),  # type: ignore[arg-type]
        time_mode=fields.text("time_mode", ("nearest", "blend")),  # type: ignore[arg-type]
        packed=fields.flag("packed"),
        dtypes=_dtypes(fields),
        boxes=_boxes(fields, count),
        static_count=static,
        eval_frames=_frames(fields, count),
        checkpoint=fields.text("checkpoint"),
        settings=fields.child("settings").content,
        notes=fields.child("notes").content,
    )
    names = [view.name for view in manifest.views]
    if not 0 < len(names) <= 65536 or len(set(names)) != len(names):
        raise fields.wrong("views", "are not up to 65536 cameras of different names")
    if manifest.stored_sources > len(manifest.train_views):
        raise fields.wrong("stored_sources", "are more than the views that were trained on")
    return replace(manifest, eval_photos=tuple(_photo(each, manifest) for each in fields.objects("eval_photos")))


def _box(fields: Fields, key: str) -> Float[Array, "2 3"]:
    box = fields.array(key, (2, 3))
    if not (box[0] < box[1]).all():
        raise fields.wrong(key, "are not a smallest and a largest corner")
    return box


def _boxes(fields: Fields, count: int) -> tuple[Float[Array, "2 3"], ...]:
    """None, or one a frame; a frame's points may lie in a plane."""
    boxes = fields.array("boxes", (count, 2, 3), (0,))
    if len(boxes) and (boxes[:, 0] > boxes[:, 1]).any():
        raise fields.wrong("boxes", "are not smallest and largest corners")
    return tuple(boxes)


def _sha256(fields: Fields, key: str) -> str:
    if not is_sha256(fields[key]):
        raise fields.wrong(key, "is not the SHA-256 of a file")
    return fields[key]


def _rigid(fields: Fields) -> Float[Array, "4 4"]:
    matrix = fields.array("transform", (4, 4))
    rotation = matrix[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise fields.wrong("transform", "is not a rotation and a shift")
    return matrix


def _view(fields: Fields, count: int) -> ChargedView:
    view = ChargedView(
        name=fields.name("name"),
        K=fields.array("K", (3, 3), (count, 3, 3)),
        width=fields.whole("width", 1, 2**20),
        height=fields.whole("height", 1, 2**20),
        w2c=fields.array("w2c", (4, 4), (count, 4, 4)),
        train=fields.flag("train"),
    )
    K, w2c = view.K.reshape(-1, 3, 3), view.w2c.reshape(-1, 4, 4)
    if (K[:, [0, 1], [0, 1]] <= 0).any() or not np.allclose(K[:, 2], (0, 0, 1)):
        raise fields.wrong("K", "is not a camera matrix")
    product = w2c[:, :3, :3] @ w2c[:, :3, :3].transpose(0, 2, 1)
    if not np.allclose(product, np.eye(3), atol=1e-3) or not np.allclose(w2c[:, 3], (0, 0, 0, 1)):
        raise fields.wrong("w2c", "is not a rotation and a shift")
    return view


def _frames(fields: Fields, count: int) -> list[int]:
    frames = fields.items("eval_frames")
    if not all(type(each) is int and 0 <= each < count for each in frames):
        raise fields.wrong("eval_frames", f"are not frames below {count}")
    return frames


def _dtypes(fields: Fields) -> dict[str, str]:
    given = fields.child("dtypes")
    found = {key: given.text(key, kinds) for key, kinds in DTYPES.items() if key != "branch" or key in given.content}
    if len(found) != len(given.content):
        raise given.wrong("", f"has {sorted(set(given.content) - set(found))[0]!r}, which is no array")
    return found


def _photo(fields: Fields, manifest: Manifest) -> EvalPhoto:
    paths = {key: None if key != "image" and fields[key] is None else fields.text(key) for key in _PHOTO_FILES}
    for key, path in paths.items():
        if path is not None and not inside(path, "eval"):
            raise fields.wrong(key, "is no photo of a charge")
    box = None
    if fields["box"] is not None:
        x, y, width, height = fields.array("box", (4,)).astype(int).tolist()
        view = manifest.views[fields.whole("view", 0, len(manifest.views) - 1)]
        if min(x, y) < 0 or min(width, height) < 1 or x + width > view.width or y + height > view.height:
            raise fields.wrong("box", "does not lie in the photo")
        box = x, y, width, height
    return EvalPhoto(
        view=fields.whole("view", 0, len(manifest.views) - 1),
        frame=fields.whole("frame", 0, len(manifest.frames) - 1),
        box=box, **paths,  # type: ignore[arg-type]
    )  # fmt: skip


_PHOTO_FILES = ("image", "mask", "valid")
