"""Where collections of clips keep their frames: a user's folder, and the four sets that XFactor was trained on.

    folder     VIDEOS/**/walk.mp4   VIDEOS/**/garden/000.jpg   VIDEOS/**/room/images/*.png + room/transforms.json
    re10k      ROOT/{train,test}/images/SEQ/*.png
    dl3dv      ROOT/training_256/PART/SCENE/images_8/frame_N.png + SCENE/transforms.json;
               held out are the scenes named in ROOT/test_256/benchmark_960p/
    mvimgnet   ROOT/CATEGORY/SCENE/images/NNN.jpg
    co3dv2     ROOT/CATEGORY/SEQ/images/frameNNNNNN.jpg

Source: spec xfactor 2.1 and 2.5. Folders are listed once, nothing is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from core_ns.errors import DataError
from dataparsers.clips_sequence import Order, ordered_pictures
from dataparsers.video_names import CLIP_SUFFIXES

Layout = Literal["folder", "re10k", "dl3dv", "mvimgnet", "co3dv2"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
Dataset = Literal["auto", "folder", "re10k", "dl3dv", "mvimgnet", "co3dv2"]

_CO3D = """
    apple backpack ball banana baseballbat baseballglove bench bicycle book bottle bowl broccoli cake car
    carrot cellphone chair couch cup donut frisbee hairdryer handbag hotdog hydrant keyboard kite laptop microwave
    motorcycle mouse orange parkingmeter pizza plant remote sandwich skateboard stopsign suitcase teddybear toaster
    toilet toybus toyplane toytrain toytruck tv umbrella vase wineglass
"""
CO3D_CATEGORIES = frozenset(_CO3D.split())
TRAIN_SHARE = (9, 10)
"""Of a category's scenes, sorted, this share from the first on is for training (MVImgNet, CO3Dv2)."""

# Beside a scene's "images": other sizes and other channels of the same frames.
_COMPANION = re.compile(r"(images|masks?|depths?|depth_masks|normals?|segmentations?|sparse|colmap)(_[0-9]+)?")
_DEEPEST = 40


class Found(NamedTuple):
    """A video or a folder with frames; nothing is known about what the files hold."""

    id: str
    source: Path
    order: Order | None
    """None of a video."""
    names: tuple[str, ...]
    """The frames' file names, in order; empty of a video."""
    transforms: Path | None
    split: Literal["train", "test"] | None
    """What the layout says; None where the collection has no rule of its own."""


class Walk:
    """Lists folders, and remembers how old each was: that tells whether a collection changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stamps: dict[str, list[int]] = {}
        """Path from the root -> [modification time in ns, size in bytes (0 of folders)]."""

    @staticmethod
    def of(root: Path, stamps: dict[str, list[int]]) -> Walk:
        """A walk that was made earlier."""
        walk = Walk(root)
        walk.stamps = stamps
        return walk

    def entries(self, folder: Path) -> tuple[list[str], list[str]]:
        """(folders, files) in a folder by name, sorted, without hidden ones.

        Raises:
            DataError: the folder cannot be listed.
        """
        try:
            with os.scandir(folder) as found:
                visible = [(entry.name, entry.is_dir()) for entry in found if not entry.name.startswith(".")]
            self.stamp(folder)
        except OSError as error:
            problem = f"cannot be listed ({error.strerror or error})."
            raise DataError(folder, "folder", problem, "Check the path and its permissions.") from error
        visible.sort()
        return [name for name, is_folder in visible if is_folder], [
            name for name, is_folder in visible if not is_folder
        ]

    def stamp(self, path: Path) -> None:
        """Remember a folder's or a video's age."""
        status = os.stat(path)
        size = 0 if os.path.isdir(path) else status.st_size
        self.stamps[path.relative_to(self.root).as_posix()] = [status.st_mtime_ns, size]

    def changed(self) -> str | None:
        """The first remembered path that is another one now; None where all are the same."""
        for name, stamp in self.stamps.items():
            path = self.root / name
            try:
                status = os.stat(path)
            except OSError:
                return name
            if status.st_mtime_ns != stamp[0] or (stamp[1] and status.st_size != stamp[1]):
                return name
        return None


def detect_layout(root: Path) -> Layout:
    """Which layout a folder has, by the names of the folders in it; anything unknown is a user's folder."""
    walk = Walk(root)
    folders, _ = walk.entries(root)
    if any((root / split / "images").is_dir() and walk.entries(root / split / "images")[0] for split in _RE10K_SPLITS):
        return "re10k"
    if "training_256" in folders:
        return "dl3dv"
    for category in folders:
        for scene in walk.entries(root / category)[0]:
            images = root / category / scene / "images"
            if not images.is_dir():
                continue
            files = walk.entries(images)[1]
            if category in CO3D_CATEGORIES and scene[0].isdigit() and ordered_pictures(files, "co3d"):
                return "co3dv2"
            # Categories are numbers there.
            if category.isdigit() and ordered_pictures(files, "first3"):
                return "mvimgnet"
            break
    return "folder"


def find_clips(walk: Walk, layout: Layout) -> Iterator[Found]:
    """All clips of a collection, in no particular order; folders without frames are left out.

    Raises:
        DataError: a folder that cannot be listed, or that the layout must have is not there.
    """
    return _FINDERS[layout](walk)


def _user_folder(walk: Walk) -> Iterator[Found]:
    return _search(walk, walk.root, ())


def _search(walk: Walk, folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above or len(above) > _DEEPEST:
        return  # a link to a folder that this one lies in
    folders, files = walk.entries(folder)
    for name in files:
        if Path(name).suffix.lower() in CLIP_SUFFIXES:
            walk.stamp(folder / name)
            id = (folder / name).relative_to(walk.root).with_suffix("").as_posix()
            yield Found(id, folder / name, None, (), None, None)
    names = ordered_pictures(files, "natural")
    if names:
        beside = [] if folder == walk.root else [folder.parent / f"{folder.name}_transforms.json"]
        transforms = _first_file(folder / "transforms.json", *beside)
        yield Found(_folder_id(walk.root, folder), folder, "natural", names, transforms, None)
    elif "images" in folders:
        names = ordered_pictures(walk.entries(folder / "images")[1], "natural")
        if names:
            transforms = _first_file(folder / "transforms.json")
            yield Found(_folder_id(walk.root, folder), folder / "images", "natural", names, transforms, None)
            folders = [name for name in folders if not _COMPANION.fullmatch(name)]
    for name in folders:
        yield from _search(walk, folder / name, (*above, here))


def _folder_id(root: Path, folder: Path) -> str:
    return folder.relative_to(root).as_posix() if folder != root else root.name or "clip"


def _first_file(*candidates: Path) -> Path | None:
    return next((path for path in candidates if path.is_file()), None)


_RE10K_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


def _re10k(walk: Walk) -> Iterator[Found]:
    known: list[Literal["train", "test"]] = [
        split for split in _RE10K_SPLITS if (walk.root / split / "images").is_dir()
    ]
    if not known:
        raise _missing(walk.root, "train/images or test/images", "re10k")
    for split in known:
        images = walk.root / split / "images"
        for sequence in walk.entries(images)[0]:
            names = ordered_pictures(walk.entries(images / sequence)[1], "trailing")
            if names:
                yield Found(sequence, images / sequence, "trailing", names, None, split)


def _dl3dv(walk: Walk) -> Iterator[Found]:
    training, benchmark = walk.root / "training_256", walk.root / "test_256" / "benchmark_960p"
    if not training.is_dir():
        raise _missing(walk.root, "training_256", "dl3dv")
    held_out = set(walk.entries(benchmark)[0]) if benchmark.is_dir() else set()
    for part in walk.entries(training)[0]:
        for scene in walk.entries(training / part)[0]:
            folder = training / part / scene
            transforms, images = folder / "transforms.json", folder / "images_8"
            if not transforms.is_file() or not images.is_dir():
                continue
            names = ordered_pictures(walk.entries(images)[1], "frame_n")
            if names:
                yield Found(scene, images, "frame_n", names, transforms, "test" if scene in held_out else "train")


def _by_category(
    layout: Layout, order: Order, category_fits: Callable[[str], bool], scene_fits: Callable[[str], bool]
) -> Callable[[Walk], Iterator[Found]]:
    def find(walk: Walk) -> Iterator[Found]:
        categories = [name for name in walk.entries(walk.root)[0] if category_fits(name)]
        any_scene = False
        for category in categories:
            found = []
            for scene in filter(scene_fits, walk.entries(walk.root / category)[0]):
                images = walk.root / category / scene / "images"
                names = ordered_pictures(walk.entries(images)[1], order) if images.is_dir() else ()
                if names:
                    found.append(Found(f"{category}/{scene}", images, order, names, None, None))
            trained = len(found) * TRAIN_SHARE[0] // TRAIN_SHARE[1]
            any_scene = any_scene or bool(found)
            for number, each in enumerate(found):
                yield each._replace(split="train" if number < trained else "test")
        if not any_scene:
            raise _missing(walk.root, "CATEGORY/SCENE/images with frames", layout)

    return find


def _missing(root: Path, what: str, layout: str) -> DataError:
    return DataError(
        root, "folder", f"has no {what}, which the {layout} layout keeps its frames in.", "Check --dataset."
    )


_FINDERS: dict[str, Callable[[Walk], Iterator[Found]]] = {
    "folder": _user_folder,
    "re10k": _re10k,
    "dl3dv": _dl3dv,
    "mvimgnet": _by_category("mvimgnet", "first3", lambda name: True, lambda name: True),
    "co3dv2": _by_category("co3dv2", "co3d", CO3D_CATEGORIES.__contains__, lambda name: name[0].isdigit()),
}
