"""Types for the numeric fields of a training script's ``Config``, with the bounds of each.

:func:`check_bounds` enforces them.
"""

from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import tyro
from pydantic import Field, TypeAdapter, ValidationError

from handlers.errors import UserError

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


def check_bounds(config: Any) -> None:
    """Check every flag against the bounds in the type of its field, such as ``Field(ge=1)``.

    Raises:
        UserError: If a flag is out of bounds; the message names it and the bounds.
    """
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    try:
        TypeAdapter(type(config)).validate_python(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise UserError(_bounds_message(type(config), name, values[name])) from error


def _bounds_message(config_class: type, name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    numbers = value if isinstance(value, tuple) else (value,)
    if not numbers:
        return f"{flag}: expected at least one number, got none"
    schema = TypeAdapter(get_type_hints(config_class, include_extras=True)[name]).json_schema()
    bounds = schema.get("items", schema)
    expected = f"{bounds['minimum']:g} or more"
    if "maximum" in bounds:
        expected = f"{bounds['minimum']:g} to {bounds['maximum']:.10g}"
    return f"{flag} {' '.join(map(str, numbers))}: expected {expected}"
