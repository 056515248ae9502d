"""Print the contents of an archive: ``python -m archive.describe --model deepfm``."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from archive.package import MODEL_STORE
from handlers.errors import UserError
from handlers.signature import Signature, verify_archive
from training.metrics.tables import metric_table


@dataclass(frozen=True)
class Config:
    """Print an archive's signature, metrics and contents, after checking its hashes.

    Attributes:
        model: Name of the model.
        store: Folder of the archives.
    """

    model: str
    store: Path = MODEL_STORE


def tables(
    signature: Signature, metrics: dict[str, dict[str, float]], sizes: dict[str, int]
) -> Iterator[Table]:
    """Yield the tables that describe an archive.

    Args:
        signature: The archive's signature.
        metrics: Metrics on the test split, by model.
        sizes: Sizes of the files in bytes, by path.
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
        note = f"{feature['vocabulary_size']} tokens" if kind in ("category", "multi") else ""
        if (sent_as := feature.get("sent_as", "number")) != "number":
            note += f", sent as {sent_as}"
        if factors := feature.get("product_of"):
            note = "or " + " x ".join(factors)
        shown = ""
        if kind == "number":
            shown = "learned" if default is None else f"{default:g}"
        limits = f"{bounds[0]:g} .. {bounds[1]:g}" if bounds else ""
        features.add_row(feature["name"], kind, shown, limits, note)
    yield features

    yield metric_table(metrics)

    contents = Table("file", "bytes", "sha256", box=box.SIMPLE_HEAD)
    for name, digest in signature.files.items():
        contents.add_row(name, f"{sizes[name]:,}", digest[:16])
    yield contents


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, args=argv)
    mar = config.store / f"{config.model}.mar"
    try:
        signature = verify_archive(mar)
        with zipfile.ZipFile(mar) as archive:
            metrics = json.loads(archive.read("metrics.json"))["test"]
            sizes = {info.filename: info.file_size for info in archive.infolist()}
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console()
    for table in tables(signature, metrics, sizes):
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
