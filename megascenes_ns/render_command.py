"""``ns-megascenes render``: a camera path about a photo, as pictures and films (spec megascenes 7, 8.3)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import tyro

from core_ns.errors import DataError
from megascenes_ns.open_view import ViewSource
from megascenes_ns.path_command import PathOptions


@dataclass
class RenderCommand:
    """Sample a whole camera path in batches; write pictures, warps, MP4 and GIF, and the warp beside the view."""

    out: Path
    """Folder to write into."""
    camera_path: Optional[Path] = None
    """Camera path of the viewer or of ns-megascenes path; default: the path named by KIND."""
    path: Annotated[PathOptions, tyro.conf.arg(name="")] = field(default_factory=PathOptions)
    """The path."""
    source: Annotated[ViewSource, tyro.conf.arg(name="")] = field(default_factory=ViewSource)
    """What is drawn with, and what is seen."""
    sampler: Optional[Literal["legacy", "ddim", "dpm", "unipc"]] = None
    """Default: the run's."""
    steps: Optional[int] = None
    """Of the sampler; default: the run's."""
    guidance: Optional[float] = None
    """Weight of guidance; default: the run's."""
    uncond: Optional[Literal["legacy", "consistent"]] = None
    """What guidance starts from; default: the run's, or what the weights want."""
    seed: Optional[int] = None
    """Of the noise, the same for all views; default: the run's."""
    samples: int = 1
    """Pictures of each view, of which the one nearest to the warp is taken."""
    batch: int = 8
    """Pictures that are sampled at once."""
    scale: float = 1.0
    """Multiplies the path's translations; their unit is the distance that a fifth of the photo lies nearer than."""
    fps: Optional[float] = None
    """Pictures per second of the films; default: the path's, 10."""

    def main(self) -> int:
        """Open, draw, write, print where.

        Raises:
            DataError: bad options or files; nothing is written.
        """
        self._check()
        from megascenes_ns.path_file import read_path

        laid = read_path(self.camera_path) if self.camera_path is not None else None
        opened = self.source.open()

        from megascenes_ns.render_path import PathWriter, draw_path, photo_lens, sampled_with, views_of_path

        viewing = opened.viewing
        path = laid if laid is not None else self.path.lay(*photo_lens(opened.reference))
        settings = sampled_with(
            viewing.settings(), sampler=self.sampler, steps=self.steps, guidance=self.guidance, uncond=self.uncond
        )
        seed = viewing.sampling.seed if self.seed is None else self.seed
        views = views_of_path(opened.reference, path, self.scale)
        start = time.monotonic()
        writer = PathWriter(self.out, opened.reference, self.fps or path.fps)
        for frame in draw_path(
            viewing,
            opened.nets,
            views,
            settings,
            seed,
            samples=self.samples,
            batch=self.batch,
            progress=_print_progress,
        ):
            writer.add(frame)
        seconds = time.monotonic() - start
        about: dict[str, Any] = {
            "reference": opened.reference.name, "seed": seed, "samples": self.samples, "scale": self.scale,
            "sampler": settings.sampler, "steps": settings.steps, "guidance": settings.guidance,
            "uncond": settings.uncond, "seconds_per_picture": seconds / (len(views) * self.samples),
        }  # fmt: skip
        for file in writer.finish(about):
            print(file)
        return 0

    def _check(self) -> None:
        self.source.check()
        if self.out.is_file():
            raise DataError(self.out, "--out", "is a file.", "Name a folder.")
        for name in ("samples", "batch", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError("options", f"--{name}", f"is {value}.", "Give 1 or more.")
        if self.seed is not None and self.seed < 0:
            raise DataError("options", "--seed", f"is {self.seed}.", "Give 0 or more.")
        if not 0 < self.scale < float("inf"):
            raise DataError("options", "--scale", f"is {self.scale}.", "Give a number above 0.")
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise DataError("options", "--guidance", f"is {self.guidance}.", "Give 0 or more.")
        if self.fps is not None and not 0 < self.fps <= 100:
            raise DataError("options", "--fps", f"is {self.fps}.", "Give 100 or less.")


def _print_progress(done: int, total: int) -> None:
    print(f"{done} of {total} pictures", flush=True)
