"""The real-time renderer as one CUDA kernel in Triton (spec diver 6.2): no buffers, no waiting for the host on the way.

A program carries a block of neighbouring rays from the cube's face to their end. It repeats two steps: every ray moves
until it meets its next occupied voxel, then all of them decode theirs together, with small matrix products. A ray that
is opaque or outside waits for the others of its block; neighbours end together often enough.

The march is that of `diver_ns.realtime`, to which the tests compare this with Triton's interpreter on a CPU.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton import knobs

from diver_ns.deploy_model import BLOCK as CELL_BLOCK
from diver_ns.deploy_model import DeployModel
from diver_ns.integrator import GAUSS_POINTS
from diver_ns.realtime import RayState, Sums

Precision = Literal["tf32", "tf32x3", "ieee"]

PRECISION: Precision = "tf32x3"
"""Of the matrix products: float32 split in three TF32 products. Plain TF32 errs by up to 1e-3; products without tensor
cores (ieee) need more registers than a thread has."""
RAYS_PER_PROGRAM = 64
CHANNELS = 32
ENCODED = 27


def can_run(device: torch.device) -> bool:
    """Whether kernels run on tensors of this device: on CUDA, or anywhere under ``TRITON_INTERPRET=1``."""
    return device.type == "cuda" or bool(knobs.runtime.interpret)


@triton.jit
def _axis(rays_ptr, axis, count, lane, live):
    """One row of a [3, count] tensor."""
    return tl.load(rays_ptr + axis * count + lane, mask=live, other=0.0)


@triton.jit
def _leap(voxel, sign, radius, behind, inverse):
    """Last voxel of the box along one axis, and when the ray leaves that."""
    last = voxel + sign * radius
    return last, (last - behind) * inverse


@triton.jit
def _follow(voxel, last, sign, leaves, until, entry, direction):
    """The voxel after a leap along one axis."""
    inside = tl.floor(entry + direction * until)
    inside = tl.minimum(tl.maximum(inside, tl.minimum(voxel, last)), tl.maximum(voxel, last))
    return tl.where(leaves <= until, last + sign, inside)


@triton.jit
def _local(entry, direction, voxel, t):
    """Coordinate in the voxel's own frame."""
    return tl.minimum(tl.maximum(entry - voxel + direction * t, 0.0), 1.0)


@triton.jit
def _render(
    entry_ptr, direction_ptr, inverse_ptr, sign_ptr, behind_ptr, base_ptr, end_ptr, shortest_ptr, term_ptr,
    cells_ptr, first_ptr, corners_ptr, table_ptr, weights_ptr,
    optical_ptr, rgb_ptr, depth_ptr, hits_ptr,
    count, n, blocks, limit, skip,
    RAYS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ENCODED: tl.constexpr, CELL_BLOCK: tl.constexpr,
    LOWER: tl.constexpr, UPPER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    live = lane < count
    channel = tl.arange(0, CHANNELS)
    unit = tl.arange(0, WIDTH)

    # The packed decoder (diver_ns.deploy.FusedDecoder.to_packed): [bias | weight] blocks, weights [inputs, outputs].
    at = weights_ptr
    input_bias = tl.load(at + channel)
    if WIDTH == CHANNELS:
        at += CHANNELS
    hidden_bias = tl.load(at + unit)
    hidden_at = at + WIDTH + channel[:, None] * WIDTH + unit[None, :]
    at += (1 + CHANNELS) * WIDTH
    sigma_bias = tl.load(at)
    sigma_weight = tl.load(at + 1 + unit)
    at += 1 + WIDTH
    view_at = at + WIDTH + unit[:, None] * WIDTH + unit[None, :]
    at += (1 + WIDTH + ENCODED) * WIDTH
    red_bias = tl.load(at)
    green_bias = tl.load(at + 1)
    blue_bias = tl.load(at + 2)
    red_weight = tl.load(at + 3 + unit * 3)
    green_weight = tl.load(at + 4 + unit * 3)
    blue_weight = tl.load(at + 5 + unit * 3)

    ex = _axis(entry_ptr, 0, count, lane, live)
    ey = _axis(entry_ptr, 1, count, lane, live)
    ez = _axis(entry_ptr, 2, count, lane, live)
    dx = _axis(direction_ptr, 0, count, lane, live)
    dy = _axis(direction_ptr, 1, count, lane, live)
    dz = _axis(direction_ptr, 2, count, lane, live)
    ix = _axis(inverse_ptr, 0, count, lane, live)
    iy = _axis(inverse_ptr, 1, count, lane, live)
    iz = _axis(inverse_ptr, 2, count, lane, live)
    sx = _axis(sign_ptr, 0, count, lane, live)
    sy = _axis(sign_ptr, 1, count, lane, live)
    sz = _axis(sign_ptr, 2, count, lane, live)
    bx = _axis(behind_ptr, 0, count, lane, live)
    by = _axis(behind_ptr, 1, count, lane, live)
    bz = _axis(behind_ptr, 2, count, lane, live)
    base = tl.load(base_ptr + lane, mask=live, other=0)
    end = tl.load(end_ptr + lane, mask=live, other=0.0)
    shortest = tl.load(shortest_ptr + lane, mask=live, other=0.0)

    vx = tl.zeros([RAYS], tl.float32)
    vy = tl.zeros([RAYS], tl.float32)
    vz = tl.zeros([RAYS], tl.float32)
    t = tl.zeros([RAYS], tl.float32)
    optical = tl.zeros([RAYS], tl.float32)
    red = tl.zeros([RAYS], tl.float32)
    green = tl.zeros([RAYS], tl.float32)
    blue = tl.zeros([RAYS], tl.float32)
    depth = tl.zeros([RAYS], tl.float32)
    hits = tl.zeros([RAYS], tl.float32)

    alive = (live & (end > 0.0)).to(tl.int32)
    while tl.max(alive, axis=0) > 0:
        # Move on to the next occupied voxel; what is found there is kept in h*.
        seeking = alive
        found = tl.zeros([RAYS], tl.int32)
        h_voxel_x = vx
        h_voxel_y = vy
        h_voxel_z = vz
        h_in = t
        h_out = t
        h_flat = base
        h_cell = base
        while tl.max(seeking, axis=0) > 0:
            flat = ((vz * n + vy).to(tl.int32) * n + vx.to(tl.int32)) + base
            flat = tl.minimum(tl.maximum(flat, 0), n * n * n - 1)
            cell = tl.load(cells_ptr + flat, mask=seeking > 0, other=0).to(tl.int32)
            radius = tl.maximum(cell, 0).to(tl.float32)
            last_x, exit_x = _leap(vx, sx, radius, bx, ix)
            last_y, exit_y = _leap(vy, sy, radius, by, iy)
            last_z, exit_z = _leap(vz, sz, radius, bz, iz)
            until = tl.maximum(tl.minimum(tl.minimum(exit_x, exit_y), exit_z), t)
            leave = tl.minimum(until, end)
            hit = (seeking > 0) & (cell < 0) & (leave - t > shortest)
            h_voxel_x = tl.where(hit, vx, h_voxel_x)
            h_voxel_y = tl.where(hit, vy, h_voxel_y)
            h_voxel_z = tl.where(hit, vz, h_voxel_z)
            h_in = tl.where(hit, t, h_in)
            h_out = tl.where(hit, leave, h_out)
            h_flat = tl.where(hit, flat, h_flat)
            h_cell = tl.where(hit, cell, h_cell)
            found = tl.where(hit, 1, found)
            vx = tl.where(seeking > 0, _follow(vx, last_x, sx, exit_x, until, ex, dx), vx)
            vy = tl.where(seeking > 0, _follow(vy, last_y, sy, exit_y, until, ey, dy), vy)
            vz = tl.where(seeking > 0, _follow(vz, last_z, sz, exit_z, until, ez, dz), vz)
            t = tl.where(seeking > 0, until, t)
            seeking = ((seeking > 0) & (found == 0) & (t < end)).to(tl.int32)

        if tl.max(found, axis=0) > 0:
            # Mean feature along the chord: two Gauss points, eight corners (spec diver 3.2).
            reads = found > 0
            row = h_flat // n
            block = (row // n // CELL_BLOCK * blocks + row % n // CELL_BLOCK) * blocks + h_flat % n // CELL_BLOCK
            number = tl.load(first_ptr + block, mask=reads, other=0) - 1 - h_cell
            ax = _local(ex, dx, h_voxel_x, h_in)
            ay = _local(ey, dy, h_voxel_y, h_in)
            az = _local(ez, dz, h_voxel_z, h_in)
            cx = _local(ex, dx, h_voxel_x, h_out) - ax
            cy = _local(ey, dy, h_voxel_y, h_out) - ay
            cz = _local(ez, dz, h_voxel_z, h_out) - az
            features = tl.zeros([RAYS, CHANNELS], tl.float32)
            for corner in tl.static_range(8):
                px = ax + LOWER * cx
                py = ay + LOWER * cy
                pz = az + LOWER * cz
                qx = ax + UPPER * cx
                qy = ay + UPPER * cy
                qz = az + UPPER * cz
                if corner % 2 == 0:
                    px = 1.0 - px
                    qx = 1.0 - qx
                if corner // 2 % 2 == 0:
                    py = 1.0 - py
                    qy = 1.0 - qy
                if corner // 4 == 0:
                    pz = 1.0 - pz
                    qz = 1.0 - qz
                weight = 0.5 * (px * py * pz + qx * qy * qz)
                place = tl.load(corners_ptr + number.to(tl.int64) * 8 + corner, mask=reads, other=0).to(tl.int64)
                values = tl.load(
                    table_ptr + place[:, None] * CHANNELS + channel[None, :], mask=reads[:, None], other=0.0
                ).to(tl.float32)
                features += weight[:, None] * values

            if WIDTH == CHANNELS:
                features = tl.maximum(features + input_bias[None, :], 0.0)
            # Weights are read again each time: kept in registers they would crowd out the rest.
            hidden = tl.dot(features, tl.load(hidden_at), input_precision=PRECISION) + hidden_bias[None, :]
            hidden = tl.maximum(hidden, 0.0)
            density = tl.maximum(tl.sum(hidden * sigma_weight[None, :], axis=1) + sigma_bias, 0.0)
            alpha = 1.0 - tl.exp(-density)
            counts = reads & (alpha >= skip)
            density = tl.where(counts, density, 0.0)
            weight = tl.where(counts, tl.exp(-optical) * alpha, 0.0)
            depth += weight * 0.5 * (h_in + h_out)
            optical += density
            hits += found.to(tl.float32)

            if tl.max(weight, axis=0) > 0.0:
                term = tl.load(term_ptr + lane[:, None] * WIDTH + unit[None, :], mask=live[:, None], other=0.0)
                view = tl.maximum(tl.dot(hidden, tl.load(view_at), input_precision=PRECISION) + term, 0.0)
                red += weight * tl.sigmoid(tl.sum(view * red_weight[None, :], axis=1) + red_bias)
                green += weight * tl.sigmoid(tl.sum(view * green_weight[None, :], axis=1) + green_bias)
                blue += weight * tl.sigmoid(tl.sum(view * blue_weight[None, :], axis=1) + blue_bias)
        alive = ((alive > 0) & (t < end) & (optical <= limit)).to(tl.int32)

    tl.store(optical_ptr + lane, optical, mask=live)
    tl.store(rgb_ptr + lane * 3, red, mask=live)
    tl.store(rgb_ptr + lane * 3 + 1, green, mask=live)
    tl.store(rgb_ptr + lane * 3 + 2, blue, mask=live)
    tl.store(depth_ptr + lane, depth, mask=live)
    tl.store(hits_ptr + lane, hits, mask=live)


def constants_of(width: int, precision: Precision) -> dict[str, Any]:
    """Compile-time arguments of the kernel for a decoder of this width."""
    return {
        "RAYS": RAYS_PER_PROGRAM, "WIDTH": width, "CHANNELS": CHANNELS, "ENCODED": ENCODED, "CELL_BLOCK": CELL_BLOCK,
        "LOWER": GAUSS_POINTS[0], "UPPER": GAUSS_POINTS[1], "PRECISION": precision,
    }  # fmt: skip


def march(
    model: DeployModel,
    rays: RayState,
    facing: Float[Tensor, "r 3"],
    limit: float,
    skip: float,
    precision: Precision | None = None,
) -> Sums:
    """What rays gather from the cube's face to their end.

    Args:
        model: see `diver_ns.deploy_model`.
        rays: at the cube; on a device for which `can_run` holds.
        facing: unit world directions.
        limit: optical depth at which a ray ends.
        skip: smallest opacity that counts.
        precision: of the matrix products; default `PRECISION`.
    """
    count, n = len(rays.end), model.grid.resolution
    sums = Sums(*(rays.end.new_empty(shape) for shape in ((count,), (count, 3), (count,), (count,))))
    if count:
        constants = constants_of(model.decoder.width, precision or PRECISION)
        with torch.cuda.device_of(rays.end):
            _render[(triton.cdiv(count, RAYS_PER_PROGRAM),)](
                rays.entry, rays.direction, rays.inverse, rays.sign, rays.behind, rays.base, rays.end, rays.shortest,
                model.decoder.direction_term(facing.to(torch.float32)).contiguous(),
                model.cells, model.first, model.corners, model.table, model.decoder.to_packed().contiguous(),
                *sums,
                count, n, -(-n // CELL_BLOCK), limit, skip,
                **constants,
            )  # fmt: skip
    return sums
