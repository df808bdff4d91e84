"""nerfstudio dataparser ``mvsnet-data``: photos, MVSNet cameras and a mesh in a folder (spec xscale 2.1, 2.7, 2.8)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, Optional, Type

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv, transform_cameras
from core_ns.images import IMAGE_SUFFIXES, image_size
from dataparsers.mesh import MESH_SUFFIXES, load_mesh, mesh_files
from dataparsers.mvsnet import MvsCamera, read_cam, read_view_list

CAM_SUFFIX = "_cam.txt"
LISTS = ("train_views.txt", "test_views.txt", "ignore_views.txt")

_SKEW_LIMIT_PIXELS = 0.25


@dataclass
class MvsnetDataParserConfig(DataParserConfig):
    """Photos ``images_D``, cameras ``cams_D`` in MVSNet's text format, and a mesh in the same world frame."""

    _target: Type = field(default_factory=lambda: MvsnetDataParser)
    data: Path = Path()
    """Scene folder."""
    downscale_factor: Optional[int] = None
    """Which images_D and cams_D to read; by default the only pair there is. Plain images and cams count as 1."""
    mesh: Optional[Path] = None
    """Mesh file; by default the only one in the scene folder."""
    require_mesh: bool = True
    """Refuse a scene without a mesh. If False, such a scene is centred and scaled by its cameras."""
    pixel_center_offset: float = 0.5
    """Where the camera files put the centre of the top-left pixel: 0.5, or 0.0 for integer pixel centres."""
    up: Literal["keep", "cameras"] = "cameras"
    """Turn the scene so that the mean camera up becomes +z, which the viewer expects; or keep the axes of the files."""
    eval_mode: Literal["auto", "files", "interval", "fraction", "all"] = "auto"
    """How to hold out views: lists train_views.txt, test_views.txt, ignore_views.txt; every eval_interval-th; a share;
    or all for both. auto takes the lists if there are any, else interval."""
    eval_interval: int = 7
    """Views 0, n, 2n, ... are held out (interval)."""
    train_split_fraction: float = 0.9
    """Share of the views to train on (fraction)."""


@dataclass(frozen=True, eq=False)
class View:
    """One photo with its camera; ``name`` is the stem of the photo, ``size`` (width, height) in stored pixels."""

    name: str
    image: Path
    camera: MvsCamera
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Normalization:
    """World to dataparser space: X' = scale (A X + b) with transform [A|b], float64 [3, 4]."""

    transform: Float[np.ndarray, "3 4"]
    scale: float


def find_folders(scene: Path, downscale: int | None) -> tuple[Path, Path, int]:
    """(image folder, camera folder, downscale factor) of a scene.

    Raises:
        DataError: no such pair of folders, or several and ``downscale`` is None.
    """
    if not scene.is_dir():
        raise DataError(scene, "--data", "is not a folder.", "Name the scene folder that holds images_D and cams_D.")
    pairs: dict[int, tuple[Path, Path]] = {}
    seen = sorted(path.name for path in scene.iterdir() if path.is_dir() and re.match(r"(images|cams)(_|$)", path.name))
    factors = {1} | {int(match[1]) for name in seen if (match := re.fullmatch(r"images_([0-9]{1,6})", name))}
    for factor in sorted(factors):
        names = [f"_{factor}", ""] if factor == 1 else [f"_{factor}"]
        for name in names:
            if (scene / f"images{name}").is_dir() and (scene / f"cams{name}").is_dir():
                pairs.setdefault(factor, (scene / f"images{name}", scene / f"cams{name}"))
    known = f"Found {', '.join(seen) if seen else 'neither'}; each images_D needs a cams_D beside it."
    if downscale is None:
        if len(pairs) > 1:
            remedy = f"Choose one with --downscale-factor: {', '.join(map(str, pairs))}."
            raise DataError(scene, "images_*", f"holds {len(pairs)} resolutions.", remedy)
        downscale = next(iter(pairs), 0)
    if downscale not in pairs:
        wanted = f"images_{downscale} with cams_{downscale}" if downscale else "pair of images_D and cams_D folders"
        raise DataError(scene, "images_*, cams_*", f"holds no {wanted}.", known)
    return *pairs[downscale], downscale


def _check_size(view: View, cam_file: Path) -> None:
    """A principal point far from the middle of the photo betrays intrinsics made for another resolution."""
    intrinsics = view.camera.intrinsics
    shares = [intrinsics[axis, 2] / view.size[axis] for axis in (0, 1)]
    # Half and double resolution move both shares to 0.25 and 1.0; real lenses and crops stay near 0.5 on one axis.
    if max(abs(share - 0.5) for share in shares) <= 0.4 and max(shares) >= 0.33 and min(shares) <= 0.75:
        return
    principal, size = f"({intrinsics[0, 2]:.1f}, {intrinsics[1, 2]:.1f})", f"{view.size[0]}x{view.size[1]}"
    problem = f"principal point {principal} does not fit the {size} photo {view.image.name}."
    remedy = "The cameras are probably scaled for another downscale factor: K must be in pixels of these photos."
    raise DataError(cam_file, "intrinsic", problem, remedy)


def read_views(images: Path, cams: Path, pixel_center_offset: float = 0.5) -> list[View]:
    """Pair photos and cameras by name, in lexicographic order of the photo names; headers only, no pixels.

    Photos without a camera and cameras without a photo are listed in one warning and left out.

    Raises:
        DataError: fewer than two pairs, two photos of one name, an unusable camera or photo, or intrinsics that do not
            fit the photo.
    """
    photos: dict[str, Path] = {}
    for path in sorted(images.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem in photos:
            problem = f"has the same name as {photos[path.stem].name}, so one camera would serve both."
            raise DataError(path, "name", problem, "Remove or rename one of the two.")
        photos[path.stem] = path
    files = {path.name.removesuffix(CAM_SUFFIX): path for path in cams.glob(f"*{CAM_SUFFIX}")}
    alone = sorted(set(photos) - set(files)), sorted(set(files) - set(photos))
    paired = [name for name in photos if name in files]
    if len(paired) < 2:
        problem = f"{len(photos)} photos and {len(files)} cameras make {len(paired)} pair(s); at least 2 are needed."
        raise DataError(images, str(cams.name), problem, f"Each photo NAME.jpg needs a camera NAME{CAM_SUFFIX}.")
    for names, folder, lack in ((alone[0], images, "camera"), (alone[1], cams, "photo")):
        if names:
            listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            CONSOLE.print(f"[yellow]{folder.name}: {len(names)} without a {lack} left out: {listed}")
    views = []
    for name in paired:
        view = View(name, photos[name], read_cam(files[name], pixel_center_offset), image_size(photos[name]))
        _check_size(view, files[name])
        views.append(view)
    return views


def find_mesh(scene: Path, named: Path | None) -> Path | None:
    """The mesh to use: ``named`` (tried as given, then inside the scene), else the only one in the scene, else None.

    Raises:
        DataError: ``named`` does not exist, or several meshes and none named.
    """
    if named is not None:
        for path in (named, scene / named):
            if path.is_file():
                return path
        raise DataError(named, "--mesh", "is not a file.", f"Meshes in the scene: {_names(mesh_files(scene))}.")
    found = mesh_files(scene)
    if len(found) > 1:
        raise DataError(scene, "mesh", f"holds {len(found)} meshes: {_names(found)}.", "Name one with --mesh.")
    return found[0] if found else None


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths) or "none"


def _split_files(scene: Path, names: list[str], interval: int) -> tuple[list[int], list[int]]:
    """(train, test) by the lists that exist; a list that is absent is what the others leave."""
    train, test, ignored = (read_view_list(scene / name, names) if (scene / name).is_file() else None for name in LISTS)
    left = [index for index in range(len(names)) if index not in set(ignored or [])]
    if train is None and test is None:
        test = [index for index in left if index % interval == 0]
    chosen_test = [index for index in left if index in set(test)] if test is not None else None
    chosen_train = [index for index in left if train is None or index in set(train)]
    if train is not None and chosen_test is None:
        return chosen_train, [index for index in left if index not in set(train)]
    if train is None:
        return [index for index in chosen_train if index not in set(chosen_test or [])], chosen_test or []
    both = [names[index] for index in chosen_train if index in set(chosen_test or [])]
    if both:
        problem = f"{len(both)} views are in {LISTS[0]} and in {LISTS[1]}: {', '.join(both[:10])}."
        raise DataError(scene / LISTS[1], "views", problem, "Remove them from one list, or results are not held out.")
    return chosen_train, chosen_test or []


def split_views(config: MvsnetDataParserConfig, names: list[str]) -> tuple[list[int], list[int]]:
    """Positions of the (train, test) views in ``names`` (spec xscale 2.7).

    Raises:
        DataError: an unknown name in a list, a view in both lists, an empty part, or an unusable interval or fraction.
    """
    scene, count = config.data, len(names)
    if config.eval_interval < 2 or not 0.0 < config.train_split_fraction < 1.0:
        problem = f"eval_interval {config.eval_interval}, train_split_fraction {config.train_split_fraction} hold out"
        remedy = "Use an interval of at least 2 and a fraction between 0 and 1, or --eval-mode all."
        raise DataError(scene, "eval_mode", f"{problem} all views or none.", remedy)
    listed = [name for name in LISTS if (scene / name).is_file()]
    everything = list(range(count))
    if config.eval_mode == "all":
        return everything, everything
    if config.eval_mode == "files" or (config.eval_mode == "auto" and listed):
        if not listed:
            problem = f"none of {', '.join(LISTS)} exists."
            raise DataError(scene, "--eval-mode files", problem, "Write one of them, or use --eval-mode interval.")
        train, test = _split_files(scene, names, config.eval_interval)
    elif config.eval_mode == "fraction":
        amount = min(max(round(count * config.train_split_fraction), 1), count - 1)
        train = np.linspace(0, count - 1, amount).round().astype(int).tolist()
        test = [index for index in everything if index not in set(train)]
    else:
        train = [index for index in everything if index % config.eval_interval]
        test = everything[:: config.eval_interval]
    if not train or not test:
        problem = f"{len(train)} views to train on and {len(test)} held out, of {count}."
        place = ", ".join(listed) if listed else "eval_mode"
        raise DataError(
            scene, place, problem, "Both parts need a view; use --eval-mode all to evaluate on training views."
        )
    if len(test) == 1:
        CONSOLE.print("[yellow]Only one view is held out: ns-render interpolate needs two, and *_std will be NaN.")
    return train, test


def up_rotation(c2w: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "3 3"]:
    """The rotation A that turns the mean up direction of OpenGL cameras to +z; identity if they do not agree.

    World x stays as near as it can, so that scenes which are upright already are not turned.
    """
    up = c2w[:, :3, 1].mean(axis=0)
    length = float(np.linalg.norm(up))
    if length < 0.2:
        CONSOLE.print("[yellow]The cameras have no common up direction; the axes of the files are kept.")
        return np.eye(3)
    up = up / length
    helper = np.eye(3)[0] if abs(up[0]) < 0.9 else np.eye(3)[1]
    right = helper - up * (helper @ up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(up, right), up])


@lru_cache(maxsize=8)
def _mesh_box(path: Path, size: int, changed_ns: int, rotation: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the bounding box of A V in float64. Cached: train, test and ns-render all ask for the same mesh."""
    turned = load_mesh(path).vertices @ np.frombuffer(rotation).reshape(3, 3).T
    return turned.min(axis=0), turned.max(axis=0)


def normalize(c2w: Float[np.ndarray, "n 4 4"], mesh: Path | None, up: str = "cameras") -> Normalization:
    """Centre and scale so that the mesh (or, without one, the cameras) fits [-1, 1]^3; all in float64.

    Args:
        c2w: OpenGL camera-to-world, world frame of the files.
        mesh: mesh file in that frame.
        up: "cameras" also turns by `up_rotation`.
    """
    rotation = up_rotation(c2w) if up == "cameras" else np.eye(3)
    if mesh is None:
        centres = c2w[:, :3, 3] @ rotation.T
        low, high = centres.min(axis=0), centres.max(axis=0)
    else:
        state = mesh.stat()
        low, high = _mesh_box(mesh.resolve(), state.st_size, state.st_mtime_ns, rotation.tobytes())
    extent = float((high - low).max())
    offset = -(low + high) / 2
    return Normalization(np.concatenate([rotation, offset[:, None]], axis=1), 2.0 / extent if extent > 0 else 1.0)


def find_masks(scene: Path, views: Sequence[View], downscale: int) -> list[Path] | None:
    """``masks_D/NAME.png`` (or ``masks`` at full resolution) of the views; None when there is no such folder.

    Raises:
        DataError: a mask is missing or has another size than its photo.
    """
    names = [f"masks_{downscale}", "masks"] if downscale == 1 else [f"masks_{downscale}"]
    folder = next((scene / name for name in names if (scene / name).is_dir()), None)
    if folder is None:
        return None
    masks = [folder / f"{view.name}.png" for view in views]
    for mask, view in zip(masks, views, strict=True):
        if image_size(mask) != view.size:
            problem = f"the mask is {image_size(mask)}, the photo {view.size} pixels."
            raise DataError(mask, "size", problem, f"Export masks in the resolution of images_{downscale}.")
    return masks


class MvsnetDataParser(DataParser):
    """Scene folder to nerfstudio cameras.

    Set ``normalization`` before asking for outputs to place the cameras without the mesh (a finished run knows its own
    frame, and must render after the mesh was moved away). The tools assign ``downscale_factor = 1`` to this object in
    inference mode; only the config's value is ever read, so the chosen folder stays.
    """

    config: MvsnetDataParserConfig
    normalization: Normalization | None = None

    def __init__(self, config: MvsnetDataParserConfig) -> None:
        super().__init__(config=config)
        self._views: list[View] | None = None

    def _warn_skew(self, views: Sequence[View]) -> None:
        worst = [
            (abs(view.camera.intrinsics[0, 1]) * view.size[1] / (2 * view.camera.intrinsics[1, 1]), view.name)
            for view in views
        ]
        bent = [pair for pair in worst if pair[0] > _SKEW_LIMIT_PIXELS]
        if bent:
            shift, name = max(bent)
            CONSOLE.print(
                f"[yellow]{len(bent)} cameras have skew, which nerfstudio's cameras cannot hold: up to {shift:.2f} px "
                f"off at the border of {name}."
            )

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Optional[dict]) -> DataparserOutputs:
        """Outputs of "train", "val" or "test" (the same two). Reads headers and text, never pixels.

        Raises:
            DataError: the scene is unusable; see the functions above.
        """
        config = self.config
        images, cams, downscale = find_folders(config.data, config.downscale_factor)
        if self._views is None:
            self._views = read_views(images, cams, config.pixel_center_offset)
            self._warn_skew(self._views)
        names = [view.name for view in self._views]
        train, test = split_views(config, names)
        views = [self._views[index] for index in (train if split == "train" else test)]
        mesh = find_mesh(config.data, config.mesh) if self.normalization is None else None
        if mesh is None and config.require_mesh and self.normalization is None:
            remedy = f"Put one of {', '.join(MESH_SUFFIXES)} there, or name it with --mesh."
            raise DataError(config.data, "mesh", "holds no mesh.", remedy)
        all_c2w = c2w_opengl_from_w2c_opencv(np.stack([view.camera.w2c for view in self._views]))
        space = self.normalization or normalize(all_c2w, mesh, config.up)
        c2w = c2w_opengl_from_w2c_opencv(np.stack([view.camera.w2c for view in views]))
        c2w = transform_cameras(c2w, space.transform, space.scale)[:, :3]
        intrinsics = np.stack([view.camera.intrinsics for view in views])

        def tensor(values: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)

        sizes = np.array([view.size for view in views])
        cameras = Cameras(
            camera_to_worlds=tensor(c2w),
            fx=tensor(intrinsics[:, 0, 0]),
            fy=tensor(intrinsics[:, 1, 1]),
            cx=tensor(intrinsics[:, 0, 2]),
            cy=tensor(intrinsics[:, 1, 2]),
            width=tensor(sizes[:, 0], torch.int64),
            height=tensor(sizes[:, 1], torch.int64),
            camera_type=CameraType.PERSPECTIVE,
        )
        return DataparserOutputs(
            image_filenames=[view.image for view in views],
            cameras=cameras,
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])),
            mask_filenames=find_masks(config.data, views, downscale),
            dataparser_transform=tensor(space.transform),
            dataparser_scale=space.scale,
            metadata={
                "mesh_path": str(mesh.resolve()) if mesh else None,
                # float64: dataparser_transform above is float32, too coarse for geo-referenced meshes.
                "mesh_transform": {"transform": space.transform.tolist(), "scale": space.scale},
                "split_names": [view.name for view in views],
                "train_names": [names[index] for index in train],
                "skew": intrinsics[:, 0, 1].tolist(),
            },
        )


mvsnet_data = DataParserSpecification(
    config=MvsnetDataParserConfig(),
    description="Photos, MVSNet camera files and a mesh: images_D/NAME.jpg, cams_D/NAME_cam.txt, MESH.ply.",
)
