"""The pipeline: a step is one optimiser update of one or more micro batches; start weights, gallery, evaluation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Type

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from core_ns.images import write_image
from core_ns.pipeline import ZooPipeline, ZooPipelineConfig
from xfactor_ns.data_config import ClipDataManagerConfig
from xfactor_ns.eval_metrics import Plan, averaged, judge, recon_psnr, strip
from xfactor_ns.eval_similarity import make_oracle, motion_scores
from xfactor_ns.latents import ShownClip
from xfactor_ns.model_config import XFactorModelConfig
from xfactor_ns.network import XFactorNet
from xfactor_ns.oracle_options import PROBE_FILE, OracleOptions


@dataclass
class XFactorPipelineConfig(ZooPipelineConfig):
    """Data manager and model of XFactor."""

    _target: Type = field(default_factory=lambda: XFactorPipeline)
    datamanager: ClipDataManagerConfig = field(default_factory=ClipDataManagerConfig)
    """Clips and the windows drawn from them."""
    model: XFactorModelConfig = field(default_factory=XFactorModelConfig)
    """Both networks."""
    eval_samples: int = 4
    """Targets per held-out clip that ns-eval judges."""
    eval_untrained: bool = False
    """ns-eval measures networks with fresh weights as well (untrained_psnr)."""
    eval_oracle: Literal["none", "colmap", "vggt", "probe"] = "none"
    """Who sees the camera poses of pictures in ns-eval, for the pose similarity of transfers (tps_...)."""
    eval_vggt_weights: Optional[Path] = None
    """File of VGGT-1B's weights."""

    def check_data(self) -> None:
        """Look at all clips and options, decoding no frame.

        Raises:
            DataError: naming what cannot be used.
        """
        manager = self.datamanager
        clips = manager.check_data()
        self.model.check(manager.image_size, manager.frames_per_sample, clips)


class XFactorPipeline(ZooPipeline):
    """See the module docstring. ``step`` counts updates; the data manager's counts micro steps."""

    config: XFactorPipelineConfig

    def __init__(
        self,
        config: XFactorPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        model, manager = self._parts()
        if test_mode == "val":
            model.samples_per_update = config.datamanager.batch_size
            if config.model.init_from is not None:
                model.take_weights(config.model.init_from)
        cameras = manager.train_dataset.cameras
        of_cameras = (cameras.metadata or {})["clip_id"].flatten().tolist()
        probe = None if manager.config.run_dir is None else manager.config.run_dir / PROBE_FILE
        model.viewing.attach(
            shown_clips(manager), [int(clip) for clip in of_cameras], config.model.context_frames, probe
        )

    def _parts(self) -> tuple[Any, Any]:
        """Model and data manager, of this package's types."""
        return self.model, self.datamanager

    def get_train_loss_dict(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Forward of all micro batches of an update, and backward of all but the last, which the trainer does.

        Gradients add up, so each loss is divided by the number of micro batches; the processes exchange theirs with the
        last. What is returned are means over the micro batches.
        """
        model, manager = self._parts()
        micros = manager.micro_steps
        seen: list[dict[str, Tensor]] = []
        for micro in range(micros):
            batch, _ = manager.next_train(step * micros + micro)
            last = micro == micros - 1
            with contextlib.nullcontext() if last else self._unsynchronised():
                outputs = self._model(batch)
                metrics = model.get_metrics_dict(outputs, batch)
                losses = {name: value / micros for name, value in model.get_loss_dict(outputs, batch, metrics).items()}
                if not last:
                    functools.reduce(torch.add, losses.values()).backward()
            seen.append({name: value.detach() for name, value in (losses | metrics).items()})
        metrics = {name: torch.stack([each[name] for each in seen]).mean() for name in metrics}
        earlier = {name: sum(each[name] for each in seen[:-1]) for name in losses}
        return outputs, {name: value + earlier[name] for name, value in losses.items()}, metrics

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, Any]:
        """Reconstruction, masked transfer, cycle and copy of the held-out clips (spec xfactor 8.5).

        Called by ``ns-eval`` (no step) the result also holds ``per_image``, a dict for each judged frame.

        Args:
            step: update, when called in training.
            output_path: folder for one picture of each target: context, truth, and what was drawn.
            get_std: with deviations.

        Raises:
            DataError: no held-out clip is long enough, or the oracle lacks something.
        """
        model, _ = self._parts()
        config = self.config
        plan = Plan(config.model.context_frames, config.eval_samples, config.model.seed, config.model.view.batch,
                    config.model.jitter)  # fmt: skip
        if step is None and config.eval_oracle != "none":
            self._oracle_options().check()
        self.eval()
        try:
            clips = [clip for clip in model.viewing.clips if clip.split == "test"]
            rows = []
            for judged in judge(model.net, clips, model.viewing.clips, plan, model.viewing.lpips):
                rows.append(judged.row)
                if output_path is not None:
                    write_image(output_path / judged.name, strip(judged).numpy())
            found: dict[str, Any] = averaged(rows, get_std)
            if step is None:
                found |= self._thorough(model, clips, plan)
                found["per_image"] = rows
        finally:
            self.train()
        return found

    def _oracle_options(self) -> OracleOptions:
        config: Any = self.config
        return OracleOptions(config.eval_oracle, config.eval_vggt_weights)

    def _thorough(self, model: Any, clips: list[ShownClip], plan: Plan) -> dict[str, float]:
        """What only ``ns-eval`` measures, if the config asks for it."""
        config, found = self.config, {}
        if config.eval_untrained:
            fresh = XFactorNet(model.net.size, config.model.precision, seed=config.model.seed).to(self.device)
            found["untrained_psnr"] = recon_psnr(fresh.eval(), clips, plan)
        if config.eval_oracle != "none":
            probe = model.viewing.probe
            oracle = make_oracle(self._oracle_options(), model.net, None if probe is None else probe.file)
            found |= motion_scores(model.net, clips, oracle, plan.context_frames, plan.batch)
        return found

    @contextlib.contextmanager
    def _unsynchronised(self) -> Iterator[None]:
        if isinstance(self._model, DistributedDataParallel):
            with self._model.no_sync():
                yield
        else:
            yield


def shown_clips(manager: Any) -> list[ShownClip]:
    """The gallery of a data manager, as the pictures need it."""
    return [
        ShownClip(
            id=clip.id,
            split=clip.split,
            numbers=clip.frames,
            c2w=clip.cameras[:, :3],
            read=functools.partial(manager.clip, clip.number),
            window=clip.window,
        )
        for clip in manager.gallery
    ]
