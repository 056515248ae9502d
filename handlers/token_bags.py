"""Texts as bags of hashed words and letter trigrams.

Hashing needs no vocabulary, and the trigrams of a misspelt or unseen word are mostly known ones.

Shapes: B texts, T tokens of all of them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor

N_BUCKETS = 1 << 15
MAX_WORDS = 256  # of a text; what follows is not read

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class TokenBags:
    """Texts as the buckets of their tokens.

    Attributes:
        tokens: Of the first text, then of the second one and so on, int64 [T].
        lengths: Number of tokens of each text, int64 [B].
    """

    tokens: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, texts: Iterable[str]) -> TokenBags:
        """Tokenize texts."""
        bags = [list(chain.from_iterable(map(buckets, words(text)))) for text in texts]
        tokens = torch.tensor(list(chain.from_iterable(bags)), dtype=torch.int64)
        return cls(tokens, torch.tensor([len(bag) for bag in bags], dtype=torch.int64))

    def __len__(self) -> int:
        """B."""
        return len(self.lengths)

    def __getitem__(self, index: Tensor) -> TokenBags:
        """The texts with these numbers, int64 [n], in their order."""
        places, _ = ragged(self.lengths, index)
        return TokenBags(self.tokens[places], self.lengths[index])

    def to(self, device: torch.device) -> TokenBags:
        """The same on another device."""
        return TokenBags(self.tokens.to(device), self.lengths.to(device))

    @property
    def offsets(self) -> Tensor:
        """Where each text starts, int64 [B]."""
        return self.lengths.cumsum(0) - self.lengths


def ragged(lengths: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Where the elements of some of many lists are that lie one after the other.

    Args:
        lengths: Of all lists, int64 [N].
        index: Numbers of the lists that are wanted, int64 [n].

    Returns:
        The places of their elements, and for each which of the ``n`` it belongs to, int64 [T].
    """
    wanted = lengths[index]
    owner = torch.arange(len(index)).repeat_interleave(wanted)
    starts = (lengths.cumsum(0) - lengths)[index] - (wanted.cumsum(0) - wanted)
    return starts[owner] + torch.arange(len(owner)), owner


def words(text: str) -> list[str]:
    """Its runs of letters and digits, in lower case."""
    return _WORD.findall(text.lower())[:MAX_WORDS]


@lru_cache(maxsize=1 << 15)
def buckets(word: str) -> tuple[int, ...]:
    """The buckets of a word: its own, then those of the trigrams of ``<word>``."""
    marked = f"<{word}>"
    tokens = (f"={word}", *(marked[i : i + 3] for i in range(len(marked) - 2)))
    # CRC-32 is the same on every machine, which hash() is not.
    return tuple(zlib.crc32(token.encode("utf-8", "replace")) % N_BUCKETS for token in tokens)
