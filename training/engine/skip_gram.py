"""Skip-gram with negative sampling (Mikolov et al., 2013, arXiv:1310.4546), trained by gensim.

Shapes: N tokens, D embedding dim.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol

import numpy as np
import numpy.typing as npt
from gensim.models import Word2Vec
from tqdm import tqdm

from training.bounds import Count, EmbeddingDim, Seed
from training.engine.worker import EngineConfig

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SkipGramConfig(EngineConfig):
    """How skip-gram is trained; tokens are items, words or the nodes of a walk.

    Attributes:
        embedding_dim: Width of a vector.
        window: Tokens are neighbors when they are at most this many steps apart.
        negative: Tokens drawn as negatives for each neighbor.
        epochs: Passes over the sentences.
        seed: Seed of the initial vectors and of everything that is drawn.
    """

    embedding_dim: EmbeddingDim = 64
    window: Count = 10
    negative: Count = 5
    epochs: Count = 5
    seed: Seed = 0


class Sentences(Protocol):
    """Sentences of token numbers; each iteration is one pass over all of them."""

    def __len__(self) -> int:
        """Return the number of sentences of a pass."""

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the sentences of a pass, which may differ from those of the pass before."""


def train_skip_gram(
    sentences: Sentences,
    counts: Mapping[int, int],
    config: SkipGramConfig,
    *,
    sample: float = 0.0,
    ns_exponent: float = 0.75,
    lr: float = 0.025,
) -> tuple[Vectors, Vectors]:
    """Train a vector for each token.

    Args:
        sentences: Sentences of the tokens 0 to N - 1.
        counts: Frequency of each token. Equally frequent tokens start from vectors in this order.
        config: How to train.
        sample: Occurrences of tokens with a larger share than this are dropped at random; 0 keeps
            all.
        ns_exponent: Negatives are drawn in proportion to their frequency to this power.
        lr: Learning rate, which decays linearly to nearly 0.

    Returns:
        The input vectors, which are similar for tokens with similar neighbors, and the output
        vectors, which are similar to the input vectors of a token's neighbors; both float32 [N, D].
    """
    logging.getLogger("gensim").setLevel(logging.WARNING)
    model = Word2Vec(
        vector_size=config.embedding_dim,
        window=config.window,
        negative=config.negative,
        ns_exponent=ns_exponent,
        alpha=lr,
        sg=1,
        sample=sample,
        min_count=1,
        seed=config.seed,
        workers=1,  # several workers update the vectors without locks: no two runs would agree
    )
    model.build_vocab_from_freq(dict(counts))
    with tqdm(
        total=config.epochs * len(sentences),
        unit="sentence",
        unit_scale=True,
        disable=None,
        leave=False,
    ) as bar:
        progress = _Progress(sentences, bar)
        model.train(progress, total_examples=len(sentences), epochs=config.epochs)
    order = [model.wv.key_to_index[token] for token in range(len(counts))]
    return model.wv.vectors[order], model.syn1neg[order]


class _Progress:
    """Sentences that move a progress bar."""

    def __init__(self, sentences: Sentences, bar: tqdm[NoReturn]) -> None:
        self._sentences, self._bar = sentences, bar

    def __iter__(self) -> Iterator[list[int]]:
        for sentence in self._sentences:
            yield sentence
            self._bar.update()
