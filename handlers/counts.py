"""Counts of unusual feature values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(slots=True)
class FeatureCounts:
    """How often each feature of a model was missing or unusual.

    Attributes:
        missing: Absent or null values, int64 [F]. A cross feature that is computed does not count.
        out_of_range: Numbers outside the training range or beyond float32, int64 [F].
        out_of_vocabulary: Tokens that are not in the vocabulary of training, int64 [F].
    """

    missing: npt.NDArray[np.int64]
    out_of_range: npt.NDArray[np.int64]
    out_of_vocabulary: npt.NDArray[np.int64]

    @classmethod
    def zeros(cls, n_features: int) -> FeatureCounts:
        """Create counts that are all zero."""
        return cls(*(np.zeros(n_features, dtype=np.int64) for _ in range(3)))

    def first(self, n_features: int) -> FeatureCounts:
        """Return a view of the first features' counts: adding to it adds to these counts."""
        return FeatureCounts(
            self.missing[:n_features],
            self.out_of_range[:n_features],
            self.out_of_vocabulary[:n_features],
        )

    def copy(self) -> FeatureCounts:
        """Copy the counts, for a later :meth:`restore`."""
        return FeatureCounts(
            self.missing.copy(), self.out_of_range.copy(), self.out_of_vocabulary.copy()
        )

    def restore(self, earlier: FeatureCounts) -> None:
        """Set the counts back to an earlier copy, in place."""
        self.missing[:] = earlier.missing
        self.out_of_range[:] = earlier.out_of_range
        self.out_of_vocabulary[:] = earlier.out_of_vocabulary
