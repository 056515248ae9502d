"""Losses that compare the relevant documents of a query with others.

All take the logits of B queries and N candidate documents, and R pairs of a query and a document:

    logits: float32 [B, N].
    row: Query of each pair, int64 [R].
    column: Candidate position of each pair's document, int64 [R].
    labels: 1 if the document is relevant, else 0, float32 [R].

They return a mean over the relevant documents, float32 [].
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

MASKED_LOGIT = -1e4  # logit of a document that is left out of a comparison


def candidate_docs(targets: Tensor, n_docs: int, max_docs: int) -> tuple[Tensor, Tensor]:
    """Select the documents to compare a batch with: all, or its own and random ones.

    Args:
        targets: Documents of the pairs of the batch, int64 [R].
        n_docs: Number of documents to select from.
        max_docs: Number of random documents, if there are more than that.

    Returns:
        The candidates, int64 [N], and the position of each target among them, int64 [R].
    """
    if n_docs <= max_docs:
        return torch.arange(n_docs, device=targets.device), targets
    sampled = torch.randint(n_docs, (max_docs,), device=targets.device)
    docs, positions = torch.unique(torch.cat([targets, sampled]), return_inverse=True)
    return docs, positions[: len(targets)]


def listwise_loss(
    logits: Tensor, row: Tensor, column: Tensor, labels: Tensor, labeled: bool
) -> Tensor:
    """Compare relevant documents with the irrelevant ones of their query.

    Those are the documents that the pairs label 0 or, unless ``labeled``, all that are not among
    the pairs of the query.
    """
    listed = torch.full(logits.shape, not labeled, device=logits.device)
    listed[row, column] = True
    return _contrastive_loss(logits, row, column, labels, listed)


def in_batch_loss(logits: Tensor, row: Tensor, column: Tensor, labels: Tensor) -> Tensor:
    """Compare relevant documents with those of all pairs of the batch: a sampled softmax."""
    in_batch = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    in_batch[column] = True
    return _contrastive_loss(logits, row, column, labels, in_batch)


def _contrastive_loss(
    logits: Tensor, row: Tensor, column: Tensor, labels: Tensor, others: Tensor
) -> Tensor:
    """Compare relevant documents with the ``others``, bool [B, N] or [N], that are not relevant.

    A query without any has no loss.
    """
    row, column = row[labels == 1], column[labels == 1]
    relevant = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    relevant[row, column] = True
    rest = logits.masked_fill(relevant | ~others, MASKED_LOGIT).logsumexp(dim=1)  # [B]
    return softplus(rest[row] - logits[row, column]).sum() / max(1, len(row))
