"""The contract of a model with its callers: what a version reads, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlers.signature import Signature


def changes(old: Signature, new: Signature) -> Iterator[str]:
    """Yield what callers of one version must know before another one takes over.

    The ranges, defaults and vocabularies of features may differ: training learns them anew.

    Args:
        old: Signature of the version that serves.
        new: Signature of the version that is to take over.
    """
    before, after = ({f["name"]: f.get("kind", "input") for f in s.features} for s in (old, new))
    for name, kind in before.items():
        if name not in after:
            yield f"feature {name} ({kind}) removed"
        elif after[name] != kind:
            yield f"feature {name}: {kind} became {after[name]}"
    for name, kind in after.items():
        if name not in before:
            yield f"feature {name} ({kind}) added"
    if before.keys() == after.keys() and [*before] != [*after]:
        yield f"order of the features, which rows sent as lists follow: now {', '.join(after)}"
    if old.output != new.output:
        yield f"output: {_shown(old.output)} became {_shown(new.output)}"


def space_change(old: Signature, new: Signature) -> str | None:
    """Describe a change of the vector space: the items of an index no longer match."""
    if old.space_id == new.space_id:
        return None
    return f"vector space: {old.space_id or 'none'} became {new.space_id or 'none'}"


def _shown(output: dict[str, Any]) -> str:
    """Describe an output: ``vector of length 16``, ``object with keys ctr, cvr``."""
    parts = [str(output.get("type"))]
    if "length" in output:
        parts.append(f"of length {output['length']}")
    if "keys" in output:
        parts.append(f"with keys {', '.join(map(str, output['keys']))}")
    if "meaning" in output:
        parts.append(f"({output['meaning']})")
    return " ".join(parts)
