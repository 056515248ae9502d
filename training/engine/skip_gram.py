"""Skip-gram with negative sampling (Mikolov et al., 2013, arXiv:1310.4546), trained by gensim.

Shapes: N tokens, D embedding dim.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt
import torch
from gensim.models import Word2Vec
from gensim.models.callbacks import CallbackAny2Vec
from tqdm import tqdm

from training.bounds import Count, EmbeddingDim, Seed
from training.engine.launch import run_here
from training.engine.worker import EngineConfig, Worker

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
    logging.getLogger("gensim").setLevel(
        logging.ERROR
    )  # it warns of the passes that resuming skips
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
    run_here(_training_loop, _Job(model, sentences, config.epochs))
    order = [model.wv.key_to_index[token] for token in range(len(counts))]
    return model.wv.vectors[order], model.syn1neg[order]


@dataclass(frozen=True)
class _Job:
    """The arguments of the training loop."""

    model: Word2Vec
    sentences: Sentences
    epochs: int


def _training_loop(job: _Job, worker: Worker) -> None:
    """Train a model in place."""
    n_done, n_sentences = 0, len(job.sentences)
    if state := worker.saved():
        n_done = state["epochs"]
        _restore(job.model, state)
    with tqdm(
        total=job.epochs * n_sentences,
        initial=n_done * n_sentences,
        unit="sentence",
        unit_scale=True,
        disable=None,
        leave=False,
    ) as bar:
        passes = _Passes(job.sentences, bar, n_done)
        job.model.train(
            passes,
            total_examples=n_sentences,
            epochs=job.epochs,
            callbacks=[_Saving(passes, worker)],
        )


class _Passes:
    """Sentences that move a progress bar.

    Gensim cannot start at a later pass than the first: those that are done are empty.
    """

    def __init__(self, sentences: Sentences, bar: tqdm[NoReturn], n_done: int) -> None:
        self._sentences, self._bar, self._n_done = sentences, bar, n_done
        self.n_begun = 0

    @property
    def is_new(self) -> bool:
        """Whether the present pass is not one that was done before."""
        return self.n_begun > self._n_done

    def __iter__(self) -> Iterator[list[int]]:
        self.n_begun += 1
        sentences = iter(self._sentences)
        if not self.is_new:
            next(sentences, None)  # each pass of random walks draws its seed when it begins
            return
        for sentence in sentences:
            yield sentence
            self._bar.update()


class _Saving(CallbackAny2Vec):  # type: ignore[misc]
    """Saves the model after each pass."""

    def __init__(self, passes: _Passes, worker: Worker) -> None:
        self._passes, self._worker = passes, worker

    def on_epoch_end(self, model: Word2Vec) -> None:
        if not self._passes.is_new:
            return
        _, keys, *numbers = model.random.get_state()
        self._worker.save(
            {
                "summary": f"epoch {self._passes.n_begun}",
                "epochs": self._passes.n_begun,
                "vectors": torch.from_numpy(model.wv.vectors),
                "output_vectors": torch.from_numpy(model.syn1neg),
                "random": [torch.from_numpy(keys.astype(np.int64)), *numbers],
            }
        )


def _restore(model: Word2Vec, state: Any) -> None:
    model.wv.vectors[:] = state["vectors"].numpy()
    model.syn1neg[:] = state["output_vectors"].numpy()
    keys, *numbers = state["random"]
    model.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *numbers))
