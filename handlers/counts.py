"""Counts of unusual feature values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt


@dataclass(slots=True)
class FeatureCounts:
    """How often each feature of a model was missing or unusual.

    Attributes:
        missing: Absent or null values, int64 [F]. A cross feature that is computed does not count.
        out_of_range: Numbers outside the training range or beyond float32, int64 [F].
        out_of_vocabulary: Tokens that are not in the vocabulary of training, int64 [F].
        truncated: Lists that were cut to the model's longest, int64 [F].
    """

    missing: npt.NDArray[np.int64]
    out_of_range: npt.NDArray[np.int64]
    out_of_vocabulary: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.int64]

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """Return the names of the counts."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def zeros(cls, n_features: int) -> FeatureCounts:
        """Create counts that are all zero."""
        return cls(*(np.zeros(n_features, dtype=np.int64) for _ in cls.kinds()))

    def first(self, n_features: int) -> FeatureCounts:
        """Return a view of the first features' counts: adding to it adds to these counts."""
        return FeatureCounts(*(count[:n_features] for count in self._all()))

    def copy(self) -> FeatureCounts:
        """Copy the counts, for a later :meth:`restore`."""
        return FeatureCounts(*(count.copy() for count in self._all()))

    def restore(self, earlier: FeatureCounts) -> None:
        """Set the counts back to an earlier copy, in place."""
        for count, before in zip(self._all(), earlier._all(), strict=True):
            count[:] = before

    def _all(self) -> Iterator[npt.NDArray[np.int64]]:
        return (getattr(self, kind) for kind in self.kinds())
