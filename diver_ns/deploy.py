"""The decoder in the form that is fastest to evaluate: what commutes with the integral moved to the table, what is
linear fused, what depends on the ray alone taken out of the loop (spec diver 2, 5.6, 6.2).

Import, export and real-time rendering share this form; `FusedDecoder.to_packed` is the original's vector ``p``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diver_ns.field import CHANNELS, DIRECTION_BANDS, Decoder, encode

_ENCODED = 3 * (2 * DIRECTION_BANDS + 1)
PACKED_LENGTHS = {32: 3168, 64: 8288}
"""Length of the packed vector by decoder width, with its padding."""
PADDING = 28

# Column of the training order (d, then per band sin(3), cos(3)) for each place of the packed order, which is per axis:
# d_a, the sines of all bands, the cosines of all bands.
_PACKED_COLUMNS = [
    column
    for axis in range(3)
    for column in (
        axis,
        *(3 + 6 * band + axis for band in range(DIRECTION_BANDS)),
        *(6 + 6 * band + axis for band in range(DIRECTION_BANDS)),
    )
]


class FusedDecoder(nn.Module):
    """The decoder for rendering only; its weights are buffers in float32.

    Width 32: the first layer's weight is applied to the *table* (`first`), because a linear map commutes with the
    integral along the chord; its bias stays here. Width 64: that would double the table, so the table stays raw. In
    both, the last layer of ``point`` has no activation before ``view`` and the two are multiplied into one.

    Attributes:
        width: W, 32 or 64.
        first_weight: ``[32, 32]``; the identity for width 64 and for a decoder read from a packed vector.
        input_bias: ``[32]``; zero and unused for width 64.
        hidden_weight, hidden_bias: ``[W, 32]``, ``[W]``.
        sigma_weight, sigma_bias: ``[W]``, ``[]``.
        view_weight, view_bias: ``[W, W]``, ``[W]``; bias of the fused layer.
        direction_weight: ``[W, 27]``, columns in the order of `diver_ns.field.encode`.
        colour_weight, colour_bias: ``[3, W]``, ``[3]``.
    """

    first_weight: Tensor
    input_bias: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    sigma_weight: Tensor
    sigma_bias: Tensor
    view_weight: Tensor
    view_bias: Tensor
    direction_weight: Tensor
    colour_weight: Tensor
    colour_bias: Tensor

    def __init__(self, width: Literal[32, 64] | int) -> None:
        super().__init__()
        if width not in PACKED_LENGTHS:
            raise ValueError(f"a decoder is 32 or 64 wide, not {width}")
        self.width = int(width)
        self.register_buffer("first_weight", torch.eye(CHANNELS))
        for name, shape in (
            ("input_bias", (CHANNELS,)),
            ("hidden_weight", (width, CHANNELS)),
            ("hidden_bias", (width,)),
            ("sigma_weight", (width,)),
            ("sigma_bias", ()),
            ("view_weight", (width, width)),
            ("view_bias", (width,)),
            ("direction_weight", (width, _ENCODED)),
            ("colour_weight", (3, width)),
            ("colour_bias", (3,)),
        ):
            self.register_buffer(name, torch.zeros(shape))

    @classmethod
    def from_decoder(cls, decoder: Decoder) -> FusedDecoder:
        """The same function as a trained decoder, on its device."""
        return cls.from_state(decoder.state_dict())

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> FusedDecoder:
        """From the state dict of a `Decoder` (``point.K.*``, ``view.K.*``); the products are formed in float64.

        Raises:
            KeyError: a layer is missing.
            ValueError: the first layer is neither 32 nor 64 wide.
        """
        width = state["point.0.weight"].shape[0]
        fused = cls(width)
        layer = 0
        if width == CHANNELS:
            fused.first_weight, fused.input_bias = _float(state["point.0.weight"]), _float(state["point.0.bias"])
            layer = 2
        fused.hidden_weight = _float(state[f"point.{layer}.weight"])
        fused.hidden_bias = _float(state[f"point.{layer}.bias"])
        last, last_bias = state[f"point.{layer + 2}.weight"].double(), state[f"point.{layer + 2}.bias"].double()
        view = state["view.0.weight"].double()
        fused.sigma_weight, fused.sigma_bias = _float(last[0]), _float(last_bias[0])
        fused.view_weight = _float(view[:, :width] @ last[1:])
        fused.view_bias = _float(view[:, :width] @ last_bias[1:] + state["view.0.bias"].double())
        fused.direction_weight = _float(view[:, width:])
        fused.colour_weight, fused.colour_bias = _float(state["view.2.weight"]), _float(state["view.2.bias"])
        return fused.to(view.device)

    def to_state(self) -> dict[str, Tensor]:
        """State dict of a `Decoder` that computes the same: the fused product in ``view``, the identity in ``point``.

        It can be trained further like any other; exact for tables that go with `first_weight`.
        """
        last = torch.cat([self.sigma_weight[None], torch.eye(self.width, device=self.sigma_weight.device)])
        last_bias = torch.cat([self.sigma_bias[None], self.sigma_bias.new_zeros(self.width)])
        layers = [(self.hidden_weight, self.hidden_bias), (last, last_bias)]
        if self.width == CHANNELS:
            layers.insert(0, (self.first_weight, self.input_bias))
        state = {}
        for number, (weight, bias) in enumerate(layers):
            state[f"point.{2 * number}.weight"], state[f"point.{2 * number}.bias"] = weight.clone(), bias.clone()
        state["view.0.weight"] = torch.cat([self.view_weight, self.direction_weight], dim=1)
        state["view.0.bias"] = self.view_bias.clone()
        state["view.2.weight"], state["view.2.bias"] = self.colour_weight.clone(), self.colour_bias.clone()
        return state

    @classmethod
    def from_packed(cls, packed: Float[Tensor, "P"]) -> FusedDecoder:
        """From the original's vector ``p`` (spec diver 2); its table is already multiplied, so `first` is the identity.

        Raises:
            ValueError: the length is neither 3168 nor 8288, or the padding is not zero.
        """
        width = next((width for width, length in PACKED_LENGTHS.items() if tuple(packed.shape) == (length,)), None)
        if width is None:
            raise ValueError(
                f"a packed decoder has {sorted(PACKED_LENGTHS.values())} numbers, not {list(packed.shape)}"
            )
        packed = packed.detach().to(torch.float32)
        if packed[-PADDING:].any():
            raise ValueError(f"the last {PADDING} numbers of a packed decoder are zero; these are not")
        fused, start = cls(width), 0

        def take(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
            """The next layer, stored as [bias | weight], for each input all outputs: bias, weight [outputs, inputs]."""
            nonlocal start
            block = packed[start : start + outputs * (1 + inputs)].reshape(1 + inputs, outputs).t()
            start += outputs * (1 + inputs)
            return block[:, 0].contiguous(), block[:, 1:].contiguous()

        if width == CHANNELS:
            fused.input_bias, _ = take(CHANNELS, 0)
        fused.hidden_bias, fused.hidden_weight = take(width, CHANNELS)
        sigma_bias, sigma_weight = take(1, width)
        fused.sigma_bias, fused.sigma_weight = sigma_bias[0], sigma_weight[0]
        fused.view_bias, view = take(width, width + _ENCODED)
        fused.view_weight = view[:, :width].contiguous()
        fused.direction_weight = torch.empty(width, _ENCODED, device=packed.device)
        fused.direction_weight[:, _PACKED_COLUMNS] = view[:, width:]
        fused.colour_bias, fused.colour_weight = take(3, width)
        return fused.to(packed.device)

    def to_packed(self) -> Float[Tensor, "P"]:
        """The original's vector ``p``; holds everything but `first_weight`, which belongs to the table."""
        view = torch.cat([self.view_weight, self.direction_weight[:, _PACKED_COLUMNS]], dim=1)
        blocks = [self.input_bias] if self.width == CHANNELS else []
        blocks += [
            torch.cat([bias.reshape(1, -1), weight.t()]).flatten()
            for bias, weight in (
                (self.hidden_bias, self.hidden_weight),
                (self.sigma_bias, self.sigma_weight[None]),
                (self.view_bias, view),
                (self.colour_bias, self.colour_weight),
            )
        ]
        return torch.cat([*blocks, self.hidden_bias.new_zeros(PADDING)])

    def first(self, features: Float[Tensor, "V 32"]) -> Float[Tensor, "V 32"]:
        """The table this decoder wants: vertex features times the first weight (width 32), or as they are (64)."""
        features = features.to(self.first_weight.dtype)
        return features @ self.first_weight.t() if self.width == CHANNELS else features

    def direction_term(self, directions: Float[Tensor, "R 3"]) -> Float[Tensor, "R W"]:
        """What a ray's unit world direction adds to the view layer, that layer's bias included; once per ray."""
        return torch.addmm(self.view_bias, encode(directions, DIRECTION_BANDS), self.direction_weight.t())

    def density(self, features: Float[Tensor, "S 32"]) -> tuple[Float[Tensor, "S"], Float[Tensor, "S W"]]:
        """Raw density (before ReLU) and hidden values of integrated features from the table of `first`."""
        features = features.to(self.hidden_weight.dtype)
        if self.width == CHANNELS:
            features = torch.relu(features + self.input_bias)
        hidden = torch.relu(torch.addmm(self.hidden_bias, features, self.hidden_weight.t()))
        return hidden @ self.sigma_weight + self.sigma_bias, hidden

    def colour(self, hidden: Float[Tensor, "S W"], direction_term: Float[Tensor, "S W"]) -> Float[Tensor, "S 3"]:
        """Colour in [0, 1] from the hidden values of `density` and each segment's row of `direction_term`."""
        view = torch.relu(direction_term + hidden @ self.view_weight.t())
        return torch.sigmoid(torch.addmm(self.colour_bias, view, self.colour_weight.t()))

    def forward(
        self, features: Float[Tensor, "S 32"], direction_term: Float[Tensor, "S W"]
    ) -> tuple[Float[Tensor, "S"], Float[Tensor, "S 3"]]:
        """Raw density and colour of segments.

        Args:
            features: integrated features from the table of `first`.
            direction_term: `direction_term` of each segment's ray.
        """
        sigma, hidden = self.density(features)
        return sigma, self.colour(hidden, direction_term)


def _float(values: Tensor) -> Tensor:
    return values.detach().to(torch.float32, copy=True).contiguous()
