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

    Plain Adam moves table rows that got no gradient, by their decaying momentum; tiny-cuda-nn's does not, and neither
    does this one. Like tiny-cuda-nn's it tells so element by element: a zero within a touched row is left alone too.

    Bias correction counts steps per tensor, as `torch.optim.Adam` does, which this equals when every row is touched in
    every step. tiny-cuda-nn counts per element instead, for 4 bytes per element and a power per element and step. The
    difference is the first update of a row met late: it is ``(1 - beta1) / sqrt(1 - beta2)`` learning rates long, 3.2
    with torch's beta2 = 0.999 but 1, as with a counter of its own, with 0.99. Hence the default betas, instant-ngp's.

    Gradients may be dense or sparse COO. `HashGrid` sends sparse ones to the parameters this optimiser marks, when a
    batch touches a small part of the table: then the cost follows the touched rows. The ``.grad`` of such a parameter
    may be sparse from then on, so hand it to no other optimiser. ``zero_grad`` drops gradients: nothing to clear.

    Args:
        params: tables [rows, ...]; a vector counts as rows of one element.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        sparse: allow sparse gradients. False for code that needs dense ones, such as `clip_grad_norm_`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
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
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                rates = _Rates.at(int(state["step"]), group["lr"], group["betas"], group["eps"])
                table, mean, square = (_as_rows(t) for t in (parameter, state["exp_avg"], state["exp_avg_sq"]))
                if parameter.grad.is_sparse:
                    rows, grad = sparse_rows(parameter.grad)
                    _update_rows(table, mean, square, rows, grad, rates)
                else:
                    _update_all(table, mean, square, _as_rows(parameter.grad), rates)
        return loss


@dataclass(frozen=True)
class _Rates:
    """The numbers of one step of Kingma & Ba 2015, section 2: ``p -= step_size * m / (sqrt(v) + eps)``."""

    step_size: float
    gain1: float
    gain2: float
    eps: float

    @staticmethod
    def at(step: int, lr: float, betas: tuple[float, float], eps: float) -> _Rates:
        beta1, beta2 = betas
        root = math.sqrt(1 - beta2**step)
        return _Rates(lr * root / (1 - beta1**step), 1 - beta1, 1 - beta2, eps * root)


def _as_rows(tensor: Tensor) -> Float[Tensor, "T F"]:
    return tensor.detach().reshape(len(tensor), -1)


def sparse_rows(grad: Tensor) -> tuple[Int[Tensor, "U"], Float[Tensor, "U F"]]:
    """Ascending distinct rows and their gradient, of a sparse COO gradient."""
    # _indices and _values: the public ones insist on torch's own slow coalesce.
    rows, values = grad._indices()[0], grad._values()
    values = values[:, None].flatten(1)
    return (rows, values) if grad.is_coalesced() else sum_equal_rows(rows, values.contiguous())


def _block_rows(tensor: Float[Tensor, "T F"]) -> int:
    """Rows to update at once: on CPU so few that the six arrays of an update stay in a core's cache.

    torch splits an operation over threads from 2^15 elements on. For two threads that gains little, and costs much when
    a neighbour occupies one of the cores: every operation then waits for it.
    """
    if tensor.device.type != "cpu":
        return max(len(tensor), 1)
    threads = torch.get_num_threads()
    return (2**15 if threads <= 2 else 2**15 * threads) // tensor.shape[1] + 1


def _update_rows(
    table: Tensor, mean: Tensor, square: Tensor, rows: Int[Tensor, "U"], grad: Float[Tensor, "U F"], rates: _Rates
) -> None:
    """Adam on the given rows: gather, update, put back."""
    block = _block_rows(grad)
    for some, g in zip(rows.split(block), grad.split(block), strict=True):
        p, m, v = (gather_rows(tensor, some) for tensor in (table, mean, square))
        _update(p, m, v, g, rates)
        for tensor, changed in ((table, p), (mean, m), (square, v)):
            put_rows(tensor, some, changed)


def _update_all(table: Tensor, mean: Tensor, square: Tensor, grad: Tensor, rates: _Rates) -> None:
    """Adam on all of a dense gradient.

    Gathering the touched rows first is slower unless they are few: with one row of eight bytes in five touched, nearly
    every cache line is.
    """
    for p, m, v, g in zip(*(tensor.split(_block_rows(grad)) for tensor in (table, mean, square, grad)), strict=True):
        _update(p, m, v, g, rates)


def _update(p: Tensor, m: Tensor, v: Tensor, g: Tensor, rates: _Rates) -> None:
    """In place; where g is zero nothing changes, to the bit (``lerp_`` by 0 and ``p - 0 / x``). NaN spreads.

    The weights are computed in floats (sign squared): torch's operations on bool are four times slower. The root of
    exact zeros, most of a hash grid's moments, takes five times that of other numbers; 1e-36 is as good.
    """
    weight = g.sign().square_().mul_(rates.gain1)
    m.lerp_(g, weight)
    v.lerp_(g.square(), weight * (rates.gain2 / rates.gain1))
    p.addcdiv_(weight.mul_(m), v.clamp(min=1e-36).sqrt_().add_(rates.eps), value=-rates.step_size / rates.gain1)


@dataclass
class RowAdamOptimizerConfig(OptimizerConfig):
    """`RowAdam` for nerfstudio's ``--optimizers``."""

    _target: Type = field(default_factory=lambda: RowAdam)
    lr: float = 1e-2
    """The learning rate to use."""
    eps: float = 1e-15
    """Added to the root of the second moment."""
    betas: Tuple[float, float] = (0.9, 0.99)
    """Decay of the first and second moment."""

    def setup(self, params: Any) -> torch.optim.Optimizer:
        """The optimiser; with `max_norm` it gets dense gradients, which `clip_grad_norm_` needs."""
        return self._target(params, lr=self.lr, eps=self.eps, betas=tuple(self.betas), sparse=self.max_norm is None)
