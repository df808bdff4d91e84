"""The subjects of the generated sequences: a toy juggler that turns and waves, and a patchwork ball.

A subject is a set of rigid parts. Every part keeps its own rest coordinates, in which its paint is a closed formula of
the position, so the pattern travels with the surface. World z is up, the floor is z = 0, lengths in metres.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core_ns.demo_meshes import sphere_directions
from core_ns.demo_textures import Noise
from core_ns.raycast import vertex_normals

Array = np.ndarray
Paint = Callable[[Tensor, Noise], tuple[Tensor, float]]
"""Rest points float32 [n, 3] to (linear albedo [n, 3], gloss in [0, 1])."""
Pose = dict[str, Float[Array, "4 4"]]

CELLS = 20
"""Per cube edge of the sphere that every part is bent from: 4800 triangles a part."""


def colours(*codes: str) -> Float[Tensor, "n 3"]:
    """Web colours (``rrggbb``) to linear light."""
    return torch.tensor([[int(code[k : k + 2], 16) / 255 for k in (0, 2, 4)] for code in codes]) ** 2.2


@dataclass(frozen=True, eq=False)
class Part:
    """A rigid piece: rest ``vertices`` float64 [v, 3], ``faces`` [f, 3] facing out, unit ``normals`` [v, 3]."""

    name: str
    vertices: Float[Array, "v 3"]
    faces: Int[Array, "f 3"]
    normals: Float[Array, "v 3"]
    paint: Paint

    @property
    def volume(self) -> float:
        """Of the closed mesh, by the divergence theorem."""
        return float(self._tetrahedra().sum())

    @property
    def centroid(self) -> Float[Array, "3"]:
        """Centre of the volume in rest coordinates: tetrahedra from the origin, weighted by signed volume."""
        weights = self._tetrahedra()
        return (self.vertices[self.faces].sum(axis=1) / 4 * weights[:, None]).sum(axis=0) / weights.sum()

    def _tetrahedra(self) -> Float[Array, "f"]:
        a, b, c = (self.vertices[self.faces[:, k]] for k in range(3))
        return np.einsum("ij,ij->i", a, np.cross(b, c)) / 6


def bent_sphere(name: str, bend: Callable[[Array], Array], paint: Paint, cells: int = CELLS) -> Part:
    """A part whose vertices are ``bend`` of the unit directions [v, 3] of a sphere."""
    directions, faces = sphere_directions(cells)
    vertices = bend(directions)
    normals = vertex_normals(torch.from_numpy(vertices), torch.from_numpy(faces)).numpy()
    return Part(name, vertices, faces, normals, paint)


def ellipsoid(*axes: float) -> Callable[[Array], Array]:
    """Semi-axes (x, y, z)."""
    return lambda directions: directions * np.array(axes)


def capsule(radius: float, length: float) -> Callable[[Array], Array]:
    """A cylinder with round ends around the z axis, from the origin to ``length`` (negative: downwards)."""

    def bend(directions: Array) -> Array:
        beyond = directions[:, 2] > 0 if length > 0 else directions[:, 2] < 0
        return directions * radius + np.outer(beyond, [0.0, 0.0, length])

    return bend


def cone(radius: float, height: float) -> Callable[[Array], Array]:
    """A cone on the plane z = 0 with a rounded tip."""

    def bend(directions: Array) -> Array:
        across = np.linalg.norm(directions[:, :2], axis=1)
        share = np.arccos(np.clip(-directions[:, 2], -1, 1)) / np.pi  # 0 under the foot, 1 at the tip
        profile = radius * np.minimum(share / 0.2, (1.015 - share) / 0.815)
        flat = directions[:, :2] * (profile / np.maximum(across, 1e-12) * (across > 1e-9))[:, None]
        return np.column_stack([flat, height * np.maximum(share - 0.2, 0) / 0.8])

    return bend


def translation(x: float, y: float, z: float) -> Float[Array, "4 4"]:
    """Rigid shift."""
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


def rotation(axis: int, degrees: float) -> Float[Array, "4 4"]:
    """Rigid turn about x (0), y (1) or z (2), right-handed."""
    matrix, (i, j) = np.eye(4), ((1, 2), (2, 0), (0, 1))[axis]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix[i, i] = matrix[j, j] = cosine
    matrix[i, j], matrix[j, i] = -sine, sine
    return matrix


def turn(points: Tensor) -> Float[Tensor, "n"]:
    """Angle about z in turns, [0, 1)."""
    return torch.remainder(torch.atan2(points[:, 1], points[:, 0]) / math.tau, 1.0)


def pick(palette: Tensor, index: Tensor) -> Float[Tensor, "n 3"]:
    """Palette entries for any numbers: floored, modulo the palette."""
    return palette[torch.remainder(torch.floor(index), len(palette)).long()]


def where(mask: Tensor, yes: Tensor, no: Tensor) -> Float[Tensor, "n 3"]:
    """Row-wise choice between colours."""
    return torch.where(mask[:, None], yes, no)


def cloth(colour: Tensor, points: Tensor, noise: Noise, strength: float = 0.16) -> Float[Tensor, "n 3"]:
    """Uneven dye and weave."""
    return colour * (1 + strength * noise(points, 1.1)[:, :1] + 0.5 * strength * noise(points, 0.35)[:, 1:2]).clamp(
        0.2, 2
    )


class Subject:
    """Parts and their motion. Times are in [0, 1] over the sequence."""

    parts: tuple[Part, ...]
    middle: tuple[float, float, float]
    """What the cameras look at."""

    def pose(self, time: float) -> Pose:
        """Rest to world matrices by part name."""
        raise NotImplementedError

    def centroid(self, time: float) -> Float[Array, "3"]:
        """World centre of the parts' volumes (where parts overlap both count)."""
        pose = self.pose(time)
        volumes = np.array([part.volume for part in self.parts])
        centres = [pose[part.name][:3, :3] @ part.centroid + pose[part.name][:3, 3] for part in self.parts]
        return volumes @ np.stack(centres) / volumes.sum()


class Ball(Subject):
    """A patchwork ball of 0.3 m radius that crosses the floor in an arc and spins; its centroid is its centre."""

    radius = 0.3
    middle = (0.0, 0.0, 0.5)

    def __init__(self) -> None:
        self.parts = (bent_sphere("ball", ellipsoid(*[self.radius] * 3), _patchwork, 40),)

    def pose(self, time: float) -> Pose:
        """See `Subject.pose`."""
        place = translation(
            0.32 * math.cos(math.pi * time), 0.22 * math.sin(math.pi * time), 0.36 + 0.6 * time * (1 - time)
        )
        return {"ball": place @ rotation(2, 70 * time) @ rotation(0, 25 + 40 * time)}


class Juggler(Subject):
    """A toy figure 1.35 m tall that walks, turns, waves with its right hand and tosses a beach ball with its left."""

    middle = (0.0, 0.0, 0.66)

    def __init__(self) -> None:
        def torso(directions: Array) -> Array:
            wide = (1 - 0.26 * directions[:, 2:]) * [1.0, 1.06, 0.0] + [0.0, 0.0, 1.0]
            return directions * wide * [0.205, 0.205, 0.255]

        def ruff(directions: Array) -> Array:
            wave = 0.022 * np.cos(10 * np.arctan2(directions[:, 1], directions[:, 0]))
            wave *= np.hypot(directions[:, 0], directions[:, 1]) ** 2
            return directions * [0.185, 0.185, 0.032] + np.outer(wave, [0, 0, 1])

        def boot(directions: Array) -> Array:
            solid = directions * [0.125, 0.074, 0.066] + [0.042, 0, -0.185]
            return np.column_stack([solid[:, :2], np.maximum(solid[:, 2], -0.222)])

        parts = [
            bent_sphere("torso", torso, _torso, 28),
            bent_sphere("ruff", ruff, _ruff, 32),
            bent_sphere("head", ellipsoid(0.155, 0.15, 0.165), _head, 32),
            bent_sphere("nose", ellipsoid(0.036, 0.036, 0.034), _plain("e8352e", gloss=0.7), 8),
            bent_sphere("brim", ellipsoid(0.178, 0.178, 0.022), _plain("ffc928"), 24),
            bent_sphere("hat", cone(0.142, 0.33), _hat, 28),
            bent_sphere("pompom", ellipsoid(0.05, 0.05, 0.05), _pompom, 10),
            bent_sphere("ball", ellipsoid(0.115, 0.115, 0.115), _beach_ball, 24),
        ]
        for side in ("left", "right"):
            parts += [
                bent_sphere(f"{side} sleeve", capsule(0.054, 0.165), _sleeve),
                bent_sphere(f"{side} arm", capsule(0.043, 0.15), _arm),
                bent_sphere(f"{side} hand", ellipsoid(0.058, 0.05, 0.062), _hand, 12),
                bent_sphere(f"{side} leg", capsule(0.06, -0.15), _leg),
                bent_sphere(f"{side} boot", boot, _boot, 24),
            ]
        self.parts = tuple(parts)
        self._boots = {part.name: part.vertices for part in parts if part.name.endswith("boot")}

    def pose(self, time: float) -> Pose:
        """See `Subject.pose`. The lower boot touches the floor."""
        step = math.sin(2 * math.tau * time)
        root = translation(0.2 * math.sin(2.2 * (time - 0.5)), 0.16 * math.cos(2.6 * time) - 0.05, 0.0)
        root = root @ rotation(2, -55 + 120 * time) @ rotation(0, 3.5 * step)
        head = root @ translation(0, 0, 0.86) @ rotation(2, 16 * math.sin(math.tau * time)) @ rotation(0, -6 * step)
        pose: Pose = {
            "torso": root @ translation(0, 0, 0.475),
            "ruff": root @ translation(0, 0, 0.712),
            "head": head,
            "nose": head @ translation(0.165, 0, -0.012),
            "brim": head @ rotation(1, -9) @ translation(-0.01, 0, 0.105),
            "hat": head @ rotation(1, -9) @ translation(-0.01, 0, 0.108),
        }
        pose["pompom"] = pose["hat"] @ translation(0, 0, 0.345)
        for side, sign in (("left", 1.0), ("right", -1.0)):
            pose[f"{side} leg"] = root @ translation(0, 0.088 * sign, 0.29) @ rotation(1, 24 * sign * step)
            pose[f"{side} boot"] = pose[f"{side} leg"]
            shoulder = root @ translation(0, 0.18 * sign, 0.655)
            if side == "right":  # waves
                sleeve = shoulder @ rotation(0, 96 + 8 * step)
                arm = sleeve @ translation(0, 0, 0.165) @ rotation(0, -84 + 38 * math.sin(2 * math.tau * time + 0.6))
            else:  # holds the ball in front
                sleeve = shoulder @ rotation(2, 38) @ rotation(1, 112)
                arm = sleeve @ translation(0, 0, 0.165) @ rotation(1, -62 - 10 * step)
            pose[f"{side} sleeve"], pose[f"{side} arm"] = sleeve, arm
            pose[f"{side} hand"] = arm @ translation(0, 0, 0.185)
        flight = math.modf(2 * time)[0]
        palm = pose["left hand"][:3, 3] + [0, 0, 0.165 + 1.15 * flight * (1 - flight)]
        pose["ball"] = translation(*palm) @ rotation(2, 200 * time) @ rotation(0, 300 * time)
        lowest = min(
            float((points @ pose[name][2, :3] + pose[name][2, 3]).min()) for name, points in self._boots.items()
        )
        lift = translation(0, 0, -lowest)
        return {name: lift @ matrix for name, matrix in pose.items()}


def _plain(code: str, gloss: float = 0.2) -> Paint:
    def paint(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
        return cloth(colours(code)[0].expand_as(points), points, noise), gloss

    return paint


def _patchwork(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    """Patches between meridians and parallels, every other one dotted."""
    direction = torch.nn.functional.normalize(points, dim=-1)
    row = (direction[:, 2].clamp(-1, 1).acos() / math.pi * 7).clamp(0, 6.999)
    around = turn(direction) * 12
    tile = torch.floor(row) * 5 + torch.floor(around)
    colour = pick(colours("e63946", "f4b400", "2a9d8f", "3d5af1", "f1f1f1", "8e44ad", "ff7f50"), tile * 3)
    spot = ((torch.frac(around) - 0.5) ** 2 + (torch.frac(row) - 0.5) ** 2 < 0.06) & (torch.remainder(tile, 2) < 1)
    seam = (torch.frac(around) - 0.5).abs().maximum((torch.frac(row) - 0.5).abs()) > 0.46
    colour = where(spot, colours("20242c")[0], colour)
    return cloth(where(seam, colours("fff3d6")[0], colour), points, noise), 0.25


def _torso(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    """A striped jacket with gold buttons and a belt over dotted trousers."""
    stripes = pick(colours("d92332", "ffd23f"), turn(points) * 20)
    front = points[:, 0] > 0
    panel = front & (points[:, 1].abs() < 0.05)
    colour = where(panel, colours("16407a")[0], stripes)
    for height in (0.16, 0.095, 0.03):
        button = front & (points[:, 1] ** 2 + (points[:, 2] - height) ** 2 < 0.02**2)
        colour = where(button, colours("ffe9a8")[0], colour)
    down = points[:, 2] / 0.052
    across = turn(points) * 22 + 0.5 * torch.remainder(torch.floor(down), 2)
    dot = (torch.frac(across) - 0.5) ** 2 + (torch.frac(down + 20) - 0.5) ** 2 < 0.075
    trousers = where(dot, colours("fdf6e3")[0], colours("0f8b8d")[0].expand_as(points))
    colour = where(points[:, 2] < -0.075, trousers, colour)
    colour = where((points[:, 2] + 0.055).abs() < 0.022, colours("3a2418")[0], colour)
    buckle = front & ((points[:, 2] + 0.055).abs() < 0.03) & (points[:, 1].abs() < 0.04)
    return cloth(where(buckle, colours("ffcf4a")[0], colour), points, noise), 0.12


def _ruff(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    """White and turquoise folds with a red hem."""
    colour = pick(colours("fbfbf5", "35b8c9"), turn(points) * 20)
    return cloth(where(points[:, :2].norm(dim=1) > 0.168, colours("e0313f")[0], colour), points, noise), 0.1


def _head(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    """A painted face that looks along +x, and curly hair."""
    x, y, z = (points / torch.tensor([0.155, 0.15, 0.165])).unbind(-1)
    side = y.abs()
    colour = colours("f6c49a")[0].expand_as(points)
    colour = where((side - 0.52) ** 2 + (z + 0.22) ** 2 < 0.15**2, colours("f2857f")[0], colour)
    smile = ((y**2 + (z + 0.02) ** 2).sqrt() - 0.47).abs() < 0.05
    colour = where(smile & (z < -0.28), colours("a31621")[0], colour)
    colour = where((side - 0.34) ** 2 / 0.15**2 + (z - 0.16) ** 2 / 0.21**2 < 1, colours("ffffff")[0], colour)
    colour = where((side - 0.32) ** 2 + (z - 0.13) ** 2 < 0.095**2, colours("2468b4")[0], colour)
    colour = where((side - 0.32) ** 2 + (z - 0.13) ** 2 < 0.055**2, colours("101418")[0], colour)
    brow = (z - 0.46 + 0.5 * (side - 0.34) ** 2).abs() < 0.045
    colour = where(brow & ((side - 0.34).abs() < 0.2), colours("7a3d10")[0], colour)
    curl = 0.5 + 0.5 * torch.sin(26 * z + 5 * torch.sin(9 * y))
    hair = colours("c4581a")[0] * (0.65 + 0.5 * curl[:, None])
    return cloth(where(x < 0.12 * torch.sin(11 * z) - 0.08, hair, colour), points, noise, 0.06), 0.2


def _hat(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    """A three-coloured spiral."""
    return cloth(
        pick(colours("d6246e", "ffd23f", "19a7a0"), 3 * turn(points) + 16 * points[:, 2] + 3), points, noise
    ), 0.15


def _pompom(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    fluff = noise(points, 0.5)[:, 0]
    return pick(colours("ffffff", "ff6b5e"), (fluff > 0.3).float()) * (1 + 0.15 * fluff[:, None]).clamp(0.5, 1.5), 0.0


def _beach_ball(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    """Six gores and white caps."""
    colour = pick(colours("f94144", "ffffff", "277da1", "f9c74f", "43aa8b", "f3722c"), turn(points) * 6)
    return cloth(where(points[:, 2].abs() > 0.104, colours("ffffff")[0], colour), points, noise, 0.05), 0.6


def _sleeve(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    return cloth(pick(colours("d92332", "ffd23f"), points[:, 2] / 0.034 + 20), points, noise), 0.1


def _arm(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    """Rings, and a cuff before the hand."""
    colour = pick(colours("fbfbf5", "2b59c3"), points[:, 2] / 0.026 + 20)
    return cloth(where(points[:, 2] > 0.125, colours("19a7a0")[0], colour), points, noise), 0.1


def _hand(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    """A white glove with three seams on its back."""
    seam = (torch.remainder(points[:, 1] + 0.009, 0.018) - 0.009).abs() < 0.0022
    colour = colours("fdfbf2")[0].expand_as(points)
    return cloth(where(seam & (points[:, 2] > 0), colours("8d8da0")[0], colour), points, noise, 0.05), 0.1


def _leg(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    return cloth(pick(colours("6a2c91", "f7f3e8"), points[:, 2] / 0.028 + 20), points, noise), 0.1


def _boot(points: Tensor, noise: Noise) -> tuple[Tensor, float]:
    """Green leather, a yellow toe cap, a white sole and laces."""
    colour = where(points[:, 0] > 0.105, colours("ffd23f")[0], colours("2f9e44")[0].expand_as(points))
    lace = (torch.remainder(points[:, 0], 0.02) < 0.007) & (points[:, 1].abs() < 0.028) & (points[:, 2] > -0.15)
    colour = where(lace & (points[:, 0] < 0.1), colours("fbfbf5")[0], colour)
    return cloth(where(points[:, 2] < -0.206, colours("f4efe4")[0], colour), points, noise, 0.08), 0.5
