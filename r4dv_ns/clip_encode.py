"""A recording as a minimal data set: one clip per camera, the subject cut out on black (spec r4dv 2.5)."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from core_ns.errors import DataError
from core_ns.images import image_size
from dataparsers.easymocap_files import MaskFiles, PhotoFiles, find_masks
from dataparsers.easymocap_lens import resized
from dataparsers.easymocap_view import frame_number, read_mask, wrong_size
from dataparsers.picture_record import Record, begin, refuse_other, stamp_of
from dataparsers.video_names import ClipName, camera_of
from dataparsers.video_write import CRF, KEY_EVERY, Rectangle, crop_of, even_canvas, write_clip
from r4dv_ns.picture_jobs import Step, each_camera, open_photos, place_below

Array = np.ndarray


@dataclass(frozen=True)
class EncodeOptions:
    """How clips are encoded."""

    ratio: float = 0.5
    """Size of the clips over that of the photos."""
    crf: int = CRF
    """Quality of the clips, 0 (best) to 51. Clips of masks get 7 less."""
    fps: float = 25.0
    """Pictures per second when somebody plays them."""
    key_every: int = KEY_EVERY
    """A picture that decodes by itself every so many: fewer make smaller files that are slower to train from."""
    full_colour: bool = False
    """Store every pixel's colour, not one for 2x2 pixels: larger, sharper in colour, and not for every player."""
    whole: bool = False
    """Whole photos with their background, instead of the subject on black."""
    threshold: float = 0.1
    """Share of foreground from which on a pixel is kept."""


def encode(
    root: Path,
    *,
    image_dir: str = "images",
    mask_dir: str = "masks",
    video_dir: str = "videos_libx265",
    mask_video_dir: str = "videos_masks_libx265",
    frames: Sequence[int | None] = (0, None, 1),
    options: EncodeOptions | None = None,
    workers: int = 0,
) -> list[Path]:
    """Encode all cameras' photos, and their masks.

    The crop of a camera is the box of what is kept over all frames. A camera that is finished stays when the command is
    given again; every clip appears whole or not at all, and the same photos give the same bytes.

    Args:
        root: the recording; no calibration is needed.
        image_dir: photos or clips.
        mask_dir: masks; "none" with ``options.whole``.
        video_dir: folder to make for clips, relative to ``root``.
        mask_video_dir: the same for clips of the masks; "none" for none. What is black on the subject itself would be
            lost without them.
        frames: begin, end, step, or a list. Clips number them from 0; poses of cameras that move are not renamed.

    Returns:
        The clips, those of masks last.

    Raises:
        DataError: no masks, sizes that disagree, a folder that holds something else, frames of a camera that moves that
            would get other numbers; nothing is written then.
    """
    options = options or EncodeOptions()
    _check(options, root, mask_dir)
    photos, stems = open_photos(root, image_dir, frames)
    _check_poses(root, photos.names, stems)
    files = {name: photos.of(name, stems) for name in photos.names}
    masks = None
    if mask_dir != "none":
        place = place_below(root, mask_dir)
        if not place.is_dir():
            problem = "is not there: the subject cannot be cut out."
            raise DataError(place, "masks", problem, "Make masks with ns-r4dv process masks, or encode --whole.")
        masks = find_masks(place.parent, place.name, photos, stems)
    makers = [_CameraClips(photos, masks, name, stems, files[name], options) for name in photos.names]
    settings = {**vars(options), "frames": list(frames)}
    sources = {maker.name: maker.fingerprint() for maker in makers}
    targets = [root / video_dir] + ([root / mask_video_dir] if masks is not None and mask_video_dir != "none" else [])
    kinds = ("clips", "clips of masks")
    fresh = [(target, Record(what, settings, sources)) for target, what in zip(targets, kinds, strict=False)]
    for target, record in fresh:
        refuse_other(target, record)
    records = [begin(target, record) for target, record in fresh]
    lock = threading.Lock()
    by_name = {maker.name: maker for maker in makers}
    made: dict[tuple[int, str], Path] = {}

    def job(name: str, step: Step) -> None:
        maker = by_name[name]
        for kind, (target, record) in enumerate(zip(targets, records, strict=True)):
            file = next((target / done for done in record.done if camera_of(target / done) == name), None)
            if file is None or not file.is_file():
                file = target / f"{maker.clip_name()}.mp4"
                write_clip(
                    file, maker.pictures(kind == 1, step), maker.rectangle()[2:],
                    crf=max(0, options.crf - 7 * kind), fps=options.fps, key_every=options.key_every,
                    full_colour=options.full_colour and kind == 0,
                )  # fmt: skip
                with lock:
                    record.done = sorted({*record.done, file.name})
                    record.write(target)
            made[kind, name] = file

    each_camera(photos.names, job, len(stems) * len(photos.names) * len(targets), "Encoding", workers)
    return [made[kind, name] for kind in range(len(targets)) for name in photos.names]


def _check(options: EncodeOptions, root: Path, mask_dir: str) -> None:
    wrong = []
    if not 0 < options.ratio <= 1:
        wrong.append(("ratio", "Give a number above 0, at most 1."))
    if not 0 <= options.crf <= 51:
        wrong.append(("crf", "Give a whole number from 0 to 51."))
    if not 0.1 <= options.fps <= 1000:
        wrong.append(("fps", "Give pictures per second."))
    if not 1 <= options.key_every <= 1000:
        wrong.append(("key-every", "Give a number of frames from 1 on."))
    if not 0 < options.threshold <= 1:
        wrong.append(("threshold", "Give a share above 0, at most 1."))
    for name, remedy in wrong:
        raise DataError(root, f"--{name}", f"is {getattr(options, name.replace('-', '_'))}.", remedy)
    if mask_dir == "none" and not options.whole:
        raise DataError(root, "--mask-dir", "none leaves nothing to cut the subject out by.", "Add --whole.")


def _check_poses(root: Path, names: Sequence[str], stems: Sequence[str]) -> None:
    """Poses of cameras that move are found by their frames' names, which clips do not keep.

    Raises:
        DataError: a pose would go to another frame.
    """
    if list(stems) == [f"{number:06d}" for number in range(len(stems))]:
        return
    for name in names:
        for place in (root / "cameras" / name, root / "optimized" / "cameras" / name):
            if place.is_dir():
                problem = f"moves, and its poses have the frames' names ({stems[0]}, ...); clips count from 000000."
                remedy = "Encode all frames from 000000 on, or rename photos, masks and poses first."
                raise DataError(place, f"camera {name}", problem, remedy)


class _CameraClips:
    """One camera's photos and masks on the canvas of its clip."""

    def __init__(
        self,
        photos: PhotoFiles,
        masks: MaskFiles | None,
        name: str,
        stems: Sequence[str],
        files: Sequence[Path],
        options: EncodeOptions,
    ) -> None:
        self.photos, self.masks, self.name, self.stems, self.options = photos, masks, name, stems, options
        clip = photos.clips.get(name)
        self.stored = image_size(files[0]) if clip is None else clip.name.canvas
        self.full = photos.full_sizes.get(name, self.stored)
        self.canvas = even_canvas(self.stored, options.ratio)
        self._rectangle: Rectangle | None = None
        if masks is not None:
            mask = masks.clips[name].clip.name.canvas if name in masks.clips else image_size(masks.files[name][0])
            if mask != self.stored:
                raise wrong_size(masks.files[name][0], name, mask, self.stored, "its photo")

    def fingerprint(self) -> str:
        """Of the files that everything comes from."""
        stamps = [stamp_of(self.photos.sources(self.name)), self.stems]
        if self.masks is not None:
            clip = self.masks.clips.get(self.name)
            stamps.append(stamp_of(self.masks.files[self.name] if clip is None else [clip.clip.file]))
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:32]

    def clip_name(self) -> ClipName:
        """What the clip is called."""
        x, y, _, _ = self.rectangle()
        return ClipName(self.name, len(self.stems), x, y, *self.canvas, *self.full)

    def rectangle(self) -> Rectangle:
        """The crop: all that is kept at any frame."""
        if self._rectangle is None:
            width, height = self.canvas
            shown = np.ones((height, width), bool)
            if self.masks is not None and not self.options.whole:
                shown = np.zeros((height, width), bool)
                for row in range(len(self.stems)):
                    shown |= self._mask(row) >= self._limit
            self._rectangle = crop_of(shown)
        return self._rectangle

    def pictures(self, of_masks: bool, step: Step) -> Iterator[UInt8[Array, "h w 3"]]:
        """The clip's pictures in order.

        Raises:
            DataError: a photo or mask does not decode, or is of another size than the first.
        """
        x, y, width, height = self.rectangle()
        part = (slice(y, y + height), slice(x, x + width))
        for row, stem in enumerate(self.stems):
            if of_masks:
                yield np.repeat(self._mask(row)[part][..., None], 3, axis=2)
            else:
                photo = self._sized(self.photos.read(self.name, stem), self.photos.found[self.name][stem])[part]
                if self.masks is not None and not self.options.whole:
                    photo = np.where((self._mask(row)[part] >= self._limit)[..., None], photo, 0).astype(np.uint8)
                yield photo
            step()

    @property
    def _limit(self) -> float:
        return 255 * self.options.threshold

    def _mask(self, row: int) -> UInt8[Array, "h w"]:
        assert self.masks is not None
        file = self.masks.files[self.name][row]
        clip = self.masks.clips.get(self.name)
        return self._sized(read_mask(file) if clip is None else clip.read(frame_number(file)), file)

    def _sized(self, picture: Array, file: Path) -> Array:
        if picture.shape[1::-1] != self.stored:
            raise wrong_size(file, self.name, picture.shape[1::-1], self.stored, "its camera's first photo")
        return resized(picture, *self.canvas)
