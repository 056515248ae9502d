"""What a training run leaves for an index: a vector for every item, and the space they are in."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

VECTORS_FILE = "item_vectors.npy"
IDS_FILE = "item_ids.json"


def space_id(weights: bytes, features: Any) -> str:
    """Name the space that a network embeds in: vectors of two spaces cannot be compared.

    Args:
        weights: Content of the weights file.
        features: The network's inputs as the meta file holds them.

    Returns:
        16 hexadecimal digits.
    """
    schema = json.dumps(features, sort_keys=True).encode()
    return hashlib.sha256(weights + schema).hexdigest()[:16]


def save_item_vectors(folder: Path, ids: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
    """Write the vectors, float32 [N, D], and the items' ids in the same order."""
    np.save(folder / VECTORS_FILE, vectors, allow_pickle=False)
    (folder / IDS_FILE).write_text(json.dumps(list(ids)))
