"""The Triton kernels: against their torch twin in the interpreter, through the compiler, and on a GPU if present."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peel_reference import View, awkward_cloud, random_cloud

from r4dv_ns.peel import peel
from r4dv_ns.peel_fragments import Window, visible_discs

ROOT = Path(__file__).resolve().parents[2]


def test_triton_is_refused_where_it_cannot_run():
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="Triton kernels do not run on cpu"):
        peel(*random_cloud(3), **View()._asdict(), backend="triton")


def test_tile_lists_hold_every_disc_of_every_pixel():
    """Each tile lists, nearest first, all discs that cover one of its pixels."""
    pytest.importorskip("triton")
    from r4dv_ns.peel_triton import tile_lists

    cloud, view = awkward_cloud(1000), View()
    window = Window(*view)
    for chosen in (slice(None), slice(0, 0)):
        parts = (part[chosen] for part in cloud[:3])
        discs = visible_discs(*parts, window, near=1e-4, min_radius=0.75)
        rows, starts = tile_lists(discs, window, 16)
        assert len(starts) == 3 * 4 + 1
        assert int(starts[-1]) == len(rows)
        x = torch.arange(50) + 0.5
        y = torch.arange(40)[:, None, None] + 0.5
        covers = (x[:, None] - discs.u) ** 2 + (y - discs.v) ** 2 < discs.drawn**2
        for tile in range(12):
            listed = rows[starts[tile] : starts[tile + 1]].long()
            assert bool((listed.diff() > 0).all())
            part = covers[tile // 4 * 16 :, tile % 4 * 16 :][:16, :16]
            assert set(part.flatten(0, 1).any(0).nonzero()[:, 0].tolist()) <= set(listed.tolist())


@pytest.mark.slow
def test_a8_the_triton_kernels_equal_the_torch_twin_in_the_interpreter():
    """A8: the same kernel source, forward and backward, executed by Triton's interpreter on the CPU."""
    pytest.importorskip("triton")
    code = """
        import sys
        import torch
        sys.path.insert(0, sys.argv[1])
        from peel_reference import View, awkward_cloud
        from r4dv_ns.peel import peel
        view = View(18.0, 19.0, 9.2, 9.1, 18, 19)
        for layers, min_radius, dtype, tolerance in (
            (3, 0.75, torch.float32, 1e-4), (None, 0.0, torch.float64, 1e-12)
        ):
            cloud = awkward_cloud(280, dtype=dtype)
            cloud.alpha[230:260] = 1
            leaves = {name: cloud.clone() for name in ("torch", "triton")}
            images = {}
            for name, leaf in leaves.items():
                images[name] = peel(*leaf, **view._asdict(), layers=layers, min_radius=min_radius, backend=name)
                weights = torch.rand(18, 19, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
                loss = (images[name].color * weights[..., :3]).sum()
                if layers != 3:
                    loss = loss + (images[name].accumulation * weights[..., 3]).sum()
                    loss = loss + (images[name].depth * weights[..., 4]).sum()
                loss.backward()
            for one, other in zip(images["torch"], images["triton"], strict=True):
                torch.testing.assert_close(other, one, atol=tolerance, rtol=0)
            for one, other in zip(leaves["torch"], leaves["triton"], strict=True):
                scale = float(one.grad.abs().max())
                torch.testing.assert_close(other.grad / scale, one.grad / scale, atol=10 * tolerance, rtol=0)
            with torch.no_grad():
                again = peel(*cloud, **view._asdict(), layers=layers, min_radius=min_radius, backend="triton")
            assert all(torch.equal(one, other) for one, other in zip(again, images["triton"], strict=True))
        empty = peel(*(part[:0] for part in awkward_cloud(10).clone()), **view._asdict(), backend="triton")
        empty.color.sum().backward()
        assert empty.accumulation.max() == 0
        print("equal")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parent)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.stdout.strip() == "equal", result.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_forward", "_backward"])
@pytest.mark.parametrize("kind", ["fp32", "fp64"])
def test_the_triton_kernels_compile_for_a_gpu(name, kind, tmp_path, monkeypatch):
    """Down to machine code, which needs no GPU."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from r4dv_ns import peel_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(peel_triton, name)
    constants = peel_triton.constants_of(4) | ({"STORE": True} if name == "_forward" else {})
    names = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    types = {name: f"*{kind}" if name.endswith("_ptr") else sort for name, sort in names.items()}
    types |= dict.fromkeys(("list_ptr", "start_ptr", "count_ptr", "last_ptr"), "*i32")
    source = ASTSource(kernel, types, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert len(compiled.asm["cubin"]) > 1000
    assert compiled.metadata.shared < 48 * 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("layers", [1, 15, None])
def test_a8_cuda_equals_cpu(backend, layers):
    """A8: forward within 1e-4, gradients within 1e-3 of the largest."""
    view = View(400.0, 410.0, 160.3, 121.2, 240, 320)
    cloud = awkward_cloud(20000, dtype=torch.float32)
    here, there = cloud.clone(), cloud.to("cuda").clone()
    images = [peel(*here, **view._asdict(), layers=layers)]
    images.append(peel(*there, **view._asdict(), layers=layers, backend=backend))
    weights = torch.rand(240, 320, 4, generator=torch.Generator().manual_seed(0))
    for image in images:
        seeds = weights.to(image.color.device)
        ((image.color * seeds[..., :3]).sum() + (image.accumulation * seeds[..., 3]).sum()).backward()
    same = (images[0].fragments == images[1].fragments.cpu()).float().mean()
    assert same > 0.999  # a centre may fall on the other side of a rim, where the opacity is zero
    for one, other in zip(images[0][:2], images[1][:2], strict=True):
        difference = (other.cpu() - one).abs()
        assert difference.quantile(0.9999) < 1e-4
        assert difference.max() < 0.05
    for one, other in zip(here, there, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        error = (other.grad.cpu() - one.grad).abs() / one.grad.abs().max()
        assert error.flatten().topk(len(error) // 1000).values[-1] < 1e-3
