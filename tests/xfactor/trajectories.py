"""Camera trajectories with known relations, and the scores of spec xfactor 7 the slow way."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation


def rigid(rotvec_degrees, translation) -> np.ndarray:
    """World-to-camera matrix from a rotation vector in degrees and a translation."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(np.radians(rotvec_degrees)).as_matrix()
    pose[:3, 3] = translation
    return pose


def walk(frames: int = 12, seed: int = 0) -> np.ndarray:
    """A smooth wandering camera, world-to-camera ``[frames 4 4]``."""
    random = np.random.default_rng(seed)
    turns = np.cumsum(random.normal(size=(frames, 3)) * 5, axis=0)
    places = np.cumsum(random.normal(size=(frames, 3)) + np.array([0.3, 0, 1.0]), axis=0)
    return np.stack([rigid(turn, place) for turn, place in zip(turns, places, strict=True)])


def angle(first: np.ndarray, second: np.ndarray) -> float:
    """Degrees between two rotations."""
    return math.degrees(Rotation.from_matrix(first @ second.T).magnitude())


def slow_scores(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Pair by pair, with arc cosines."""
    rotations, axes, directions = [], [], []
    for i in range(len(a)):
        for j in range(i + 1, len(a)):
            first, second = a[i] @ np.linalg.inv(a[j]), b[i] @ np.linalg.inv(b[j])
            rotations.append(angle(first[:3, :3], second[:3, :3]))
            lengths = np.linalg.norm(first[:3, 3]) * np.linalg.norm(second[:3, 3])
            cosine = first[:3, 3] @ second[:3, 3] / lengths if lengths > 1e-12 else 0.0
            directions.append(math.degrees(math.acos(np.clip(cosine, -1, 1))))
            axes.append(math.degrees(math.acos(min(abs(cosine), 1.0))))
    pairs = len(rotations)
    scores = {}
    for t in (3, 5, 10, 15, 20, 30):
        for name, errors in (("Rac", rotations), ("Tac", axes), ("RTA_signed", directions)):
            scores[f"{name}_{t}"] = sum(error < t for error in errors) / pairs
        both = [max(pair) for pair in zip(rotations, axes, strict=True)]
        for name, errors in (("Rot", rotations), ("Trans", axes), ("SE3", both)):
            counts = [0] * 31
            for error in errors:
                if error <= 30:
                    counts[min(int(error / (30 / 31)), 30)] += 1
            total, running = 0.0, 0.0
            for entry in range(t):
                running += counts[entry] / pairs
                total += running
            scores[f"{name}_Auc_{t}"] = total / t
    return scores


def scaled(poses: np.ndarray, factor: float) -> np.ndarray:
    """The same trajectory in a world that is ``factor`` times as large."""
    result = poses.copy()
    result[:, :3, 3] *= factor
    return result
