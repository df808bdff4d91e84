"""All networks of the method in one module (spec megascenes 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from megascenes_ns.autoencoder import Moments, build_vae, decode, encode
from megascenes_ns.image_encoder import build_image_encoder, embed_pictures
from megascenes_ns.picture_autoencoder import GAIN, is_picture_size, set_picture_weights
from megascenes_ns.sizes import POSE, SCALE, Sizes
from megascenes_ns.unet import build_unet

FROZEN = ("vae", "image_encoder")
"""Names of the parts that are never trained."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the networks keep of reference photos."""

    latent: Float[Tensor, "b 4 h w"]
    """Mode of the autoencoder's posterior, NOT scaled (spec 4.1)."""
    embedding: Float[Tensor, "b e"]
    """CLIP's image embedding, not normalised."""

    def expand(self, count: int) -> Encoded:
        """One reference for ``count`` views."""
        return Encoded(self.latent.expand(count, -1, -1, -1), self.embedding.expand(count, -1))


class Networks(nn.Module):
    """UNet, autoencoder (``vae``), CLIP image tower (``image_encoder``) and the layer ``cc_projection`` between the
    last one and the UNet. The autoencoder and the tower stay in evaluation mode and get no gradients."""

    def __init__(self, sizes: Sizes) -> None:
        """Networks with random weights from torch's global generator; see `fresh`.

        Args:
            sizes: of all of them.

        Raises:
            MissingExtra: diffusers or transformers is not installed.
        """
        super().__init__()
        self.sizes = sizes
        self.unet = build_unet(sizes.unet)
        self.vae = build_vae(sizes.vae)
        self.image_encoder = build_image_encoder(sizes.clip, sizes.unet.context)
        self.cc_projection = nn.Linear(sizes.unet.context + POSE, sizes.unet.context)
        for part in FROZEN:
            getattr(self, part).requires_grad_(False)
        self.train(self.training)

    @classmethod
    def fresh(cls, sizes: Sizes, seed: int = 0) -> Networks:
        """Networks to train without a checkpoint (spec 4.3): ``cc_projection`` passes the embedding on and ignores the
        pose; `Sizes.tiny` gets an autoencoder whose latents are small pictures.

        Args:
            sizes: of all of them.
            seed: of the random weights; torch's global generator is left as it was.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = cls(sizes)
        with torch.no_grad():
            made.cc_projection.weight.zero_()
            made.cc_projection.weight[:, : sizes.unet.context].fill_diagonal_(1.0)
            made.cc_projection.bias.zero_()
        if is_picture_size(sizes.vae):
            set_picture_weights(made.vae)
        return made

    def train(self, mode: bool = True) -> Networks:
        """Set the mode of the trained parts; the frozen ones stay in evaluation mode."""
        super().train(mode)
        for part in FROZEN:
            getattr(self, part).eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.cc_projection.weight.device

    @property
    def latent_limit(self) -> float | None:
        """Largest size of a scaled latent, where that is known: of latents that are small pictures."""
        return SCALE * GAIN if is_picture_size(self.sizes.vae) else None

    def encode_reference(self, pictures: Shaped[Tensor, "b h w 3"]) -> Encoded:
        """What is kept of reference photos.

        Args:
            pictures: white padded squares, uint8 or float in [0, 1].
        """
        pictures = pictures.to(self.device)
        return Encoded(encode(self.vae, pictures).mean, embed_pictures(self.image_encoder, pictures))

    def encode_target(self, pictures: Shaped[Tensor, "b h w 3"]) -> Moments:
        """Distribution of targets' latents; ``.target(noise)`` draws and scales.

        Args:
            pictures: white padded squares, uint8 or float in [0, 1].
        """
        return encode(self.vae, pictures.to(self.device))

    def decode(self, latents: Float[Tensor, "b 4 h w"], batch: int = 8) -> Float[Tensor, "b H W 3"]:
        """Pictures in [0, 1] of scaled latents, a few at a time."""
        return torch.cat([decode(self.vae, part) for part in latents.split(batch)])

    def predict_noise(
        self,
        noisy: Float[Tensor, "b 4 h w"],
        times: Int64[Tensor, " b"],
        context: Float[Tensor, "b 1 e"],
        concat: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b 4 h w"]:
        """The UNet's noise estimate (spec 4.1, input order).

        Args:
            noisy: scaled latents with noise.
            times: in [0, 1000).
            context, concat: of `conditioning.Conditioning`.
        """
        kind = self.unet.conv_in.weight.dtype  # of the model itself, diffusers would search all modules
        stacked = torch.cat([noisy.to(kind), concat.to(kind)], 1)
        return self.unet(stacked, times, encoder_hidden_states=context.to(kind), return_dict=False)[0]
