"""Which documents were meant by which queries: DSSM's data, its baselines, its report.

Shapes: B queries, N documents, R pairs of a query and a document, K components of a vector.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import tyro
from torch import Tensor

from handlers.models.text import TokenBags
from handlers.row_keys import QUERY_FEATURES_KEY
from handlers.schema import Feature, FeatureSchema
from training.data.features import fit_schema, to_matrix
from training.data.files import read_parquet
from training.data.tables import DataError, label_problems, load_splits
from training.golden import golden_rows
from training.metrics.retrieval import Indices
from training.run import RunConfig, split_names
from training.tasks.search import world as worlds_search

DEFAULT_DATA = Path("data/searches")
DEFAULT_TEXT_DATA = Path("data/text_searches")
DEFAULT_LABEL = "label"
DEFAULT_DOC_ID = "doc_id"

# Queries or documents as a tower takes them: a matrix, float32 [B, C], or texts.
Inputs = Tensor | TokenBags

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchConfig(RunConfig):
    """Where the data comes from: rows of a query, a document and whether it was meant.

    Attributes:
        data_path: A file, a folder with a train, valid and test file, a folder or pattern of files
            that follow each other, or the s3:// URL of one of these; when left out, a synthetic
            world with a known ceiling is generated into data/searches or, with --text,
            data/text_searches.
        text: A query is a text, and so is a document, instead of columns of features.
        query_cols: Columns of a query in the model's order, separated by commas; one with --text.
        doc_cols: The same for a document.
        categorical: Those of both that are ids or strings.
        doc_id: Column that names a document; where the data has none, its values do.
        label: Column with 1 for a document that was meant, 0 for one that was not; where the data
            has none, all were meant, and no document that a query never comes with.
        time_column: Split one file by this column's order, instead of by a seeded shuffle.
    """

    column_flags: ClassVar[Sequence[str]] = ("query_cols", "doc_cols", "categorical")

    data_path: Annotated[str | None, tyro.conf.arg(aliases=("--data",))] = None
    text: bool = False
    query_cols: str = ""
    doc_cols: str = ""
    categorical: str = ""
    doc_id: str = DEFAULT_DOC_ID
    label: str = DEFAULT_LABEL
    time_column: str = ""


@dataclass(frozen=True)
class FeatureColumns:
    """Columns that are features."""

    schema: FeatureSchema

    def encode(self, frame: pd.DataFrame) -> Tensor:
        """Rows -> a matrix, float32 [B, C]."""
        return torch.from_numpy(to_matrix(self.schema, frame))

    def to_json(self) -> list[dict[str, Any]]:
        """As the meta file holds them."""
        return self.schema.to_json()


@dataclass(frozen=True)
class TextColumn:
    """A column of texts."""

    name: str

    @property
    def schema(self) -> FeatureSchema:
        """What the column is in a request: like a category, a string or a number."""
        return FeatureSchema([Feature(self.name, kind="category")])

    def encode(self, frame: pd.DataFrame) -> TokenBags:
        """Rows -> texts; a missing one is empty."""
        return TokenBags.of(frame[self.name].fillna(""))

    def to_json(self) -> list[dict[str, Any]]:
        """As the meta file holds it."""
        return [{"name": self.name, "kind": "text", "default": ""}]


@dataclass(frozen=True)
class Searches:
    """The pairs of one split, all of a query together.

    Attributes:
        frame: The distinct queries, B rows.
        queries: The same, encoded.
        counts: How many pairs each query has, int64 [B].
        owner: Query of each pair, int64 [R].
        docs: Document of each pair, int64 [R].
        labels: Whether it was meant, 0 or 1, float32 [R].
        order: Where each pair was in the file, int64 [R].
    """

    frame: pd.DataFrame
    queries: Inputs
    counts: Tensor
    owner: Tensor
    docs: Tensor
    labels: Tensor
    order: Indices


@dataclass(frozen=True)
class SearchData:
    """A data set, encoded.

    Attributes:
        query_columns: How queries are encoded.
        doc_columns: How documents are.
        train_frame: The training split before it was encoded.
        train: Pairs to fit.
        valid: Pairs to select and to calibrate by.
        test: Pairs to report.
        doc_frame: The distinct documents of all splits, N rows, those of the training split first.
        docs: The same, encoded.
        n_known: How many documents the training split has.
        doc_rows: Names of the documents to export, and their rows of ``doc_frame``.
        labelled: Whether some pairs say that a document was not meant.
        oracle: The truth of each pair of the test split as it is in its file: probability of the
            label, or rank of the document; None unless the data is synthetic.
        sha256: Tells the data from other data.
    """

    query_columns: FeatureColumns | TextColumn
    doc_columns: FeatureColumns | TextColumn
    train_frame: pd.DataFrame
    train: Searches
    valid: Searches
    test: Searches
    doc_frame: pd.DataFrame
    docs: Inputs
    n_known: int
    doc_rows: dict[str, int]
    labelled: bool
    oracle: npt.NDArray[np.float64] | None
    sha256: str

    @property
    def vocabularies(self) -> dict[str, list[str]]:
        """Tokens by category feature, of queries and documents."""
        schemas = self.query_columns.schema, self.doc_columns.schema
        return schemas[0].vocabularies() | schemas[1].vocabularies()


def load(config: SearchConfig) -> SearchData:
    """Read, check, split and encode the data.

    Raises:
        DataError: If the data cannot be trained on; says where and why.
    """
    default = DEFAULT_TEXT_DATA if config.text else DEFAULT_DATA
    if config.uses_default_data:
        _generate(default, config.text)
    data = config.data(default)
    query_cols, doc_cols = _columns(config)
    columns, categorical = [*query_cols, *doc_cols], split_names(config.categorical)
    if stray := [name for name in categorical if name not in columns]:
        raise DataError(
            f"--categorical {','.join(stray)}: expected names of --query-cols, --doc-cols"
        )
    tokens = columns if config.text else categorical
    splits = load_splits(
        data,
        [name for name in columns if name not in tokens],
        [*tokens, config.doc_id],
        [config.doc_id, config.label],
        seed=config.seed,
        time_column=config.time_column or None,
        check=lambda splits: label_problems(splits, [config.label]),
    )
    if config.doc_id not in splits.train and config.doc_id != DEFAULT_DOC_ID:
        raise DataError(
            f"{data.name}: missing column {config.doc_id}; leave --doc-id out if there is none"
        )
    labelled = config.label in splits.train
    if not labelled and config.label == DEFAULT_LABEL:
        logger.info("%s: no column %s, so every document was meant", data.name, config.label)
    elif not labelled:
        raise DataError(
            f"{data.name}: missing column {config.label}; leave --label out if all match"
        )

    encoders: list[FeatureColumns | TextColumn] = [
        TextColumn(*cols)
        if config.text
        else FeatureColumns(fit_schema(splits.train, cols, categorical))
        for cols in (query_cols, doc_cols)
    ]
    query_columns, doc_columns = encoders
    every = pd.concat([splits.train, splits.valid, splits.test], ignore_index=True)
    docs, first = _distinct(every[doc_cols])
    doc_frame = every.loc[first, doc_cols].reset_index(drop=True)
    ends = np.cumsum([len(splits.train), len(splits.valid)])
    train, valid, test = (
        _searches(frame, query_cols, query_columns, of_rows, config.label)
        for frame, of_rows in zip(vars(splits).values(), np.split(docs, ends), strict=True)
    )
    return SearchData(
        query_columns=query_columns,
        doc_columns=doc_columns,
        train_frame=splits.train,
        train=train,
        valid=valid,
        test=test,
        doc_frame=doc_frame,
        docs=doc_columns.encode(doc_frame),
        n_known=int(train.docs.max()) + 1,
        doc_rows=_doc_rows(every, config.doc_id, docs, doc_frame),
        labelled=labelled,
        oracle=_truth(default) if config.uses_default_data else None,
        sha256=data.sha256(*vars(splits).values()),
    )


def _generate(path: Path, text: bool) -> None:
    if not path.exists():
        logger.info("no --data-path: generating a synthetic world in %s", path)
    if text:
        worlds_search.generate_text_searches(path)
    else:
        worlds_search.generate_feature_searches(path)


def _truth(folder: Path) -> npt.NDArray[np.float64]:
    return read_parquet(folder / "test_truth.parquet").to_numpy(np.float64)[:, 0]


def _columns(config: SearchConfig) -> tuple[list[str], list[str]]:
    if config.text:
        query_cols = split_names(config.query_cols) or ["query"]
        doc_cols = split_names(config.doc_cols) or ["doc"]
    else:
        query_cols = split_names(config.query_cols) or list(worlds_search.QUERY_COLUMNS)
        doc_cols = split_names(config.doc_cols) or list(worlds_search.DOC_COLUMNS)
    for flag, columns in (("--query-cols", query_cols), ("--doc-cols", doc_cols)):
        if config.text and len(columns) > 1:
            raise DataError(f"{flag}: expected one column with --text, got {', '.join(columns)}")
    if QUERY_FEATURES_KEY in query_cols:
        raise DataError(
            f"--query-cols {QUERY_FEATURES_KEY}: a request's row needs this name; rename the column"
        )
    return query_cols, doc_cols


def _distinct(frame: pd.DataFrame) -> tuple[Indices, Indices]:
    """The number of each row's values, in order of appearance, and the first row of each number."""
    numbers, _ = pd.factorize(pd.util.hash_pandas_object(frame, index=False))
    _, first = np.unique(numbers, return_index=True)
    return numbers, first


def _searches(
    frame: pd.DataFrame,
    query_cols: Sequence[str],
    columns: FeatureColumns | TextColumn,
    docs: Indices,
    label: str,
) -> Searches:
    queries = frame[list(query_cols)].reset_index(drop=True)
    numbers, first = _distinct(queries)
    order = np.argsort(numbers, kind="stable")
    labels = frame[label].to_numpy() if label in frame else np.ones(len(frame))
    distinct = queries.loc[first].reset_index(drop=True)
    return Searches(
        frame=distinct,
        queries=columns.encode(distinct),
        counts=torch.from_numpy(np.bincount(numbers)),
        owner=torch.from_numpy(numbers[order]),
        docs=torch.from_numpy(docs[order]),
        labels=torch.from_numpy(labels[order].astype(np.float32)),
        order=order,
    )


def _doc_rows(
    every: pd.DataFrame, doc_id: str, docs: Indices, doc_frame: pd.DataFrame
) -> dict[str, int]:
    """Rows of documents by name; whose columns change over time counts as it came last."""
    if doc_id in every:
        last = pd.Series(docs).groupby(every[doc_id], sort=False).last()
        return {str(name): int(row) for name, row in last.items()}
    texts = doc_frame.astype(str).agg(",".join, axis=1)
    return {name: row for row, name in enumerate(texts)}


def golden(data: SearchData) -> tuple[list[dict[str, Any]], Inputs]:
    """Raw request rows, most of them with the wrapper, and the same encoded as training does."""
    rows = golden_rows(data.query_columns.schema, data.test.frame)
    inputs = data.query_columns.encode(pd.DataFrame(rows))
    return [row if i % 4 == 2 else {QUERY_FEATURES_KEY: row} for i, row in enumerate(rows)], inputs


# The report
