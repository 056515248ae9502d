"""What a model is judged on: its test split, and what answers to it are worth.

Training reports by it, and ``scripts/evaluate.py`` judges archives by the same.

Shapes: B request rows, N items, D embedding dim, R results, which are what metrics are means over.
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

# Of one scorer for the whole test split, [R] or [R, ...].
Results = npt.NDArray[Any]
# Some of the results, by position; all by default.
Rows = slice | Indices
ALL = slice(None)

# A hit rate is a mean over few hits, and moves by more than a percent between two equal models.
HIT_RATE_RATIO = 0.95


@dataclass(frozen=True)
class Answers:
    """What an archive said to the test split.

    Attributes:
        predictions: For each request row, as JSON, B.
        item_vectors: What ``RecHandler.embed_items`` made of the items, float32 [N, D]; NaN for
            one that the archive does not know.
        meta: The archive's meta file.
    """

    predictions: list[Any]
    item_vectors: npt.NDArray[np.float32]
    meta: Mapping[str, Any]


class Evaluation(ABC):
    """The test split of one model's data.

    Attributes:
        primary: The metric that tells most.
        chance: What it is for scores that know nothing.
        min_ratio: Metrics that a new version may not have below so much of the old one's.
        max_ratio: Metrics that it may not have above so much of the old one's.
        floor: The baseline that a first version has to reach.
        handler_config: Over what the archive's own section ``handler`` says.
        frame: Columns that results can be grouped by, R rows.
        groups: Results that belong together, such as those of one user, [R]; None where each
            stands alone.
        train_frame: What training learns from, before it was encoded.
        data_sha256: Tells the data from other data.
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
        """The test split as callers would send it, B."""

    def items(self) -> list[Any]:
        """What the answers are compared with, as ``RecHandler.embed_items`` takes it, N."""
        return []

    @abstractmethod
    def results(self, answers: Answers) -> Results:
        """What an archive's answers come to, [R, ...]."""

    @abstractmethod
    def baselines(self) -> Mapping[str, Results]:
        """The same of simpler scorers and, on synthetic data, of the oracle."""

    @abstractmethod
    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Metrics of some results; empty where they cannot be measured, as with one class only.

        Args:
            results: Of the whole split, [R, ...].
            rows: Which of them.
        """

    def probabilities(self, results: Results) -> tuple[Results, Results] | None:
        """Labels and predicted probabilities, both [R], of a model that predicts such."""
        return None

    def ranks(self, results: Results) -> Results | None:
        """Where the right item stands, 1 the best, [R], of a model that ranks."""
        return None

    def reports(self, model: str, results: Results) -> dict[str, dict[str, float]]:
        """Reports of a model and its baselines.

        With an oracle, each says how far it is on the way from chance to that: ``gain``.
        """
        found = {
            name: self.report(of_one)
            for name, of_one in {model: results, **self.baselines()}.items()
        }
        if "oracle" in found:
            best = found["oracle"][self.primary]
            for report in found.values():
                report["gain"] = (report[self.primary] - self.chance) / (best - self.chance)
        return found
