"""Brown lens model and pixel undistortion to a plain pinhole camera.

Normalised coordinates (x, y) = (X/Z, Y/Z) are OpenCV's (x right, y down). With r² = x² + y²:

    d  = 1 + k1 r² + k2 r⁴ + k3 r⁶ + k4 r⁸
    x' = x d + 2 p1 x y + p2 (r² + 2 x²)
    y' = y d + p1 (r² + 2 y²) + 2 p2 x y
    u  = fx x' + skew y' + cx,   v = fy y' + cy

These are the six terms of nerfstudio's cameras; k4 is the r⁸ polynomial term of Metashape and nerfstudio, not OpenCV's
rational k4 (spec xscale 2.4). Pixel coordinates are continuous, (0, 0) is the outer corner of the top-left pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped

Array = np.ndarray

# Maps are built for this many output rows at a time: they stay in the cache, which makes an 8192x5460 photo twice as
# fast as 256 rows do, and never take the 1.5 GB of whole maps.
_BAND_ROWS = 16


@dataclass(frozen=True)
class Calibration:
    """Intrinsics of one photo in pixels, distortion dimensionless and in OpenCV's order of the tangential terms."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    skew: float = 0.0
    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0
    p1: float = 0.0
    p2: float = 0.0

    @property
    def intrinsics(self) -> Float[Array, "3 3"]:
        """K in pixels, float64."""
        return np.array([[self.fx, self.skew, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def distortion(self) -> Float[Array, "6"]:
        """(k1, k2, k3, k4, p1, p2): the order of nerfstudio's ``distortion_params``."""
        return np.array([self.k1, self.k2, self.k3, self.k4, self.p1, self.p2])

    @property
    def is_distorted(self) -> bool:
        """Whether any of the six terms is not zero."""
        return bool(np.any(self.distortion != 0.0))

    @property
    def skew_pixels(self) -> float:
        """Largest error, in pixels, of a consumer that drops the skew: |skew| H / (2 fy) (spec xscale 2.3)."""
        return abs(self.skew) * self.height / (2.0 * self.fy)

    def resized(self, width: int, height: int) -> Calibration:
        """The same lens for an image resized to (width, height); the two axes scale by their own ratios."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * sx,
            skew=self.skew * sx,
            cx=self.cx * sx,
            fy=self.fy * sy,
            cy=self.cy * sy,
        )


def distort(points: Float[Array, "n 2"], calibration: Calibration) -> Float[Array, "n 2"]:
    """Ideal normalised coordinates to distorted normalised coordinates (equations of the module docstring)."""
    c = calibration
    x, y = points[:, 0], points[:, 1]
    r2 = x * x + y * y
    radial = 1.0 + r2 * (c.k1 + r2 * (c.k2 + r2 * (c.k3 + r2 * c.k4)))
    return np.stack(
        [
            x * radial + 2.0 * c.p1 * x * y + c.p2 * (r2 + 2.0 * x * x),
            y * radial + c.p1 * (r2 + 2.0 * y * y) + 2.0 * c.p2 * x * y,
        ],
        axis=-1,
    )


def monotone_radius(calibration: Calibration) -> float:
    """Radius (normalised) up to which the radial polynomial r d(r²) grows; +inf when it always does.

    Beyond it the lens model folds back and several rays share one pixel, so nothing there can be undistorted.
    """
    c = calibration
    coefficients = np.array([9.0 * c.k4, 7.0 * c.k3, 5.0 * c.k2, 3.0 * c.k1, 1.0])
    roots = np.roots(np.trim_zeros(coefficients, "f"))
    turning = [float(root.real) for root in roots if abs(root.imag) < 1e-9 * max(1.0, abs(root)) and root.real > 0.0]
    return float(np.sqrt(min(turning))) if turning else float("inf")


def undistort_where_possible(
    points: Float[Array, "n 2"], calibration: Calibration, iterations: int = 100
) -> tuple[Float[Array, "n 2"], Bool[Array, "n"]]:
    """Invert `distort` by damped Newton steps to about 1e-14.

    Returns:
        The ideal normalised coordinates, and whether each is a solution inside the radius where the lens model is
        one-to-one (elsewhere the coordinates mean nothing).
    """
    target = np.asarray(points, dtype=np.float64)
    if not calibration.is_distorted or not len(target):
        return target.copy(), np.ones(len(target), dtype=bool)
    c = calibration
    limit = monotone_radius(calibration)
    xy = target.copy()
    if np.isfinite(limit):
        # A start beyond the fold would converge to the wrong branch.
        radius = np.linalg.norm(xy, axis=1, keepdims=True)
        xy *= np.minimum(1.0, 0.9 * limit / np.maximum(radius, 1e-300))
    for _ in range(iterations):
        residual = distort(xy, c) - target
        x, y = xy[:, 0], xy[:, 1]
        r2 = x * x + y * y
        radial = 1.0 + r2 * (c.k1 + r2 * (c.k2 + r2 * (c.k3 + r2 * c.k4)))
        slope = 2.0 * (c.k1 + r2 * (2.0 * c.k2 + r2 * (3.0 * c.k3 + r2 * 4.0 * c.k4)))
        j_xx = radial + slope * x * x + 2.0 * c.p1 * y + 6.0 * c.p2 * x
        j_xy = slope * x * y + 2.0 * c.p1 * x + 2.0 * c.p2 * y
        j_yy = radial + slope * y * y + 6.0 * c.p1 * y + 2.0 * c.p2 * x
        determinant = j_xx * j_yy - j_xy * j_xy
        determinant = np.where(np.abs(determinant) < 1e-12, 1e-12, determinant)
        step_x = (j_yy * residual[:, 0] - j_xy * residual[:, 1]) / determinant
        step_y = (j_xx * residual[:, 1] - j_xy * residual[:, 0]) / determinant
        step = np.stack([step_x, step_y], axis=-1)
        # Near a fold the full step overshoots; a quarter of the radius is plenty for every usable lens.
        length = np.linalg.norm(step, axis=1, keepdims=True)
        longest = 0.25 * np.maximum(np.linalg.norm(xy, axis=1, keepdims=True), 0.1)
        step *= np.minimum(1.0, longest / np.maximum(length, 1e-300))
        xy = xy - step
        if float(np.abs(step).max()) < 1e-15:
            break
    error = np.abs(distort(xy, c) - target).max(axis=1)
    radius = np.linalg.norm(xy, axis=1)
    return xy, (error < 1e-11 * np.maximum(1.0, np.abs(target).max(axis=1))) & (radius <= limit)


def undistort(points: Float[Array, "n 2"], calibration: Calibration) -> Float[Array, "n 2"]:
    """Invert `distort` (see `undistort_where_possible`).

    Raises:
        ValueError: when some point has no preimage inside the radius where the lens model is one-to-one.
    """
    xy, is_solved = undistort_where_possible(points, calibration)
    if not is_solved.all():
        raise ValueError("the lens distortion cannot be inverted over the whole image (its polynomial folds back)")
    return xy


def pixels_from_normalised(points: Float[Array, "n 2"], calibration: Calibration) -> Float[Array, "n 2"]:
    """Ideal normalised coordinates to pixels, distortion and skew applied."""
    xy = distort(np.asarray(points, dtype=np.float64), calibration)
    c = calibration
    return np.stack([c.fx * xy[:, 0] + c.skew * xy[:, 1] + c.cx, c.fy * xy[:, 1] + c.cy], axis=-1)


def distorted_from_pixels(pixels: Float[Array, "n 2"], calibration: Calibration) -> Float[Array, "n 2"]:
    """K^-1 applied to pixels: normalised coordinates that still hold the distortion (x right, y down)."""
    c = calibration
    pixels = np.asarray(pixels, dtype=np.float64)
    y = (pixels[:, 1] - c.cy) / c.fy
    x = (pixels[:, 0] - c.cx - c.skew * y) / c.fx
    return np.stack([x, y], axis=-1)


def normalised_from_pixels(pixels: Float[Array, "n 2"], calibration: Calibration) -> Float[Array, "n 2"]:
    """Pixels to ideal normalised coordinates (x right, y down). Raises ValueError like `undistort`."""
    return undistort(distorted_from_pixels(pixels, calibration), calibration)


def project_distorted(
    points_world: Float[Array, "n 3"], calibration: Calibration, w2c: Float[Array, "4 4"]
) -> tuple[Float[Array, "n 2"], Float[Array, "n"]]:
    """World points through an OpenCV camera: distorted pixels and depth along z (world units)."""
    camera = np.asarray(points_world, dtype=np.float64) @ w2c[:3, :3].T + w2c[:3, 3]
    return pixels_from_normalised(camera[:, :2] / camera[:, 2:], calibration), camera[:, 2]


def pinhole_target(calibration: Calibration) -> Calibration:
    """The pinhole camera that `undistort_image` writes: same fx and fy, no skew, cx and cy at the image centre.

    The size is the largest that the two narrowest points of opposite image borders allow, so every output pixel comes
    from inside the photo (spec xscale 2.4).

    Raises:
        ValueError: the distortion cannot be inverted on the border, or nothing of the image is left.
    """
    c = calibration
    across = np.linspace(0.0, c.width, max(65, c.width // 8))
    down = np.linspace(0.0, c.height, max(65, c.height // 8))

    def border(u: Array | float, v: Array | float) -> Float[Array, "n 2"]:
        return normalised_from_pixels(np.stack(np.broadcast_arrays(u, v), axis=-1).astype(np.float64), c)

    left, right = border(0.0, down)[:, 0], border(float(c.width), down)[:, 0]
    top, bottom = border(across, 0.0)[:, 1], border(across, float(c.height))[:, 1]
    half_x = min(float(-left.max()), float(right.min()))
    half_y = min(float(-top.max()), float(bottom.min()))
    # 1e-9: a border that lies at exactly n pixels must not lose a pixel to rounding.
    width, height = int(np.floor(2.0 * half_x * c.fx + 1e-9)), int(np.floor(2.0 * half_y * c.fy + 1e-9))
    if width < 1 or height < 1:
        raise ValueError("no area around the principal point is left after undistortion")
    return Calibration(width, height, c.fx, c.fy, width / 2.0, height / 2.0)


def undistort_image(
    image: Shaped[Array, "h w *channels"], source: Calibration, target: Calibration
) -> Shaped[Array, "h2 w2 *channels"]:
    """Resample a photo of lens ``source`` as the pinhole camera ``target`` would have seen it (bicubic).

    cv2 rounds sample positions to 1/32 pixel; samples outside the photo repeat its border.

    Raises:
        ValueError: the array does not have the size that ``source`` names.
    """
    if image.shape[:2] != (source.height, source.width):
        raise ValueError(
            f"the image is {image.shape[1]}x{image.shape[0]}, its calibration {source.width}x{source.height}"
        )
    result = np.empty((target.height, target.width, *image.shape[2:]), dtype=image.dtype)
    columns = np.arange(target.width) + 0.5
    pinhole = replace(target, k1=0.0, k2=0.0, k3=0.0, k4=0.0, p1=0.0, p2=0.0)
    for start in range(0, target.height, _BAND_ROWS):
        rows = np.arange(start, min(start + _BAND_ROWS, target.height)) + 0.5
        u, v = np.meshgrid(columns, rows)
        ideal = normalised_from_pixels(np.stack([u.ravel(), v.ravel()], axis=-1), pinhole)
        # cv2 counts from the centre of the first pixel, we from its corner.
        samples = (pixels_from_normalised(ideal, source) - 0.5).astype(np.float32).reshape(len(rows), -1, 2)
        band = cv2.remap(image, samples, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)  # pyright: ignore
        result[start : start + len(rows)] = band.reshape(result[start : start + len(rows)].shape)
    return result
