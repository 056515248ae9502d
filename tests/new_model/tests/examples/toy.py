"""toy for the shared tests."""

from pathlib import Path
from typing import Any

from handlers.models.toy import Toy

from handlers.schema import Matrix
from tests.examples.ranking import ranking_example


def predict(folder: Path, matrix: Matrix) -> list[Any]:
    """Predict click probabilities with the weights in an artifact folder."""
    probabilities: list[Any] = Toy.load(folder)(matrix).tolist()
    return probabilities


EXAMPLES = [ranking_example("toy", predict=predict, reaches={"auc": 0.62})]
