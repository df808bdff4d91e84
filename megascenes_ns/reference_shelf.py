"""The references that a run can show, opened when first asked for (spec megascenes 8.3)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from core_ns.errors import DataError
from megascenes_ns.reference import Reference


class ReferenceShelf:
    """Opens references by the number of their pair, and keeps those used last. Any thread may ask.

    Args:
        opened: pair number to `Reference`; raises DataError where a photo or its depth is missing. Called once at a
            time.
        pairs: number of the pair of each training camera, in the order of the viewer's frustums. A photo alone is
            pair 0 of one.
        numbers: all pair numbers that can be asked for; default: those of ``pairs``.
        capacity: references kept; one of 256 pixels holds some 15 MB.
    """

    def __init__(
        self,
        opened: Callable[[int], Reference],
        pairs: Sequence[int],
        numbers: Sequence[int] | None = None,
        capacity: int = 8,
    ) -> None:
        self.pairs = [int(pair) for pair in pairs]
        self.numbers = sorted(set(self.pairs)) if numbers is None else numbers
        self._opened, self._capacity = opened, capacity
        self._shelf: OrderedDict[int, Reference] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def first(self) -> int:
        """The pair that is shown before anybody chooses."""
        return self.pairs[0] if self.pairs else next(iter(self.numbers), 0)

    def of_camera(self, index: int) -> int | None:
        """Pair of a training camera, None where there is no such camera."""
        return self.pairs[index] if 0 <= index < len(self.pairs) else None

    def at(self, pair: int) -> Reference:
        """The reference of a pair.

        Raises:
            DataError: no such pair, or its files cannot be used.
        """
        with self._lock:
            found = self._shelf.get(pair)
            if found is not None:
                self._shelf.move_to_end(pair)
                return found
            if pair not in self.numbers:
                last = f"0 to {len(self.numbers) - 1}" if len(self.numbers) else "none"
                raise DataError("reference", f"pair {pair}", "is not among the data's pairs.", f"There are: {last}.")
            found = self._opened(pair)
            self._shelf[pair] = found
            while len(self._shelf) > self._capacity:
                self._shelf.popitem(last=False)
            return found
