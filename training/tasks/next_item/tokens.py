"""Sequences of tokens, which are items or words: their flags, data and request rows.

Shapes: N tokens of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import tyro

from handlers.feature import FIRST_TOKEN_INDEX, Feature
from handlers.models.item2vec import ROW_KEYS, TokenVectors, word_tokens
from handlers.schema import FeatureSchema
from training.bounds import Count
from training.data.cells import to_free_texts
from training.data.sources import DataSet
from training.data.tables import read_table
from training.golden import GOLDEN_ROWS, UNKNOWN_TOKEN, Golden
from training.metrics.retrieval import Indices
from training.run import RunConfig
from training.tasks.next_item.split import LeaveOneOutSplit, leave_one_out
from training.tasks.next_item.world import INTERACTIONS, TEXTS, World

_ITEM = re.compile(r"""[^\s,\[\]"']+""")


@dataclass(frozen=True)
class Mode:
    """How the data of items differs from that of words.

    Attributes:
        world: Default data.
        user_col: Default column of the user; empty where each row is a sequence.
        sequence_col: Default column of the tokens.
        split_cell: Splits a cell that holds a whole sequence.
        test_share: Share of the sequences whose last token is the test.
    """

    world: World
    user_col: str
    sequence_col: str
    split_cell: Callable[[str], list[str]]
    test_share: float


MODES = {
    "item2vec": Mode(INTERACTIONS, "user_id", "item_id", _ITEM.findall, 1.0),
    "word2vec": Mode(TEXTS, "", "text", word_tokens, 0.1),
}


@dataclass(frozen=True)
class TokensConfig(RunConfig):
    """Where the tokens are.

    Attributes:
        mode: Whether the tokens are items or words.
        data_path: A file; a folder with a file named interactions or texts; a folder or pattern of
            files to read one after the other; or the s3:// URL of one of these. By default a
            synthetic world is generated into data/sequences or data/corpus.
        user_col: Column of the user, whose rows in order are a sequence: one item a row, or all in
            one row. Empty: each row is a sequence. By default user_id for items, empty for words.
        sequence_col: Column of the tokens; items that share a row are separated by spaces or
            commas. By default item_id for items, text for words.
        time_column: Column to sort the rows by; by default they keep the order of the file.
        min_count: Tokens that occur less often get no vector.
        exclude_history: Rank without the tokens of the history, for data in which nobody takes an
            item twice.
        gen: Generate the default data where it does not exist.
    """

    library: ClassVar[str] = "gensim"

    mode: Literal["item2vec", "word2vec"] = "item2vec"
    data_path: Annotated[str | None, tyro.conf.arg(aliases=("--data",))] = None
    user_col: str | None = None
    sequence_col: str | None = None
    time_column: str = ""
    min_count: Count = 2
    exclude_history: bool = False
    gen: bool = True

    @property  # a read-only attribute, as the class variable is in all other models
    def model(self) -> str:  # type: ignore[override]
        """Name of the model: that of the mode."""
        return self.mode


def read_log(data: DataSet, config: TokensConfig) -> pd.DataFrame:
    """Read the column of the tokens and, if there is one, the column of the users.

    Raises:
        DataError: If the data cannot be read.
    """
    mode = MODES[config.mode]
    user_col = mode.user_col if config.user_col is None else config.user_col
    sequence_col = config.sequence_col or mode.sequence_col
    columns = [sequence_col, user_col] if user_col else [sequence_col]
    readers = {sequence_col: to_free_texts} if config.mode == "word2vec" else {}
    return read_table(data.table, [], columns, readers=readers, order_by=config.time_column or None)


def split_log(log: pd.DataFrame, config: TokensConfig) -> LeaveOneOutSplit:
    """Group the tokens into sequences and hold out their last ones.

    Cells of words, and cells of items where no user has a second row, hold whole sequences.

    Args:
        log: Rows as :func:`read_log` returns them.
        config: Configuration of the run.

    Raises:
        DataError: If fewer than two tokens are frequent enough.
    """
    mode = MODES[config.mode]
    tokens, *user_columns = (log[name] for name in log)
    users = user_columns[0] if user_columns else log.index.to_series()
    if users.is_unique or config.mode == "word2vec":
        cells = [mode.split_cell(cell) if isinstance(cell, str) else [] for cell in tokens]
        tokens = pd.Series(cells, index=log.index).explode()
        users = users[tokens.index]
    return leave_one_out(users, tokens, min_count=config.min_count, test_share=mode.test_share)


def token_schema(mode: str, vocabulary: Sequence[str]) -> FeatureSchema:
    """Describe a row, whose only feature is its tokens."""
    return FeatureSchema([Feature(ROW_KEYS[mode], kind="category", vocabulary=tuple(vocabulary))])


def token_row(mode: str, tokens: Sequence[str]) -> dict[str, Any]:
    """Return a request row: a list of items, or a text of words."""
    key = ROW_KEYS[mode]
    return {key: " ".join(tokens) if key == "text" else list(tokens)}


def known_tokens(items: Indices, vocabulary: Sequence[str]) -> list[str]:
    """Look up tokens by index, without those that are out of vocabulary."""
    return [vocabulary[i - FIRST_TOKEN_INDEX] for i in items.tolist() if i >= FIRST_TOKEN_INDEX]


def golden(split: LeaveOneOutSplit, vectors: TokenVectors, mode: str) -> Golden:
    """Return golden rows with their predictions, the mean vectors of their known tokens.

    Some rows have no tokens, or only unknown ones.
    """
    names = ["", UNKNOWN_TOKEN, *split.vocabulary]
    recent = [[names[i] for i in items[-20:]] for items in split.train[: GOLDEN_ROWS - 3]]
    rows = [token_row(mode, tokens) for tokens in [*recent, [], [UNKNOWN_TOKEN]]]
    rows.append({})
    by_token = dict(zip(vectors.tokens, vectors.vectors, strict=True))
    zeros = np.zeros(vectors.vectors.shape[1])
    predictions = []
    for row in rows:
        sent = row.get(ROW_KEYS[mode], [])
        tokens = word_tokens(sent) if isinstance(sent, str) else sent
        known = [by_token[token] for token in tokens if token in by_token]
        predictions.append(np.mean(known, axis=0) if known else zeros)
    return Golden(rows, np.array(predictions, dtype=np.float64).tolist())
