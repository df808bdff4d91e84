"""``ns-xfactor transfer``: the camera motion of one clip in the scene of another, as a film."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import tyro

from core_ns.errors import DataError
from xfactor_ns.open_net import NetOptions

if TYPE_CHECKING:
    from xfactor_ns.clip_source import ReadClip

DEFAULT_FPS = 10.0
"""Of films from clips that are folders of pictures."""
FASTEST = 60.0
_COLUMNS = 6


@dataclass
class TransferCommand:
    """Move the camera in one clip's scene as another clip's camera moved; write a film and a sheet of stills."""

    onto: str
    """Clip whose scene is drawn: a video, a folder of frames, or a clip's id of the run."""
    out: Path
    """Film to write, .mp4: the first clip, and the other one's scene moving alike."""
    source: Annotated[Optional[str], tyro.conf.arg(name="from")] = None
    """Clip whose camera motion is taken."""
    from_latents: Optional[Path] = None
    """Or motion that --save-latents wrote, with the same networks."""
    save_latents: Optional[Path] = None
    """Write the motion's latents to this .npz file."""
    interpolate: int = 0
    """Pictures to draw between any two frames, latents blended linearly; the film runs as much faster, up to 60 a
    second."""
    frames: int = 60
    """Frames of each clip at most; 0: all."""
    stride: int = 1
    """Take every so manieth frame of each clip."""
    from_start: int = 0
    """First frame of the motion's clip."""
    onto_start: int = 0
    """First frame of the scene's clip."""
    from_reference: Optional[int] = None
    """Frame of the motion's clip that stands where the scene's reference stands. Default: the middle one."""
    onto_reference: Optional[int] = None
    """Frame of the scene that the motion starts from, and that the renderer sees. Default: the middle one."""
    fps: Optional[float] = None
    """Of the film. Default: the clip's own; 10 for pictures."""
    show_context: bool = False
    """A third picture in the film: the scene's reference frame."""
    stills: bool = True
    """Write a sheet of frames too: the film's name with .png."""
    net: Annotated[NetOptions, tyro.conf.arg(name="")] = field(default_factory=NetOptions)
    """The networks."""

    def main(self) -> int:
        """Read, render, write, print where.

        Raises:
            DataError: bad options, clips or files; nothing is written.
        """
        self._check()
        opened = self.net.open()

        import torch

        from xfactor_ns.clip_source import Span, place_of, read_clip
        from xfactor_ns.latent_file import read_latents, write_latents
        from xfactor_ns.probe_fit import encoder_fingerprint
        from xfactor_ns.transfer import (
            context_frames,
            inserted,
            interpolate_latents,
            nearest_frames,
            render_latents,
            scene_context,
        )
        from xfactor_ns.transfer_video import write_film

        def read(name: str, start: int) -> ReadClip:
            span = Span(start, self.frames, self.stride)
            return read_clip(name, opened.image_size, opened.resize_mode, span, opened.sequences, stored=opened.stored)

        scene = read(self.onto, self.onto_start)
        reference = place_of(scene, self.onto_reference, "--onto-reference")
        source = None if self.source is None else read(self.source, self.from_start)
        if source is not None:
            motion = self._motion(opened.net, source)
        else:
            assert self.from_latents is not None  # see _check
            motion = read_latents(self.from_latents, encoder_fingerprint(opened.net), opened.net.size.pose)
        chosen = context_frames(len(scene.frames), opened.context_frames, reference)
        context, known = scene_context(opened.net, scene.frames, chosen, self.net.batch)
        positions = inserted(len(motion.latents), self.interpolate)
        latents = interpolate_latents(torch.from_numpy(motion.latents), positions)
        drawn = render_latents(opened.net, context, known, latents, self.net.batch).cpu().numpy()
        panels = [drawn]
        if source is not None:
            panels.insert(0, source.frames[nearest_frames(positions, len(source.frames))])
        if self.show_context:
            panels.append(scene.frames[[reference] * len(drawn)])
        # Pictures in between make the motion smoother, not slower, up to what players show.
        rate = self.fps or min((motion.fps or DEFAULT_FPS) * (self.interpolate + 1), FASTEST)
        if self.save_latents is not None:
            write_latents(self.save_latents, motion)
            print(f"Latents: {self.save_latents} ({len(motion.latents)} frames)")
        width, height = write_film(self.out, panels, rate)
        print(f"Film: {self.out} ({len(drawn)} frames of {width}x{height}, {rate:g} a second)")
        if self.stills:
            self._write_stills(scene, chosen, source, positions, drawn)
        return 0

    def _motion(self, net: Any, source: ReadClip) -> Any:
        from xfactor_ns.clip_source import place_of
        from xfactor_ns.latent_file import LatentFile
        from xfactor_ns.probe_fit import encoder_fingerprint
        from xfactor_ns.transfer import clip_latents

        reference = place_of(source, self.from_reference, "--from-reference")
        latents = clip_latents(net, source.frames, reference, self.net.batch).cpu().numpy()
        encoder = encoder_fingerprint(net) if self.save_latents is not None else ""
        return LatentFile(latents, reference, source.fps or 0.0, encoder, source.id)

    def _write_stills(self, scene: ReadClip, chosen: list[int], source: Any, positions: Any, drawn: Any) -> None:
        from core_ns.images import write_image
        from xfactor_ns.transfer import nearest_frames
        from xfactor_ns.transfer_video import evenly, sheet

        picked = evenly(len(drawn), _COLUMNS)
        rows = []
        if source is not None:
            places = nearest_frames(positions, len(source.frames))[picked]
            rows.append((f"camera of: {source.id}", source.frames[places]))
        rows += [("carried over: " + scene.id, drawn[picked]), ("seen of it", scene.frames[chosen[:_COLUMNS]])]
        file = self.out.with_suffix(".png")
        write_image(file, sheet(rows))
        print(f"Stills: {file}")

    def _check(self) -> None:
        if (self.source is None) == (self.from_latents is None):
            raise DataError("options", "--from, --from-latents", "name one motion.", "Give one of the two.")
        if self.out.suffix.lower() != ".mp4" or self.out.is_dir():
            raise DataError(self.out, "--out", "is no .mp4 file.", "Name it like transfer.mp4.")
        if self.save_latents is not None and self.save_latents.suffix != ".npz":
            raise DataError(self.save_latents, "--save-latents", "is no .npz file.", "Name it like motion.npz.")
        if self.interpolate < 0 or (self.fps is not None and not 0 < self.fps <= 1000):
            problem = f"are {self.interpolate} and {self.fps}."
            raise DataError("options", "--interpolate, --fps", problem, "Give 0 or more, and 1000 a second at most.")
