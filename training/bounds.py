"""What a flag may be: types for the fields of a training script's ``Config``.

A bound stands beside the field that it limits; :func:`training.run.check_bounds` enforces it.
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
# A share that leaves something on both sides.
Share = Annotated[float, Field(ge=0.001, le=0.999)]

# Width of an embedding; the aliases are what scripts called it before they agreed on a name.
EmbeddingDim = Annotated[Count, tyro.conf.arg(aliases=("--embed-dim", "--dim"))]
