"""The pipeline: updates of one or more micro batches, curves that compare, evaluation by generating (spec 8.2)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Type

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from core_ns.errors import DataError
from core_ns.pipeline import ZooPipeline, ZooPipelineConfig
from megascenes_ns.data_config import PairDataManagerConfig
from megascenes_ns.model_config import MegaScenesModelConfig

EVAL_TIMES = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
"""Noise levels of the evaluation's loss."""
FROZEN_KEYS = ("_model.networks.vae.", "_model.networks.image_encoder.")
"""Prefixes of the weights that no checkpoint holds: the config says where they come from."""
DIGEST = "_model.frozen_digest"


@dataclass
class MegaScenesPipelineConfig(ZooPipelineConfig):
    """Data manager and model of MegaScenes NVS."""

    _target: Type = field(default_factory=lambda: MegaScenesPipeline)
    datamanager: PairDataManagerConfig = field(default_factory=PairDataManagerConfig)
    """Pairs of photos."""
    model: MegaScenesModelConfig = field(default_factory=MegaScenesModelConfig)
    """Networks, training and sampling."""
    eval_max_pairs: Optional[int] = None
    """Held-out pairs that ns-eval generates; default: all shown ones."""
    eval_features: bool = True
    """ns-eval computes FID and KID as well, where Inception's weights are on this machine."""

    def align(self) -> None:
        """Tell the data manager what the model wants its pairs like.

        Raises:
            DataError: no such weights.
        """
        manager, model = self.datamanager, self.model
        manager.picture = model.picture
        manager.cells = model.picture // model.shrink()
        manager.takes_warp = model.variant == "warp_plus_pose"
        manager.squash = model.squash()
        manager.spp, manager.low = model.view.samples_per_pixel, model.view.warp_low
        manager.fov, manager.photo_depth = model.view.fov, model.view.depth

    def check_data(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Look at all options and data, writing nothing.

        Returns:
            Whether the data are one photo, and there is nothing to train on.

        Raises:
            DataError: naming what cannot be used.
            MissingExtra: diffusers or transformers is not installed.
        """
        from core_ns.errors import need
        from megascenes_ns.unet import INSTALL

        self.model.check()
        self.align()
        photo = self.datamanager.check_data()
        for name in ("diffusers", "transformers"):
            need(name, "MegaScenes NVS", INSTALL)
        return photo


class MegaScenesPipeline(ZooPipeline):
    """See the module docstring. ``step`` counts updates; the data manager's counts micro steps."""

    config: MegaScenesPipelineConfig

    def __init__(
        self,
        config: MegaScenesPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        from megascenes_ns.latent_cache import LatentCache

        config.align()
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        model, manager = self._parts()
        options = config.datamanager
        digest = bytes(model.frozen_digest.cpu().tolist()).hex()
        folder = _cache_folder(manager) if options.latents_on_disk else None
        manager.latents = LatentCache(digest, options.picture, folder, options.latent_precision, options.latent_bytes)
        model.viewing.attach(manager.shelf())

    def _parts(self) -> tuple[Any, Any]:
        """Model and data manager, of this package's types."""
        return self.model, self.datamanager

    # ------------------------------------------------------------------ training

    def get_train_loss_dict(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Forward of all micro batches of an update, and backward of all but the last, which the trainer does.

        Gradients add up, so each loss is divided by the number of micro batches; the processes exchange theirs with the
        last. What is returned are means over the micro batches.
        """
        model, manager = self._parts()
        micros = manager.micro_steps
        seen: list[dict[str, Tensor]] = []
        outputs, losses, metrics = {}, {}, {}
        for micro in range(micros):
            batch, _ = manager.next_train(step * micros + micro)
            inputs = model.training_inputs(batch, manager.latents)
            last = micro == micros - 1
            with contextlib.nullcontext() if last else self._unsynchronised():
                outputs = self._model(inputs)
                metrics = model.get_metrics_dict(outputs, batch)
                losses = {name: value / micros for name, value in model.get_loss_dict(outputs, batch, metrics).items()}
                if not last:
                    functools.reduce(torch.add, losses.values()).backward()
            seen.append({name: value.detach() for name, value in (losses | metrics).items()})
        metrics = {name: torch.stack([each[name] for each in seen]).mean() for name in metrics}
        metrics["samples_seen"] = torch.tensor(float((step + 1) * self.config.datamanager.batch_size))
        earlier = {name: sum(each[name] for each in seen[:-1]) for name in losses}
        return outputs, {name: value + earlier[name] for name, value in losses.items()}, metrics

    @contextlib.contextmanager
    def _unsynchronised(self) -> Iterator[None]:
        if isinstance(self._model, DistributedDataParallel):
            with self._model.no_sync():
                yield
        else:
            yield

    # ------------------------------------------------------------------ evaluation

    @torch.no_grad()
    def get_eval_loss_dict(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Loss of held-out pairs at fixed times with fixed noise: the same question at every step, so that curves of
        one run and of several compare (spec megascenes 8.2)."""
        _, manager = self._parts()
        batch, _ = manager.next_eval(step)
        by_time = self.fixed_loss(list(batch.numbers))
        losses = {"diffusion_mse": torch.stack(list(by_time.values())).mean()}
        metrics = {f"mse_at_{time:03d}": value for time, value in by_time.items()}
        return {}, losses, metrics

    @torch.no_grad()
    def fixed_loss(self, numbers: list[int], networks: Any = None) -> dict[int, Tensor]:
        """Mean squared error of pairs at each of `EVAL_TIMES`, with noise that depends on the pair alone.

        Args:
            numbers: of the pairs.
            networks: default: those that train.

        Raises:
            DataError: a pair cannot be read.
        """
        from megascenes_ns.batches import Draws, fixed_draws

        model, manager = self._parts()
        times, cells = [int(each) for each in EVAL_TIMES], model.cells
        errors = torch.zeros(len(times), device=model.device)
        own = model.networks
        was_training = own.training
        model.networks = own if networks is None else networks
        model.networks.eval()
        try:
            for number in numbers:
                batch = manager.batch([number] * len(times))
                draws: Draws = fixed_draws(times, cells, self.config.model.seed + number)
                outputs = model(model.inputs(batch, draws, manager.latents))
                errors += (outputs["predicted"] - outputs["noise"]).square().mean(dim=(1, 2, 3))
        finally:
            model.networks = own
            model.networks.train(was_training)
        return dict(zip(times, errors / max(len(numbers), 1), strict=True))

    @torch.no_grad()
    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, Any]:
        """Generate the shown held-out pairs and score them (spec megascenes 7).

        Called by ``ns-eval`` (no step) the result also holds ``per_image``, one dict for each pair, ``skipped``, the
        reason of each metric that is missing (which then says "skipped"), and what was sampled how.

        Args:
            step: update, when called in training.
            output_path: folder for one strip per pair: reference, warp, generated, photo.
            get_std: with deviations.

        Raises:
            DataError: a photo or its depth cannot be read, or the data are one photo.
        """
        from megascenes_ns.evaluation import cases, generate, score

        model, manager = self._parts()
        if manager.photo is not None or manager.reader is None:
            problem = "have no photos to compare with: they are one photo, or gone."
            raise DataError(manager.data, "data", problem, "Evaluate a run that was trained on pairs.")
        sampling, viewing = self.config.model.sampling, model.viewing
        self.eval()
        try:
            todo = list(cases(manager, self.config.eval_max_pairs))
            found = generate(
                model.sampling_networks(), viewing.drawer, todo, viewing.settings(), sampling.seed, sampling.batch
            )
            scores = score(
                found, self.config.model.picture, self.device, output=output_path, deviation=get_std,
                features=self.config.eval_features, seed=sampling.seed,
            )  # fmt: skip
            losses = self.fixed_loss(manager.eval_dataset.numbers[:16], model.sampling_networks())
        finally:
            self.train()
        result: dict[str, Any] = dict(scores.means)
        result["fixed_noise_mse"] = float(torch.stack(list(losses.values())).mean())
        if step is None:
            for name, reason in scores.skipped.items():
                result[name] = f"skipped: {reason}"
                CONSOLE.print(f"{name} is skipped: {reason}", highlight=False, markup=False, soft_wrap=True)
            result["skipped"] = scores.skipped
            result["sampling"] = {
                "sampler": sampling.sampler, "steps": sampling.steps, "guidance": sampling.guidance,
                "uncond": viewing.uncond, "seed": sampling.seed,
            }  # fmt: skip
            result["per_image"] = scores.rows
        return result

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Without the frozen networks: a third of the file that never changes."""
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if not key.startswith(FROZEN_KEYS)}

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint strictly, but for the frozen networks, which must be those it was trained with.

        Raises:
            DataError: it does not fit the model, or was trained with other frozen networks.
        """
        theirs, own = loaded_state.get(DIGEST), self.model.frozen_digest
        if isinstance(theirs, Tensor) and not torch.equal(theirs.cpu(), own.cpu()):  # pyright: ignore
            weights = self.config.model.weights
            raise DataError(
                weights or "config", "vae, image_encoder",
                f"are not the frozen networks that the checkpoint of step {step} was trained with.",
                "Name the weights of that run with --pipeline.model.weights, or the same size and seed.",
            )  # fmt: skip
        super().load_pipeline(loaded_state, step)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool | None = None) -> None:  # type: ignore[override]
        """Take a state without the frozen networks; these stay as they are."""
        own = ZooPipeline.state_dict(self)
        prefix = "_model.module." if any(key.startswith("_model.module.") for key in state_dict) else "_model."
        frozen = {
            prefix + key.removeprefix("_model."): value for key, value in own.items() if key.startswith(FROZEN_KEYS)
        }
        super().load_state_dict({**state_dict, **frozen}, strict)


def _cache_folder(manager: Any) -> Path | None:
    """The folder that latents are kept in: the named one, or that of the data where there is one."""
    options = manager.config
    if options.cache is not None:
        return Path(options.cache)
    beside = manager.data / "cache"
    return beside if manager.data.is_dir() and beside.is_dir() else None
