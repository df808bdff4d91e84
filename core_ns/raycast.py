"""First hits of free rays on a triangle mesh.

Each backend reports what its own float32 search found, brought to one form: which vertices a library's (u, v) weight,
its mark for a miss and its rounding across a triangle's border end here. Solving again on the found face in float64
would cost 0.13-0.22 us per ray, nearly as much as tracing coherent rays, for nothing anyone downstream can see: on a
mesh of extent 2 seen from 2 away Embree's t is within 1e-6 at the 99.9th percentile. Hits are two-sided. Subtract the
mesh centre in float64 *before* casting to float32: digits that geo-referenced coordinates lost do not come back here.
Spec xscale 2.8 and 8.
"""

from __future__ import annotations

import functools
import logging
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

CHUNK = 1 << 14
"""Rays per piece for Embree: small enough to stay in the cache and to share uneven rays out evenly between threads."""
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


def need_caster(name: CasterName, device: torch.device | str) -> None:
    """Find out, before anything is loaded or written, whether a backend is there.

    Raises:
        MissingExtra: it is not; the message says what to install.
    """
    if name == "auto":
        _automatic(torch.device(device).type, False)
    else:
        make_caster(torch.eye(3), torch.tensor([[0, 1, 2]]), device, name)


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
    """[..., 3] to three float64 tensors [...]."""
    x, y, z = points.double().unbind(-1)
    return x, y, z


class _MovingCaster:
    """Keeps the mesh where the backend computes, and moves rays there and hits back."""

    name: str

    def __init__(self, vertices: Tensor, faces: Tensor, device: torch.device) -> None:
        self.vertices = vertices.to(device, torch.float32).contiguous()
        self.faces = faces.to(device, torch.int32).contiguous()
        self.device = device

    @torch.no_grad()
    def cast(self, origins: Float32[Tensor, "n 3"], directions: Float32[Tensor, "n 3"]) -> Hits:
        """See `RayCaster.cast`. Rays are constants here: no gradient flows through the hits."""
        if origins.shape != directions.shape or origins.ndim != 2 or origins.shape[1] != 3:
            raise ValueError(f"expected two [N, 3] tensors, got {[*origins.shape]} and {[*directions.shape]}")
        back = origins.device
        if len(origins) == 0:
            empty = torch.empty(0, device=back)
            return Hits(empty.bool(), empty, empty.long(), empty.reshape(0, 2))
        from_, towards = (x.detach().to(self.device, torch.float32).contiguous() for x in (origins, directions))
        hits = self._first_hits(from_, towards)
        return Hits(hits.hit.to(back), hits.t.to(back), hits.face.to(back), hits.barycentric.to(back))

    def _first_hits(self, origins: Tensor, directions: Tensor) -> Hits:
        """`Hits` of N > 0 rays on ``self.device``."""
        raise NotImplementedError


class _NumpyHits:
    """`Hits` under construction from a library whose (u, v) weight vertices 1 and 2; pieces may come from threads."""

    def __init__(self, count: int) -> None:
        self.hit, self.t = np.empty(count, np.bool_), np.empty(count, np.float32)
        self.face, self.barycentric = np.empty(count, np.int64), np.empty((count, 2), np.float32)

    def put(self, part: slice, face: np.ndarray, t: np.ndarray, u: np.ndarray, v: np.ndarray) -> None:
        """Rays ``part``: face int32, -1 where they miss; t, u and v float32, arbitrary there."""
        hit = face >= 0
        first = np.maximum(1.0 - u - v, 0.0)
        self.hit[part], self.face[part] = hit, face
        self.t[part] = np.where(hit, t, np.float32(np.inf))
        self.barycentric[part, 0] = np.where(hit, first, np.float32(0))
        self.barycentric[part, 1] = np.where(hit, np.clip(u, 0.0, 1.0 - first), np.float32(0))

    def hits(self) -> Hits:
        return Hits(*(torch.from_numpy(x) for x in (self.hit, self.t, self.face, self.barycentric)))


class EmbreeCaster(_MovingCaster):
    """Intel Embree 4 through embreex, on ``torch.get_num_threads()`` threads (embreex releases the GIL)."""

    name = "embree"

    def __init__(self, vertices: Tensor, faces: Tensor, device: torch.device) -> None:
        super().__init__(vertices, faces, torch.device("cpu"))
        scene_module = need("embreex.rtcore_scene", "The embree ray caster", "pip install embreex")
        mesh_module = need("embreex.mesh_construction", "The embree ray caster", "pip install embreex")
        # Without robust=True about one in twenty rays aimed at an edge slips between the two faces.
        self._scene = scene_module.EmbreeScene(robust=True)
        mesh_module.TriangleMesh(self._scene, self.vertices.numpy(), self.faces.numpy())
        # The first query builds the tree; two threads must not both find it missing.
        self._scene.run(np.zeros((1, 3), np.float32), np.array([[0, 0, 1]], np.float32))

    def _first_hits(self, origins: Tensor, directions: Tensor) -> Hits:
        from_, towards = origins.numpy(), directions.numpy()
        result = _NumpyHits(len(from_))

        def trace(start: int) -> None:
            part = slice(start, start + CHUNK)
            found = self._scene.run(from_[part], towards[part], output=True)
            result.put(part, found["primID"], found["tfar"], found["u"], found["v"])

        starts = range(0, len(from_), CHUNK)
        workers = min(torch.get_num_threads(), len(starts))
        if workers == 1:
            for start in starts:
                trace(start)
        else:
            # A pool per call costs 0.1 ms and, unlike a kept one, survives the fork of a data loader.
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(trace, starts))
        return result.hits()


class Open3dCaster(_MovingCaster):
    """Open3D's RaycastingScene, on ``torch.get_num_threads()`` threads."""

    name = "open3d"

    def __init__(self, vertices: Tensor, faces: Tensor, device: torch.device) -> None:
        super().__init__(vertices, faces, torch.device("cpu"))
        how = "pip install open3d (Debian: also apt-get install libusb-1.0-0)"
        self._open3d: Any = need("open3d", "The open3d ray caster", how)
        self._scene = self._open3d.t.geometry.RaycastingScene()
        tensor = self._open3d.core.Tensor
        self._scene.add_triangles(tensor(self.vertices.numpy()), tensor(self.faces.numpy().astype(np.uint32)))

    def _first_hits(self, origins: Tensor, directions: Tensor) -> Hits:
        rays = self._open3d.core.Tensor(torch.cat([origins, directions], dim=1).numpy())
        found = self._scene.cast_rays(rays, nthreads=torch.get_num_threads())
        # A miss is the largest uint32, which is -1 read as int32.
        face, uv = found["primitive_ids"].numpy().view(np.int32), found["primitive_uvs"].numpy()
        result = _NumpyHits(len(face))
        result.put(slice(None), face, found["t_hit"].numpy(), uv[:, 0], uv[:, 1])
        return result.hits()


@functools.cache
def _warp() -> tuple[Any, Any]:
    """The warp module, initialised without its banner, and the kernel, defined at first use: warp is optional."""
    wp: Any = need("warp", "The warp ray caster", "pip install 'nvs-zoo[warp]'")
    if hasattr(wp.config, "log_level"):
        wp.config.log_level = wp.LOG_ERROR
    else:
        wp.config.quiet = True
    wp.init()

    def first_hit(mesh, origins, directions, face, t, weights):
        i = wp.tid()
        face[i] = -1
        t[i] = wp.inf
        # Left to itself, warp finds hits for infinite directions.
        length = wp.length_sq(directions[i])
        if length == 0.0 or not wp.isfinite(length + wp.length_sq(origins[i])):
            return
        query = wp.mesh_query_ray(mesh, origins[i], directions[i], 1.0e30)
        if query.result:
            face[i] = query.face
            t[i] = query.t
            # (u, v) weight vertices 0 and 1.
            first = wp.clamp(query.u, 0.0, 1.0)
            weights[i] = wp.vec2(first, wp.clamp(query.v, 0.0, 1.0 - first))

    # Not written in the signature: there they would be strings (future annotations), which warp cannot resolve here.
    first_hit.__annotations__ = {
        "mesh": wp.uint64,
        "origins": wp.array(dtype=wp.vec3),
        "directions": wp.array(dtype=wp.vec3),
        "face": wp.array(dtype=wp.int32),
        "t": wp.array(dtype=wp.float32),
        "weights": wp.array(dtype=wp.vec2),
    }
    return wp, wp.kernel(first_hit, enable_backward=False)


class WarpCaster(_MovingCaster):
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
        if self.device.type == "cuda":
            return wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(self.device)))
        return wp.ScopedDevice("cpu")

    def _first_hits(self, origins: Tensor, directions: Tensor) -> Hits:
        wp, kernel = _warp()
        face = torch.empty(len(origins), dtype=torch.int32, device=self.device)
        t, weights = torch.empty(len(origins), device=self.device), torch.zeros(len(origins), 2, device=self.device)
        with self._stream():
            rays = [wp.from_torch(x, dtype=wp.vec3) for x in (origins, directions)]
            results = [wp.from_torch(face), wp.from_torch(t), wp.from_torch(weights, dtype=wp.vec2)]
            wp.launch(kernel, len(origins), [self._mesh.id, *rays, *results], device=rays[0].device)
        return Hits(face >= 0, t, face.long(), weights)


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
        centre = torch.tensor(c2w[:3, 3], dtype=torch.float32, device=self.device)
        distance = (interpolate(hits, self.faces, self.vertices) - centre).norm(dim=1)
        return hits._replace(t=torch.where(hit, distance, torch.inf))


class TorchCaster(_MovingCaster):
    """Every ray against every face in float64: the oracle of the other backends, for small meshes on any device."""

    name = "torch"

    def __init__(self, vertices: Tensor, faces: Tensor, device: torch.device) -> None:
        super().__init__(vertices, faces, device)
        if len(faces) > BRUTE_FORCE_FACES:
            raise ValueError(f"brute force is for up to {BRUTE_FORCE_FACES} faces, the mesh has {len(faces)}")

    def _first_hits(self, origins: Tensor, directions: Tensor) -> Hits:
        """Möller and Trumbore's solution (1997) for all pairs."""
        a, b, c = (_rows(self.vertices[self.faces[:, k]]) for k in range(3))
        edge1, edge2 = _minus(b, a), _minus(c, a)
        pieces = []
        step = max(1, BRUTE_FORCE_PAIRS // len(self.faces))
        for from_, towards in zip(origins.split(step), directions.split(step), strict=True):
            ray, to_origin = _rows(towards[:, None]), _minus(_rows(from_[:, None]), a)
            p, q = _cross(ray, edge2), _cross(to_origin, edge1)
            determinant = _dot(edge1, p)
            u, v, t = (x / determinant for x in (_dot(to_origin, p), _dot(ray, q), _dot(edge2, q)))
            inside = (u >= 0) & (v >= 0) & (u + v <= 1) & (t >= 0) & (determinant != 0)
            nearest, face = t.where(inside, torch.inf).min(dim=1)
            u, v = (x.gather(1, face[:, None])[:, 0] for x in (u, v))
            hit = torch.isfinite(nearest)
            weights = torch.stack([1 - u - v, u], dim=1).where(hit[:, None], 0.0)
            pieces.append(Hits(hit, nearest.float(), face.where(hit, -1), weights.float()))
        return Hits(*(torch.cat(x) for x in zip(*pieces, strict=True)))


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
