"""What tells the denoiser which view to draw, and what is left out for guidance (spec megascenes 4.1, 4.3, 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Optional

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

from megascenes_ns.autoencoder import network_range
from megascenes_ns.networks import Encoded, Networks
from megascenes_ns.sizes import LATENT

Uncond = Literal["legacy", "consistent"]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Of a batch of views."""

    context: Float[Tensor, "b 1 e"]
    """The one token of cross attention: projected embedding and pose."""
    concat: Float[Tensor, "b c h w"]
    """Input channels beside the noisy latent: the reference's latent (4), then the warp in [-1, 1] (3, or none)."""
    pose_context: Float[Tensor, "b 1 e"]
    """The token without the embedding, as training drops it: projected zeros and pose."""

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Conditioning:
        """Some of the views."""
        index: Any = list(rows) if isinstance(rows, Sequence) else rows
        return Conditioning(self.context[index], self.concat[index], self.pose_context[index])

    def unconditional(self, kind: Uncond) -> tuple[Float[Tensor, "b 1 e"], Float[Tensor, "b c h w"]]:
        """Context and input channels that guidance starts from (spec 4.4).

        Args:
            kind: ``legacy``: zeros, not projected, the warp included, as the original samples; ``consistent``: what
                training drops (embedding and reference latent), with pose and warp.
        """
        if kind == "legacy":
            return torch.zeros_like(self.context), torch.zeros_like(self.concat)
        if kind != "consistent":
            raise ValueError(f"no unconditional branch is called {kind}")
        concat = torch.cat([torch.zeros_like(self.concat[:, :LATENT]), self.concat[:, LATENT:]], 1)
        return self.pose_context, concat

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """Several batches as one."""
        return Conditioning(
            torch.cat([part.context for part in parts]),
            torch.cat([part.concat for part in parts]),
            torch.cat([part.pose_context for part in parts]),
        )


def condition(
    nets: Networks,
    encoded: Encoded,
    pose: Optional[Float[Tensor, "b 19"]],
    warp_low: Optional[Shaped[Tensor, "b h w 3"]] = None,
    *,
    drop_embedding: Optional[Bool[Tensor, " b"]] = None,
    drop_latent: Optional[Bool[Tensor, " b"]] = None,
) -> Conditioning:
    """Conditioning of a batch of views (spec 4.1, 4.3).

    Gradients reach ``cc_projection`` where its weights ask for them (the original's never do, spec 4.5).

    Args:
        nets: the networks.
        encoded: of the references, `Networks.encode_reference`.
        pose: vectors of `pose_vector`; None: the embedding goes in unprojected (the original's warp-only ablation).
        warp_low: the warp at latent size, uint8 or float in [0, 1]; for networks that take none it is ignored.
        drop_embedding: leave out the embedding of these samples, before the projection; the pose stays.
        drop_latent: leave out the reference's latent of these samples. The warp is never left out.

    Raises:
        ValueError: the networks take a warp and there is none, or its size is not the latents'.
    """
    embedding, latent = encoded.embedding.to(nets.device), encoded.latent.to(nets.device)
    if drop_embedding is not None:
        embedding = embedding.masked_fill(drop_embedding.to(nets.device)[:, None], 0)
    if drop_latent is not None:
        latent = latent.masked_fill(drop_latent.to(nets.device)[:, None, None, None], 0)
    channels = [latent]
    if nets.sizes.warp_channels:
        if warp_low is None:
            raise ValueError("these networks take a warp")
        warp = network_range(warp_low.to(nets.device))
        if warp.shape[2:] != latent.shape[2:]:
            raise ValueError(f"the warp has {tuple(warp.shape[2:])} cells, the latents {tuple(latent.shape[2:])}")
        channels.append(warp.to(latent.dtype))
    concat = torch.cat(channels, 1)
    if pose is None:
        return Conditioning(embedding[:, None], concat, torch.zeros_like(embedding)[:, None])
    with torch.no_grad():  # guidance alone uses it, and training never guides
        layer, kind = nets.cc_projection, nets.cc_projection.weight.dtype
        pose_token = functional.linear(
            pose.to(layer.weight.device, kind), layer.weight[:, embedding.shape[1] :], layer.bias
        )
    return Conditioning(project(nets, embedding, pose)[:, None], concat, pose_token[:, None])


def project(nets: Networks, embedding: Float[Tensor, "b e"], pose: Float[Tensor, "b 19"]) -> Float[Tensor, "b e"]:
    """``cc_projection`` of embedding and pose (spec 4.3)."""
    layer = nets.cc_projection
    kind = layer.weight.dtype
    return layer(torch.cat([embedding.to(kind), pose.to(layer.weight.device, kind)], 1))


def drop_masks(uniform: Float[Tensor, " b"]) -> tuple[Bool[Tensor, " b"], Bool[Tensor, " b"]]:
    """Which samples lose their embedding, and which their reference latent, for guidance (spec 4.4).

    Args:
        uniform: one draw in [0, 1) per sample. 5 % lose the embedding, 5 % both, 5 % the latent.
    """
    return uniform < 0.10, (uniform >= 0.05) & (uniform < 0.15)
