"""nerfstudio dataparser ``blender-object-data``: NeRF-synthetic scenes in DIVeR's cube (spec diver 4.1).

Why not nerfstudio's ``blender-data``: its cameras are right and ours equal them, but its scene box is +-1.5 where the
original's grid (and its published weights) needs +-1.4; the background colour reaches the data, not the model; picture
paths lose any ``./`` in them (``../r_0`` becomes ``.r_0``) and always get ``.png``; one picture gives the size of all;
a scene without a val or test split, and every slip in the JSON, ends in a bare KeyError or assertion. Ours subclasses
it: same options, same cameras.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Type

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import Blender, BlenderDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.atomic import write_json
from core_ns.errors import DataError
from core_ns.frames import OPENGL_FROM_OPENCV
from core_ns.images import IMAGE_SUFFIXES, image_size, write_image
from dataparsers.nsvf import rigid_c2w
from dataparsers.object_box import (
    GRID_SIDE,
    RGB,
    Background,
    background_color,
    background_warning,
    detect_background,
    object_metadata,
)
from dataparsers.object_scene import ObjectScene, new_folder

MAX_BYTES = 64_000_000
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")

_LAYOUT = "NeRF-synthetic: {'camera_angle_x': radians, 'frames': [{'file_path': ..., 'transform_matrix': 4x4}, ...]}."
_PINHOLE = "Use nerfstudio-data for other cameras: it reads this file too, and undistorts."


@dataclass
class ObjectBlenderDataParserConfig(BlenderDataParserConfig):
    """NeRF-synthetic (Blender) scenes with the object in the middle of a cube."""

    _target: Type = field(default_factory=lambda: ObjectBlender)
    data: Path = Path()
    """Scene folder: transforms_train.json and its like, with the pictures they name."""
    background: Literal["auto", "white", "black"] = "auto"
    """What is behind the object. auto: alpha-color (white or black) for transparent pictures, else what the pictures'
    borders show."""
    grid_side: float = GRID_SIDE
    """Side of the cube about the origin, in units of the scene after scale-factor."""


@dataclass(frozen=True, eq=False)
class BlenderView:
    """One picture: ``c2w`` float64 [4, 4], rigid, OpenGL axes, units of the file; ``lens`` fx, fy, cx, cy in pixels;
    ``size`` (width, height)."""

    image: Path
    c2w: Float[np.ndarray, "4 4"]
    lens: tuple[float, float, float, float]
    size: tuple[int, int]


def _load(file: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises DataError: absent, huge, not JSON, not an object."""
    try:
        if not file.is_file():
            raise DataError(file, "path", "is not a file.", "A NeRF-synthetic scene holds transforms_train.json.")
        if file.stat().st_size > MAX_BYTES:
            raise DataError(file, "size", f"is larger than {MAX_BYTES} bytes.", "This is no list of cameras.")
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        problem = f"cannot be opened ({error.strerror or error})."
        raise DataError(file, "path", problem, "Check the path and its permissions.") from error
    except json.JSONDecodeError as error:
        raise DataError(file, f"line {error.lineno}", f"is not JSON ({error.msg}).", _LAYOUT) from error
    except UnicodeDecodeError as error:
        raise DataError(file, f"byte {error.start}", "is not UTF-8 text.", _LAYOUT) from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # numbers with thousands of digits, brackets thousands deep
        raise DataError(file, "content", f"is not usable JSON ({type(error).__name__}).", _LAYOUT) from error
    if not isinstance(content, dict):
        raise DataError(file, "content", f"is a {type(content).__name__}, not an object.", _LAYOUT)
    return content


def _number(mapping: Mapping[str, Any], key: str, file: Path, low: float, high: float) -> float:
    """A finite number strictly between two bounds, or DataError."""
    value = mapping.get(key)
    if key not in mapping:
        raise DataError(file, key, "is missing.", _LAYOUT)
    # bool is an int to Python; JSON's true is no angle. Integers beyond double range overflow float().
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
        raise DataError(file, key, f"is {str(value)[:40]}, not a number between {low:g} and {high:g}.", _LAYOUT)
    return float(value)


def _lens(meta: Mapping[str, Any], size: tuple[int, int], file: Path) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels of a picture of ``size``: from camera_angle_x, or from fl_x and so on where the
    exporter wrote them too (scaled from its w and h)."""
    width, height = size
    bent = [key for key in DISTORTION if meta.get(key) not in (None, 0, 0.0)]
    if bent:
        raise DataError(file, bent[0], f"is {str(meta[bent[0]])[:40]}: the pictures are distorted.", _PINHOLE)
    if "fl_x" not in meta:
        # The original's formula (spec diver 4.1); square pixels, principal point in the middle.
        focal = 0.5 * width / math.tan(0.5 * _number(meta, "camera_angle_x", file, 1e-6, math.pi - 1e-6))
        return focal, focal, width / 2, height / 2
    fx = _number(meta, "fl_x", file, 0, 1e9)
    fy = _number(meta, "fl_y", file, 0, 1e9) if "fl_y" in meta else fx
    native = [_number(meta, key, file, 0, 1e9) if key in meta else side for key, side in (("w", width), ("h", height))]
    cx = _number(meta, "cx", file, 0, native[0]) if "cx" in meta else native[0] / 2
    cy = _number(meta, "cy", file, 0, native[1]) if "cy" in meta else native[1] / 2
    scale_x, scale_y = width / native[0], height / native[1]
    if abs(width - native[0] * scale_y) > 1 + width / height:  # what rounding to whole pixels explains
        problem = f"{native[0]:g}x{native[1]:g} is of another shape than a {width}x{height} picture."
        raise DataError(file, "w, h", problem, "Correct w and h, or remove fl_x to use camera_angle_x.")
    return fx * scale_x, fy * scale_y, cx * scale_x, cy * scale_y


def _picture(folder: Path, name: object, file: Path, place: str) -> Path:
    """The picture of a frame: the path as written, or with an image suffix added."""
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise DataError(file, place, f"file_path is {str(name)[:40]!r}, not a path.", _LAYOUT)
    path = folder / name
    candidates = [path] if path.suffix.lower() in IMAGE_SUFFIXES else []
    if path.name:
        candidates += [path.with_name(path.name + suffix) for suffix in (".png", *IMAGE_SUFFIXES)]
    try:
        for candidate in candidates:
            if candidate.is_file():
                return candidate
    except OSError as error:  # a name longer than the file system takes
        problem = f"picture {name[:200]!r} cannot be opened ({error.strerror or error})."
        raise DataError(file, place, problem, _LAYOUT) from error
    remedy = "file_path is relative to the scene folder, with or without .png."
    raise DataError(file, place, f"there is no picture {name[:200]!r}.", remedy)


def read_transforms(file: Path) -> list[BlenderView]:
    """Cameras of one ``transforms_SPLIT.json``, in its order. Picture headers are read, no pixels.

    Raises:
        DataError: unusable JSON, camera, or picture.
    """
    meta = _load(file)
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        raise DataError(file, "frames", "is missing, empty or not a list.", _LAYOUT)
    views = []
    for number, frame in enumerate(frames):
        place = f"frames[{number}]"
        if not isinstance(frame, dict):
            raise DataError(file, place, f"is a {type(frame).__name__}, not an object.", _LAYOUT)
        image = _picture(file.parent, frame.get("file_path"), file, place)
        size = image_size(image)
        try:
            matrix = np.array(frame["transform_matrix"], dtype=np.float64)
            if matrix.shape not in ((4, 4), (3, 4)):
                raise ValueError(f"its shape is {matrix.shape}, not 4x4")
            c2w = rigid_c2w(matrix)
        except KeyError as error:
            raise DataError(file, place, "has no transform_matrix.", _LAYOUT) from error
        except (ValueError, TypeError, OverflowError) as error:
            problem = f"transform_matrix is no camera-to-world matrix: {error}."
            raise DataError(file, place, problem, "Export a rigid 4x4 matrix, OpenGL axes.") from error
        views.append(BlenderView(image, c2w, _lens(meta, size, file), size))
    return views


class ObjectBlender(Blender):
    """See `ObjectBlenderDataParserConfig`. World coordinates are used as they are (times scale-factor)."""

    config: ObjectBlenderDataParserConfig

    def __init__(self, config: ObjectBlenderDataParserConfig) -> None:
        if config.alpha_color not in (None, *RGB):
            problem = f"is {config.alpha_color}; only white and black can be rendered behind an object."
            raise DataError(config.data, "alpha_color", problem, "Use white or black.")
        for name in ("grid_side", "scale_factor"):
            if not (math.isfinite(getattr(config, name)) and getattr(config, name) > 0):
                problem = f"is {getattr(config, name)}, not a positive number."
                raise DataError(config.data, name, problem, "Leave it out for the usual value.")
        super().__init__(config)
        self._background: Background | None = None

    def _file(self, split: str) -> Path:
        """transforms_SPLIT.json; val and test stand in for each other where one is absent."""
        named = self.config.data / f"transforms_{split}.json"
        other = self.config.data / f"transforms_{'test' if split == 'val' else 'val'}.json"
        if split == "train" or named.is_file() or not other.is_file():
            return named
        CONSOLE.print(f"[yellow]{named.name} is absent; {other.name} is used for {split} too.")
        return other

    def _find_background(self, photos: list[Path]) -> Background:
        """Of the training pictures, whatever split was asked for; says once if it is not plain."""
        if self._background is None:
            config = self.config
            found = detect_background(photos, config.background)
            if config.background == "auto" and found.alpha and config.alpha_color == "black":
                found = found._replace(colour="black")
            if warning := background_warning(found):
                CONSOLE.print(f"[yellow]{warning}")
            self._background = found
        return self._background

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Optional[dict]) -> DataparserOutputs:
        """Outputs of "train", "val" or "test". Pixels are decoded only to find the background (eight pictures).

        With ``alpha_color`` None the pictures keep their alpha channel; the model is still told a background.

        Raises:
            DataError: the scene is unusable.
        """
        config = self.config
        if not config.data.is_dir():
            raise DataError(config.data, "--data", "is not a folder.", "Name the folder with transforms_train.json.")
        views = read_transforms(self._file(split))
        train = views if split == "train" else read_transforms(self._file("train"))
        background = self._find_background([view.image for view in train])
        c2w = torch.from_numpy(np.stack([view.c2w[:3] for view in views]).astype(np.float32))
        c2w[..., 3] *= config.scale_factor
        lens = torch.tensor([view.lens for view in views], dtype=torch.float32)
        sizes = torch.tensor([view.size for view in views], dtype=torch.int64)
        cameras = Cameras(
            camera_to_worlds=c2w,
            fx=lens[:, 0],
            fy=lens[:, 1],
            cx=lens[:, 2],
            cy=lens[:, 3],
            width=sizes[:, 0],
            height=sizes[:, 1],
            camera_type=CameraType.PERSPECTIVE,
        )
        metadata = object_metadata((0.0, 0.0, 0.0), config.grid_side, background)
        if config.ply_path is not None:
            metadata.update(self._load_3D_points(config.data / config.ply_path))
        corner = config.grid_side / 2
        return DataparserOutputs(
            image_filenames=[view.image for view in views],
            cameras=cameras,
            alpha_color=None if config.alpha_color is None else background_color(background.colour),
            scene_box=SceneBox(aabb=torch.tensor([[-corner] * 3, [corner] * 3])),
            dataparser_scale=config.scale_factor,
            metadata=metadata,
        )


def write_blender(folder: Path, scene: ObjectScene) -> None:
    """Write a NeRF-synthetic scene folder (RGBA PNG); it appears complete or not at all.

    Raises:
        DataError: ``folder`` is a file or holds something.
        ValueError: the layout cannot hold these intrinsics (square pixels, principal point in the middle).
    """
    k, (width, height) = scene.intrinsics, scene.size
    if k[0, 0] != k[1, 1] or k[0, 1] != 0 or tuple(k[:2, 2]) != (width / 2, height / 2):
        raise ValueError("NeRF-synthetic cameras have one focal length and the principal point in the middle")
    angle = 2 * math.atan(0.5 * width / k[0, 0])
    with new_folder(folder) as draft:
        for split in ("train", "val", "test"):
            pictures = [picture for picture in scene.pictures if picture.split == split]
            frames = []
            for index, picture in enumerate(pictures):
                write_image(draft / split / f"r_{index}.png", picture.rgba)
                matrix = (picture.c2w @ OPENGL_FROM_OPENCV).tolist()
                frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": matrix})
            if frames:
                write_json(draft / f"transforms_{split}.json", {"camera_angle_x": angle, "frames": frames})


blender_object_data = DataParserSpecification(
    config=ObjectBlenderDataParserConfig(),
    description="NeRF-synthetic (Blender) scenes in a cube of side 2.8, with the background known to the model.",
)
