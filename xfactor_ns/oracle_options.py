"""Which oracle a command asks, and what that oracle needs; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

from core_ns.errors import DataError

if TYPE_CHECKING:
    from xfactor_ns.clip_source import ReadClip
    from xfactor_ns.oracles import PoseOracle

PROBE_FILE = "probe.safetensors"
"""Where a run's probe is looked for, beside its config.yml."""


@dataclass
class OracleOptions:
    """Where the poses of frames come from."""

    oracle: Literal["colmap", "vggt", "poses", "probe", "constant", "noisy"] = "colmap"
    """colmap: structure from motion (pycolmap); vggt: VGGT, its package and weights being yours; poses: those that lie
    with the clip (transforms.json); probe: this network's own, through ns-xfactor probe; constant: a camera that stands
    still, noisy: the clip's poses shaken - what a score must see through."""
    vggt_weights: Optional[Path] = None
    """File of VGGT-1B's weights, .safetensors or .pt. Nothing is downloaded."""
    probe: Optional[Path] = None
    """File of ns-xfactor probe. Default: probe.safetensors beside the run's config.yml or the weights."""
    noise_rotation: float = 2.0
    """noisy: standard deviation per axis, degrees."""
    noise_translation: float = 0.02
    """noisy: standard deviation per axis, in units of the cameras' spread."""
    seed: int = 0
    """Of the noise, and of COLMAP's samples."""
    colmap_camera: str = "SIMPLE_RADIAL"
    """COLMAP's camera model; one camera for all frames of a clip."""
    colmap_threads: int = 1
    """Threads of COLMAP; its results repeat exactly only with one."""

    def check(self) -> None:
        """Refuse early what cannot work.

        Raises:
            DataError: an option is missing or makes no sense.
            MissingExtra: pycolmap is not installed.
        """
        if self.oracle == "vggt" and self.vggt_weights is None:
            raise DataError("options", "--vggt-weights", "is not given.", "Name the file of VGGT-1B's weights.")
        if self.oracle == "colmap":
            from xfactor_ns.oracle_colmap import check_colmap

            check_colmap()
        if min(self.noise_rotation, self.noise_translation) < 0 or self.colmap_threads < 1:
            raise DataError(
                "options", "--noise-..., --colmap-threads", "are too small.", "Give 0, and 1 thread, or more."
            )

    def make(self, clip: Optional[ReadClip], opened: Any = None) -> PoseOracle:
        """The oracle for a clip.

        Args:
            clip: whose known poses are meant; None for frames that a network drew.
            opened: networks (`OpenedNet`), for the oracle ``probe``.

        Raises:
            DataError: it needs what is not there.
        """
        from xfactor_ns import oracles

        if self.oracle == "constant":
            return oracles.ConstantPoses()
        if self.oracle in ("poses", "noisy"):
            known = self._known(clip)
            if self.oracle == "poses":
                return known
            return oracles.NoisyPoses(known, self.noise_rotation, self.noise_translation, self.seed)
        if self.oracle == "vggt":
            import torch

            assert self.vggt_weights is not None  # see check
            return oracles.VggtPoses(self.vggt_weights, "cuda" if torch.cuda.is_available() else "cpu")
        if self.oracle == "colmap":
            from xfactor_ns.oracle_colmap import ColmapPoses

            return ColmapPoses(self.colmap_camera, threads=self.colmap_threads, seed=self.seed)
        return self._probed(opened)

    def _known(self, clip: Optional[ReadClip]) -> Any:
        from xfactor_ns.oracles import KnownPoses

        if clip is None:
            problem = "knows no poses of frames that a network drew."
            raise DataError("options", f"--oracle {self.oracle}", problem, "Use colmap, vggt or probe.")
        if clip.w2c is None:
            problem = "has no poses: there is no transforms.json that names its frames."
            raise DataError(clip.name, "poses", problem, "Use --oracle colmap, or another clip.")
        return KnownPoses(clip.w2c[None])

    def _probed(self, opened: Any) -> Any:
        from xfactor_ns.probe import load_probe
        from xfactor_ns.probe_fit import LatentPoses, encoder_fingerprint

        if opened is None:
            raise DataError("options", "--oracle probe", "needs networks.", "Give --load-config or --weights.")
        file = opened.folder / PROBE_FILE if self.probe is None else self.probe
        probe, _ = load_probe(file, opened.net.size.pose, encoder_fingerprint(opened.net))
        return LatentPoses(opened.net, probe)
