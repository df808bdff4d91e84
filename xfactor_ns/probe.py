"""Between pose latents and real cameras: what no part of XFactor's training knows (spec xfactor 8.4).

Poses here are those of a frame relative to the reference frame of its latent, ``T_i T_reference^-1``: world-to-camera
matrices with OpenCV axes in the world that is the reference camera, lengths in units of the clip's median distance to
the reference. The pose probe is the paper's (three layers, frozen encoder); the way back is ours and experimental.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core_ns.atomic import atomic_path
from core_ns.errors import DataError

FORMAT = "xfactor-probe-1"
_AGAIN = "Make it again: ns-xfactor probe."


class _Procrustes(torch.autograd.Function):
    """The nearest rotation with the derivative of the projection itself, which stays finite where singular values meet
    (torch's derivative of the SVD does not, and a good probe's matrices are near rotations: all three are one)."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        """U diag(1, 1, det(U V^T)) V^T."""
        left, singular, right = torch.linalg.svd(matrix)
        sign = torch.ones_like(singular)
        sign[..., 2] = torch.det(left @ right).sign()
        right = sign[..., :, None] * right
        ctx.save_for_backward(left, singular * sign, right)
        return left @ right

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """dR = U W V^T with W_ij = (A_ij - A_ji) / (s_i + s_j), A = U^T dM V; this is its transpose."""
        left, singular, right = ctx.saved_tensors
        inner = left.mT @ grads[0] @ right.mT
        sums = (singular[..., :, None] + singular[..., None, :]).clamp_min(1e-3)
        return left @ ((inner - inner.mT) / sums) @ right


def nearest_rotation(matrix: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 3 3"]:
    """The rotation nearest to a matrix (Frobenius norm), never a reflection; differentiable.

    Where it is not unique (the two smallest signed singular values cancel) the derivative is cut, not infinite.
    """
    return _Procrustes.apply(matrix)  # pyright: ignore[reportReturnType]


def homogeneous_poses(
    rotation: Float[Tensor, "... 3 3"], translation: Float[Tensor, "... 3"]
) -> Float[Tensor, "... 4 4"]:
    """``[R | t; 0 0 0 1]``."""
    last = rotation.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*rotation.shape[:-2], 1, 4)
    return torch.cat([torch.cat([rotation, translation[..., None]], dim=-1), last], dim=-2)


def _layers(sizes: list[int]) -> nn.Sequential:
    """Dense layers with GELU (tanh form) between; Xavier-uniform weights, biases zero."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        dense = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(dense.weight)
        nn.init.zeros_(dense.bias)
        layers += [dense, nn.GELU("tanh")]
    return nn.Sequential(*layers[:-1])


class Probe(nn.Module):
    """Latent to pose (256 - 256 - 64 - 12) and pose to latent (9 - 256 - 1024 - 1024 - 256).

    Latents are standardised per channel by the statistics of those it was fitted to. What the encoder says of the
    reference itself is certain, so both directions are made exact there: the zero latent is no motion, and back.

    Args:
        pose: numbers in a latent.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, pose: int) -> None:
        super().__init__()
        self.forward_net = _layers([pose, 256, 64, 12])
        self.inverse_net = _layers([9, 256, 1024, 1024, pose])
        self.register_buffer("mean", torch.zeros(pose))
        self.register_buffer("std", torch.ones(pose))

    def standardise(self, latents: Float[Tensor, "... Dp"]) -> Float[Tensor, "... Dp"]:
        """Zero mean and unit deviation per channel."""
        return (latents - self.mean) / self.std

    def poses(self, latents: Float[Tensor, "... Dp"]) -> Float[Tensor, "... 4 4"]:
        """Relative poses of latents; differentiable. Rotations are exact, the zero latent gives no motion up to
        rounding."""
        output = self.forward_net(self.standardise(latents))
        still = self.forward_net(self.standardise(torch.zeros_like(self.mean)))
        rotation = nearest_rotation(output[..., 3:].unflatten(-1, (3, 3)) + torch.eye(3).to(output))
        start = nearest_rotation(still[3:].unflatten(-1, (3, 3)) + torch.eye(3).to(output))
        return homogeneous_poses(rotation @ start.mT, output[..., :3] - still[:3])

    def latents(self, poses: Float[Tensor, "... 4 4"]) -> Float[Tensor, "... Dp"]:
        """Latents of relative poses, by the regression; no motion gives exactly zero."""
        poses = poses.to(self.mean)
        still = torch.eye(4).to(poses)
        values = self.inverse_net(_coordinates(poses)) - self.inverse_net(_coordinates(still))
        # Rows of matrix products of other sizes differ in the last bit.
        same = (poses == still).all(-1).all(-1)[..., None]
        return torch.where(same, 0, values * self.std)

    def invert(
        self, poses: Float[Tensor, "n 4 4"], steps: int = 20, lr: float = 0.05, start: Tensor | None = None
    ) -> Float[Tensor, "n Dp"]:
        """Latents whose probed pose is the wanted one: the regression's, improved by Adam on ``|probe(Z) - T|^2``.

        Args:
            poses: wanted relative poses.
            steps: updates; 0 gives the regression's latents.
            lr: per standardised channel.
            start: latents to begin with ``[n Dp]``; default: `latents`.
        """
        wanted = poses.to(self.mean)
        with torch.no_grad():
            first = self.latents(wanted) if start is None else start.to(self.mean)
        with torch.enable_grad():
            offset = torch.zeros_like(first, requires_grad=True)
            optimiser = torch.optim.Adam([offset], lr=lr)
            for _ in range(steps):
                optimiser.zero_grad()
                error = (self.poses(first + offset * self.std) - wanted)[..., :3, :].square().sum()
                offset.grad = torch.autograd.grad(error, offset)[0]
                optimiser.step()
        return (first + offset * self.std).detach()


def _coordinates(poses: Float[Tensor, "... 4 4"]) -> Float[Tensor, "... 9"]:
    """Translation and the first two columns of the rotation (Zhou et al. 2019)."""
    return torch.cat([poses[..., :3, 3], poses[..., :3, 0], poses[..., :3, 1]], dim=-1)


def save_probe(file: Path, probe: Probe, facts: dict[str, Any]) -> None:
    """Write a probe as safetensors; ``facts`` (scores, the fingerprint of its encoder) stand in the file's header."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in probe.state_dict().items()}
    with atomic_path(file) as temporary:
        save_file(state, temporary, metadata={"format": FORMAT, "facts": json.dumps(facts, allow_nan=False)})


def load_probe(file: Path, pose: int | None = None, encoder: str | None = None) -> tuple[Probe, dict[str, Any]]:
    """A saved probe and its facts, on the CPU.

    Args:
        pose: what a latent of the network must have.
        encoder: fingerprint of the network's pose encoder, if the probe must have been fitted to it.

    Raises:
        DataError: unreadable, no probe, or another network's.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise DataError(file, "path", "is not a file.", "Make one: ns-xfactor probe.")
    try:
        with safe_open(file, framework="pt") as content:
            header = content.metadata() or {}
            if header.get("format") != FORMAT:
                raise DataError(file, "header", "is not a probe of ns-xfactor.", _AGAIN)
            facts = json.loads(header["facts"])
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  # not a dict
        probe = Probe(len(state["mean"]))
        probe.load_state_dict(state)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        if isinstance(error, DataError):
            raise
        first = (str(error).splitlines() or [""])[0]
        raise DataError(file, "content", f"cannot be read ({type(error).__name__}: {first}).", _AGAIN) from error
    if pose is not None and len(probe.mean) != pose:
        raise DataError(file, "latents", f"have {len(probe.mean)} numbers, the network's {pose}.", _AGAIN)
    if encoder is not None and facts.get("encoder") != encoder:
        raise DataError(file, "encoder", "is not the one of these weights.", _AGAIN)
    return probe.eval(), facts
