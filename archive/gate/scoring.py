"""Score an archive on the test split, and measure the importance of its features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from archive.gate.compare import Scored
from archive.gate.unpacked_archive import UnpackedArchive
from training.evaluation import ALL, Evaluation

# Enough rows to see which feature matters.
IMPORTANCE_ROWS = 5000


def score(archive: UnpackedArchive, evaluation: Evaluation) -> Scored:
    """Run an archive over the test split and measure the importance of its features.

    The importance of a feature is how much of the primary metric is lost when its values are
    shuffled among the rows.

    Raises:
        ArchiveError: If the archive cannot be loaded, or fails on a row.
    """
    rows = evaluation.rows()
    # Some models have one result for several rows; then rows cannot be sampled.
    is_result_per_row = len(rows) == len(evaluation.frame)
    sample = np.arange(len(rows))
    if is_result_per_row and len(rows) > IMPORTANCE_ROWS:
        sample = np.random.default_rng(0).choice(len(rows), IMPORTANCE_ROWS, replace=False)
    shuffled_rows = dict(shuffled_by_feature([rows[i] for i in sample]))
    output, *shuffled_outputs = archive.predict(evaluation, [rows, *shuffled_rows.values()])
    results = evaluation.results(output)
    measured = sample if is_result_per_row else ALL
    importance = {}
    for name, shuffled in zip(shuffled_rows, shuffled_outputs, strict=True):
        predictions = list(output.predictions)
        for i, prediction in zip(sample.tolist(), shuffled.predictions, strict=True):
            predictions[i] = prediction
        without = evaluation.results(replace(output, predictions=predictions))
        intact, left = (
            evaluation.report(r, measured).get(evaluation.primary, np.nan)
            for r in (results, without)
        )
        importance[name] = intact - left
    return Scored(archive.version, results, importance)


def shuffled_by_feature(rows: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """For each feature, yield its name and the rows with its values shuffled among them.

    A feature may stand one level down, in a dict such as ``user_features``. Nothing is yielded for
    rows of a single feature, for there is nothing to compare it with.
    """
    keys = dict.fromkeys(key for row in rows for key in _feature_keys(row))
    if len(keys) < 2:
        return
    order = np.random.default_rng(0).permutation(len(rows))
    for *parents, name in keys:
        shuffled = []
        for row, other in zip(rows, order.tolist(), strict=True):
            inner, source = dict(row), rows[other]
            changed = inner
            for parent in parents:
                inner[parent] = dict(inner[parent])
                inner, source = inner[parent], source[parent]
            inner.pop(name, None)
            if name in source:
                inner[name] = source[name]
            shuffled.append(changed)
        yield name, shuffled


def _feature_keys(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in row.items():
        if isinstance(value, dict):
            yield from ((key, inner) for inner in value)
        else:
            yield (key,)
