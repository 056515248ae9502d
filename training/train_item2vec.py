"""Train item2vec or word2vec: ``python -m training.train_item2vec --mode item2vec``.

Both are skip-gram: item2vec (Barkan and Koenigstein, 2016, arXiv:1603.04259) over the items of each
user, word2vec (Mikolov et al., 2013, arXiv:1310.4546) over the words of each text.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

from handlers.feature import FIRST_TOKEN_INDEX
from handlers.models.item2vec import (
    ARCH_VERSION,
    META_FILE,
    OUT_VECTORS_FILES,
    VECTORS_FILES,
    TokenVectors,
    Vectors,
)
from training import run
from training.bounds import Count, Weight
from training.engine.skip_gram import SkipGramConfig, train_skip_gram
from training.metrics.tables import metric_table
from training.tasks.next_item.split import LeaveOneOutSplit
from training.tasks.next_item.token_evaluation import (
    TokensEvaluation,
    same_cluster,
    score_next_token,
)
from training.tasks.next_item.tokens import MODES, TokensConfig, golden, token_schema
from training.tasks.next_item.world import TOKENS_TRUTH_FILE

# Gensim ignores what follows after this many tokens of a sentence, without a warning.
_MAX_SENTENCE = 10_000
# Small data gets more epochs, until training has seen this many tokens: 100 users of 10 items each
# take a hundred epochs to learn from.
_MIN_TOKENS, _MAX_EPOCHS = 300_000, 200
# Negatives are drawn in proportion to their frequency to this power: .75 is usual for words, less
# is better for items (Caselles-Dupré et al., 2018, arXiv:1804.04212).
_NS_EXPONENTS = {"item2vec": 0.5, "word2vec": 0.75}


@dataclass(frozen=True)
class Config(TokensConfig, SkipGramConfig):
    """Train a vector for each item of users' sequences, or for each word of texts.

    Attributes:
        epochs: Passes over the data; up to 200 where it has few tokens.
        sample: Occurrences of tokens with a larger share of the data than this, and than the mean
            token's, are dropped at random.
        out: Also write the vectors to this .json file, for the Go services.
    """

    negative: Count = 10
    epochs: Count = 6
    sample: Weight = 1e-3
    out: Path | None = None


def evaluation(config: Config, _: Sequence[str] = ()) -> TokensEvaluation:
    """Load the data and hold out what the model is judged on."""
    return TokensEvaluation(config, config.window)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; return their folder."""
    test = evaluation(config)
    statistics = run.check_data(test, [], config)
    split = test.split
    vectors, out_vectors = fit(split, config)

    score_items = score_next_token(vectors, out_vectors, config.window)
    reports = test.reports(config.model, test.rank(score_items))
    if config.uses_default_data:
        truth = MODES[config.mode].world.folder / TOKENS_TRUTH_FILE
        share, chance = same_cluster(vectors, truth)
        reports[config.model] |= {"same_cluster_at_10": share, "same_cluster_chance": chance}
    Console().print(metric_table(reports, f"{config.mode}: the last token of each sequence"))

    with run.writing_artifacts(
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=golden(split, vectors, config.mode),
        vocabularies={},
        libraries=["gensim"],
        mode=config.mode,
        features=token_schema(config.mode, split.vocabulary).to_json(),
        data_sha256=test.data_sha256,
        statistics=statistics,
    ) as folder:
        vectors.save(folder / VECTORS_FILES[config.mode])
        np.save(folder / OUT_VECTORS_FILES[config.mode], out_vectors)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        vectors.save(config.out)
        print(f"vectors: {config.out}")
    return config.folder()


def fit(split: LeaveOneOutSplit, config: Config) -> tuple[TokenVectors, Vectors]:
    """Train the vectors on the known tokens of each sequence.

    Returns:
        The IN vectors, which are similar for tokens that replace each other, and the OUT vectors,
        float32 [N, D], which are similar to the IN vectors of neighboring tokens.
    """
    sentences = [
        (part[part >= FIRST_TOKEN_INDEX] - FIRST_TOKEN_INDEX).tolist()
        for items in split.train
        for part in np.split(items, range(_MAX_SENTENCE, len(items), _MAX_SENTENCE))
    ]
    counts = Counter(chain.from_iterable(sentences))
    epochs = max(config.epochs, min(_MAX_EPOCHS, _MIN_TOKENS // max(1, counts.total())))
    in_vectors, out_vectors = train_skip_gram(
        sentences,
        counts,
        replace(config, epochs=epochs),
        sample=max(config.sample, 1 / len(split.vocabulary)),
        ns_exponent=_NS_EXPONENTS[config.mode],
    )
    return TokenVectors(split.vocabulary, in_vectors), out_vectors


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line and return the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
