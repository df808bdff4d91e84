"""``ns-r4dv process``: clips to photos and masks, a recording to clips, clean plates (spec r4dv 2.5, 3.4, 8.7)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Optional, Tuple, Union

import tyro

from core_ns.errors import DataError
from r4dv_ns.clip_encode import EncodeOptions

Frames = Tuple[Optional[int], ...]
ENCODED = "videos_libx265"
"""Usual folder of clips with the subject on black."""


@dataclass
class Images:
    """Write the frames of clips as pictures: of raw videos CAM.mp4, or of the clips of a minimal data set."""

    sequence: tyro.conf.Positional[Path]
    """Folder of the recording; made if need be."""
    video_dir: Optional[str] = None
    """Folder of the clips, in the recording or anywhere. By default videos_libx265, else videos."""
    image_dir: Optional[str] = None
    """Folder to make. By default images for raw videos, images_libx265 for encoded clips."""
    full_size: bool = False
    """Enlarge encoded clips to the size of the photos they were made of, as the original does. Not needed: readers
    scale the calibration."""
    suffix: Literal["auto", "png", "jpg"] = "auto"
    """png for encoded clips, jpg for raw videos, or one of them for both."""
    frames: Frames = (0, None, 1)
    """Begin, end (exclusive, None for all), step; or a list."""
    workers: int = 0
    """Cameras at a time; 0: as many as processor cores."""

    def main(self) -> int:
        """Extract; the same command goes on after an interruption."""
        from r4dv_ns.clip_extract import extract_images

        clips = self.video_dir or default_clips(self.sequence)
        folder = extract_images(
            self.sequence, video_dir=clips, image_dir=self.image_dir, full_size=self.full_size, frames=self.frames,
            suffix=self.suffix, workers=self.workers,
        )  # fmt: skip
        print(f"Written: {folder}")
        return 0


@dataclass
class Masks:
    """Make masks of clips or photos."""

    sequence: tyro.conf.Positional[Path]
    """Folder of the recording."""
    method: Literal["threshold", "plate", "rvm"] = "threshold"
    """threshold: what is not black. plate: what differs from a clean plate, bkgd/CAM.jpg. rvm: the network
    RobustVideoMatting, which you provide."""
    video_dir: Optional[str] = None
    """Folder of the clips. By default videos_libx265 for threshold."""
    image_dir: Optional[str] = None
    """Folder of photos, instead of clips. By default images for plate and rvm."""
    mask_dir: Optional[str] = None
    """Folder to make. By default masks for photos, masks_libx265 for encoded clips."""
    plate_dir: str = "bkgd"
    """Folder of the plates."""
    threshold: Optional[float] = None
    """threshold: R + G + B that is not black any more, 12. plate: 8-bit steps of a difference, by default from the
    picture's noise."""
    single_channel: bool = False
    """The clips are masks, grey in their first channel; by default those of videos_masks_libx265."""
    full_size: bool = False
    """As for images: masks and images must agree."""
    rvm_repository: Optional[Path] = None
    """rvm: a clone of the network's repository, whose code is run."""
    download: bool = False
    """rvm: fetch the repository with torch.hub, and run its code."""
    frames: Frames = (0, None, 1)
    """Begin, end (exclusive, None for all), step; or a list."""
    workers: int = 0
    """Cameras at a time; 0: as many as processor cores."""

    def main(self) -> int:
        """Make them; the same command goes on after an interruption."""
        from dataparsers.video_names import holds_clips
        from r4dv_ns.clip_extract import Matting, extract_masks
        from r4dv_ns.mattes import Brightness, FirstChannel, PlateDifference
        from r4dv_ns.picture_jobs import place_below

        if self.video_dir is not None and self.image_dir is not None:
            raise DataError(self.sequence, "--video-dir, --image-dir", "are both given.", "Name one of them.")
        matting: Matting
        if self.single_channel:
            matting, source = FirstChannel(), self.video_dir or self.image_dir or "videos_masks_libx265"
        elif self.method == "threshold":
            # Raw videos show their background: whoever has some on black must say so.
            if not (self.video_dir or self.image_dir or holds_clips(self.sequence / ENCODED)):
                remedy = "Name pictures of one with --video-dir or --image-dir, or choose another --method."
                raise DataError(self.sequence, "--method threshold", "holds no clips of a subject on black.", remedy)
            threshold = 12 if self.threshold is None else int(self.threshold)
            matting, source = Brightness(threshold), self.video_dir or self.image_dir or ENCODED
        elif self.method == "plate":
            plates = place_below(self.sequence, self.plate_dir)
            matting, source = PlateDifference(plates, self.threshold), self.video_dir or self.image_dir or "images"
        else:
            from r4dv_ns.video_matting import VideoMatting

            matting = VideoMatting(self.rvm_repository, self.download)
            source = self.video_dir or self.image_dir or "images"
        folder = extract_masks(
            self.sequence, matting, source_dir=source, mask_dir=self.mask_dir, full_size=self.full_size,
            frames=self.frames, workers=self.workers,
        )  # fmt: skip
        print(f"Written: {folder}\nCheck: ns-r4dv hull {shlex.quote(str(self.sequence))}")
        return 0


@dataclass
class Encode:
    """Make a recording small: a clip per camera with the subject on black, and one with its masks.

    Whoever gets the clips, intri.yml and extri.yml can train: ns-train r4dv --data FOLDER.
    """

    sequence: tyro.conf.Positional[Path]
    """Folder of the recording."""
    image_dir: str = "images"
    """Folder of the photos, or of raw videos."""
    mask_dir: str = "masks"
    """Folder of the masks; none, with whole."""
    video_dir: str = "videos_libx265"
    """Folder to make."""
    mask_video_dir: str = "videos_masks_libx265"
    """Folder to make for the masks; none to leave them out: they are then found by what is black."""
    frames: Frames = (0, None, 1)
    """Begin, end (exclusive, None for all), step; or a list. Clips number them from 0."""
    workers: int = 0
    """Cameras at a time; 0: as many as processor cores."""
    options: Annotated[EncodeOptions, tyro.conf.arg(name="")] = field(default_factory=EncodeOptions)
    """How."""

    def main(self) -> int:
        """Encode; the same command goes on after an interruption."""
        from r4dv_ns.clip_encode import encode

        clips = encode(
            self.sequence, image_dir=self.image_dir, mask_dir=self.mask_dir, video_dir=self.video_dir,
            mask_video_dir=self.mask_video_dir, frames=self.frames, options=self.options, workers=self.workers,
        )  # fmt: skip
        for clip in clips:
            print(f"{clip.stat().st_size:>12,} bytes  {clip}")
        print(f"{sum(clip.stat().st_size for clip in clips):>12,} bytes. Share them with intri.yml and extri.yml.")
        return 0


@dataclass
class Plates:
    """Make a clean plate for every camera: the mean of its photos where the subject is not."""

    sequence: tyro.conf.Positional[Path]
    """Folder of the recording; cameras must stand still."""
    image_dir: str = "images"
    """Folder of the photos, or of raw videos."""
    mask_dir: str = "masks"
    """Folder of the masks."""
    plate_dir: str = "bkgd"
    """Folder to make."""
    dilate: Tuple[float, float] = (0.05, 0.01)
    """Widths that masks are grown by, of the photo's longer side; the second where the first leaves nothing."""
    frames: Frames = (0, None, 1)
    """Begin, end (exclusive, None for all), step; or a list."""
    workers: int = 0
    """Cameras at a time; 0: as many as processor cores."""

    def main(self) -> int:
        """Make them; the same command goes on after an interruption."""
        from r4dv_ns.plates import make_plates

        unseen = make_plates(
            self.sequence, image_dir=self.image_dir, mask_dir=self.mask_dir, plate_dir=self.plate_dir,
            dilations=self.dilate, frames=self.frames, workers=self.workers,
        )  # fmt: skip
        for name, share in unseen.items():
            print(f"{name}: " + ("seen everywhere" if share == 0 else f"{100 * share:.2g} % never seen, made up"))
        print(f"Written: {self.sequence / self.plate_dir}")
        return 0


@dataclass
class LinkBackgrounds:
    """Give plates the layout of a recording of one moment: bkgd/images/CAM/000000.jpg."""

    sequence: tyro.conf.Positional[Path]
    """Folder of the recording."""
    plate_dir: str = "bkgd"
    """Folder of the plates, CAM.jpg."""
    out_dir: str = "bkgd/images"
    """Folder to make."""

    def main(self) -> int:
        """Link."""
        from r4dv_ns.plates import link_backgrounds

        links = link_backgrounds(self.sequence, plate_dir=self.plate_dir, out_dir=self.out_dir)
        print(f"{len(links)} plates: {self.sequence / self.out_dir}")
        return 0


def default_clips(sequence: Path) -> str:
    """The usual folder of clips that is there."""
    from dataparsers.video_names import holds_clips

    found = [name for name in (ENCODED, "videos") if holds_clips(sequence / name)]
    return found[0] if found else ENCODED


@dataclass
class Process:
    """Prepare a recording: pictures and masks out of videos, videos out of pictures, clean plates."""

    action: Annotated[
        Union[
            Annotated[Images, tyro.conf.subcommand("images")],
            Annotated[Masks, tyro.conf.subcommand("masks")],
            Annotated[Encode, tyro.conf.subcommand("encode")],
            Annotated[LinkBackgrounds, tyro.conf.subcommand("link-backgrounds")],
            Annotated[Plates, tyro.conf.subcommand("plates")],
        ],
        tyro.conf.arg(name=""),
    ]
    """What to do."""

    def main(self) -> int:
        """Do it."""
        return self.action.main()
