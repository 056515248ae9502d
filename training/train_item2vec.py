"""Train item2vec or word2vec: ``python -m training.train_item2vec --mode item2vec``."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import numpy as np
import pandas as pd
import tyro
from gensim.models import Word2Vec
from gensim.models.callbacks import CallbackAny2Vec
from rich.console import Console
from tqdm import tqdm

from handlers.models.item2vec import (
    ARCH_VERSION,
    META_FILE,
    OUT_VECTORS_FILES,
    ROW_KEYS,
    VECTORS_FILES,
    TokenVectors,
    Vectors,
    word_tokens,
)
from handlers.schema import FIRST_TOKEN_INDEX, Feature, FeatureSchema
from training import run
from training.bounds import Count, EmbeddingDim, Weight
from training.data import validation
from training.data.files import read_parquet
from training.data.tables import DataError, DataSet, read_table
from training.evaluation import Results
from training.golden import GOLDEN_ROWS, UNKNOWN_TOKEN, Golden
from training.metrics.retrieval import Scores
from training.metrics.tables import metric_table
from training.tasks.next_item import data as sequences
from training.tasks.next_item.data import Holdout, Sequences
from training.tasks.next_item.evaluation import Scorer, SequencesEvaluation
from training.tasks.next_item.world import (
    CORPUS_FILE,
    SEQUENCES_FILE,
    TOKENS_TRUTH_FILE,
    generate_corpus,
    generate_sequences,
)

_ITEM = re.compile(r"""[^\s,\[\]"']+""")
# Gensim silently drops what comes after so many tokens of a sequence.
_MAX_SEQUENCE = 10_000
# To be seen in all: 100 items and as many users need a hundred passes to be learned.
_MIN_TOKENS, _MAX_PASSES = 300_000, 200
# Of the texts, the last word of which is the test; of items it is the last of every user.
_TEST_SHARE_OF_TEXTS = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mode:
    """What tells one mode from the other.

    Attributes:
        folder: Of the default data.
        file: Of it.
        generate: Writes the folder.
        user_col: Of the default data.
        sequence_col: Of the default data.
        split: A cell that holds a whole sequence -> its tokens.
        ns_exponent: Negatives are drawn by the frequency to this power: .75 for words (Mikolov et
            al.), less for items (Caselles-Dupre et al., 2018, arXiv:1804.04212).
    """

    folder: Path
    file: str
    generate: Callable[[Path], None]
    user_col: str
    sequence_col: str
    split: Callable[[str], list[str]]
    ns_exponent: float


MODES = {
    "item2vec": Mode(
        folder=Path("data/sequences"),
        file=SEQUENCES_FILE,
        generate=generate_sequences,
        user_col="user_id",
        sequence_col="item_id",
        split=_ITEM.findall,
        ns_exponent=0.5,
    ),
    "word2vec": Mode(
        folder=Path("data/corpus"),
        file=CORPUS_FILE,
        generate=generate_corpus,
        user_col="",
        sequence_col="text",
        split=word_tokens,
        ns_exponent=0.75,
    ),
}


@dataclass(frozen=True)
class Config(run.RunConfig):
    """Train a vector for each item of users' sequences, or for each word of texts.

    Attributes:
        mode: What the tokens are.
        data_path: A file; a folder with a file named interactions or texts, or a folder or pattern
            of files that follow each other; or the s3:// URL of one of these; when left out, a
            synthetic world is generated into data/sequences or data/corpus.
        out: Also write the vectors to this .json file, for the Go services.
        embedding_dim: Width of a vector.
        epochs: Passes over the data; up to 200 where it has few tokens.
        window: A token's neighbours are at most so many steps away.
        min_count: Tokens that come less often get no vector.
        negative: Tokens drawn as negatives for each neighbour.
        sample: Tokens with a larger share of the data than this, and than the mean token's, are
            partly left out.
        user_col: Column of the user, whose rows in order make a sequence: one item a row, or all in
            one row. Empty: each row is a sequence. By default user_id for items, empty for words.
        sequence_col: Column of the tokens; items that share a row are separated by spaces or
            commas. By default item_id for items, text for words.
        time_column: Column to sort the rows by; their order in the file by default.
        exclude_history: Rank without a sequence's own tokens, where nobody takes an item twice.
        gen: Generate the default data where there is none.
    """

    mode: Literal["item2vec", "word2vec"] = "item2vec"
    distributable: ClassVar[bool] = False

    data_path: Annotated[str | None, tyro.conf.arg(aliases=("--data",))] = None
    out: Path | None = None
    embedding_dim: EmbeddingDim = 64
    epochs: Count = 6
    window: Count = 10
    min_count: Count = 2
    negative: Count = 10
    sample: Weight = 1e-3
    user_col: str | None = None
    sequence_col: str | None = None
    time_column: str = ""
    exclude_history: bool = False
    gen: bool = True


class TokensEvaluation(SequencesEvaluation):
    """The last token of each sequence, to be found by the ones before it.

    Args:
        config: Of the run.
        data: Where it is.
        world: Folder of the synthetic world that the data is, where its truth is known.
    """

    # What tokens replace each other is another question than which comes next: popularity may win.
    floor = "random"

    def __init__(self, config: Config, data: DataSet, world: Path | None) -> None:
        log = read_log(data, config)
        super().__init__(to_sequences(log, config), config.exclude_history, world)
        self.config = config
        self.frame = pd.DataFrame(index=range(len(self.holdout.users)))
        self.train_frame, self.data_sha256 = log, data.sha256(log)

    def rows(self) -> list[Any]:
        """The tokens within reach that training kept."""
        names, key = self.sequences.vocabulary, ROW_KEYS[self.config.mode]
        recent = [
            [names[i - FIRST_TOKEN_INDEX] for i in history.tolist() if i >= FIRST_TOKEN_INDEX]
            for history in (items[-self.config.window :] for items in self.holdout.histories)
        ]
        return [{key: " ".join(tokens) if key == "text" else tokens} for tokens in recent]

    def baselines(self) -> dict[str, Results]:
        """Those of sequences, and scores drawn at random."""
        rng, n_items = np.random.default_rng(self.config.seed), len(self.sequences.vocabulary)
        random = self.rank(lambda part: rng.random((len(part.users), n_items)))
        return {"random": random, **super().baselines()}


def evaluation(config: Config, _: Sequence[str] = ()) -> TokensEvaluation:
    """What the model is judged on."""
    mode = MODES[config.mode]
    if config.uses_default_data:
        _generate(mode, config.gen)
    data = config.data(mode.folder, Path(mode.file).stem)
    world = mode.folder if config.uses_default_data and config.mode == "item2vec" else None
    return TokensEvaluation(config, data, world)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; returns their folder."""
    test = evaluation(config)
    statistics = validation.check(config.mode, test.train_frame, [], config)
    data = test.sequences
    vectors, out_vectors = fit(data, config)

    scorer = next_token_scorer(vectors, out_vectors, config.window)
    reports = test.reports(config.mode, test.rank(scorer))
    if config.uses_default_data:
        share, chance = same_cluster(vectors, MODES[config.mode].folder / TOKENS_TRUTH_FILE)
        reports[config.mode] |= {"same_cluster_at_10": share, "same_cluster_chance": chance}
    Console().print(metric_table(reports, f"{config.mode}: the last token of each sequence"))

    with run.writing_artifacts(
        config.mode,
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=golden(data, vectors, config.mode),
        vocabularies={},
        libraries=["gensim"],
        mode=config.mode,
        features=row_schema(config.mode, data.vocabulary).to_json(),
        data_sha256=test.data_sha256,
        statistics=statistics,
    ) as folder:
        vectors.save(folder / VECTORS_FILES[config.mode])
        np.save(folder / OUT_VECTORS_FILES[config.mode], out_vectors)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        vectors.save(config.out)
        print(f"vectors: {config.out}")
    return config.folder(config.mode)


def read_log(data: DataSet, config: Config) -> pd.DataFrame:
    """Read the column of the tokens and, if there is one, then that of the users."""
    mode = MODES[config.mode]
    user_col = mode.user_col if config.user_col is None else config.user_col
    sequence_col = config.sequence_col or mode.sequence_col
    columns = [sequence_col, user_col] if user_col else [sequence_col]
    return read_table(data.table, [], columns, order_by=config.time_column or None)


def to_sequences(log: pd.DataFrame, config: Config) -> Sequences:
    """Group the tokens by their users, and hold the last one of each out."""
    tokens, *of_users = (log[name] for name in log)
    users = of_users[0] if of_users else log.index.to_series()
    if users.is_unique or config.mode == "word2vec":
        split = MODES[config.mode].split
        cells = [split(cell) if isinstance(cell, str) else [] for cell in tokens]
        tokens = pd.Series(cells, index=log.index).explode()
        users = users[tokens.index]
    test_share = _TEST_SHARE_OF_TEXTS if config.mode == "word2vec" else 1.0
    return sequences.encode(users, tokens, min_count=config.min_count, test_share=test_share)


def fit(data: Sequences, config: Config) -> tuple[TokenVectors, Vectors]:
    """Train the vectors.

    Returns:
        The IN vectors, alike for tokens that replace each other, and the OUT vectors float32
        [N, D], alike to the IN vectors of tokens that come before them.
    """
    names = np.array(["", UNKNOWN_TOKEN, *data.vocabulary], dtype=object)
    sentences = [
        names[part[part >= FIRST_TOKEN_INDEX]].tolist()
        for items in data.train
        for part in np.split(items, range(_MAX_SEQUENCE, len(items), _MAX_SEQUENCE))
    ]
    n_tokens = max(1, sum(map(len, sentences)))
    epochs = max(config.epochs, min(_MAX_PASSES, _MIN_TOKENS // n_tokens))
    logging.getLogger("gensim").setLevel(logging.WARNING)
    with tqdm(total=epochs, unit="epoch", disable=None, leave=False) as bar:
        model = Word2Vec(
            sentences,
            vector_size=config.embedding_dim,
            window=config.window,
            min_count=1,
            sg=1,
            negative=config.negative,
            ns_exponent=MODES[config.mode].ns_exponent,
            sample=max(config.sample, 1 / len(data.vocabulary)),
            epochs=epochs,
            seed=config.seed,
            workers=1,  # more would share the vectors without locks: never the same twice
            callbacks=[_Progress(bar)],
        )
    order = [model.wv.key_to_index[token] for token in data.vocabulary]
    return TokenVectors(data.vocabulary, model.wv.vectors[order]), model.syn1neg[order]


class _Progress(CallbackAny2Vec):  # type: ignore[misc]
    def __init__(self, bar: tqdm[NoReturn]) -> None:
        self.bar = bar

    def on_epoch_end(self, model: Word2Vec) -> None:
        self.bar.update()


def next_token_scorer(vectors: TokenVectors, out_vectors: Vectors, window: int) -> Scorer:
    """Score what comes next: mean IN vector of the last ``window`` tokens times OUT vectors."""

    def score(holdout: Holdout) -> Scores:
        recent = vectors.means([history[-window:] for history in holdout.histories])
        scores: Scores = recent @ out_vectors.T
        return scores

    return score


def same_cluster(vectors: TokenVectors, truth: Path) -> tuple[float, float]:
    """How many of a token's 10 nearest neighbours by cosine are of its own true cluster.

    Args:
        vectors: Of all tokens; those that the truth does not know, such as stop words, are only
            neighbours, and never right.
        truth: Parquet file with ``token`` and ``cluster``.

    Returns:
        Their share, and the share among neighbours drawn at random.
    """
    known = read_parquet(truth).set_index("token")["cluster"]
    clusters = known.reindex(list(vectors.tokens), fill_value=-1).to_numpy()
    unit = vectors.vectors / np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :10]  # [N, 10]
    is_known, same = clusters >= 0, clusters[:, None] == clusters
    share = np.take_along_axis(same, nearest, axis=1)[is_known].mean()
    chance = (same[is_known].sum(axis=1) - 1).mean() / (len(clusters) - 1)
    return float(share), float(chance)


def golden(data: Sequences, vectors: TokenVectors, mode: str) -> Golden:
    """Rows as callers send them, with the mean vectors of their known tokens."""
    key, names = ROW_KEYS[mode], ["", UNKNOWN_TOKEN, *data.vocabulary]
    recent = [[names[i] for i in items[-20:]] for items in data.train[: GOLDEN_ROWS - 3]]
    recent += [[], [UNKNOWN_TOKEN]]
    rows: list[dict[str, Any]] = [
        {key: " ".join(tokens) if key == "text" else tokens} for tokens in recent
    ]
    rows.append({})
    by_token = dict(zip(vectors.tokens, vectors.vectors, strict=True))
    zeros = np.zeros(vectors.vectors.shape[1])
    predictions = []
    for row in rows:
        tokens = word_tokens(row.get(key, "")) if key == "text" else row.get(key, [])
        known = [by_token[token] for token in tokens if token in by_token]
        predictions.append(np.mean(known, axis=0) if known else zeros)
    return Golden(rows, np.array(predictions, dtype=np.float64).tolist())


def row_schema(mode: str, vocabulary: Sequence[str]) -> FeatureSchema:
    """The tokens as the one feature of a row."""
    return FeatureSchema([Feature(ROW_KEYS[mode], kind="category", vocabulary=tuple(vocabulary))])


def _generate(mode: Mode, generate: bool) -> None:
    if generate:
        if not mode.folder.exists():
            logger.info("no --data: generating a synthetic world in %s", mode.folder)
        mode.generate(mode.folder)
    elif not mode.folder.exists():
        raise DataError(f"{mode.folder}: no such folder; name a file with --data, or leave --gen")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
