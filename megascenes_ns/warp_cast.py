"""The ray-casting backend: the house's caster finds every sample's nearest triangle (spec megascenes 3.4)."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from core_ns.raycast import CasterName, RayCaster, make_caster
from megascenes_ns.edge_functions import pinhole_rays
from megascenes_ns.mesh import DepthMesh

NUDGE = (1.1e-3, 0.7e-3)
"""Pixels that rays are moved by: the reference's own pixel centres are vertices, and where six triangles meet, the
search, which is float32, finds none of them for one ray in a hundred."""

_WHOLE: WeakKeyDictionary[DepthMesh, dict[str, RayCaster]] = WeakKeyDictionary()
_WHOLE_LOCK = threading.Lock()


def cast_faces(
    mesh: DepthMesh,
    front: Bool[Tensor, "f"],
    K: Float64[Tensor, "3 3"],
    c2w_opencv: Float64[Tensor, "4 4"],
    offsets: Float64[Tensor, "spp 2"],
    height: int,
    width: int,
    near: float,
    far: float,
    caster: CasterName = "auto",
) -> Int64[Tensor, "spp p"]:
    """Which face each sample of one picture sees, -1 where none.

    All rays start at one point, so a face is seen from its back by all of them or by none: the faces seen from the back
    are left out of the search instead of being hit and passed.

    Args:
        front: the faces whose front the camera sees.
        near, far: depths between which surfaces are drawn.
    """
    pixel = torch.arange(height * width)
    centres = torch.stack([pixel % width, pixel // width], dim=1).double() + 0.5
    points = (centres + offsets[:, None]).reshape(-1, 2) + torch.tensor(NUDGE, dtype=torch.float64)
    missed = torch.full((len(offsets), len(pixel)), -1, dtype=torch.int64)
    kept = front.nonzero()[:, 0]
    if len(kept) == 0:
        return missed
    seen = _whole(mesh, caster) if len(kept) == len(mesh.faces) else _built(mesh, kept, caster)
    rays = pinhole_rays(K[None], points)[0]
    directions = rays @ c2w_opencv[:3, :3].T
    lengths = rays.norm(dim=1)
    # Rays start on the near plane: what lies before it is not there.
    origins = c2w_opencv[:3, 3] + near * directions
    hits = seen.cast(origins.float(), (directions / lengths[:, None]).float())
    depth = near + hits.t.double() / lengths
    found = hits.hit & (depth <= far)
    return torch.where(found, kept[hits.face.clamp(min=0)], -1).reshape(missed.shape)


def _built(mesh: DepthMesh, kept: Int64[Tensor, "k"], caster: CasterName) -> RayCaster:
    faces = torch.from_numpy(mesh.faces)[kept]
    return make_caster(torch.from_numpy(mesh.vertices), faces, "cpu", caster)


def _whole(mesh: DepthMesh, caster: CasterName) -> RayCaster:
    """The caster of all faces, built once per mesh: near the reference no face shows its back."""
    with _WHOLE_LOCK:
        known = _WHOLE.setdefault(mesh, {})
        if caster not in known:
            known[caster] = _built(mesh, torch.arange(len(mesh.faces)), caster)
        return known[caster]
