"""Read a checkpoint of the original XScale-NVS (``epoch:00200.pth.tar``) into the parts this package trains.

The file is untrusted input: it is read with torch's restricted unpickler, every key must be known and every shape must
fit, so that a checkpoint of another shader variant stops here instead of rendering nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from core_ns.errors import DataError
from xscale_ns.hash_grid import HashGrid, level_layout
from xscale_ns.shading import FilmSirenHead, ViewCodes

UPSTREAM_LEVELS = 16
UPSTREAM_BASE_RESOLUTION = 16
UPSTREAM_PER_LEVEL_SCALE = 1.4768261459394993
_LARGEST_LOG2_TABLE = 28

_TOP_LEVEL = (
    "epoch",
    "lr",
    "iteration",
    "shading_machine_dict",
    "spatial_encoding_dict",
    "l_embeddings_list",
    "x_embeddings_list",
)
_SHADER = "shading_machine_dict"
# Upstream layer -> ours; both have .weight and .bias.
_LAYERS = {
    "render_net_c.network.0.layer": "feature_films.0.linear",
    "render_net_c.network.1.layer": "feature_films.1.linear",
    "render_net_c.mapping_network.network.0": "light_map.net.0",
    "render_net_c.mapping_network.network.2": "light_map.net.2",
    "render_net_c.network_dir.0.layer": "direction_films.0.linear",
    "render_net_c.network_dir.1.layer": "direction_films.1.linear",
    "render_net_c.mapping_network_dir.network.0": "surface_map.net.0",
    "render_net_c.mapping_network_dir.network.2": "surface_map.net.2",
    "render_net_c.mapping_network_x.0": "exposure_map.net.0",
    "render_net_c.mapping_network_x.2": "exposure_map.net.2",
    "render_net_c.layer_sl.0": "colour",
}
_HEAD_KEYS = {f"{up}.{kind}": f"{ours}.{kind}" for up, ours in _LAYERS.items() for kind in ("weight", "bias")}
_WRONG_VARIANT = "Only checkpoints of the FiLM-SIREN shader with exposure and lighting codes can be imported."


@dataclass(frozen=True)
class ImportedShader:
    """The contents of an upstream checkpoint under this package's names; float32 tensors on the CPU.

    Codes are the ones the original uses after its look-up, i.e. rows longer than 1 shortened (spec xscale 12).

    Attributes:
        head_state: state dict of `FilmSirenHead`.
        exposure_codes: ``[views, exposure_dim]``, in the order of the training list.
        lighting_codes: ``[lights, light_dim]``.
        hash_params: tiny-cuda-nn's flat parameter vector.
        epoch, iteration: as stored.
    """

    head_state: dict[str, Tensor]
    exposure_codes: Float[Tensor, "V E"]
    lighting_codes: Float[Tensor, "L C"]
    hash_params: Float[Tensor, "P"]
    epoch: int
    iteration: int

    def build_head(self) -> FilmSirenHead:
        """A head with these weights; its sizes follow from their shapes."""
        head = FilmSirenHead(**_head_sizes(self.head_state))
        head.load_state_dict(self.head_state)
        return head

    def build_exposure_codes(self) -> ViewCodes:
        """The exposure codes as a trainable module."""
        return _codes_module(self.exposure_codes)

    def build_lighting_codes(self) -> ViewCodes:
        """The lighting codes as a trainable module."""
        return _codes_module(self.lighting_codes)

    def build_hash_grid(
        self,
        levels: int = UPSTREAM_LEVELS,
        base_resolution: int = UPSTREAM_BASE_RESOLUTION,
        per_level_scale: float = UPSTREAM_PER_LEVEL_SCALE,
    ) -> HashGrid:
        """The hash grid with these parameters; see `infer_log2_table` for the arguments.

        Raises:
            DataError: the number of parameters fits no table size.
        """
        features, remainder = divmod(self.head_state["feature_films.0.linear.weight"].shape[1], levels)
        log2_table = infer_log2_table(len(self.hash_params), levels, features, base_resolution, per_level_scale)
        if remainder or log2_table is None:
            raise DataError(
                "checkpoint",
                "spatial_enc.params",
                f"{len(self.hash_params)} parameters fit no grid of {levels} levels x {features} features, base "
                f"resolution {base_resolution}, scale {per_level_scale}.",
                "Give the values of the original's configuration (hash_n_levels, hash_base_resol, "
                "hash_per_level_scale).",
            )
        grid = HashGrid(
            levels=levels,
            features=features,
            log2_table=log2_table,
            base_resolution=base_resolution,
            per_level_scale=per_level_scale,
            interpolation="smoothstep",
        )
        grid.load_tcnn_params(self.hash_params)
        return grid


def infer_log2_table(
    parameters: int, levels: int, features: int, base_resolution: int, per_level_scale: float
) -> int | None:
    """The table size that gives a flat vector of this length, or None.

    The checkpoint stores no layout; the other three values are constants of the original's configuration. When every
    level is dense several sizes give the same grid; the smallest is returned.

    Args:
        parameters: length of the flat vector.
        levels, features, base_resolution, per_level_scale: of the grid (spec xscale 3.3).
    """
    for log2_table in range(3, _LARGEST_LOG2_TABLE + 1):
        last = level_layout(levels, log2_table, base_resolution, per_level_scale=per_level_scale)[-1]
        if (last.offset + last.entries) * features == parameters:
            return log2_table
    return None


def load_upstream_checkpoint(path: str | Path) -> ImportedShader:
    """Read an original checkpoint.

    Raises:
        DataError: unreadable file, objects other than tensors and plain values, unknown or missing keys, wrong shapes,
            non-finite numbers. The message names the key.
    """
    path = Path(path)
    content = _read(path)
    _match_keys(path, "top level", content, _TOP_LEVEL)
    shader = _mapping(path, content, _SHADER)
    _match_keys(path, _SHADER, shader, _HEAD_KEYS)
    head_state = {ours: _tensor(path, _SHADER, shader, upstream) for upstream, ours in _HEAD_KEYS.items()}
    _check_shapes(path, head_state)
    spatial = _mapping(path, content, "spatial_encoding_dict")
    _match_keys(path, "spatial_encoding_dict", spatial, ("spatial_enc.params",))
    hash_params = _tensor(path, "spatial_encoding_dict", spatial, "spatial_enc.params")
    if hash_params.ndim != 1:
        raise DataError(path, "spatial_enc.params", f"has shape {list(hash_params.shape)}, expected one flat vector.",
                        _WRONG_VARIANT)  # fmt: skip
    sizes = _head_sizes(head_state)
    return ImportedShader(
        head_state=head_state,
        exposure_codes=_codes(path, content, "x_embeddings_list", sizes["exposure_dim"]),
        lighting_codes=_codes(path, content, "l_embeddings_list", sizes["light_dim"]),
        hash_params=hash_params,
        epoch=_integer(path, content, "epoch"),
        iteration=_integer(path, content, "iteration"),
    )


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise DataError(path, "", "There is no such file.", "Give the path of an epoch:NNNNN.pth.tar file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises half a dozen types here (UnpicklingError, RuntimeError, EOFError, KeyError, ...) depending on
        # where a damaged or foreign file stops making sense.
        reason = str(error).strip().splitlines()[:1] or [""]
        raise DataError(
            path,
            "",
            f"Not readable as tensors and plain values ({type(error).__name__}: {reason[0]}).",
            "If you made this file yourself, load it in the original's environment and save only the state dicts "
            "and numbers with torch.save; a damaged file has to be copied again.",
        ) from error
    if not isinstance(content, Mapping):
        raise DataError(path, "top level", f"Holds a {type(content).__name__}, not a dictionary.", _WRONG_VARIANT)
    return content


def _match_keys(path: Path, place: str, found: Mapping[str, Any], wanted: Mapping[str, str] | tuple[str, ...]) -> None:
    missing = [key for key in wanted if key not in found]
    unknown = [str(key) for key in found if key not in wanted]
    if missing or unknown:
        parts = [f"{what} {', '.join(keys)}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys]
        raise DataError(path, place, f"Keys do not match: {'; '.join(parts)}.", _WRONG_VARIANT)


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    if not isinstance(content[key], Mapping):
        raise DataError(path, key, f"Holds a {type(content[key]).__name__}, not a state dict.", _WRONG_VARIANT)
    return content[key]


def _tensor(path: Path, group: str, state: Mapping[str, Any], key: str) -> Tensor:
    value = state[key]
    place = f"{group}: {key}"
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise DataError(path, place, f"Holds {kind}, not a floating-point tensor.", _WRONG_VARIANT)
    if not torch.isfinite(value).all():
        raise DataError(path, place, "Holds NaN or infinity.", "Import an earlier epoch: this training diverged.")
    return value.detach().to(torch.float32).contiguous().clone()


def _integer(path: Path, content: Mapping[str, Any], key: str) -> int:
    value = content[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(path, key, f"Is {value!r}, not a count.", _WRONG_VARIANT)
    return value


def _head_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    return {
        "feature_dim": state["feature_films.0.linear.weight"].shape[-1],
        "hidden": state["feature_films.0.linear.weight"].shape[0],
        "light_dim": state["light_map.net.0.weight"].shape[-1],
        "exposure_dim": state["exposure_map.net.0.weight"].shape[-1],
    }


def _check_shapes(path: Path, state: Mapping[str, Tensor]) -> None:
    for upstream, ours in _HEAD_KEYS.items():
        expected_ndim = 2 if ours.endswith("weight") else 1
        if state[ours].ndim != expected_ndim:
            raise DataError(path, f"{_SHADER}: {upstream}", f"Has shape {list(state[ours].shape)}.", _WRONG_VARIANT)
    with torch.device("meta"):
        expected = FilmSirenHead(**_head_sizes(state)).state_dict()
    for upstream, ours in _HEAD_KEYS.items():
        if state[ours].shape != expected[ours].shape:
            raise DataError(
                path,
                f"{_SHADER}: {upstream}",
                f"Has shape {list(state[ours].shape)}, but the other layers need {list(expected[ours].shape)}.",
                _WRONG_VARIANT,
            )


def _codes(path: Path, content: Mapping[str, Any], group: str, dim: int) -> Tensor:
    state = _mapping(path, content, group)
    _match_keys(path, group, state, ("0.weight",))
    stored = _tensor(path, group, state, "0.weight")
    if stored.ndim != 2 or stored.shape[0] == 0 or stored.shape[1] != dim:
        raise DataError(
            path, f"{group}: 0.weight", f"Has shape {list(stored.shape)}, but the shader needs [rows, {dim}].",
            _WRONG_VARIANT,
        )  # fmt: skip
    return _codes_module(stored).table().detach()


def _codes_module(codes: Tensor) -> ViewCodes:
    module = ViewCodes(*codes.shape)
    with torch.no_grad():
        module.weight.copy_(codes)
    return module
