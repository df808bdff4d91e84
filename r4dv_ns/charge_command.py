"""``ns-r4dv charge bake|info|verify|open``: the folder that plays in real time, without photos (spec r4dv 5.2)."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Optional, Union

import tyro

from core_ns.errors import DataError
from r4dv_ns.charge_options import BakeOptions
from r4dv_ns.import_command import Import
from r4dv_ns.mobile_command import Mobile


@dataclass
class Bake:
    """Turn a trained run into a folder that plays without recording and networks. Interrupted, it goes on."""

    load_config: Path
    """config.yml of the run; its recording must be there."""
    out: Optional[Path] = None
    """Folder to make; by default "charged" beside config.yml."""
    options: Annotated[BakeOptions, tyro.conf.arg(name="")] = field(default_factory=BakeOptions)
    """Size and precision."""

    def main(self) -> int:
        """Bake, print size and what to type next."""
        from r4dv_ns.charge_bake import bake

        out = self.out or self.load_config.parent / "charged"
        chosen = {name: getattr(self.options, name) for name in asdict(self.options)}
        manifest = bake(self.load_config, out, progress=True, **chosen)
        megabytes = sum(manifest.bytes(frame) for frame in range(len(manifest.frames))) / 1e6
        each = megabytes / len(manifest.frames)
        print(f"{out}: {len(manifest.frames)} frames, {megabytes:.1f} MB ({each:.2f} MB a frame).")
        print("\n".join(commands(out)))
        return 0


@dataclass
class Info:
    """Say what a charged folder holds, from its manifest alone."""

    folder: tyro.conf.Positional[Path]
    """The charged folder."""

    def main(self) -> int:
        """Print."""
        from r4dv_ns.charge_manifest import read_manifest

        print("\n".join(description(read_manifest(self.folder))))
        return 0


@dataclass
class Verify:
    """Read every file of a charged folder and compare it with its hash in hashes.json."""

    folder: tyro.conf.Positional[Path]
    """The charged folder."""
    frame_sample: Optional[tuple[Optional[int], ...]] = None
    """Only these frames: begin, end and step, or a list."""

    def main(self) -> int:
        """Read, say how many files are whole; damage ends with status 2 as any other bad input."""
        from r4dv_ns.charge_store import ChargedStore

        store = ChargedStore(self.folder, frame_sample=self.frame_sample)
        store.verify(progress=True)
        print(f"{self.folder}: {len(store.hashes)} files of {len(store)} frames are whole.")
        return 0


@dataclass
class Open:
    """Let nerfstudio's commands find a charged folder where it lies now: after it was moved, copied or unpacked."""

    folder: tyro.conf.Positional[Path]
    """The charged folder."""

    def main(self) -> int:
        """Write config.yml anew, print the commands."""
        from r4dv_ns.charge_store import ChargedStore
        from r4dv_ns.charged_config import write_run

        store = ChargedStore(self.folder)
        for index in range(len(store)):
            for path in sorted(set(store.manifest.files(index).values())):
                if not (self.folder / path).is_file():
                    raise DataError(self.folder / path, "", "is missing.", "Copy the whole folder.")
        write_run(self.folder)
        print("\n".join(commands(self.folder)))
        return 0


Action = Union[
    Annotated[Bake, tyro.conf.subcommand("bake")],
    Annotated[Info, tyro.conf.subcommand("info")],
    Annotated[Verify, tyro.conf.subcommand("verify")],
    Annotated[Open, tyro.conf.subcommand("open")],
    Annotated[Mobile, tyro.conf.subcommand("mobile")],
    Annotated[Import, tyro.conf.subcommand("import")],
]


@dataclass
class Charge:
    """Charged folders: a trained run that plays in real time, without its recording."""

    action: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Action]]
    """What to do."""

    def main(self) -> int:
        """Do it."""
        return self.action.main()


def commands(folder: Path) -> list[str]:
    """What to type to see, render and judge a charge; ready to paste."""
    folder = folder.expanduser().resolve()
    config = shlex.quote(str(folder / "config.yml"))
    return [
        f"View:     ns-viewer --load-config {config}",
        f"Render:   ns-render spiral --load-config {config} --output-path {shlex.quote(str(folder / 'render.mp4'))}",
        f"Evaluate: ns-eval --load-config {config} --output-path {shlex.quote(str(folder / 'eval.json'))}",
    ]


def description(manifest: Any) -> list[str]:
    """A charge in a few lines: frames, cameras, bytes by array."""
    frames, total = len(manifest.frames), dict[str, float]()
    for frame in range(frames):
        for key, size in manifest.array_bytes(frame).items():
            total[key] = total.get(key, 0) + size / 1e6
    everything = sum(total.values())
    low, high = ("(" + ", ".join(f"{value:.4g}" for value in corner) + ")" for corner in manifest.bounds)
    sources = (
        f"{min(manifest.sources, manifest.stored_sources)} of {manifest.stored_sources} stored photos"
        if manifest.stored_sources
        else "none"
    )
    lines = [
        f"frames        {frames}, {manifest.frames[0]} to {manifest.frames[-1]}",
        f"points        {min(manifest.counts)} to {max(manifest.counts)} a frame"
        + (f", {manifest.static_count} of them background" if manifest.static_count else ""),
        f"colour from   {sources}, nearest by {manifest.source_metric}; harmonics of degree {manifest.sh_degree}",
        f"cameras       {len(manifest.train_views)} trained on, {len(manifest.eval_views)} held out",
        f"photos        {len(manifest.eval_photos)} to compare with, at frames "
        + ", ".join(manifest.frames[frame] for frame in manifest.eval_frames),
        f"box           {low} to {high}",
        f"layers        {manifest.layers}; smallest radius {manifest.min_radius:g} pixels",
        f"checkpoint    {manifest.checkpoint[:16] or 'unknown'}",
        *(f"{name.replace('_', ' '):13} {value}" for name, value in manifest.notes.items() if isinstance(value, str)),
        "array         type   MB a frame       MB",
        *(f"{key:13} {manifest.dtypes[key]:4} {size / frames:12.3f} {size:8.1f}" for key, size in total.items()),
        f"{'all':13} {'':4} {everything / frames:12.3f} {everything:8.1f}"
        + (" before packing" if manifest.packed else ""),
    ]
    return lines
