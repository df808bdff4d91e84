"""The Triton kernel: in the interpreter against its torch twin, through the compiler, and on a GPU if there is one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from realtime_scenes import camera, columns, rays, scene, sphere

from diver_ns import realtime
from diver_ns.realtime import render_rays

ROOT = Path(__file__).resolve().parents[2]


def test_triton_is_refused_where_it_cannot_run():
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="Triton kernels do not run on cpu"):
        render_rays(scene(sphere(4)).deploy(), *rays(3), backend="triton")


def test_works_without_triton(monkeypatch):
    monkeypatch.setattr(realtime, "is_importable", lambda _: False)
    model = scene(sphere(4)).deploy()
    assert render_rays(model, *rays(3), backend="auto")["rgb"].shape == (3, 3)
    with pytest.raises(ValueError, match="needs the package triton"):
        render_rays(model, *rays(3), backend="triton")


@pytest.mark.slow
def test_the_triton_kernel_equals_the_torch_twin_in_the_interpreter():
    """The same kernel source, executed by Triton's interpreter on the CPU."""
    pytest.importorskip("triton")
    code = """
        import sys
        import torch
        sys.path.insert(0, sys.argv[1])
        import realtime_scenes as t
        from diver_ns.realtime import render_rays
        for width, stop, skip, dtype, count in (
            (32, 0.01, 0.01, torch.float32, 70), (64, 0.0, 0.0, torch.float16, 40)
        ):
            it = t.scene(t.sphere(10, 0.8), width, density=0.4)
            model = it.deploy(dtype=dtype)
            parts = zip(t.rays(count), t.special(), strict=True)
            both = [torch.cat(part) for part in parts]
            one = t.columns(render_rays(model, *both, stop=stop, skip=skip, backend="torch"))
            other = t.columns(render_rays(model, *both, stop=stop, skip=skip, backend="triton"))
            torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
            assert one[:, 5].max() > 3
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
@pytest.mark.parametrize(("width", "precision", "table"), [(32, "tf32", "*fp16"), (64, "tf32x3", "*fp32")])
def test_the_triton_kernel_compiles_for_a_gpu(width, precision, table, tmp_path, monkeypatch):
    """Down to machine code, which needs no GPU."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from diver_ns.realtime_triton import _render, constants_of

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = constants_of(width, precision)
    names = dict.fromkeys(_render.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    types = {name: "*fp32" if name.endswith("_ptr") else kind for name, kind in names.items()}
    types |= {"cells_ptr": "*i8", "table_ptr": table, "limit": "fp32", "skip": "fp32"}
    types |= dict.fromkeys(("base_ptr", "first_ptr", "corners_ptr"), "*i32")
    source = ASTSource(_render, types, {(_render.arg_names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert len(compiled.asm["cubin"]) > 1000
    assert compiled.metadata.shared < 48 * 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("width", [32, 64])
def test_cuda_equals_cpu(backend, width):
    it = scene(sphere(40, 0.8), width, density=0.5)
    model, both = it.deploy(), camera(100, 120)
    reference = columns(render_rays(model, *both))
    there = render_rays(model.to("cuda"), *(part.cuda() for part in both), backend=backend)
    difference = (columns(there).cpu() - reference)[:, :4].abs()
    assert (difference < 1e-4).float().mean() > 0.999  # a threshold may fall on the other side
    assert difference.max() < 0.03


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_half_precision_products():
    """Spec diver 9.13: TF32 within 1e-3."""
    from diver_ns import realtime_triton

    it = scene(sphere(40, 0.8), density=0.5)
    model, both = it.deploy().to("cuda"), [part.cuda() for part in camera(100, 120)]
    reference = render_rays(model, *both, stop=0, skip=0)["rgb"]
    kept, realtime_triton.PRECISION = realtime_triton.PRECISION, "tf32"
    try:
        fast = render_rays(model, *both, stop=0, skip=0)["rgb"]
    finally:
        realtime_triton.PRECISION = kept
    assert (fast - reference).abs().quantile(0.999) < 1e-3
