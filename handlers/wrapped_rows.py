"""Handlers whose rows hold features, bare or under a key, and other fields next to them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import msgspec
from msgspec.structs import astuple

from handlers.base import RecHandler
from handlers.schema import FeatureSchema


class WrappedRowsHandler(RecHandler):
    """Decodes rows of features, bare or under a key, and of other fields.

    With ``user_features`` as the key and ``history`` as another field, these are rows::

        {"user_features": {"age": 30, "gender": 2}, "history": ["a", "b"]}
        {"age": 30, "gender": 2, "history": ["a", "b"]}
        {"age": 30, "gender": 2}
        [30, 2]

    Attributes:
        features_key: Key of the wrapped features.
        schema: Features of a row; set by :meth:`load_model`.
    """

    features_key: ClassVar[str]

    schema: FeatureSchema

    @abstractmethod
    def load_model(self, model_dir: Path) -> None:
        """Set ``schema`` and ``feature_names`` and load the model."""

    def other_fields(self, forbid_unknown: bool) -> Mapping[str, Any]:
        """Return the msgspec types of the fields next to the features, by key.

        Each field may be absent or null. A key is a Python identifier. A handler whose fields hold
        objects adds the keys of those to :attr:`known_keys`.

        Args:
            forbid_unknown: Value of ``forbid_unknown_fields`` for structs inside the fields.
        """
        return {}

    def row_type(self, forbid_unknown: bool) -> Any:
        """Return the type of a row: an object with wrapped or bare features, or a vector."""
        features, vector = get_args(self.schema.row_type(forbid_unknown))
        fields = {self.features_key: features, **self.other_fields(forbid_unknown)}
        row = msgspec.defstruct(
            "Row",
            [(key, value_type | None, None) for key, value_type in fields.items()],
            bases=(features,),
            forbid_unknown_fields=forbid_unknown,
            gc=False,
        )
        return row | vector

    @property
    def known_keys(self) -> Iterable[str]:
        """The key of the wrapped features, and the names of features and other fields."""
        return (self.features_key, *self.feature_names)

    def feature_values(self, rows: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return each row's feature values in the schema's order, F long."""
        key, n_features = self.features_key, len(self.schema.features)
        values = []
        for row in rows:
            if type(row) is tuple:
                values.append(row)
            elif (wrapped := getattr(row, key)) is not None:
                values.append(astuple(wrapped))
            else:
                values.append(astuple(row)[:n_features])
        return values

    def other_values(self, rows: Sequence[Any], key: str) -> list[Any]:
        """Return each row's value of a field next to the features, None where it has none."""
        return [None if type(row) is tuple else getattr(row, key) for row in rows]
