"""Agisoft Metashape's ``cams.xml`` (File > Export > Export Cameras) to posed cameras (spec xscale 2.4).

Local means the chunk's own frame, world the chunk's coordinate system: X_world = s R_s X_local + t_s.
"""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from core_ns.errors import DataError
from core_ns.frames import rigid_from_w2c
from core_ns.images import IMAGE_SUFFIXES
from dataparsers.undistort import Calibration

Array = np.ndarray
Element = ElementTree.Element

GEOCENTRIC = 1e6  # metres: no local or projected chunk has a *transform* that long, every earth-centred one has
_EXPORT = "Export the cameras again (File > Export > Export Cameras, format Agisoft XML)."
_TERMS = ("k1", "k2", "k3", "k4")


@dataclass(frozen=True)
class Similarity:
    """X_world = scale * rotation @ X_local + translation."""

    rotation: Float[Array, "3 3"]
    translation: Float[Array, "3"]
    scale: float

    @property
    def is_geocentric(self) -> bool:
        """Earth-centred: the model is hardly ever exported in these coordinates."""
        return float(np.linalg.norm(self.translation)) > GEOCENTRIC


@dataclass(frozen=True)
class MetashapeCamera:
    """One aligned, enabled photo; matrices are rigid OpenCV world-to-camera, float64."""

    label: str
    camera_id: str
    component: str | None
    calibration: Calibration
    w2c_local: Float[Array, "4 4"]
    w2c_world: Float[Array, "4 4"] | None
    to_world: Similarity | None


@dataclass(frozen=True)
class MetashapeScene:
    """Cameras in file order, and the label (or "camera ID") of each one left out with the reason."""

    cameras: tuple[MetashapeCamera, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def components(self) -> set[str | None]:
        """Components the cameras belong to; the local frames of different components are unrelated."""
        return {camera.component for camera in self.cameras}


class _NoDoctype(ElementTree.TreeBuilder):
    """Entities can only be declared inside a DOCTYPE, so refusing it stops entity bombs and external files."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError(
            self._file,
            f"DOCTYPE {name}",
            "document type and entity declarations are refused, they can expand without bound.",
            "Remove the DOCTYPE; Metashape does not write one.",
        )


def read_metashape(path: str | Path, chunk: str | None = None) -> MetashapeScene:
    """Read every aligned and enabled frame camera of one chunk.

    Args:
        path: the exported xml.
        chunk: label of the chunk; needed only when the file holds several enabled ones.

    Raises:
        DataError: unreadable or malformed file, numbers missing, miscounted or not finite, no usable camera. The
            message names the element.
    """
    return _Reader(Path(path)).read(chunk)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, place: str, problem: str, remedy: str = _EXPORT) -> DataError:
        return DataError(self.path, place, problem, remedy)

    def read(self, label: str | None) -> MetashapeScene:
        chunk = self._chunk(self._root(), label)
        sensors = self._by_id(chunk.find("sensors"), "sensor")
        components = self._by_id(chunk.find("components"), "component")
        chunk_transform = self._similarity(chunk.find("transform"), "chunk transform")
        component_transforms = {
            key: self._similarity(element.find("transform"), f"component {key} transform")
            for key, element in components.items()
        }
        calibrations: dict[str, Calibration | str] = {}
        cameras: list[MetashapeCamera] = []
        skipped: list[tuple[str, str]] = []
        holder = chunk.find("cameras")
        if holder is None:
            raise self.fail("chunk", "there is no <cameras> element.")
        seen: set[str] = set()
        for element in _walk_cameras(holder):
            identity = element.get("id", "?")
            name = element.get("label") or f"camera {identity}"
            place = f"camera '{name}'"
            if identity in seen and identity != "?":
                raise self.fail(place, f"camera id {identity} occurs twice.")
            seen.add(identity)
            if element.get("enabled", "true").strip().lower() in ("false", "0"):
                skipped.append((name, "disabled"))
                continue
            transform = element.find("transform")
            if transform is None:
                is_slave = element.get("master_id") not in (None, identity)
                reason = "not aligned"
                if is_slave:
                    reason += " (rig camera without a pose of its own)"
                skipped.append((name, reason))
                continue
            sensor_id = element.get("sensor_id")
            if sensor_id is None or sensor_id not in sensors:
                raise self.fail(place, f"its sensor '{sensor_id}' is not in <sensors>.")
            if sensor_id not in calibrations:
                calibrations[sensor_id] = self._calibration(sensors[sensor_id], f"sensor {sensor_id}")
            calibration = calibrations[sensor_id]
            if isinstance(calibration, str):
                skipped.append((name, calibration))
                continue
            component = element.get("component_id")
            to_world = chunk_transform
            if component is not None and component in component_transforms:
                to_world = component_transforms[component] or chunk_transform
            w2c_local = self._pose(transform, f"{place} transform")
            w2c_world = None if to_world is None else to_world_frame(w2c_local, to_world)
            cameras.append(MetashapeCamera(name, identity, component, calibration, w2c_local, w2c_world, to_world))
        if not cameras:
            reasons = sorted({reason for _, reason in skipped})
            raise self.fail(
                "cameras",
                f"no usable camera among {len(skipped)}" + (f": {'; '.join(reasons)}." if reasons else "."),
                "Align the photos, enable them, and use frame (perspective) sensors; then export the cameras again.",
            )
        return MetashapeScene(tuple(cameras), tuple(skipped))

    def _root(self) -> Element:
        parser = ElementTree.XMLParser(target=_NoDoctype(self.path))
        try:
            with self.path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    parser.feed(block)
            return parser.close()
        except DataError:
            raise
        except ElementTree.ParseError as error:
            line, column = error.position
            raise self.fail(f"line {line}, column {column}", f"malformed XML ({error}).") from error
        except (OSError, LookupError, ValueError) as error:
            raise self.fail("", f"cannot be read ({error}).", "Name the xml file that Metashape exported.") from error

    def _chunk(self, root: Element, label: str | None) -> Element:
        chunks = [root] if root.tag == "chunk" else list(root.iter("chunk"))
        labels = [element.get("label", "") for element in chunks]
        if not chunks:
            raise self.fail(f"<{root.tag}>", "there is no <chunk>: this is not a camera export of Metashape.")
        if label is not None:
            chunks = [element for element in chunks if element.get("label", "") == label]
        elif len(chunks) > 1:
            chunks = [element for element in chunks if element.get("enabled", "true").lower() not in ("false", "0")]
        if len(chunks) != 1:
            raise self.fail("chunk", f"the file holds the chunks {labels}.", "Name exactly one of them.")
        return chunks[0]

    def _by_id(self, holder: Element | None, tag: str) -> dict[str, Element]:
        result: dict[str, Element] = {}
        for element in holder.findall(tag) if holder is not None else []:
            identity = element.get("id")
            if identity is None or identity in result:
                raise self.fail(f"{tag} {identity}", "its id is missing or occurs twice.")
            result[identity] = element
        return result

    def _numbers(self, text: str | None, place: str, count: int) -> list[float]:
        words = (text or "").split()
        if len(words) != count:
            raise self.fail(place, f"{count} number{'s' * (count > 1)} expected, {len(words)} found.")
        values = []
        for word in words:
            try:
                # Python would also read "1_0" as ten.
                value = math.nan if "_" in word else float(word)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise self.fail(place, f"'{word}' is not a finite number.")
            values.append(value)
        return values

    def _calibration(self, sensor: Element, place: str) -> Calibration | str:
        """The sensor's calibration in pixels, or the reason why its cameras are skipped."""
        found = sensor.findall("calibration")
        adjusted = [element for element in found if element.get("class") == "adjusted"]
        calibration = (adjusted or found or [None])[0]
        kinds = {sensor.get("type", "frame"), *([calibration.get("type", "frame")] if calibration is not None else [])}
        if kinds != {"frame"}:
            return f"{place} is of type {'/'.join(sorted(kinds - {'frame'}))}, only frame is supported"
        if calibration is None:
            raise self.fail(place, "there is no <calibration>.")
        place += " calibration"
        resolution = calibration.find("resolution")
        if resolution is None:
            resolution = sensor.find("resolution")
        if resolution is None:
            raise self.fail(place, "there is no <resolution>.")
        size = [self._numbers(resolution.get(key), f"{place} resolution@{key}", 1)[0] for key in ("width", "height")]
        if any(value < 1 or value != int(value) for value in size):
            raise self.fail(f"{place} resolution", f"{size} is not a size in pixels.")
        width, height = int(size[0]), int(size[1])

        def value(tag: str) -> float:
            element = calibration.find(tag)
            return 0.0 if element is None else self._numbers(element.text, f"{place} <{tag}>", 1)[0]

        if calibration.find("f") is None:
            raise self.fail(place, "the focal length <f> is missing.", "Export with Metashape 1.4 or later.")
        f = value("f")
        fx = f + value("b1")
        if f <= 0.0 or fx <= 0.0:
            raise self.fail(f"{place} <f>", f"the focal lengths {fx}, {f} are not positive.")
        for tag in ("p3", "p4"):
            if value(tag) != 0.0:
                raise self.fail(
                    f"{place} <{tag}>",
                    "this tangential term cannot be represented.",
                    f"Optimise the cameras without {tag}, or export undistorted photos.",
                )
        # Metashape's tangential terms are OpenCV's in the other order.
        return Calibration(
            width,
            height,
            fx=fx,
            fy=f,
            cx=width / 2.0 + value("cx"),
            cy=height / 2.0 + value("cy"),
            skew=value("b2"),
            p1=value("p2"),
            p2=value("p1"),
            **{tag: value(tag) for tag in _TERMS},
        )

    def _pose(self, element: Element, place: str) -> Float[Array, "4 4"]:
        c2w = np.array(self._numbers(element.text, place, 16)).reshape(4, 4)
        try:
            # Inverted before it is made rigid: a scale must not move the camera centre, the translation of c2w.
            return rigid_from_w2c(np.linalg.inv(c2w))
        except (ValueError, np.linalg.LinAlgError) as error:
            raise self.fail(place, f"{error}.") from error

    def _similarity(self, element: Element | None, place: str) -> Similarity | None:
        if element is None or len(element) == 0:
            return None
        rotation, translation, scale = (element.find(tag) for tag in ("rotation", "translation", "scale"))
        matrix = np.eye(4)
        if rotation is not None:
            matrix[:3, :3] = np.array(self._numbers(rotation.text, f"{place} <rotation>", 9)).reshape(3, 3)
            if abs(np.linalg.det(matrix[:3, :3]) - 1.0) > 1e-3:
                raise self.fail(f"{place} <rotation>", "the determinant is not 1.")
        try:
            matrix = rigid_from_w2c(matrix)
        except ValueError as error:
            raise self.fail(f"{place} <rotation>", f"{error}.") from error
        shift = np.zeros(3)
        if translation is not None:
            shift = np.array(self._numbers(translation.text, f"{place} <translation>", 3))
        factor = 1.0 if scale is None else self._numbers(scale.text, f"{place} <scale>", 1)[0]
        if factor <= 0.0:
            raise self.fail(f"{place} <scale>", f"{factor} is not positive.")
        return Similarity(matrix[:3, :3], shift, factor)


def _walk_cameras(holder: Element) -> Iterator[Element]:
    """Cameras in document order, groups of any depth entered (without recursion: depth is the file's choice)."""
    stack = [iter(holder)]
    while stack:
        element = next(stack[-1], None)
        if element is None:
            stack.pop()
        elif element.tag == "camera":
            yield element
        elif element.tag == "group":
            stack.append(iter(element))


def to_world_frame(w2c_local: Float[Array, "4 4"], similarity: Similarity) -> Float[Array, "4 4"]:
    """World-to-camera in the chunk's world: rotation R_s R_c2l without the scale, centre s R_s C + t_s (world units).

    Spec xscale 2.4.
    """
    centre = -w2c_local[:3, :3].T @ w2c_local[:3, 3]
    centre = similarity.scale * (similarity.rotation @ centre) + similarity.translation
    w2c = np.eye(4)
    w2c[:3, :3] = w2c_local[:3, :3] @ similarity.rotation.T
    w2c[:3, 3] = -w2c[:3, :3] @ centre
    return w2c


class ImageFolder:
    """Finds the photo of a camera label: with or without extension, any case, sub-folders included."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(self.folder, "", "is not a folder.", "Name the folder that holds the photos.")
        self._by_name: dict[str, list[Path]] = {}
        for parent, folders, names in os.walk(self.folder, followlinks=True):
            folders.sort()
            for name in sorted(names):
                path = Path(parent) / name
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    relative = path.relative_to(self.folder)
                    keys = {name, path.stem, relative.as_posix(), relative.with_suffix("").as_posix()}
                    for key in {key.lower() for key in keys}:
                        self._by_name.setdefault(key, []).append(path)
        if not self._by_name:
            raise DataError(
                self.folder, "", "holds no jpg, png, tif or webp image.", "Name the folder that holds the photos."
            )

    def find(self, label: str) -> Path | None:
        """The photo of ``label``, None when there is none.

        Raises:
            DataError: when several photos fit equally well.
        """
        label = label.replace("\\", "/")
        head, dot, tail = label.rpartition(".")
        candidates = self._by_name.get(label.lower(), [])
        if not candidates and dot and f".{tail.lower()}" in IMAGE_SUFFIXES:
            # A label that kept the extension of a raw or converted original: IMG_1.tif for IMG_1.jpg.
            candidates = self._by_name.get(head.lower(), [])
        if len(candidates) > 1:
            relative = {path: path.relative_to(self.folder).as_posix() for path in candidates}
            # Narrow by the most specific agreement: exact file, exact case, top folder.
            for accept in (
                lambda path: relative[path] == label,
                lambda path: label in (path.name, path.stem),
                lambda path: path.parent == self.folder,
            ):
                candidates = [path for path in candidates if accept(path)] or candidates
        if len(candidates) > 1:
            names = ", ".join(str(path.relative_to(self.folder)) for path in candidates[:4])
            raise DataError(
                self.folder,
                f"photo of '{label}'",
                f"several files fit: {names}.",
                "Keep one of them in the folder, or put each original into its own folder.",
            )
        return candidates[0] if candidates else None
