"""RowAdam against torch's Adam, a loop over rows, and nerfstudio's optimiser handling."""

from __future__ import annotations

import copy
import io
import itertools
import math

import pytest
import torch
from nerfstudio.engine.optimizers import Optimizers
from row_adam_rank import grid_of, train_rank

from xscale_ns.hash_grid import HashGrid
from xscale_ns.row_adam import RowAdam, RowAdamOptimizerConfig, sparse_rows


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def loss_of(grid: HashGrid, seed: int, n: int = 20) -> torch.Tensor:
    q = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))
    return (grid(q) - q.sum(1, keepdim=True)).square().mean()


@pytest.mark.parametrize("shape", [(40,), (40, 2), (40, 3), (40, 4), (40, 2, 3)])
@pytest.mark.parametrize("eps", [1e-15, 1e-2])
def test_equals_adam_when_every_row_is_touched(shape, eps):
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    row_adam = RowAdam([ours], lr=0.05, betas=(0.8, 0.95), eps=eps)
    adam = torch.optim.Adam([theirs], lr=0.05, betas=(0.8, 0.95), eps=eps)
    for step in range(12):
        grad = torch.randn(shape) + 0.1
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        for optimizer in (row_adam, adam):
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + step)
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("features", [1, 2, 3])
def test_equals_a_loop_over_touched_elements(sparse, features):
    """The oracle: Kingma & Ba's algorithm 1 in Python floats, skipped where the gradient is zero, one step count."""
    lr, beta1, beta2, eps = 0.1, 0.9, 0.99, 1e-3
    table = torch.nn.Parameter(torch.randn(30, features))
    value = table.detach().double()
    mean, square = torch.zeros_like(value), torch.zeros_like(value)
    optimizer = RowAdam([table], lr=lr, eps=eps)
    for step in range(1, 21):
        picked = torch.randperm(30)[:7]
        grad = torch.zeros(30, features).index_copy_(0, picked, torch.randn(7, features))
        grad[picked[0], 0] = 0
        for i, j in itertools.product(range(30), range(features)):
            g = grad[i, j].item()
            if g:
                mean[i, j] = beta1 * mean[i, j] + (1 - beta1) * g
                square[i, j] = beta2 * square[i, j] + (1 - beta2) * g * g
                corrected = mean[i, j] / (1 - beta1**step), square[i, j] / (1 - beta2**step)
                value[i, j] -= lr * corrected[0] / (corrected[1].sqrt() + eps)
        table.grad = grad
        if sparse:
            with torch.sparse.check_sparse_tensor_invariants(True):
                table.grad = grad.to_sparse(1)
        before = table.detach().clone()
        optimizer.step()
        assert torch.equal(before[grad == 0], table.detach()[grad == 0])
    torch.testing.assert_close(table.detach().double(), value, rtol=1e-4, atol=1e-5)


def test_tables_larger_than_a_block_are_updated_whole():
    ours = torch.nn.Parameter(torch.randn(40_000, 2))
    theirs = torch.nn.Parameter(ours.detach().clone())
    grad = torch.randn(40_000, 2)
    ours.grad, theirs.grad = grad.clone(), grad
    RowAdam([ours], lr=0.1).step()
    torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.99), eps=1e-15).step()
    torch.testing.assert_close(ours, theirs)


def test_the_first_update_of_a_late_row_is_one_learning_rate_long():
    table = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = RowAdam([table], lr=0.1)
    for _ in range(2000):
        table.grad = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        optimizer.step()
    table.grad = torch.tensor([[0.0, 0.0], [3.0, -0.01]])
    optimizer.step()
    torch.testing.assert_close(table[1].detach(), torch.tensor([-0.1, 0.1]))


def test_explicit_zeros_in_a_sparse_gradient_leave_rows_and_moments_alone():
    table = torch.nn.Parameter(torch.randn(6, 2))
    optimizer = RowAdam([table], lr=0.1)
    table.grad = torch.ones(6, 2)
    optimizer.step()
    moments = optimizer.state[table]
    before = {key: moments[key].clone() for key in ("exp_avg", "exp_avg_sq")} | {"value": table.detach().clone()}
    values = torch.tensor([[1.0, 0.0], [-0.0, 0.0]])
    with torch.sparse.check_sparse_tensor_invariants(True):
        table.grad = torch.sparse_coo_tensor(torch.tensor([[1, 4]]), values, (6, 2))
    optimizer.step()
    after = {**optimizer.state[table], "value": table.detach()}
    for key in before:
        changed = (before[key] != after[key]).any(1)
        assert changed.tolist() == [False, True, False, False, False, False], key


@pytest.mark.parametrize("features", [1, 2, 3, 4, 8])
def test_sparse_and_dense_gradients_train_the_same(features):
    grids = [grid_of(features)]
    grids.append(copy.deepcopy(grids[0]))
    optimizers = [RowAdam(grid.parameters(), sparse=sparse) for grid, sparse in zip(grids, (True, False), strict=True)]
    for step in range(10):
        for grid, optimizer in zip(grids, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(grid, step).backward()
            optimizer.step()
    assert [t.grad.is_sparse for t in grids[0].tables] == [False, True, True]
    assert not any(t.grad.is_sparse for t in grids[1].tables)
    for ours, theirs in zip(grids[0].tables, grids[1].tables, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_accumulated_backward_passes_equal_one_pass():
    split, whole = grid_of(), grid_of()
    whole.load_state_dict(split.state_dict())
    optimizers = RowAdam(split.parameters(), eps=1e-6), RowAdam(whole.parameters(), eps=1e-6)
    for step in range(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for part in range(3):
            (loss_of(split, 10 * step + part) / 3).backward()
        sum(loss_of(whole, 10 * step + part) / 3 for part in range(3)).backward()
        for optimizer in optimizers:
            optimizer.step()
    for ours, theirs in zip(split.tables, whole.tables, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_accumulation_mixes_sparse_and_dense():
    """A regulariser on the table itself gives a dense gradient; nothing of it may be lost."""
    grid = grid_of()
    RowAdam(grid.parameters())
    table = grid.tables[2]
    loss_of(grid, 0).backward()
    rows_only = table.grad.to_dense().clone()
    table.square().sum().backward()
    torch.testing.assert_close(table.grad, rows_only + 2 * table.detach())
    (loss_of(grid, 0) + table.square().sum()).backward()
    torch.testing.assert_close(table.grad, 2 * (rows_only + 2 * table.detach()))


def test_repeated_rows_of_a_sparse_gradient_are_summed():
    with torch.sparse.check_sparse_tensor_invariants(True):
        grad = torch.sparse_coo_tensor(torch.tensor([[3, 1, 3]]), torch.tensor([[1.0, 2], [3, 4], [5, 6]]), (6, 2))
    rows, values = sparse_rows(grad)
    assert rows.tolist() == [1, 3]
    assert values.tolist() == [[3, 4], [6, 8]]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_forgets_everything(set_to_none):
    grid = grid_of()
    optimizer = RowAdam(grid.parameters())
    loss_of(grid, 0).backward()
    optimizer.zero_grad(set_to_none=set_to_none)
    if set_to_none:
        assert all(table.grad is None for table in grid.tables)
    before = [table.detach().clone() for table in grid.tables]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, grid.tables, strict=True))
    loss_of(grid, 1).backward()
    fresh = copy.deepcopy(grid)
    fresh.zero_grad()
    loss_of(fresh, 1).backward()
    for ours, theirs in zip(grid.tables, fresh.tables, strict=True):
        torch.testing.assert_close(ours.grad.to_dense(), theirs.grad.to_dense())


def test_resuming_from_a_weights_only_file_changes_nothing():
    grid = grid_of()
    optimizer = RowAdam(grid.parameters(), lr=0.02)

    def train(grid, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            loss_of(grid, step).backward()
            optimizer.step()

    train(grid, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"grid": grid.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = grid_of()
    resumed = RowAdam(other.parameters(), lr=0.5)
    other.load_state_dict(saved["grid"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.param_groups[0]["lr"] == 0.02
    train(grid, optimizer, range(5, 9))
    train(other, resumed, range(5, 9))
    for ours, theirs in zip(grid.tables, other.tables, strict=True):
        assert torch.equal(ours, theirs)


def test_nan_gradients_are_not_hidden():
    table = torch.nn.Parameter(torch.zeros(4, 2))
    optimizer = RowAdam([table])
    table.grad = torch.tensor([[0.0, 0.0], [math.nan, 0.0], [0.0, 0.0], [1.0, 0.0]])
    optimizer.step()
    assert table.isnan().any(1).tolist() == [False, True, False, False]


def test_closure_and_bad_arguments():
    table = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = RowAdam([table], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = table.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 8
    assert (table < 1).all()
    with pytest.raises(ValueError, match="lr"):
        RowAdam([table], lr=-1)
    with pytest.raises(ValueError, match="betas"):
        RowAdam([table], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="contiguous"):
        RowAdam([torch.nn.Parameter(torch.ones(2, 4).t())])


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_nerfstudio_drives_it(max_norm):
    grid = grid_of()
    config = {"grid": {"optimizer": RowAdamOptimizerConfig(lr=0.05, max_norm=max_norm), "scheduler": None}}
    optimizers = Optimizers(config, {"grid": list(grid.parameters())})
    assert isinstance(optimizers.optimizers["grid"], RowAdam)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses = []
    for _ in range(60):
        optimizers.zero_grad_all()
        loss = loss_of(grid, 3)
        loss.backward()
        optimizers.optimizer_scaler_step_all(scaler)
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert all(table.grad.is_sparse for table in grid.tables[1:]) == (max_norm is None)
    optimizers.load_optimizers({"grid": optimizers.optimizers["grid"].state_dict()})


def test_distributed_data_parallel_gets_dense_gradients(monkeypatch):
    grid = grid_of()
    RowAdam(grid.parameters())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    loss_of(grid, 0).backward()
    assert not any(table.grad.is_sparse for table in grid.tables)


@pytest.mark.slow
def test_two_processes_equal_one_with_both_batches(tmp_path):
    torch.multiprocessing.spawn(train_rank, (str(tmp_path / "store"), str(tmp_path / "out")), nprocs=2)
    states = [torch.load(tmp_path / f"out.{rank}", weights_only=True) for rank in range(2)]
    torch.manual_seed(0)
    grid = grid_of()
    optimizer = RowAdam(grid.parameters(), eps=1e-6)
    for step in range(3):
        optimizer.zero_grad()
        ((loss_of(grid, 2 * step) + loss_of(grid, 2 * step + 1)) / 2).backward()
        optimizer.step()
    for key, value in grid.state_dict().items():
        assert torch.equal(states[0][key], states[1][key])
        torch.testing.assert_close(states[0][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scaled", [False, True])
def test_cuda_trains_like_the_cpu(scaled):
    grids = [grid_of(4)]
    grids.append(copy.deepcopy(grids[0]).cuda())
    optimizers = [RowAdam(grid.parameters(), eps=1e-6) for grid in grids]
    scaler = torch.amp.GradScaler("cuda", enabled=scaled, init_scale=1024.0)
    for step in range(5):
        q = torch.rand(20, 3, generator=torch.Generator().manual_seed(step))
        for grid, optimizer in zip(grids, optimizers, strict=True):
            optimizer.zero_grad()
            here = q.to(grid.tables[0].device)
            loss = (grid(here) - here.sum(1, keepdim=True)).square().mean()
            if here.is_cuda:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
    for ours, theirs in zip(grids[0].tables, grids[1].tables, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-4, atol=1e-5)
