"""A stranger's thing to precompute, for test_precompute.py."""

from __future__ import annotations

import hashlib

from megascenes_ns.precompute_steps import Thing, pair_of


class SizeMaker:
    """Writes the area of each photo."""

    def __init__(self, photos, cache):
        self.photos, self.cache = photos, cache

    def _file(self, path):
        return self.cache / "sizes" / f"{hashlib.sha1(path.encode()).hexdigest()}.txt"

    def things(self, rows):
        found = {}
        for row in rows:
            for photo, path in enumerate(self.photos.table.paths(row)):
                found.setdefault(self._file(path), Thing(row, photo))
        return found

    def make(self, thing):
        pair = pair_of(self.photos.table, thing.row)
        width, height = (pair.ref_size, pair.tgt_size)[thing.photo]
        self._file((pair.ref_path, pair.tgt_path)[thing.photo]).write_text(str(width * height))
        return len(str(width * height))
