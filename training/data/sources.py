"""Where rows come from: a source streams them, and a data set groups sources by split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from handlers.errors import UserError

SPLIT_NAMES = ("train", "valid", "test")

# Rows hashed in one go; their tokens are in memory as Python objects meanwhile.
_CHUNK_ROWS = 1 << 20


class DataError(UserError):
    """The data cannot be used; the message says where, what was expected and what was found."""


class Source(Protocol):
    """The rows of one file or one query, in order."""

    @property
    def name(self) -> str:
        """Name to show in messages."""

    @property
    def first_row(self) -> int:
        """Number of the first row in messages."""

    @property
    def ordered(self) -> bool:
        """Whether every read returns the rows in the same order."""

    def columns(self) -> list[str]:
        """Return the names of all columns."""

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream every row, or raise.

        Args:
            columns: Columns to read; a batch may hold more.

        Raises:
            DataError: If the source cannot be read to its end.
            OSError: The same.
            pa.ArrowException: The same.
        """

    def sha256(self) -> str | None:
        """Return the hash of the content; None if it takes a read of the rows to know it."""


def readable_columns(source: Source) -> list[str]:
    """Return the names of all columns; none where reading the rows will report an error."""
    try:
        return source.columns()
    except (pa.ArrowException, OSError, UnicodeError):
        return []


# Sources whose rows follow one another.
Table = Sequence[Source]


@dataclass(frozen=True)
class DataSet:
    """The tables of a run.

    Attributes:
        name: Name to show in messages.
        tables: Tables by split; or a single one named "", which is still to be cut.
        extra_columns: Columns that training did not read; they do not identify a row.
    """

    name: str
    tables: Mapping[str, Table]
    extra_columns: Sequence[str] = ()

    @property
    def table(self) -> Table:
        """All rows as one table."""
        return [source for table in self.tables.values() for source in table]

    def sha256(self, *frames: pd.DataFrame) -> str:
        """Hash the content.

        Args:
            frames: The rows that were read. They identify the result of a query, whatever the
                order in which its rows arrive.

        Returns:
            64 hexadecimal digits.

        Raises:
            DataError: If a source cannot be read.
        """
        digests = []
        for source in self.table:
            try:
                digests.append(source.sha256())
            except OSError as error:
                raise DataError(f"{source.name}: cannot be read: {error}") from error
        known = [digest for digest in digests if digest is not None]
        if len(known) < len(digests):
            hashes = np.concatenate([self.row_hashes(frame) for frame in frames])
            return hashlib.sha256(np.sort(hashes).tobytes()).hexdigest()
        return known[0] if len(known) == 1 else hashlib.sha256("".join(known).encode()).hexdigest()

    def row_hashes(self, frame: pd.DataFrame) -> npt.NDArray[np.uint64]:
        """Hash each row of a frame that was read from this data, uint64 [rows].

        Extra columns do not count.
        """
        own = [name for name in map(str, frame) if name not in self.extra_columns]
        return row_hashes(frame[sorted(own)])


def row_hashes(frame: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """Hash the cells of each row, uint64 [rows]; the hashes are the same in every run."""
    starts = range(0, len(frame), _CHUNK_ROWS)
    chunks = [
        pd.util.hash_pandas_object(frame.iloc[i : i + _CHUNK_ROWS], index=False) for i in starts
    ]
    return np.concatenate([chunk.to_numpy() for chunk in chunks])
