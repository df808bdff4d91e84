"""Adam for lookup tables: only the rows a step touched are read or written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Tuple, Type

import torch
from jaxtyping import Float, Int
from nerfstudio.engine.optimizers import OptimizerConfig
from torch import Tensor

from xscale_ns.table_rows import ROW_GRADIENTS, gather_rows, put_rows, sum_equal_rows


class RowAdam(torch.optim.Optimizer):
    """Adam where a row with zero gradient keeps its values and its moments bit for bit.

    A step of a hash grid touches a few per cent of the rows. Plain Adam reads and writes all of them, and it moves rows
    that got no gradient, by their decaying momentum. Here the cost follows the touched rows.

    Bias correction counts steps per row, as tiny-cuda-nn's Adam does per element (``param_steps`` in its adam.h). With
    one global counter a row met first at step 1000 would be taken as warmed up: its first update would be
    ``(1 - beta1) / sqrt(1 - beta2)`` = 3.2 learning rates long instead of 1. When every row is touched in every step
    the result is `torch.optim.Adam`'s.

    Gradients may be dense (scanned for nonzero rows: DistributedDataParallel, a regulariser on the table) or sparse
    COO. The optimiser asks `HashGrid` for sparse ones by marking its parameters, so such a parameter's ``.grad`` is
    sparse from then on; hand the parameters to no other optimiser afterwards. ``zero_grad`` drops gradients, so there
    is nothing to clear.

    Args:
        params: tables [rows, ...]; a vector counts as rows of one element.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        sparse: ask for sparse gradients. False for code that needs dense ones, such as `clip_grad_norm_`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
        *,
        sparse: bool = True,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"need lr >= 0, eps >= 0, 0 <= betas < 1; got {lr, eps, betas}")
        self._sparse = sparse
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters and mark them as wanting row gradients."""
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.ndim < 1 or not parameter.is_contiguous():
                raise ValueError("RowAdam takes contiguous tensors with at least one dimension")
            setattr(parameter, ROW_GRADIENTS, self._sparse)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of the rows with a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["row_steps"] = torch.zeros(len(parameter), 1, dtype=parameter.dtype, device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                rows, grad = touched_rows(parameter.grad)
                if len(rows):
                    _update_rows(_as_rows(parameter), rows, grad, state, group["lr"], group["betas"], group["eps"])
        return loss


def _as_rows(tensor: Tensor) -> Float[Tensor, "T F"]:
    return tensor.detach().view(len(tensor), -1)


def touched_rows(grad: Tensor) -> tuple[Int[Tensor, "U"], Float[Tensor, "U F"]]:
    """Ascending distinct rows with a nonzero (or NaN) gradient and that gradient, of a dense or sparse COO gradient."""
    if grad.is_sparse:
        # _indices and _values: the public ones insist on torch's own slow coalesce.
        rows, values = grad._indices()[0], grad._values().flatten(1)
        if not grad.is_coalesced():
            rows, values = sum_equal_rows(rows, values.contiguous())
        live = _nonzero_rows(values)
        return (rows, values) if len(live) == len(rows) else (rows.index_select(0, live), gather_rows(values, live))
    flat = grad.reshape(len(grad), -1)
    rows = _nonzero_rows(flat)
    return rows, gather_rows(flat, rows)


def _nonzero_rows(values: Float[Tensor, "T F"]) -> Int[Tensor, "U"]:
    if values.shape[1] % 2 == 0 and values.is_contiguous():  # compared in pairs: reducing a short row is slow on CPU
        values = torch.view_as_complex(values.view(len(values), values.shape[1] // 2, 2))
    nonzero = values != 0
    return (nonzero[:, 0] if nonzero.shape[1] == 1 else nonzero.any(1)).nonzero()[:, 0]


def _update_rows(
    table: Float[Tensor, "T F"],
    rows: Int[Tensor, "U"],
    grad: Float[Tensor, "U F"],
    state: dict[str, Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Kingma & Ba 2015, algorithm 1, on the selected rows."""
    beta1, beta2 = betas
    counts, mean, square = state["row_steps"], _as_rows(state["exp_avg"]), _as_rows(state["exp_avg_sq"])
    count = gather_rows(counts, rows).add_(1)
    put_rows(counts, rows, count)
    m = gather_rows(mean, rows).lerp_(grad, 1 - beta1)
    put_rows(mean, rows, m)
    v = gather_rows(square, rows).mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    put_rows(square, rows, v)
    denominator = v.div_(_bias(beta2, count)).sqrt_().add_(eps)
    update = m.div_(denominator).div_(_bias(beta1, count))
    put_rows(table, rows, gather_rows(table, rows).add_(update, alpha=-lr))


def _bias(beta: float, count: Tensor) -> Tensor:
    """``1 - beta**count`` without a power per row (half the time, and no cancellation)."""
    return torch.expm1(count * (math.log(beta) if beta else -math.inf)).neg_()


@dataclass
class RowAdamOptimizerConfig(OptimizerConfig):
    """`RowAdam` for nerfstudio's ``--optimizers``."""

    _target: Type = field(default_factory=lambda: RowAdam)
    lr: float = 1e-2
    """The learning rate to use."""
    eps: float = 1e-15
    """Added to the root of the second moment."""
    betas: Tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""

    def setup(self, params: Any) -> torch.optim.Optimizer:
        """The optimiser; with `max_norm` it gets dense gradients, which `clip_grad_norm_` needs."""
        return self._target(params, lr=self.lr, eps=self.eps, betas=tuple(self.betas), sparse=self.max_norm is None)
