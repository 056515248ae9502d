"""Extend the schema of an earlier version by what new data has: ``--init-from``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from handlers.feature import Feature
from handlers.schema import FeatureSchema
from training.data.sources import DataError

# What a model has learned for good about a feature, next to the vocabulary.
FIXED = ("kind", "hash_ids", "max_length", "items", "time_zone", "event", "product_of")


def extended(base: FeatureSchema, new: FeatureSchema) -> FeatureSchema:
    """Return the schema of new data, with the features of an earlier version.

    Known tokens keep their indices, and those after them are new. A number may be missing if it was
    missing in the data of either version, and its range covers both.

    Args:
        base: Schema of the earlier version.
        new: Schema of the new data.

    Raises:
        DataError: If the features are not the same.
    """
    if problems := [*_problems(base, new)]:
        raise DataError(f"--init-from: expected the same features; {'; '.join(problems)}")
    return FeatureSchema(
        [_extended(old, feature) for old, feature in zip(base.features, new.features, strict=True)]
    )


def extended_vocabulary(base: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    """Return the tokens of an earlier version, then the new ones in their order."""
    return tuple(dict.fromkeys([*base, *new]))


def _extended(old: Feature, new: Feature) -> Feature:
    ranges = [part.train_range for part in (old, new) if part.train_range is not None]
    lows, highs = zip(*ranges, strict=True) if ranges else ((), ())
    return replace(
        new,
        default=None if None in (old.default, new.default) else new.default,
        train_range=(min(lows), max(highs)) if ranges else None,
        vocabulary=() if old.hash_buckets else extended_vocabulary(old.vocabulary, new.vocabulary),
        hash_buckets=old.hash_buckets,
    )


def _problems(base: FeatureSchema, new: FeatureSchema) -> Iterator[str]:
    if added := [name for name in new.names if name not in base.names]:
        yield f"added: {', '.join(added)}"
    if removed := [name for name in base.names if name not in new.names]:
        yield f"removed: {', '.join(removed)}"
    if not added and not removed and base.names != new.names:
        yield f"in the order {','.join(base.names)}"
    before = {feature.name: feature for feature in base.features}
    for feature in new.features:
        if (old := before.get(feature.name)) is None:
            continue
        for key in FIXED:
            was, now = getattr(old, key), getattr(feature, key)
            if was != now:
                yield f"{feature.name} had {key} {was}, has {now}"
        if feature.hash_buckets not in (0, old.hash_buckets):
            was = f"{old.hash_buckets} hashes" if old.hash_buckets else "a vocabulary"
            yield f"{feature.name} had {was}, has {feature.hash_buckets} hashes"
