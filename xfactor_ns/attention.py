"""The transformer block that both networks are made of (XFactor / spec xfactor 3.1, 3.2, 3.6, 3.7).

Tokens are ``[n V N C]``: n independent items, V views of N tokens each. An item holds tokens of one mask group only
(`xfactor_ns.packing`), so attention needs no mask; `xfactor_ns.masked_twin` passes one to show that this is exact.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Optional

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from xfactor_ns.size import Size

Precision = Literal["fp32", "tf32", "bf16"]
"""Of matrix products and attention. Parameters, norms, rotary positions and the residual stream are always float32."""
Allowed = tuple[Bool[Tensor, "n 1 i j"], Bool[Tensor, "v 1 a b"]]
"""Which token may see which, over all views and inside each view (n V of them)."""

EVERYTHING = (slice(None), slice(None))
LAYER_NORM_EPSILON, HEAD_NORM_EPSILON = 1e-6, 1e-5
_ROTARY_BASE = 10000.0


def precise(precision: Precision, device: torch.device) -> torch.autocast:
    """Where the matrix products of a forward pass run in a precision; outer autocasts are switched off.

    ``tf32`` is a setting of the whole process in torch (the backward pass needs it too) and is left on.
    """
    if precision == "tf32" and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class Dense(nn.Linear):
    """A linear layer whose kernel is what weight decay acts on; filled by `initialise`, not here."""

    def reset_parameters(self) -> None:
        """Nothing: torch's own start would draw from the global generator, only to be overwritten."""


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Kernels Xavier-uniform, biases N(0, 1e-6) (spec xfactor 3.6). Same numbers on every device.

    Args:
        module: all its `Dense` layers are filled, in their order.
        generator: on the CPU.
    """
    for layer in module.modules():
        if isinstance(layer, Dense) and not layer.weight.is_meta:
            limit = math.sqrt(6 / (layer.in_features + layer.out_features))
            with torch.no_grad():
                kernel = torch.empty(layer.weight.shape, device="cpu")
                layer.weight.copy_(kernel.uniform_(-limit, limit, generator=generator))
                if layer.bias is not None:
                    layer.bias.copy_(torch.empty(len(kernel), device="cpu").normal_(0, 1e-6, generator=generator))


def dense_kernels(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that weight decay acts on: kernels of dense layers, nothing else (spec xfactor 4.5)."""
    kernels = (layer.weight for layer in module.modules() if isinstance(layer, Dense))
    return [kernel for kernel in kernels if isinstance(kernel, nn.Parameter)]


class Mlp(nn.Module):
    """Dense layers ``fc0``, ``fc1``, ... with GELU (tanh form) between them."""

    fc0: Dense

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.depth = len(widths) - 1
        for i in range(self.depth):
            self.add_module(f"fc{i}", Dense(widths[i], widths[i + 1]))

    def after_first(self, hidden: Float[Tensor, "*n hidden"]) -> Float[Tensor, "*n out"]:
        """The rest of the layers, from the output of ``fc0``."""
        for i in range(1, self.depth):
            hidden = self.get_submodule(f"fc{i}")(gelu(hidden, approximate="tanh"))
        return hidden

    def forward(self, x: Float[Tensor, "*n in"]) -> Float[Tensor, "*n out"]:
        """All layers."""
        return self.after_first(self.fc0(x))


class HeadNorm(nn.Module):
    """Gains per head and channel; `Block` divides by the root mean square of all four kinds at once."""

    def __init__(self, heads: int, head: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, head))


def layer_norm(width: int, bias: bool = True) -> nn.LayerNorm:
    """With flax's epsilon, 1e-6."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPSILON, bias=bias)


# ---------------------------------------------------------------------- rotary positions


def rotary_table(rows: int, cols: int, head: int, device: torch.device | str = "cpu") -> Float[Tensor, "T pairs 2"]:
    """Cosine and sine for each patch of a grid, row-major, and each pair of channels (spec xfactor 3.2).

    The first half of the pairs turns by the patch's row, the second by its column, both counted from 0, at frequencies
    ``10000^(-i / (d/4))``. Rows and columns are separate, so any grid will do.

    Args:
        rows, cols: of patches.
        head: d, channels of a head; a multiple of 4.
        device: where to make it.
    """
    count = head // 4
    frequency = _ROTARY_BASE ** (-torch.arange(count, dtype=torch.float64, device=device) / count)
    by_row = torch.arange(rows, dtype=torch.float64, device=device)[:, None, None] * frequency
    by_col = torch.arange(cols, dtype=torch.float64, device=device)[None, :, None] * frequency
    angles = torch.cat([by_row.expand(rows, cols, count), by_col.expand(rows, cols, count)], -1).flatten(0, 1)
    return torch.stack([angles.cos(), angles.sin()], -1).float()


def unturned(table: Float[Tensor, "n m pairs 2"], count: int) -> Float[Tensor, "n m+count pairs 2"]:
    """The table with tokens appended that have no position (the registers): cosine 1, sine 0."""
    still = table.new_zeros(table.shape[0], count, *table.shape[2:])
    still[..., 0] = 1
    return torch.cat([table, still], 1)


def rotate(x: Float[Tensor, "n V N k h d"], table: Float[Tensor, "n N pairs 2"]) -> Float[Tensor, "n V N k h d"]:
    """Turn neighbouring channels, as complex numbers, by the angles of their token.

    Args:
        x: float32; k kinds of vectors (queries, keys).
        table: of each token; n may be 1 for all items.
    """
    turn = table[:, None, :, None, None]
    pairs = x.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        # The compiler makes no code for complex numbers.
        a, b, cos, sin = *pairs.unbind(-1), *turn.unbind(-1)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn)).flatten(-2)


# ---------------------------------------------------------------------- the block


class Block(nn.Module):
    """Attention over all views and inside each view, side by side, then an MLP (spec xfactor 3.1).

    Equivariant to the order of views and of tokens.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        width, self.heads, self.head = size.width, size.heads, size.head
        self.norm_attn = layer_norm(width, bias=False)
        self.qkv = Dense(width, 6 * width, bias=False)
        self.q_norm = HeadNorm(self.heads, self.head)
        self.k_norm = HeadNorm(self.heads, self.head)
        self.q_self_norm = HeadNorm(self.heads, self.head)
        self.k_self_norm = HeadNorm(self.heads, self.head)
        self.proj = Dense(2 * width, width)
        self.scale_attn = nn.Parameter(torch.full((width,), size.layer_scale))
        self.norm_mlp = layer_norm(width)
        self.mlp = Mlp(width, 4 * width, width)
        self.scale_mlp = nn.Parameter(torch.full((width,), size.layer_scale))

    def forward(
        self,
        z: Float[Tensor, "n V N C"],
        table: Float[Tensor, "n N pairs 2"],
        keep: tuple[slice, slice] = EVERYTHING,
        allowed: Optional[Allowed] = None,
    ) -> Float[Tensor, "n Vkept Nkept C"]:
        """One block.

        Args:
            z: tokens, float32.
            table: of `rotary_table`, for each token; n may be 1.
            keep: views and tokens to return. What the others would become is not computed (of a last block, most of
                the output is not looked at); what is kept does not change.
            allowed: only for the twin; None: everything in an item.
        """
        n, views = z.shape[:2]
        (q, k, v), (q_own, k_own, v_own) = self._vectors(self.norm_attn(z), table, keep)
        if keep != EVERYTHING:
            z = z[:, keep[0], keep[1]]
            if allowed is not None:
                allowed = _kept_rows(allowed, n, views, keep)
        everywhere, inside = allowed or (None, None)
        over_all = attend(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), everywhere)
        in_view = attend(q_own.flatten(0, 1), k_own.flatten(0, 1), v_own.flatten(0, 1), inside)
        both = torch.cat([over_all.reshape(z.shape), in_view.reshape(z.shape)], -1)
        z = z + self.scale_attn * self.proj(both)
        return z + self.scale_mlp * self.mlp(gelu(self.norm_mlp(z), approximate="tanh"))

    def _vectors(self, u: Float[Tensor, "n V N C"], table: Float[Tensor, "n N pairs 2"], keep: tuple[slice, slice]):
        """Queries, keys and values, [n V N h d], over all views and inside each: only those that ``keep`` asks for."""
        gains = [part.weight for part in (self.q_norm, self.k_norm, self.q_self_norm, self.k_self_norm)]
        # Splitting and unbinding rather than indexing: their gradient is one copy, not a sum of mostly empty tensors.
        if keep == EVERYTHING:
            made = self.qkv(u).unflatten(-1, (2, 3, self.heads, self.head))
            turned, values = made.split((2, 1), 4)
            q, k, q_own, k_own = _turned(turned.flatten(3, 4), gains, table)
            v, v_own = values.squeeze(4).unbind(3)
            return (q, k, v), (q_own, k_own, v_own)
        views, tokens = keep
        of_q, of_k, of_v, of_q_own, of_k_own, of_v_own = self.qkv.weight.unflatten(0, (6, -1)).unbind(0)

        def made_of(some: Tensor, *kernels: Tensor) -> Tensor:
            return linear(some, torch.cat(kernels)).unflatten(-1, (len(kernels), self.heads, self.head))

        in_views = u[:, views]
        q, q_own = _turned(made_of(in_views[:, :, tokens], of_q, of_q_own), gains[::2], table[:, tokens])
        k, v = made_of(u, of_k, of_v).split(1, 3)
        k_own, v_own = made_of(in_views, of_k_own, of_v_own).split(1, 3)
        (k,), (k_own,) = _turned(k, gains[1:2], table), _turned(k_own, gains[3:], table)
        return (q, k, v.squeeze(3)), (q_own, k_own, v_own.squeeze(3))


def _turned(
    x: Float[Tensor, "n V N k h d"], gains: list[nn.Parameter], table: Float[Tensor, "n N pairs 2"]
) -> tuple[Float[Tensor, "n V N h d"], ...]:
    """Each of k kinds of vectors at root mean square 1 (in float32), times its gains, at its position."""
    long = x.float()
    long = long * torch.rsqrt((long * long).sum(-1, keepdim=True) / x.shape[-1] + HEAD_NORM_EPSILON)
    return rotate(long * torch.stack(tuple(gains)), table).to(x.dtype).unbind(3)


def _kept_rows(allowed: Allowed, n: int, views: int, keep: tuple[slice, slice]) -> Allowed:
    """What the kept tokens may see."""
    everywhere, inside = allowed
    rows = torch.arange(everywhere.shape[2], device=inside.device).view(views, -1)[keep].flatten()
    of_views = inside.unflatten(0, (n, views))[:, keep[0]].flatten(0, 1)
    return everywhere[:, :, rows], of_views[:, :, keep[1]]


def attend(
    q: Float[Tensor, "n i h d"],
    k: Float[Tensor, "n j h d"],
    v: Float[Tensor, "n j h d"],
    allowed: Optional[Bool[Tensor, "n 1 i j"]] = None,
) -> Float[Tensor, "n i h d"]:
    """Softmax attention, scale d^-1/2."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2)


class Blocks(nn.ModuleList):
    """The stack of blocks of one network."""

    def __init__(self, size: Size, checkpointing: bool = False, compile: bool = False) -> None:
        super().__init__(Block(size) for _ in range(size.blocks))
        self.checkpointing = checkpointing
        """Recompute each block in the backward pass instead of keeping its activations; while training."""
        if compile:
            for block in self:
                block.compile()

    def forward(
        self,
        z: Float[Tensor, "n V N C"],
        table: Float[Tensor, "n N pairs 2"],
        keep: tuple[slice, slice] = EVERYTHING,
        allowed: Optional[Allowed] = None,
    ) -> Float[Tensor, "n Vkept Nkept C"]:
        """All blocks; ``keep`` concerns the last (see `Block.forward`)."""
        last = len(self) - 1
        for i, block in enumerate(self):
            arguments = (z, table, keep if i == last else EVERYTHING, allowed)
            if self.checkpointing and self.training and torch.is_grad_enabled():
                made: Any = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
                z = made
            else:
                z = block(*arguments)
        return z
