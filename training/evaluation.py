"""What a model is judged on: its test split, the metrics and the baselines.

Training reports by it, and ``scripts/evaluate.py`` judges archives by the same.

Shapes: B request rows, N items, D embedding dim, R results, over which metrics take their means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.metrics.retrieval import Indices

# One scorer's outcome for each unit of the test split, such as a probability or a rank, [R, ...].
Results = npt.NDArray[Any]
# Positions of some of the results.
Rows = slice | Indices
ALL = slice(None)

# A hit rate is a mean over few hits: it differs by more than a percent between equal models.
HIT_RATE_RATIO = 0.95


@dataclass(frozen=True)
class ArchiveOutput:
    """What an archive computes for the test split.

    Attributes:
        predictions: Prediction for each request row, as JSON, B.
        item_vectors: Output of ``RecHandler.embed_items`` for the items, float32 [N, D]; NaN for an
            item that the archive does not know.
        meta: The archive's meta file.
    """

    predictions: list[Any]
    item_vectors: npt.NDArray[np.float32]
    meta: Mapping[str, Any]


class Evaluation(ABC):
    """The test split of one model's data.

    Attributes:
        primary: The metric that decides.
        chance: Its value for scores that carry no information.
        min_ratio: Least share of the old version's metric that a new version must reach, by metric.
        max_ratio: Largest multiple of the old version's metric that it may have, by metric.
        floor: The baseline that a first version must reach.
        handler_config: Settings that override the ``handler`` section of the archive.
        frame: Columns to group results by, R rows.
        groups: Key of the results that belong together, such as the user's, [R]; None if each
            result stands alone.
        train_frame: The training split before it was encoded.
        data_sha256: Hash of the data.
    """

    primary: str
    chance: float
    min_ratio: Mapping[str, float]
    max_ratio: Mapping[str, float] = MappingProxyType({})
    floor: ClassVar[str]
    handler_config: ClassVar[Mapping[str, str]] = MappingProxyType({})
    frame: pd.DataFrame
    groups: npt.NDArray[Any] | None = None
    train_frame: pd.DataFrame
    data_sha256: str

    @abstractmethod
    def rows(self) -> list[Any]:
        """Return the test split as request rows, B."""

    def items(self) -> list[Any]:
        """Return the candidates as ``RecHandler.embed_items`` takes them, N."""
        return []

    @abstractmethod
    def results(self, output: ArchiveOutput) -> Results:
        """Turn the output of an archive into results, [R, ...]."""

    @abstractmethod
    def baselines(self) -> Mapping[str, Results]:
        """Return results of simpler scorers and, on synthetic data, of the oracle."""

    @abstractmethod
    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Compute the metrics of some results.

        Args:
            results: Results on the whole split, [R, ...].
            rows: The results that count.

        Returns:
            Metrics by name; empty if they are undefined, such as the AUC of a single class.
        """

    def probabilities(self, results: Results) -> tuple[Results, Results] | None:
        """Return labels and predicted probabilities, both [R]; None if the model predicts none."""
        return None

    def ranks(self, results: Results) -> Results | None:
        """Return the rank of the right item, 1 is best, [R]; None if the model does not rank."""
        return None

    def reports(self, model: str, results: Results) -> dict[str, dict[str, float]]:
        """Compute the metrics of a model and its baselines.

        On synthetic data each report also has ``gain``: how far the primary metric is on the way
        from chance to the oracle.
        """
        reports = {
            name: self.report(scored)
            for name, scored in {model: results, **self.baselines()}.items()
        }
        if "oracle" in reports:
            best = reports["oracle"][self.primary]
            for report in reports.values():
                report["gain"] = (report[self.primary] - self.chance) / (best - self.chance)
        return reports
