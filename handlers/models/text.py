"""Texts as bags of hashed words and letter trigrams.

Hashing needs no vocabulary, and most trigrams of a misspelt or unseen word are known.

Shapes: B texts, T tokens of all texts.
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
MAX_TERMS = 256  # Per text; the rest of a longer text is ignored.

# In Hindi and other scripts vowels are marks, which \w does not match.
MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
_ASCII_WORD = re.compile("[a-z0-9]+")
_WORD = re.compile(rf"[^\W_](?:[^\W_]|[{MARKS}])*")
# Han and kana, which are written without spaces between words.
_UNSPACED = re.compile(
    "([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+)"
)


@dataclass(frozen=True)
class TokenBags:
    """Texts as buckets of their tokens.

    Attributes:
        tokens: Buckets of the first text's tokens, then of the second text's and so on, int64 [T].
        lengths: Number of tokens of each text, int64 [B].
    """

    tokens: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, texts: Iterable[str]) -> TokenBags:
        """Tokenize texts."""
        bags = [list(chain.from_iterable(map(buckets, search_terms(text)))) for text in texts]
        tokens = torch.tensor(list(chain.from_iterable(bags)), dtype=torch.int64)
        return cls(tokens, torch.tensor([len(bag) for bag in bags], dtype=torch.int64))

    def __len__(self) -> int:
        """B."""
        return len(self.lengths)

    def __getitem__(self, index: Tensor) -> TokenBags:
        """Return the texts at these positions, int64 [n], in that order."""
        positions, _ = ragged(self.lengths, index)
        return TokenBags(self.tokens[positions], self.lengths[index])

    def to(self, device: torch.device | str) -> TokenBags:
        """Copy the texts to a device."""
        return TokenBags(self.tokens.to(device), self.lengths.to(device))

    @property
    def offsets(self) -> Tensor:
        """Position of each text's first token, int64 [B]."""
        return self.lengths.cumsum(0) - self.lengths


def ragged(lengths: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Find the elements of some lists in the concatenation of all lists.

    Args:
        lengths: Lengths of all N lists, int64 [N].
        index: The n lists to find, int64 [n].

    Returns:
        Positions of their elements, int64 [T]; and for each element, which of the n lists it
        belongs to, int64 [T].
    """
    selected = lengths[index]
    owner = torch.arange(len(index), device=lengths.device).repeat_interleave(selected)
    starts = (lengths.cumsum(0) - lengths)[index] - (selected.cumsum(0) - selected)
    return starts[owner] + torch.arange(len(owner), device=lengths.device), owner


def search_terms(text: str) -> list[str]:
    """Split a text into the terms by which it is searched, at most 256, in lower case.

    Terms are runs of letters and digits. Chinese and Japanese runs, which have no spaces between
    words, become their characters and pairs of adjacent characters.
    """
    text = text.lower()
    if text.isascii():  # Faster, with the same result.
        return _ASCII_WORD.findall(text)[:MAX_TERMS]
    return list(islice(chain.from_iterable(map(_split_run, _WORD.findall(text))), MAX_TERMS))


def _split_run(run: str) -> Iterator[str]:
    for i, part in enumerate(_UNSPACED.split(run)):
        if i % 2 == 0:
            if part:
                yield part
        else:
            yield from part
            yield from map("".join, pairwise(part))


@lru_cache(maxsize=1 << 15)
def buckets(term: str) -> tuple[int, ...]:
    """Return the buckets of a term: its own, then those of the trigrams of ``<term>``."""
    marked = f"<{term}>"
    tokens = (f"={term}", *(marked[i : i + 3] for i in range(len(marked) - 2)))
    # Unlike hash(), CRC-32 gives the same number in every process.
    return tuple(zlib.crc32(token.encode("utf-8", "replace")) % N_BUCKETS for token in tokens)
