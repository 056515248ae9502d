"""Types for the numeric fields of a training script's ``Config``, with the bounds of each.

:func:`training.run.check_bounds` enforces them.
"""

from typing import Annotated

import tyro
from pydantic import Field

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
# Widths of consecutive layers.
Widths = Annotated[tuple[Count, ...], Field(min_length=1)]

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weights = Annotated[tuple[Weight, ...], Field(min_length=1)]
LearningRate = Annotated[float, Field(ge=1e-9, le=1)]
Dropout = Annotated[float, Field(ge=0, le=0.999)]
# A share that leaves rows on both sides of a cut.
Share = Annotated[float, Field(ge=0.001, le=0.999)]

# Width of an embedding; the aliases are its former names.
EmbeddingDim = Annotated[Count, tyro.conf.arg(aliases=("--embed-dim", "--dim"))]
