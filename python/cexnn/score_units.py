"""Scores in the units that a search's model takes them in, made anew each round.

What the scorer said is the answer; these are what a query's factors are made of. On the host they
are made of all scores known, on the CUDA device of those that a search keeps there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.score_map import ScoreMap, drawn_in, standardised

__all__ = ["MapUnits", "RowUnits", "Units", "UnitsThere"]

FloatArray = NDArray[np.float32]
Offsets = NDArray[np.int64]
UnitsThere = Callable[[_core.DeviceArray, _core.DeviceArray], None]


class Units(Protocol):
    """How scores become what the model takes for scores."""

    def __call__(self, indptr: Offsets, scores: FloatArray, /) -> FloatArray:
        """Return rows of scores, the indptr and data of CSR, in these units, (p,)."""

    def there(self) -> UnitsThere:
        """Return what writes the rows of one array (n, m) in these units to another.

        Both float32 and on the device. What it takes besides scores is brought there once.
        """


@dataclass(frozen=True)
class MapUnits:
    """Those of a score map.

    Attributes
    ----------
    score_map : ScoreMap
        Not the identity.
    straight : bool
        Whether scores come to its units by its line, unbent.
    """

    score_map: ScoreMap
    straight: bool = False

    def __call__(self, _: Offsets, scores: FloatArray, /) -> FloatArray:
        """Map each score; see `Units`."""
        return self.score_map.line(scores) if self.straight else self.score_map(scores)

    def there(self) -> UnitsThere:
        """Bring the map to the device; see `Units`."""
        points = self.score_map.line_points if self.straight else self.score_map.points
        knots, values = map(_core.DeviceArray, points)
        return partial(_core.bend_there, knots, values, self.straight)


@dataclass(frozen=True)
class RowUnits:
    """Those of each row by itself, for scores of an unknown scale.

    Attributes
    ----------
    straight : bool
        Whether giants are left where they are, and not drawn in.
    """

    straight: bool = False

    def __call__(self, indptr: Offsets, scores: FloatArray, /) -> FloatArray:
        """Bring each row to mean 0 and deviation 1; see `Units`."""
        return (standardised if self.straight else drawn_in)(indptr, scores)

    def there(self) -> UnitsThere:
        """Nothing but scores is needed there; see `Units`."""
        return _core.standardise_there if self.straight else _core.draw_in_there
