"""Item2vec and word2vec: a vector for each token, similar for tokens that share their contexts.

Barkan & Koenigstein, 2016, arXiv:1603.04259; Mikolov et al., 2013, arXiv:1310.4546. Serving only
looks up vectors and averages them.

Shapes: B sequences, N tokens, D embedding dim.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from handlers.feature import FIRST_TOKEN_INDEX
from handlers.models.text import MARKS

ARCH_VERSION = 2
META_FILE = "item2vec_meta.json"
VECTORS_FILES = {"item2vec": "item2vec_vectors.json", "word2vec": "word2vec_vectors.json"}
OUT_VECTORS_FILES = {mode: f"{mode}_out_vectors.npy" for mode in VECTORS_FILES}
# Key of a row in each mode: {"sequence": ["item_1", ...]} or {"text": "..."}.
ROW_KEYS = {"item2vec": "sequence", "word2vec": "text"}

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_WORD = re.compile(rf"\w[\w{MARKS}]*")


def word_tokens(text: str) -> list[str]:
    """Split a text at spaces and punctuation into the tokens of word2vec, in lower case."""
    return _WORD.findall(text.lower())


class TokenVectors:
    """Vectors by token.

    Args:
        tokens: N distinct tokens; token i has index i + 2, as in the vocabulary of a category.
        vectors: Vectors of the tokens, float32 [N, D].
    """

    def __init__(self, tokens: Sequence[str], vectors: Vectors) -> None:
        self.tokens = tuple(tokens)
        self.vectors = vectors

    def means(self, sequences: Sequence[Indices]) -> Vectors:
        """Average the vectors of each sequence's known tokens; zeros if none is known.

        Args:
            sequences: B arrays of token indices.

        Returns:
            float32 [B, D].
        """
        means = np.zeros((len(sequences), self.vectors.shape[1]), dtype=np.float32)
        for mean, sequence in zip(means, sequences, strict=True):
            known = sequence[sequence >= FIRST_TOKEN_INDEX] - FIRST_TOKEN_INDEX
            if len(known):
                self.vectors[known].mean(axis=0, out=mean)
        return means

    def save(self, path: Path) -> None:
        """Write ``{"token": [f, f, ...], ...}``, the format that the Go services load."""
        by_token = dict(zip(self.tokens, self.vectors, strict=True))
        partial = path.with_name(f".{path.name}.part")  # Renamed when complete.
        partial.write_bytes(orjson.dumps(by_token, option=orjson.OPT_SERIALIZE_NUMPY))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> TokenVectors:
        """Read a file of :meth:`save`."""
        by_token = orjson.loads(path.read_bytes())
        return cls(list(by_token), np.array(list(by_token.values()), dtype=np.float32))
