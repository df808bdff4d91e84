"""Names in MegaScenes lists: what they mean, what the original called its caches, and where the file is here.

A list names photos by their place on the authors' disk, ``.../main/images/CATEGORY/commons/SUB/.../0/pictures/NAME``;
the released bucket has them under ``images/AAA/BBB/commons/...`` with underscores for spaces. Names come from files
off the network: none may lead out of the folder of photos. Source: spec megascenes 2.2, 2.5, 2.6.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from core_ns.errors import DataError

MARKER = "main/images/"
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG")
MAX_PATH = 4096
_CATEGORIES = "https://megascenes.s3.us-west-2.amazonaws.com/metadata/categories.json"
_MAX_CATEGORIES_BYTES = 512_000_000


@dataclass(frozen=True)
class SplitPath:
    """A listed path, taken apart. ``folders`` and ``name`` are as listed, spaces and all."""

    category: str
    folders: tuple[str, ...]
    """What lies between ``commons`` and ``0/pictures``: one subcategory, or several where its name has a slash; for a
    path of another layout, all folders between the first and the file."""
    name: str
    released: bool
    """Of the layout ``CATEGORY/commons/.../0/pictures/NAME``; a user's own photos need not be."""

    @property
    def relative(self) -> str:
        """From ``main/images/`` on, as listed."""
        if not self.released:
            return "/".join(part for part in (self.category, *self.folders, self.name) if part)
        return "/".join((self.category, "commons", *self.folders, "0", "pictures", self.name))

    @property
    def stem(self) -> str:
        """The name less its last four characters, as the original cuts it: ``a.jpeg`` gives ``a.``."""
        return self.name[:-4]


def path_problem(path: object) -> str | None:
    """Why a listed path cannot be used; None if it can. Never raises."""
    if not isinstance(path, str):
        return f"is a {type(path).__name__}, not a path"
    if not path or len(path) > MAX_PATH:
        return f"has {len(path)} characters; 1 to {MAX_PATH} are possible"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
        return "holds a control character"
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "is not Unicode text"
    marked, inside = _inside(path)
    parts = inside.split("/")
    if inside.startswith("/") or (not marked and PureWindowsPath(path).drive):
        return f"is absolute{'' if marked else f' and has no {MARKER!r} to cut it at'}"
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty, '.' or '..' part"
    if "\\" in inside and ".." in inside.replace("\\", "/").split("/"):
        return "has a '..' part"
    return None


def _inside(path: str) -> tuple[bool, str]:
    """Whether the marker is in a path, and what follows its last occurrence; a folder may end in "main", too."""
    before, marked, inside = path.rpartition(MARKER)
    whole = bool(marked) and (not before or before.endswith("/"))
    return whole, inside if whole else path


def split_path(path: str) -> SplitPath:
    """Take a listed path apart.

    Raises:
        ValueError: it cannot be used (`path_problem`).
    """
    problem = path_problem(path)
    if problem is not None:
        raise ValueError(f"the path {path[:80]!r} {problem}")
    parts = _inside(path)[1].split("/")
    if len(parts) >= 6 and parts[1] == "commons" and parts[-3:-1] == ["0", "pictures"]:
        return SplitPath(parts[0], tuple(parts[2:-3]), parts[-1], True)
    return SplitPath("" if len(parts) == 1 else parts[0], tuple(parts[1:-1]), parts[-1], False)


def relative_path(path: str) -> str:
    """A listed path from ``main/images/`` on: what caches are keyed by. Raises ValueError as `split_path`."""
    return split_path(path).relative


def image_key(path: str, settings: str = "") -> str:
    """SHA-1 (hex) that names a photo in our caches.

    Args:
        settings: version and options of what made the cached thing; other settings, other key.
    """
    return _sha1(relative_path(path), settings)


def pair_key(ref_path: str, tgt_path: str, settings: str = "") -> str:
    """SHA-1 (hex) that names an ordered pair in our caches; see `image_key`."""
    return _sha1(relative_path(ref_path), relative_path(tgt_path), settings)


def _sha1(*parts: str) -> str:
    # No path holds a line feed, so no two lists of parts run together.
    return hashlib.sha1("\n".join(parts).encode("utf-8"), usedforsecurity=False).hexdigest()


def original_warp_name(ref_path: str, tgt_path: str) -> str:
    """What the original called the warp of a pair: 40 hex digits and ``.png`` (spec 2.5)."""
    ref, tgt = split_path(ref_path), split_path(tgt_path)
    sub, sub2 = ("/".join(each.folders) for each in (ref, tgt))
    text = f"{ref.category}_commons_{sub}_imgname:_{ref.stem}_to_{sub2}_imgname:_{tgt.stem}".replace("/", "_")
    return hashlib.sha1(text.encode("utf-8"), usedforsecurity=False).hexdigest() + ".png"


def original_depth_name(path: str) -> str:
    """What the original called a photo's aligned depth map, relative to its folder of them (spec 2.5)."""
    each = split_path(path)
    return "/".join((each.category, "commons", *each.folders, "aligned_depth_maps", each.stem + ".npy"))


def original_local_name(path: str) -> str:
    """Where the original looks for a photo on a user's disk: without ``0/pictures``, underscores in the file name."""
    each = split_path(path)
    return "/".join((each.category, "commons", *each.folders, each.name.replace(" ", "_")))


def read_categories(file: str | Path) -> dict[str, str]:
    """``metadata/categories.json`` of the bucket: category name to ``AAA/BBB``.

    Raises:
        DataError: not a JSON object of names and scene numbers from 0 to 999999.
    """
    file = Path(file)
    remedy = f"Download {_CATEGORIES} again."
    try:
        if file.stat().st_size > _MAX_CATEGORIES_BYTES:
            raise ValueError("it is larger than 512 MB")
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, not an object")
    except OSError as error:
        raise DataError(file, "path", f"cannot be read ({error.strerror or error}).", remedy) from error
    except (ValueError, RecursionError) as error:
        raise DataError(file, "content", f"is no list of categories ({error}).", remedy) from error
    folders = {}
    for name, value in content.items():
        digits = f"{value:06d}" if type(value) is int and value >= 0 else value
        if not (isinstance(digits, str) and digits.isascii() and digits.isdigit() and len(digits) <= 6):
            problem = f"is {str(value)[:40]!r}, not a scene number."
            raise DataError(file, f"category {name[:80]!r}", problem, remedy)
        digits = digits.zfill(6)
        folders[name] = f"{digits[:3]}/{digits[3:]}"
    return folders


def bucket_path(path: str, categories: Mapping[str, str]) -> str | None:
    """A listed path inside the bucket (and inside a copy of it): ``images/AAA/BBB/commons/...``.

    Returns:
        None where the category is unknown or the path is not of the released layout.
    """
    each = split_path(path)
    scene = _scene_of(each.category, categories)
    return None if scene is None or not each.released else "images/" + _mapped(each, scene)


def _scene_of(category: str, categories: Mapping[str, str]) -> str | None:
    """Lists write underscores, titles have spaces, and file systems disagree about accents."""
    for text in (category, category.replace("_", " "), category.replace(" ", "_")):
        for form in ("", "NFC", "NFD"):
            found = categories.get(unicodedata.normalize(form, text) if form else text)
            if found is not None:
                return found
    return None


def _mapped(each: SplitPath, scene: str) -> str:
    return "/".join((scene, "commons", *each.folders, "0", "pictures", each.name.replace(" ", "_")))


@dataclass
class Resolver:
    """Finds the files of listed photos. Counts hits and misses; looks every path up once."""

    images: Path
    """Folder of photos: that which holds ``AAA/BBB/commons`` or ``CATEGORY/commons``, or the one above, which has it as
    ``images``. Links in it are followed: the folder is the user's own, only the names in a list are not trusted."""
    categories: Mapping[str, str] = field(default_factory=dict)
    """See `read_categories`; without it only folders called by the category are found."""
    cache: Path | None = None
    """Folder of resized copies, laid out like ``images``; the last resort."""
    hits: int = 0
    misses: int = 0
    _known: dict[str, Path | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.images = Path(self.images)
        if not self.images.is_dir():
            raise DataError(self.images, "path", "is no folder.", "Name the folder of the photos.")

    def find(self, path: str) -> Path | None:
        """The file of a listed path; None where there is none.

        Raises:
            ValueError: the path cannot be used (`path_problem`).
        """
        if path not in self._known:
            found = next((each for each in self.candidates(path) if _is_file(each)), None)
            self._known[path] = found
            self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return self._known[path]

    def candidates(self, path: str) -> Iterator[Path]:
        """Every place to look in, in order: as mapped, as listed, other suffixes, other Unicode forms, resized copies.

        Raises:
            ValueError: the path cannot be used.
        """
        each, seen = split_path(path), set()
        roots = [self.images, *([self.images / "images"] if (self.images / "images").is_dir() else [])]
        if self.cache is not None:
            roots.append(self.cache)
        for root in roots:
            for name in self._names(each):
                candidate = root / PurePosixPath(name)
                # On Windows a part like "C:x" would replace the folder before it.
                if candidate not in seen and candidate.is_relative_to(root):
                    seen.add(candidate)
                    yield candidate

    def _names(self, each: SplitPath) -> Iterator[str]:
        plain = list(self._spellings(each))
        stem = each.name.rpartition(".")[0] or each.name
        variants = plain + [
            name
            for suffix in SUFFIXES
            for name in self._spellings(SplitPath(each.category, each.folders, stem + suffix, each.released))
        ]
        yield from variants
        for form in ("NFC", "NFD"):
            yield from (unicodedata.normalize(form, name) for name in variants)

    def _spellings(self, each: SplitPath) -> Iterator[str]:
        scene = _scene_of(each.category, self.categories)
        if scene is not None and each.released:
            yield _mapped(each, scene)
        underscored = SplitPath(each.category, each.folders, each.name.replace(" ", "_"), each.released)
        yield underscored.relative
        yield each.relative
        if each.released:  # as the original's users keep them
            yield "/".join((each.category, "commons", *each.folders, underscored.name))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system takes
        return False
