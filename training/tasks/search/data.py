"""The data of DSSM: pairs of a query and a document, which is relevant to the query or not.

Shapes: B queries, N documents, R pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import tyro
from torch import Tensor

from handlers.feature import Feature
from handlers.request_rows import QUERY_FEATURES_KEY
from handlers.values import LIST_SEPARATOR
from training.data.cells import to_free_texts
from training.data.feature_flags import FeatureFlags, readers_of, split_names
from training.data.features import fit_schema
from training.data.files import read_parquet
from training.data.sources import DataError, DataSet
from training.data.splits import Splits, label_problems, load_splits
from training.golden import golden_rows
from training.metrics.retrieval import Indices
from training.run import RunConfig
from training.tasks.search.columns import FeatureColumns, Inputs, TextColumn
from training.tasks.search.world import (
    DOC_COLUMNS,
    QUERY_COLUMNS,
    generate_feature_pairs,
    generate_text_pairs,
)

DEFAULT_DATA = Path("data/searches")
DEFAULT_TEXT_DATA = Path("data/text_searches")
DEFAULT_LABEL = "label"
DEFAULT_DOC_ID = "doc_id"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchConfig(FeatureFlags, RunConfig):
    """The data of DSSM: each row has a query, a document and whether the document is relevant.

    Attributes:
        data_path: A file; a folder with a train, a valid and a test file; a folder or pattern of
            files that are read one after the other; or the s3:// URL of any of these. By default, a
            synthetic world with a known ceiling is generated into data/searches or, with --text,
            data/text_searches.
        text: Queries and documents are texts instead of columns of features.
        query_cols: Columns of a query in the order of the model, separated by commas; a single one
            with --text.
        doc_cols: Columns of a document, likewise.
        doc_id: Column that identifies a document. If the data has no such column, the values of
            doc-cols identify the document.
        label: Column with 1 for a relevant document and 0 for an irrelevant one. If the data has no
            such column, the documents that a query comes with are relevant and all others are not.
        time_column: Column to split a single file by, oldest rows first. By default, the split is a
            seeded shuffle.
    """

    column_flags: ClassVar[Sequence[str]] = ("query_cols", "doc_cols", *FeatureFlags.names())

    data_path: Annotated[str | None, tyro.conf.arg(aliases=("--data",))] = None
    text: bool = False
    query_cols: str = ""
    doc_cols: str = ""
    doc_id: str = DEFAULT_DOC_ID
    label: str = DEFAULT_LABEL
    time_column: str = ""


@dataclass(frozen=True)
class SearchPairs:
    """The pairs of one split, grouped by query.

    Attributes:
        frame: Distinct queries before encoding, B rows.
        queries: Distinct queries, encoded, B.
        counts: Number of pairs of each query, int64 [B].
        owner: Query of each pair, int64 [R].
        docs: Document of each pair, int64 [R].
        labels: 1 if the document is relevant, else 0, float32 [R].
        order: Row of each pair in the file, int64 [R].
    """

    frame: pd.DataFrame
    queries: Inputs
    counts: Tensor
    owner: Tensor
    docs: Tensor
    labels: Tensor
    order: Indices

    def to(self, device: str) -> SearchPairs:
        """Copy what a network trains on to a device."""
        names = ("queries", "counts", "owner", "docs", "labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True)
class SearchData:
    """An encoded data set.

    Attributes:
        query_columns: Encoder of the queries.
        doc_columns: Encoder of the documents.
        train_frame: Training split before encoding.
        train: Pairs to fit.
        valid: Pairs to select the epoch and to calibrate by.
        test: Pairs to report on.
        doc_frame: Distinct documents of all splits before encoding, N rows; those of the training
            split come first.
        docs: Distinct documents, encoded, N.
        n_known: Number of documents in the training split.
        doc_rows: Row of ``doc_frame`` by id, for the documents to export.
        labeled: Whether the data has a label column.
        oracle: The truth of each test row in the order of the file, float64 [R]: the probability of
            the label, or the rank of the document. None unless the data is synthetic.
        sha256: Fingerprint of the data.
    """

    query_columns: FeatureColumns | TextColumn
    doc_columns: FeatureColumns | TextColumn
    train_frame: pd.DataFrame
    train: SearchPairs
    valid: SearchPairs
    test: SearchPairs
    doc_frame: pd.DataFrame
    docs: Inputs
    n_known: int
    doc_rows: dict[str, int]
    labeled: bool
    oracle: npt.NDArray[np.float64] | None
    sha256: str

    @property
    def vocabularies(self) -> dict[str, list[str]]:
        """Tokens of the categories of queries and documents, by feature."""
        schemas = self.query_columns.schema, self.doc_columns.schema
        return schemas[0].vocabularies() | schemas[1].vocabularies()


def load_search_data(config: SearchConfig) -> SearchData:
    """Read, check, split and encode the data.

    Raises:
        DataError: If the data is unusable; the message says where and why.
    """
    default = DEFAULT_TEXT_DATA if config.text else DEFAULT_DATA
    if config.uses_default_data:
        _generate(default, config.text)
    data = config.data(default)
    query_cols, doc_cols = _columns(config)
    drafts = config.drafts([*query_cols, *doc_cols], "--query-cols or --doc-cols")
    splits = _read(data, config, drafts)
    base = config.base()
    if base is not None and base.meta["text"] != config.text:
        raise DataError(
            f"--init-from: expected a version {'with' if config.text else 'without'} --text"
        )
    query_columns, doc_columns = (
        TextColumn(*(draft.name for draft in part))
        if config.text
        else FeatureColumns(fit_schema(splits.train, part, config.base_schema(key)))
        for part, key in (
            (drafts[: len(query_cols)], "features"),
            (drafts[len(query_cols) :], "doc_features"),
        )
    )
    table = pd.concat(splits, ignore_index=True)
    docs, first = _distinct(table[doc_cols])
    doc_frame = table.loc[first, doc_cols].reset_index(drop=True)
    ends = np.cumsum([len(splits.train), len(splits.valid)])
    train, valid, test = (
        _pairs(frame, query_cols, query_columns, docs_of_split, config.label)
        for frame, docs_of_split in zip(splits, np.split(docs, ends), strict=True)
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
        doc_rows=_doc_rows(table, config.doc_id, docs, doc_frame),
        labeled=config.label in splits.train,
        oracle=_oracle(default) if config.uses_default_data else None,
        sha256=data.sha256(*splits),
    )


def _read(data: DataSet, config: SearchConfig, drafts: Sequence[Feature]) -> Splits:
    """Read the splits; :func:`load_search_data` documents the errors."""
    columns = [draft.name for draft in drafts]
    splits = load_splits(
        data,
        columns,
        [config.doc_id],
        [config.doc_id, config.label],
        readers=dict.fromkeys(columns, to_free_texts) if config.text else readers_of(drafts),
        other_flags=dict.fromkeys(columns, config.flags_of_kinds()),
        seed=config.seed,
        time_column=config.time_column or None,
        check=lambda splits: label_problems(splits, [config.label]),
    )
    if config.doc_id not in splits.train and config.doc_id != DEFAULT_DOC_ID:
        raise DataError(
            f"{data.name}: missing column {config.doc_id}; leave --doc-id out if there is none"
        )
    if config.label not in splits.train:
        if config.label != DEFAULT_LABEL:
            raise DataError(
                f"{data.name}: missing column {config.label}; leave --label out if every document "
                "is relevant"
            )
        logger.info("%s: no column %s, so every document is relevant", data.name, config.label)
    return splits


def _generate(path: Path, text: bool) -> None:
    if not path.exists():
        logger.info("no --data-path: generating a synthetic world in %s", path)
    generate = generate_text_pairs if text else generate_feature_pairs
    generate(path)


def _oracle(folder: Path) -> npt.NDArray[np.float64]:
    return read_parquet(folder / "test_truth.parquet").to_numpy(np.float64)[:, 0]


def _columns(config: SearchConfig) -> tuple[list[str], list[str]]:
    """Return the names of the query columns and of the document columns."""
    if config.text:
        query_cols = split_names(config.query_cols) or ["query"]
        doc_cols = split_names(config.doc_cols) or ["doc"]
    else:
        query_cols = split_names(config.query_cols) or list(QUERY_COLUMNS)
        doc_cols = split_names(config.doc_cols) or list(DOC_COLUMNS)
    for flag, columns in (("--query-cols", query_cols), ("--doc-cols", doc_cols)):
        if config.text and len(columns) > 1:
            raise DataError(f"{flag}: expected one column with --text, got {', '.join(columns)}")
    if QUERY_FEATURES_KEY in query_cols:
        raise DataError(
            f"--query-cols {QUERY_FEATURES_KEY}: the name is reserved in request rows; rename the "
            "column"
        )
    return query_cols, doc_cols


def _distinct(frame: pd.DataFrame) -> tuple[Indices, Indices]:
    """Number the distinct rows in order of appearance.

    Returns:
        Number of each row, int64 [rows], and the first row with each number, int64 [distinct rows].
    """
    numbers, _ = pd.factorize(pd.util.hash_pandas_object(frame, index=False))
    _, first = np.unique(numbers, return_index=True)
    return numbers, first


def _pairs(
    frame: pd.DataFrame,
    query_cols: Sequence[str],
    columns: FeatureColumns | TextColumn,
    docs: Indices,
    label: str,
) -> SearchPairs:
    """Group the rows of a split by query; ``docs`` is the document of each row, int64 [R]."""
    queries = frame[list(query_cols)].reset_index(drop=True)
    numbers, first = _distinct(queries)
    order = np.argsort(numbers, kind="stable")
    labels = frame[label].to_numpy() if label in frame else np.ones(len(frame))
    distinct = queries.loc[first].reset_index(drop=True)
    return SearchPairs(
        frame=distinct,
        queries=columns.encode(distinct),
        counts=torch.from_numpy(np.bincount(numbers)),
        owner=torch.from_numpy(numbers[order]),
        docs=torch.from_numpy(docs[order]),
        labels=torch.from_numpy(labels[order].astype(np.float32)),
        order=order,
    )


def _doc_rows(
    table: pd.DataFrame, doc_id: str, docs: Indices, doc_frame: pd.DataFrame
) -> dict[str, int]:
    """Map ids to rows of ``doc_frame``; if the columns of an id change, the last values count."""
    if doc_id in table:
        last = pd.Series(docs).groupby(table[doc_id], sort=False).last()
        return {str(name): int(row) for name, row in last.items()}
    values = doc_frame.astype(str).fillna("").agg(",".join, axis=1).str.replace(LIST_SEPARATOR, "|")
    return {name: row for row, name in enumerate(values)}


def golden_queries(data: SearchData) -> tuple[list[dict[str, Any]], Inputs]:
    """Return golden request rows, most of them wrapped, and the same queries encoded."""
    rows = golden_rows(data.query_columns.schema, data.test.frame)
    inputs = data.query_columns.encode_rows(rows)
    return [row if i % 4 == 2 else {QUERY_FEATURES_KEY: row} for i, row in enumerate(rows)], inputs
