"""Texts as bags of hashed words and letter trigrams.

Hashing needs no vocabulary, and the trigrams of a misspelt or unseen word are mostly known ones.

Shapes: B texts, T tokens of all of them.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, pairwise

import torch
from torch import Tensor

N_BUCKETS = 1 << 15
MAX_WORDS = 256  # of a text; what follows is not read

# Vowels of Hindi and other scripts are marks, which \w does not match.
MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
_ASCII_WORD = re.compile("[a-z0-9]+")
_WORD = re.compile(rf"[^\W_](?:[^\W_]|[{MARKS}])*")
# Han and kana, which are written without spaces.
_UNSPACED = re.compile(
    "([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+)"
)


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
    """Its runs of letters and digits, in lower case; of Chinese and Japanese each sign and pair."""
    text = text.lower()
    if text.isascii():  # the same, faster
        return _ASCII_WORD.findall(text)[:MAX_WORDS]
    return list(islice(chain.from_iterable(map(_parts, _WORD.findall(text))), MAX_WORDS))


def _parts(run: str) -> Iterator[str]:
    for i, part in enumerate(_UNSPACED.split(run)):
        if i % 2 == 0:
            if part:
                yield part
        else:
            yield from part
            yield from map("".join, pairwise(part))


@lru_cache(maxsize=1 << 15)
def buckets(word: str) -> tuple[int, ...]:
    """The buckets of a word: its own, then those of the trigrams of ``<word>``."""
    marked = f"<{word}>"
    tokens = (f"={word}", *(marked[i : i + 3] for i in range(len(marked) - 2)))
    # CRC-32 is the same on every machine, which hash() is not.
    return tuple(zlib.crc32(token.encode("utf-8", "replace")) % N_BUCKETS for token in tokens)
