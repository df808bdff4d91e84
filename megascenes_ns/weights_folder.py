"""Weights as a folder in diffusers' layout: ``unet/ vae/ image_encoder/ scheduler/ cc_projection.safetensors
megascenes.json`` (spec megascenes 5). Only safetensors and JSON; nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Optional

import torch
from torch import Tensor, nn

from core_ns.atomic import atomic_path, write_json
from core_ns.errors import DataError
from megascenes_ns.autoencoder import vae_config, vae_size
from megascenes_ns.image_encoder import clip_config, clip_size
from megascenes_ns.networks import Networks
from megascenes_ns.noise_schedule import DIFFUSERS
from megascenes_ns.sizes import POSE, Sizes
from megascenes_ns.unet import unet_config, unet_size, widen_input

INFO = "megascenes.json"
_VERSION = 1
_TENSORS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
    "cc_projection": "cc_projection.safetensors",
}
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_REMEDY = "Write the folder again with ns-megascenes import."
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class WeightsInfo:
    """Where weights come from and how their networks want to be used; the content of ``megascenes.json``."""

    pose_squash: Literal["none", "zeronvs"] = "none"
    """What translations go through before ``cc_projection``: `pose_vector.squash_translation` for ZeroNVS's own."""
    uncond: Literal["legacy", "consistent"] = "legacy"
    """What guidance starts from: ``legacy`` for the original's weights."""
    source: str = ""
    """File name of the checkpoint, or of the run."""
    sha256: str = ""
    """Of that file."""
    accounted: Mapping[str, int] = field(default_factory=dict)
    """Tensors of that file by what became of them."""
    step: int = 0
    """Of the training that wrote it, as its own counter says."""


def save(
    nets: Networks, folder: str | Path, info: WeightsInfo | None = None, dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
) -> Path:
    """Write networks. The folder appears complete or not at all.

    Args:
        nets: the networks; left as they are.
        folder: to make; parents too.
        info: origin and use.
        dtype: of the weights in the files.

    Returns:
        ``folder``.

    Raises:
        DataError: it exists and is not an empty folder.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{folder.name}")
    try:
        for part, file in _TENSORS.items():
            state = getattr(nets, part).state_dict()
            stored = {name: value.detach().to("cpu", DTYPES[dtype]).contiguous() for name, value in state.items()}
            with atomic_path(temporary / file) as path:
                save_file(stored, path, metadata={"format": "pt"})
        for file, content in _configs(nets.sizes).items():
            write_json(temporary / file, content)
        write_json(temporary / INFO, _info_json(nets.sizes, info or WeightsInfo()))
        if folder.is_dir():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    return folder


def check_free(folder: Path) -> None:
    """Refuse to write over anything.

    Raises:
        DataError: ``folder`` exists and is not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(folder, "", "is there already.", "Name a folder that does not exist.")


def _configs(sizes: Sizes) -> dict[str, dict[str, Any]]:
    from diffusers import __version__

    own: dict[str, Any] = {"_diffusers_version": __version__}
    scheduler = {**DIFFUSERS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return {
        "unet/config.json": {"_class_name": _CLASSES["unet"], **own, **unet_config(sizes.unet)},
        "vae/config.json": {"_class_name": _CLASSES["vae"], **own, **vae_config(sizes.vae)},
        "image_encoder/config.json": {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            **clip_config(sizes.clip, sizes.unet.context),
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "DDIMScheduler", **own, **scheduler, "prediction_type": "epsilon",
            "timestep_spacing": "leading",
        },
    }  # fmt: skip


def _info_json(sizes: Sizes, info: WeightsInfo) -> dict[str, Any]:
    return {
        "format": "megascenes-weights",
        "version": _VERSION,
        "variant": sizes.variant,
        "in_channels": sizes.unet.in_channels,
        "pose": {"numbers": POSE, "layout": "rel 4x4 row-major, fov, sin fov, cos fov (diagonal, radians)"},
        **asdict(info),
    }


def read_info(folder: str | Path) -> tuple[Sizes, WeightsInfo]:
    """Sizes, origin and use of weights, without reading them.

    Raises:
        DataError: no such folder, or of other networks; the message names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(folder, "", "is not a folder of weights.", "Write one with ns-megascenes import.")
    content = _json(folder / INFO)
    if content.get("format") != "megascenes-weights" or content.get("version") != _VERSION:
        raise DataError(folder / INFO, "format, version", "are not of this program.", _REMEDY)
    found = _sizes(folder)
    try:
        info = WeightsInfo(**{name: content[name] for name in WeightsInfo.__dataclass_fields__})
        if info.pose_squash not in ("none", "zeronvs") or info.uncond not in ("legacy", "consistent"):
            raise ValueError(f"pose_squash {info.pose_squash}, uncond {info.uncond}")
        if content["in_channels"] != found.unet.in_channels:
            raise ValueError(f"in_channels {content['in_channels']}, the UNet has {found.unet.in_channels}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(folder / INFO, "", f"does not make sense ({error}).", _REMEDY) from error
    return found, info


def _sizes(folder: Path) -> Sizes:
    """From the three config.json, each of which must describe exactly the networks we build."""
    unet_file, vae_file, clip_file = (folder / part / "config.json" for part in ("unet", "vae", "image_encoder"))
    unet_json, vae_json, clip_json = (_json(file) for file in (unet_file, vae_file, clip_file))
    file = unet_file
    try:
        unet = unet_size(unet_json)
        _same(unet_json, unet_config(unet), file)
        file = vae_file
        vae = vae_size(vae_json)
        _same(vae_json, vae_config(vae), file)
        file = clip_file
        clip, embed = clip_size(clip_json)
        _same(clip_json, clip_config(clip, embed), file)
        if embed != unet.context:
            raise ValueError(f"the embedding has {embed} numbers, the UNet takes {unet.context}")
        return Sizes(unet, vae, clip)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(file, "", f"describes other networks ({type(error).__name__}: {error}).", _REMEDY) from error


def _same(content: Mapping[str, Any], wanted: Mapping[str, Any], file: Path) -> None:
    for name, value in wanted.items():
        if name in ("sample_size",):
            continue
        plain = list(value) if isinstance(value, tuple) else value
        if content.get(name) != plain:
            problem = f"is {content.get(name)!r}; these networks have {plain!r}."
            raise DataError(file, name, problem, _REMEDY)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(file, "", "is missing.", _REMEDY)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(file, "", f"is not JSON ({error}).", _REMEDY) from error
    if not isinstance(content, dict):
        raise DataError(file, "", "holds no object.", _REMEDY)
    return content


def load(
    folder: str | Path,
    in_channels: Optional[int] = None,
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
) -> Networks:
    """Read networks, in evaluation mode, on the processor.

    Args:
        folder: of `save`.
        in_channels: of the UNet wanted, such as 11 to train on from ZeroNVS's 8; None: as they are. New channels
            begin at zero (spec 4.3).
        dtype: to hold the weights in.

    Raises:
        DataError: incomplete, damaged or foreign content, or more input channels than wanted.
    """
    folder = Path(folder)
    sizes, _ = read_info(folder)
    wanted = sizes
    if in_channels is not None:
        if in_channels < sizes.unet.in_channels:
            problem = f"has {sizes.unet.in_channels} input channels, {in_channels} are wanted."
            raise DataError(folder / "unet", "", problem, "Choose the preset that these weights are for.")
        wanted = replace(sizes, unet=replace(sizes.unet, in_channels=in_channels))
    nets = empty_networks(wanted)
    for part, file in _TENSORS.items():
        state = read_safetensors(folder / file)
        own = getattr(nets, part).state_dict()
        shapes = {name: tuple(value.shape) for name, value in own.items()}
        if part == "unet":
            shapes["conv_in.weight"] = (shapes["conv_in.weight"][0], sizes.unet.in_channels, 3, 3)
        check_state(folder / file, state, shapes)
        if part == "unet":
            state["conv_in.weight"] = widen_input(state["conv_in.weight"], wanted.unet.in_channels)
        fill(getattr(nets, part), {name: value.to(DTYPES[dtype], copy=True) for name, value in state.items()})
    return nets.eval()


def empty_networks(sizes: Sizes) -> Networks:
    """Networks without memory for their weights, to be given some with `fill`, part by part."""
    with torch.device("meta"):
        nets = Networks(sizes)
    embeddings = nets.image_encoder.vision_model.embeddings
    # No weight, so no file has it.
    embeddings.position_ids = nn.Buffer(torch.arange(embeddings.num_positions).expand(1, -1), persistent=False)
    return nets


def fill(part: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a part of `empty_networks` its weights, all of them, without copying."""
    part.load_state_dict(state, assign=True)


def check_state(file: Path, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Exactly the weights wanted, of their shapes, finite.

    Raises:
        DataError: naming the first that is not.
    """
    for name in sorted(set(state) | set(shapes)):
        problem = None
        if name not in state:
            problem = "is missing."
        elif name not in shapes:
            problem = "is not a weight of these networks."
        elif tuple(state[name].shape) != shapes[name]:
            problem = f"has the shape {list(state[name].shape)}, not {list(shapes[name])}."
        elif not state[name].dtype.is_floating_point:
            problem = f"holds {state[name].dtype}."
        elif not bool(state[name].isfinite().all()):
            problem = "holds numbers that are not finite."
        if problem:
            raise DataError(file, name, problem, "Copy the file again, or write it again.")


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        DataError: absent or damaged.
    """
    from safetensors.torch import load_file

    if not file.is_file():
        raise DataError(file, "", "is missing.", "Copy it again, or write it again.")
    try:
        return load_file(file)
    except Exception as error:  # safetensors has its own kinds, the system others
        problem = f"is not a whole safetensors file ({type(error).__name__}: {str(error)[:200]})."
        raise DataError(file, "", problem, "Copy it again, or write it again.") from error


def sha256(file: Path) -> str:
    """Of a file's bytes."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
