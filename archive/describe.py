"""Print the contents of an archive: ``python -m archive.describe --model deepfm``."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from archive.package import MODEL_STORE
from handlers.errors import UserError
from handlers.signature import Signature
from serving.archive_file import ArchiveFile
from training.metrics.tables import metric_table


@dataclass(frozen=True)
class Config:
    """Print an archive's signature and metrics, after checking it.

    Attributes:
        model: Name of the model.
        files: Print its files with their sizes and hashes too.
        store: Folder of the archives.
    """

    model: str
    files: bool = False
    store: Path = MODEL_STORE


def tables(signature: Signature, metrics: dict[str, dict[str, float]]) -> Iterator[Table]:
    """Yield the tables that describe an archive.

    Args:
        signature: The archive's signature.
        metrics: Metrics on the test split, by model.
    """
    summary = Table(box=None, show_header=False)
    for name, value in (
        ("model", signature.model_name),
        ("version", signature.model_version),
        ("handler", signature.handler),
        ("output", json.dumps(signature.output)),
        ("made with", ", ".join(f"{k} {v}" for k, v in signature.libraries.items())),
    ):
        summary.add_row(name, value)
    yield summary

    features = Table("feature", "kind", "default", "training range", "", box=box.SIMPLE_HEAD)
    for feature in signature.features:
        # Only numbers have all three; inputs that are not features of a schema have only a name.
        kind, default, bounds = map(feature.get, ("kind", "default", "train_range"))
        note = _note(feature)
        if factors := feature.get("product_of"):
            note = "or " + " x ".join(factors)
        shown = ""
        if kind in ("number", "age"):
            shown = "learned" if default is None else f"{default:g}"
        limits = f"{bounds[0]:g} .. {bounds[1]:g}" if bounds else ""
        features.add_row(feature["name"], kind, shown, limits, note)
    yield features

    yield metric_table(metrics)


def table_of_files(signature: Signature, sizes: Mapping[str, int]) -> Table:
    """Return a table of an archive's files.

    Args:
        signature: The archive's signature.
        sizes: Sizes of the files in bytes, by path.
    """
    contents = Table("file", "bytes", "sha256", box=box.SIMPLE_HEAD)
    for name, digest in signature.files.items():
        contents.add_row(name, f"{sizes[name]:,}", digest[:16])
    return contents


def _note(feature: Mapping[str, Any]) -> str:
    """Describe the values of a feature, as far as they are no numbers."""
    kind, buckets = feature.get("kind"), feature.get("hash_buckets")
    notes = []
    if kind in ("category", "multi"):
        notes.append(f"{buckets} hashes" if buckets else f"{feature['vocabulary_size']} tokens")
    if kind == "history":
        notes.append(f"of {feature['items']}")
    if kind in ("multi", "history"):
        notes.append(f"{'first' if kind == 'multi' else 'last'} {feature['max_length']} of a list")
    if separator := feature.get("separator"):
        notes.append(f"or a text with {separator!r}")
    if kind == "time":
        notes.append(f"hour and weekday in {feature['time_zone']}")
    if kind == "age":
        notes.append(f"days until {feature['event']}")
    if (sent_as := feature.get("sent_as", "number")) != "number":
        notes.append(f"sent as {sent_as}")
    return ", ".join(notes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, args=argv)
    mar = config.store / f"{config.model}.mar"
    try:
        signature = ArchiveFile.read(mar, config.model).signature
        with zipfile.ZipFile(mar) as archive:
            metrics = json.loads(archive.read("metrics.json"))["test"]
            sizes = {info.filename: info.file_size for info in archive.infolist()}
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console()
    for table in tables(signature, metrics):
        console.print(table)
    if config.files:
        console.print(table_of_files(signature, sizes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
