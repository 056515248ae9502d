"""Warn of doubtful training data before training starts.

Data that no model could be trained on is an error of :mod:`training.data.tables`. This module
warns of values that look wrong, and of changes since the data of the previous version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pydantic
from pandas.api.types import is_numeric_dtype
from rich import box
from rich.console import Console
from rich.table import Table

from handlers.values import LIST_SEPARATOR
from training import artifacts
from training.data.inspection.columns import Column
from training.data.inspection.commands import quote
from training.data.inspection.kinds import describe as describe_cells
from training.data.inspection.ranking import multi
from training.data.sources import DataError, row_hashes

MAX_MISSING = 0.5
MIN_LABEL_SHARE, MIN_LABEL_ROWS = 0.005, 100
MAX_REPEATED = 0.5
# Changes since the previous version.
MAX_MISSING_CHANGE = 0.05
MAX_REPEATED_CHANGE = 0.05
MAX_OUTSIDE = 0.001
# By convention, a population stability index above this is a shift that affects a model.
MAX_PSI = 0.25

N_BINS = 10
N_TOKENS = 50
# Enough rows to know a distribution.
_SAMPLE_ROWS = 1_000_000
_MIN_SHARE = 1e-4
# Enough rows to know what texts are.
_TEXT_ROWS = 10_000

Shares = npt.NDArray[np.float64]


class Settings(Protocol):
    """The flags of a run that matter here."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def artifacts_dir(self) -> Path:
        """Folder with the artifacts of other versions."""

    @property
    def version(self) -> str:
        """Version that is being trained."""

    @property
    def strict(self) -> bool:
        """Whether a warning is an error."""

    @property
    def uses_default_data(self) -> bool:
        """Whether the data is generated."""


@dataclass(frozen=True)
class ColumnStatistics:
    """Statistics of one column.

    Attributes:
        missing: Share of the cells that are missing.
        bounds: Inclusive upper bounds of all bins but the last; empty for categories.
        tokens: The most frequent tokens, a bin each; the rest share the last bin. Empty for
            numbers.
        shares: Share of the present cells in each bin.
        range: Smallest and largest number; None for categories, or if every cell is missing.
    """

    missing: float
    bounds: tuple[float, ...]
    tokens: tuple[str, ...]
    shares: tuple[float, ...]
    range: tuple[float, float] | None


@dataclass(frozen=True)
class Statistics:
    """Statistics of a training split, kept in the meta file for the next version.

    Attributes:
        rows: Number of rows.
        repeated: Share of the rows that repeat an earlier one.
        columns: Statistics by column.
    """

    rows: int
    repeated: float
    columns: Mapping[str, ColumnStatistics]


class Finding(NamedTuple):
    """A warning."""

    column: str
    found: str
    expected: str


def check(frame: pd.DataFrame, targets: Sequence[str], config: Settings) -> dict[str, Any]:
    """Print all warnings as one table on stderr; nothing if there are none.

    The data is compared with that of the model's newest other version.

    Args:
        frame: The training split as :func:`training.data.tables.read_table` returns it.
        targets: The columns to predict.
        config: Flags of the run; ``strict`` turns a warning into an error.

    Returns:
        Statistics of the split, for the meta file.

    Raises:
        DataError: If there is a warning and the run is strict.
    """
    before = _previous(config)
    statistics = describe(frame)
    found = [*findings(frame, statistics, targets)]
    if before:
        found += changes(frame, statistics, before[1])
    if found:
        title = f"{len(found)} warning{'s' * (len(found) > 1)} about the training data"
        if before:
            title += f", compared with that of version {before[0]}"
        table = Table("column", "found", "expected", box=box.SIMPLE_HEAD)
        for finding in found:
            table.add_row(*finding)
        console = Console(stderr=True)
        console.print(title, style="bold", soft_wrap=True)
        console.print(table)
        if config.strict:
            raise DataError(f"--strict: {title}")
    return asdict(statistics)


def findings(
    frame: pd.DataFrame, statistics: Statistics, targets: Sequence[str]
) -> Iterator[Finding]:
    """Find values that look wrong whatever the data was before.

    Args:
        frame: The training split.
        statistics: Statistics of the split.
        targets: The columns to predict.
    """
    if statistics.repeated > MAX_REPEATED:
        found = f"{statistics.repeated:.1%} repeated rows"
        yield Finding("all", found, f"at most {MAX_REPEATED:.0%}")
    for name, column in frame.items():
        missing = float(column.isna().mean())
        if missing > MAX_MISSING:
            yield Finding(str(name), f"{missing:.1%} empty cells", f"at most {MAX_MISSING:.0%}")
        present = column.dropna()
        if not is_numeric_dtype(column) and (lists := _lists(str(name), present)):
            yield Finding(
                str(name), f"lists such as {lists.first}", f"--multi {quote(multi([lists]))}"
            )
        if len(present) and (present == present.iloc[0]).all():
            yield Finding(str(name), f"only {present.iloc[0]}", "two values or more")
    for name in targets:
        if name not in frame or not frame[name].isin((0, 1)).all():
            continue
        expected = max(MIN_LABEL_ROWS, int(MIN_LABEL_SHARE * len(frame)))
        for value in (0, 1):
            n = int((frame[name] == value).sum())
            if n < expected:
                found = f"{n} of {len(frame)} rows are {value}"
                yield Finding(name, found, f"{expected} or more")


def _lists(name: str, texts: pd.Series[str]) -> Column | None:
    """Return a column of categories that look like lists, such as ``Action|Comedy``."""
    column = describe_cells(name, pa.array(texts[:_TEXT_ROWS].to_list(), pa.large_string()))
    # Prose has commas too.
    return column if column.kind == "list" and column.separator != "," else None


def changes(frame: pd.DataFrame, now: Statistics, before: Statistics) -> Iterator[Finding]:
    """Find changes since another version.

    Args:
        frame: The training split.
        now: Statistics of the split.
        before: Statistics of the other version's split.
    """
    if abs(now.repeated - before.repeated) > MAX_REPEATED_CHANGE:
        found = f"{now.repeated:.1%} repeated rows"
        yield Finding("all", found, f"about {before.repeated:.1%}")
    frame = _sample(frame)
    for name, old in before.columns.items():
        if name not in frame or is_numeric_dtype(frame[name]) == bool(old.tokens):
            continue
        present = frame[name].dropna()
        missing = 1 - len(present) / len(frame)
        if abs(missing - old.missing) > MAX_MISSING_CHANGE:
            yield Finding(name, f"{missing:.1%} empty cells", f"about {old.missing:.1%}")
        # A time, the only column of float64, moves on.
        if present.empty or not old.shares or present.dtype == np.float64:
            continue
        if old.range is not None:
            low, high = map(np.float32, old.range)
            outside = float(((present < low) | (present > high)).mean())
            if outside > MAX_OUTSIDE:
                yield Finding(name, f"{outside:.1%} outside the range", f"[{low:g}, {high:g}]")
        shares = _shares(present, old.bounds, old.tokens)
        # Two samples of one population differ by chance.
        chance = (len(shares) - 1) * (1 / len(present) + 1 / before.rows)
        psi = stability_index(np.array(old.shares), shares)
        if psi > MAX_PSI + chance:
            yield Finding(name, f"another distribution: PSI {psi:.2f}", f"at most {MAX_PSI}")


def stability_index(before: Shares, now: Shares) -> float:
    """Compute the population stability index of two distributions over the same bins, >= 0."""
    before, now = before.clip(_MIN_SHARE), now.clip(_MIN_SHARE)
    return float(((now - before) * np.log(now / before)).sum())


def describe(frame: pd.DataFrame) -> Statistics:
    """Compute the statistics of a training split."""
    columns = {str(name): _describe(column) for name, column in _sample(frame).items()}
    repeated = 1 - len(np.unique(row_hashes(frame))) / len(frame)
    return Statistics(len(frame), round(repeated, 6), columns)


def _describe(column: pd.Series[Any]) -> ColumnStatistics:
    present = column.dropna()
    bounds: tuple[float, ...] = ()
    tokens: tuple[str, ...] = ()
    span = None
    if not is_numeric_dtype(column):
        tokens = tuple(_token_counts(present).index[:N_TOKENS])
    elif len(present):
        levels = np.arange(1, N_BINS) / N_BINS
        quantiles = np.unique(np.quantile(present, levels, method="lower"))
        # Through text, so that the JSON reads 0.1 and not 0.10000000149011612.
        bounds = tuple(float(str(bound)) for bound in quantiles)
        span = float(str(present.min())), float(str(present.max()))
    shares = tuple(_shares(present, bounds, tokens).round(6).tolist()) if len(present) else ()
    return ColumnStatistics(
        round(1 - len(present) / len(column), 6), bounds, tokens, shares, range=span
    )


def _shares(present: pd.Series[Any], bounds: Sequence[float], tokens: Sequence[str]) -> Shares:
    """Compute the share of each bin, float64 [bins]."""
    n_bins = len(bounds or tokens) + 1
    if tokens:
        found = _token_counts(present)
        index = pd.Index(tokens).get_indexer(found.index)
        counts = np.bincount(np.where(index < 0, len(tokens), index), found, minlength=n_bins)
    else:
        index = np.searchsorted(np.array(bounds, dtype=np.float32), present.to_numpy())
        counts = np.bincount(index, minlength=n_bins)
    shares: Shares = counts / counts.sum()
    return shares


def _token_counts(present: pd.Series[Any]) -> pd.Series[int]:
    """Count the tokens of categories or of lists, most frequent first."""
    # With Arrow, the tokens of a million lists take a tenth of the memory.
    column = pa.array(present, pa.large_string())
    if isinstance(column, pa.ChunkedArray):  # as pandas holds what was read in batches
        column = column.combine_chunks()
    counted = pc.value_counts(pc.list_flatten(pc.split_pattern(column, LIST_SEPARATOR)))
    counts = pd.Series(counted.field("counts").to_numpy(), counted.field("values").to_pylist())
    return counts.sort_values(ascending=False, kind="stable")


def _sample(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[:: -(-len(frame) // _SAMPLE_ROWS)]


def _previous(config: Settings) -> tuple[str, Statistics] | None:
    """Find the newest other version whose meta file has statistics of real data.

    Generated data is no measure for anyone's own, nor the other way round.
    """
    if config.uses_default_data:
        return None
    schema = pydantic.TypeAdapter(Statistics)
    for version in reversed(artifacts.versions(config.model, config.artifacts_dir)):
        if version == config.version:
            continue
        try:
            meta = artifacts.read_meta(config.artifacts_dir / config.model / version)
            flags = meta["hyperparameters"]
            if flags["data_source"] == "file" and flags["data_path"] is None:
                continue  # see `uses_default_data`
            return version, schema.validate_python(meta["statistics"])
        except (artifacts.ArtifactError, KeyError, pydantic.ValidationError):
            continue  # written by older code, or incomplete: look further back
    return None
