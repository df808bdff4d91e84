"""First hits of free rays on a triangle mesh.

A backend answers one question only: *which* face does a ray hit first. Distance and barycentric coordinates then come
from that face in float64, by one function for all backends. So backends agree wherever their faces agree, a hit lies on
its ray whatever the backend's own precision, and nobody depends on which vertices a library's (u, v) weight. Hits are
two-sided. Interface: spec xscale 8.1.

Subtract the mesh centre in float64 *before* casting to float32 (spec xscale 2.8): nothing here can bring back digits
that geo-referenced coordinates lost.
"""

from __future__ import annotations

import functools
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor

from core_ns.errors import MissingExtra, is_importable, need
from core_ns.frames import clip_matrix, homogeneous

log = logging.getLogger(__name__)

CasterName = Literal["auto", "embree", "open3d", "warp", "nvdiffrast", "torch"]
Vector = tuple[Tensor, Tensor, Tensor]
"""x, y and z as three tensors: component rows run about twice as fast on a CPU as a trailing axis of three."""

CHUNK = 1 << 15
"""Rays per piece on a CPU: float64 intermediates stay in the cache, and threads share out uneven rays evenly."""
CUDA_CHUNK = 1 << 22
"""Rays per piece on CUDA, where only memory bounds it (about 300 B per ray)."""
BRUTE_FORCE_FACES = 20_000
BRUTE_FORCE_PAIRS = 1 << 21
"""Ray-face pairs at a time in the brute-force caster; about 16 float64 intermediates of this size live at once."""
NVDIFFRAST_FACES = 1 << 24
"""nvdiffrast stores face ids in a float32 channel; above this they are not consecutive integers."""
FAR_OVER_NEAR = 1e4


class Hits(NamedTuple):
    """First hits of N rays, on the device the rays were on.

    A miss has ``hit`` False, ``t`` +inf, ``face`` -1 and ``barycentric`` 0. ``t`` counts in lengths of the direction,
    so it is the distance for unit directions; the hit point is origin + t * direction. ``barycentric`` holds the
    weights of vertices 0 and 1 of the face, clamped to the triangle; vertex 2 has the rest.
    """

    hit: Bool[Tensor, "n"]
    t: Float32[Tensor, "n"]
    face: Int64[Tensor, "n"]
    barycentric: Float32[Tensor, "n 2"]


class RayCaster(Protocol):
    """What every backend offers. `NvdiffrastCaster` additionally has ``cast_image``."""

    name: str

    def cast(self, origins: Float32[Tensor, "n 3"], directions: Float32[Tensor, "n 3"]) -> Hits:
        """First hits of rays in the mesh's frame with unit directions; non-finite or zero directions miss."""
        ...


def make_caster(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], device: torch.device | str, name: CasterName = "auto"
) -> RayCaster:
    """Build a caster for one mesh.

    Args:
        vertices: positions in the frame of the rays to come, near the origin (see the module docstring).
        faces: vertex indices.
        device: where to compute. "embree" and "open3d" always compute on the CPU. Rays may live on any device; their
            hits come back to it.
        name: backend; "auto" takes warp on CUDA (nvdiffrast too when it loads, for whole images) and embree, open3d,
            warp in this order on a CPU. The choice is logged once.

    Raises:
        ValueError: an empty mesh, indices out of range, non-finite vertices, an unknown name, or a mesh too large for
            the brute-force backend.
        MissingExtra: the backend's package does not load; the message says how to install it.
    """
    device = torch.device(device)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3 or len(faces) == 0:
        raise ValueError(f"expected vertices [V, 3] and faces [F > 0, 3], got {[*vertices.shape]} and {[*faces.shape]}")
    if int(faces.min()) < 0 or int(faces.max()) >= len(vertices):
        raise ValueError(f"face indices {int(faces.min())}..{int(faces.max())} leave the {len(vertices)} vertices")
    if not bool(torch.isfinite(vertices).all()):
        raise ValueError("the vertices hold NaN or infinity")
    chosen = _automatic(device.type, len(faces) < NVDIFFRAST_FACES) if name == "auto" else name
    if chosen not in _CASTERS:
        raise ValueError(f"unknown ray caster {chosen!r}; there are auto, {', '.join(_CASTERS)}")
    return _CASTERS[chosen](vertices.detach(), faces.detach(), device)


@functools.cache
def _automatic(device_type: str, rasterisable: bool) -> str:
    """The backend "auto" stands for; cached, so that the choice is logged once per kind of device."""
    modules = {"embree": "embreex.rtcore_scene", "open3d": "open3d", "warp": "warp"}
    order = ("warp", "embree", "open3d") if device_type == "cuda" else ("embree", "open3d", "warp")
    chosen = next((name for name in order if is_importable(modules[name])), None)
    if chosen is None:
        raise MissingExtra("Casting rays needs one of embreex, open3d, warp-lang. Install: pip install embreex")
    if chosen == "warp" and device_type == "cuda" and rasterisable and is_importable("nvdiffrast.torch"):
        chosen = "nvdiffrast"
    log.info("ray caster on %s: %s", device_type, chosen)
    return chosen


def _dot(a: Vector, b: Vector) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _rows(points: Tensor) -> Vector:
    """[..., 3] to three contiguous float64 tensors [...]."""
    x, y, z = points.movedim(-1, 0).contiguous().double()
    return x, y, z


def hits_on_faces(
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    origins: Float[Tensor, "n 3"],
    directions: Float[Tensor, "n 3"],
    face: Int[Tensor, "n"],
) -> Hits:
    """Distance and barycentric coordinates of rays on faces already known (-1 = miss), in float64.

    Möller and Trumbore's solution (1997). A float32 search may name a face that the exact ray passes by a hair, and on
    a face seen edge-on the plane's distance is then meaningless: weights are clamped to the triangle and t is taken
    from the clamped point, so hit point and barycentric point agree and stay on the face. A ray exactly in the plane
    of its face, of zero length or not finite becomes a miss.
    """
    hit = torch.empty(len(face), dtype=torch.bool, device=face.device)
    t = torch.empty(len(face), dtype=torch.float32, device=face.device)
    barycentric = torch.empty(len(face), 2, dtype=torch.float32, device=face.device)
    step = CHUNK if face.device.type == "cpu" else CUDA_CHUNK
    for start in range(0, len(face), step):
        part = slice(start, start + step)
        corner = faces.index_select(0, face[part].clamp(min=0))
        a, b, c = (_rows(vertices.index_select(0, corner[:, k])) for k in range(3))
        ray, to_origin = _rows(directions[part]), _minus(_rows(origins[part]), a)
        edge1, edge2 = _minus(b, a), _minus(c, a)
        p, q = _cross(ray, edge2), _cross(to_origin, edge1)
        determinant = _dot(edge1, p)
        weight1 = (_dot(to_origin, p) / determinant).clamp_(0.0, 1.0)
        weight2 = (_dot(ray, q) / determinant).clamp_(min=0.0).minimum(1.0 - weight1)
        along = weight1 * _dot(edge1, ray) + weight2 * _dot(edge2, ray) - _dot(to_origin, ray)
        distance = (along / _dot(ray, ray)).clamp_(min=0.0)
        found = (face[part] >= 0) & torch.isfinite(distance) & (determinant != 0)
        hit[part] = found
        t[part] = torch.where(found, distance, torch.inf)
        barycentric[part, 0] = torch.where(found, 1.0 - weight1 - weight2, 0.0)
        barycentric[part, 1] = torch.where(found, weight1, 0.0)
    return Hits(hit, t, torch.where(hit, face.long(), -1), barycentric)


class _FaceCaster:
    """Moves rays to where the backend computes, asks it for faces, solves on them and moves the hits back."""

    name: str

    def __init__(self, vertices: Tensor, faces: Tensor, device: torch.device) -> None:
        self.vertices = vertices.to(device, torch.float32).contiguous()
        self.faces = faces.to(device, torch.int32).contiguous()
        self.device = device

    def cast(self, origins: Float32[Tensor, "n 3"], directions: Float32[Tensor, "n 3"]) -> Hits:
        """See `RayCaster.cast`. Rays are constants here: no gradient flows through the hits."""
        if origins.shape != directions.shape or origins.ndim != 2 or origins.shape[1] != 3:
            raise ValueError(f"expected two [N, 3] tensors, got {[*origins.shape]} and {[*directions.shape]}")
        with torch.no_grad():
            from_, towards = (x.detach().to(self.device, torch.float32).contiguous() for x in (origins, directions))
            face = self._first_faces(from_, towards) if len(origins) else self.faces.new_empty(0)
            hits = hits_on_faces(self.vertices, self.faces, from_, towards, face)
        back = origins.device
        return Hits(hits.hit.to(back), hits.t.to(back), hits.face.to(back), hits.barycentric.to(back))

    def _first_faces(self, origins: Tensor, directions: Tensor) -> Int[Tensor, "n"]:
        """The face each of N > 0 rays hits first, -1 for none."""
        raise NotImplementedError


class EmbreeCaster(_FaceCaster):
    """Intel Embree 4 through embreex, on ``torch.get_num_threads()`` threads (embreex releases the GIL)."""

    name = "embree"

    def __init__(self, vertices: Tensor, faces: Tensor, device: torch.device) -> None:
        super().__init__(vertices, faces, torch.device("cpu"))
        how = "pip install embreex"
        scene_module = need("embreex.rtcore_scene", "The embree ray caster", how)
        mesh_module = need("embreex.mesh_construction", "The embree ray caster", how)
        # Without robust=True about one in twenty rays aimed at an edge slips between the two faces.
        self._scene = scene_module.EmbreeScene(robust=True)
        mesh_module.TriangleMesh(self._scene, self.vertices.numpy(), self.faces.numpy())
        # The first query builds the tree; two threads must not both find it missing.
        self._scene.run(np.zeros((1, 3), np.float32), np.array([[0, 0, 1]], np.float32))

    def _first_faces(self, origins: Tensor, directions: Tensor) -> Tensor:
        from_, towards = origins.numpy(), directions.numpy()
        face = np.empty(len(from_), np.int32)

        def trace(start: int) -> None:
            part = slice(start, start + CHUNK)
            face[part] = self._scene.run(from_[part], towards[part])

        starts = range(0, len(from_), CHUNK)
        workers = min(torch.get_num_threads(), len(starts), os.cpu_count() or 1)
        # A pool per call costs 0.1 ms and, unlike a kept one, survives the fork of a data loader.
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(trace, starts))
        return torch.from_numpy(face)


class Open3dCaster(_FaceCaster):
    """Open3D's RaycastingScene, on ``torch.get_num_threads()`` threads."""

    name = "open3d"

    def __init__(self, vertices: Tensor, faces: Tensor, device: torch.device) -> None:
        super().__init__(vertices, faces, torch.device("cpu"))
        how = "pip install open3d (Debian: also apt-get install libusb-1.0-0)"
        self._open3d: Any = need("open3d", "The open3d ray caster", how)
        self._scene = self._open3d.t.geometry.RaycastingScene()
        tensor = self._open3d.core.Tensor
        self._scene.add_triangles(tensor(self.vertices.numpy()), tensor(self.faces.numpy().astype(np.uint32)))

    def _first_faces(self, origins: Tensor, directions: Tensor) -> Tensor:
        rays = self._open3d.core.Tensor(torch.cat([origins, directions], dim=1).numpy())
        face = self._scene.cast_rays(rays, nthreads=torch.get_num_threads())["primitive_ids"].numpy()
        # A miss is the largest uint32, which is -1 read as int32.
        return torch.from_numpy(face.view(np.int32).copy())


@functools.cache
def _warp() -> tuple[Any, Any]:
    """The warp module, initialised without its banner, and the kernel, defined at first use: warp is optional."""
    wp: Any = need("warp", "The warp ray caster", "pip install 'nvs-zoo[warp]'")
    if hasattr(wp.config, "log_level"):
        wp.config.log_level = wp.LOG_ERROR
    else:
        wp.config.quiet = True
    wp.init()

    def first_face(mesh, origins, directions, face):
        i = wp.tid()
        query = wp.mesh_query_ray(mesh, origins[i], directions[i], 1.0e30)
        face[i] = wp.where(query.result, query.face, -1)

    # Not written in the signature: there they would be strings (future annotations), which warp cannot resolve here.
    first_face.__annotations__ = {
        "mesh": wp.uint64,
        "origins": wp.array(dtype=wp.vec3),
        "directions": wp.array(dtype=wp.vec3),
        "face": wp.array(dtype=wp.int32),
    }
    return wp, wp.kernel(first_face, enable_backward=False)


class WarpCaster(_FaceCaster):
    """NVIDIA Warp mesh queries, on CUDA or one CPU thread; the kernel is compiled at the first cast, then cached."""

    name = "warp"

    def __init__(self, vertices: Tensor, faces: Tensor, device: torch.device) -> None:
        super().__init__(vertices, faces, device)
        wp, _ = _warp()
        with self._stream():
            points = wp.from_torch(self.vertices, dtype=wp.vec3)
            self._mesh = wp.Mesh(points, wp.from_torch(self.faces.flatten(), dtype=wp.int32))

    def _stream(self):
        """Queue warp's work behind torch's on CUDA; nothing to do on a CPU."""
        wp, _ = _warp()
        if self.device.type != "cuda":
            return wp.ScopedDevice("cpu")
        return wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(self.device)))

    def _first_faces(self, origins: Tensor, directions: Tensor) -> Tensor:
        wp, kernel = _warp()
        face = torch.empty(len(origins), dtype=torch.int32, device=self.device)
        with self._stream():
            rays = [wp.from_torch(x, dtype=wp.vec3) for x in (origins, directions)]
            where = wp.device_from_torch(self.device)
            wp.launch(kernel, len(origins), [self._mesh.id, *rays, wp.from_torch(face)], device=where)
        return face


class NvdiffrastCaster(WarpCaster):
    """Free rays through warp, and whole undistorted perspective images through nvdiffrast's CUDA rasteriser."""

    name = "nvdiffrast"

    def __init__(self, vertices: Tensor, faces: Tensor, device: torch.device) -> None:
        how = "pip install from github.com/NVlabs/nvdiffrast (needs a CUDA compiler)"
        self._rasteriser: Any = need("nvdiffrast.torch", "The nvdiffrast ray caster", how)
        super().__init__(vertices, faces, device)
        if len(faces) >= NVDIFFRAST_FACES:
            raise ValueError(f"nvdiffrast counts fewer than {NVDIFFRAST_FACES} faces, here are {len(faces)}: use warp")
        self._context = self._rasteriser.RasterizeCudaContext(device=device)

    @torch.no_grad()
    def cast_image(
        self, c2w_opengl: Float[np.ndarray, "4 4"], intrinsics: Float[np.ndarray, "3 3"], width: int, height: int
    ) -> Hits:
        """First hits of the rays through all pixel centres, row by row from the top left (N = height * width).

        ``t`` is the distance from the camera centre. Near and far planes follow from the mesh's bounding box, with at
        most 1 : 1e4 between them so that the depth buffer keeps its resolution (spec xscale 3.1); surfaces closer than
        far / 1e4 are clipped.
        """
        c2w = homogeneous(c2w_opengl)
        w2c = np.linalg.inv(c2w)
        low, high = (x.double().cpu().numpy() for x in torch.aminmax(self.vertices, dim=0))
        corners = np.stack(np.meshgrid(*np.stack([low, high], axis=1), indexing="ij"), axis=-1).reshape(8, 3)
        depths = -(corners @ w2c[2, :3] + w2c[2, 3])
        far = max(float(depths.max()) * 1.01, 1e-6)  # a mesh behind the camera is clipped whole
        near = max(float(depths.min()) * 0.99, far / FAR_OVER_NEAR)
        clip = torch.from_numpy(clip_matrix(np.asarray(intrinsics), width, height, near, far) @ w2c).to(self.device)
        positions = (self.vertices.double() @ clip[:, :3].T + clip[:, 3]).float()
        raster, _ = self._rasteriser.rasterize(self._context, positions[None], self.faces, [height, width])
        raster = raster.reshape(-1, 4)
        face = raster[:, 3].long() - 1
        hit = face >= 0
        # (u, v) weight vertices 0 and 1.
        first = raster[:, 0].clamp(0.0, 1.0)
        barycentric = torch.stack([first, raster[:, 1].clamp(min=0.0).minimum(1.0 - first)], dim=1) * hit[:, None]
        hits = Hits(hit, torch.where(hit, 0.0, torch.inf), face, barycentric)
        centre = torch.from_numpy(c2w[:3, 3].copy()).to(self.device)
        distance = (interpolate(hits, self.faces, self.vertices).double() - centre).norm(dim=1).float()
        return hits._replace(t=torch.where(hit, distance, torch.inf))


class TorchCaster(_FaceCaster):
    """Every ray against every face in float64: the oracle of the other backends, for small meshes on any device."""

    name = "torch"

    def __init__(self, vertices: Tensor, faces: Tensor, device: torch.device) -> None:
        super().__init__(vertices, faces, device)
        if len(faces) > BRUTE_FORCE_FACES:
            raise ValueError(f"brute force is for up to {BRUTE_FORCE_FACES} faces, the mesh has {len(faces)}")

    def _first_faces(self, origins: Tensor, directions: Tensor) -> Tensor:
        a, b, c = (_rows(self.vertices[self.faces[:, k]]) for k in range(3))
        edge1, edge2 = _minus(b, a), _minus(c, a)
        pieces = []
        step = max(1, BRUTE_FORCE_PAIRS // len(self.faces))
        for from_, towards in zip(origins.split(step), directions.split(step), strict=True):
            ray, to_origin = _rows(towards[:, None]), _minus(_rows(from_[:, None]), a)
            p, q = _cross(ray, edge2), _cross(to_origin, edge1)
            determinant = _dot(edge1, p)
            u, v = _dot(to_origin, p) / determinant, _dot(ray, q) / determinant
            t = _dot(edge2, q) / determinant
            inside = (u >= 0) & (v >= 0) & (u + v <= 1) & (t >= 0) & (determinant != 0)
            nearest, face = t.where(inside, torch.inf).min(dim=1)
            pieces.append(torch.where(torch.isfinite(nearest), face, -1))
        return torch.cat(pieces)


_CASTERS = {caster.name: caster for caster in (EmbreeCaster, Open3dCaster, WarpCaster, NvdiffrastCaster, TorchCaster)}


def face_normals(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "f 3"]:
    """Unit normals by the right-hand rule over the vertex order; zero for faces without area."""
    a, b, c = (vertices[faces[:, k].long()] for k in range(3))
    return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-30)


def vertex_normals(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "v 3"]:
    """Unit normals averaged over the adjacent faces by area; zero for vertices without one."""
    a, b, c = (vertices[faces[:, k].long()] for k in range(3))
    weighted = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices).index_add_(0, faces.T.flatten().long(), weighted.repeat(3, 1))
    return torch.nn.functional.normalize(total, dim=1, eps=1e-30)


def interpolate(hits: Hits, faces: Int[Tensor, "f 3"], values: Float[Tensor, "v c"]) -> Float[Tensor, "n c"]:
    """Values given per vertex, at the hit points; zero at misses. Differentiable in ``values``."""
    corner = faces[hits.face.clamp(min=0)].long()
    first, second = hits.barycentric.unbind(dim=1)
    weights = torch.stack([first, second, 1.0 - first - second], dim=1) * hits.hit[:, None]
    return (weights[:, :, None].to(values.dtype) * values[corner]).sum(dim=1)
