"""Calibrated probabilities of DSSM.

Shapes: B queries, N documents, R pairs of a query and a document, D embedding dim.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from handlers.models.dssm import DSSM
from training.metrics.ranking import Array
from training.tasks.search.data import SearchData, SearchPairs
from training.tasks.search.towers import embed

CHUNK_PAIRS = 8192  # pairs that are compared in one call
CALIBRATION_PAIRS = 200_000  # enough to calibrate a probability, or to check its calibration


def calibration_pairs(data: SearchData, split: SearchPairs) -> tuple[Tensor, Tensor, Tensor]:
    """Select the pairs to calibrate a probability with, or to judge it by.

    Returns:
        Query, document, int64 [R], and label, float32 [R]: the pairs of the split if they are
        labeled, else some of its queries with every document.
    """
    if data.labeled:
        return split.owner, split.docs, split.labels
    n_docs = len(data.docs)
    n_queries = min(len(split.queries), 1 + CALIBRATION_PAIRS // n_docs)
    labels = torch.zeros(n_queries, n_docs)
    selected = split.owner < n_queries
    labels[split.owner[selected], split.docs[selected]] = 1.0
    queries = torch.arange(n_queries).repeat_interleave(n_docs)
    return queries, torch.arange(n_docs).repeat(n_queries), labels.ravel()


def calibrate(network: DSSM, data: SearchData, docs: Tensor) -> None:
    """Fit only the slope and intercept of the logit, to the validation split (Platt, 1999).

    Args:
        network: The network, changed in place.
        data: The data set.
        docs: Vectors of all documents, float32 [N, D].
    """
    owner, targets, labels = calibration_pairs(data, data.valid)
    cosines = _cosines(embed(network.query, data.valid.queries), docs, owner, targets)
    optimizer = torch.optim.LBFGS(
        [network.log_slope, network.intercept], max_iter=100, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(network.logits(cosines), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def relevance(
    network: DSSM, queries: Tensor, docs: Tensor, owner: Tensor, targets: Tensor
) -> Array:
    """Predict the probability that the document of each pair is relevant.

    Args:
        network: Holds the calibration.
        queries: Vectors of queries, float32 [B, D].
        docs: Vectors of documents, float32 [N, D].
        owner: Query of each pair, int64 [R].
        targets: Document of each pair, int64 [R].

    Returns:
        float32 [R].
    """
    with torch.no_grad():
        return network.logits(_cosines(queries, docs, owner, targets)).sigmoid().numpy()


def _cosines(queries: Tensor, docs: Tensor, owner: Tensor, targets: Tensor) -> Tensor:
    chunks = zip(torch.split(owner, CHUNK_PAIRS), torch.split(targets, CHUNK_PAIRS), strict=True)
    return torch.cat([(queries[q] * docs[d]).sum(dim=1) for q, d in chunks])
