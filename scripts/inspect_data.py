"""Propose the command that trains on a file: ``python -m scripts.inspect_data clicks.csv``.

It reads a sample of the rows, prints what the columns hold, and a command line for them.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from handlers.errors import UserError
from training.data.config import DataConfig
from training.data.inspection import Column, Inspection, inspect
from training.data.proposal import Proposal, propose

WIDTH = 80
URL = "http://127.0.0.1:8080/predictions/deepfm"


@dataclass(frozen=True)
class Config(DataConfig):
    """Print what the columns of a data set hold, and a command line that trains on them.

    Attributes:
        data_path: A file, a folder, a pattern, or the s3:// URL of one.
    """

    data_path: tyro.conf.Positional[str | None] = None


def table(inspection: Inspection, proposal: Proposal) -> Table:
    """Lay out the columns and their use, at most 80 columns wide."""
    shown = Table(box=box.SIMPLE_HEAD, width=WIDTH, pad_edge=False)
    shown.add_column("column", overflow="fold", ratio=3)
    shown.add_column("type", no_wrap=True)
    shown.add_column("distinct", justify="right", no_wrap=True)
    shown.add_column("missing", justify="right", no_wrap=True)
    shown.add_column("example", no_wrap=True, overflow="ellipsis", ratio=3)
    shown.add_column("use", no_wrap=True)
    for c in inspection.columns:
        missing = f"{c.missing:.1%}" if c.missing else ""
        example = "" if c.first is None else json.dumps(c.first, ensure_ascii=False, default=str)
        shown.add_row(c.name, c.kind, f"{c.distinct:,}", missing, example, _use(c, proposal))
    return shown


def _use(column: Column, proposal: Proposal) -> str:
    uses = {
        "label": [proposal.label],
        "target": proposal.targets,
        "category": proposal.categorical,
        "number": proposal.features,
        "list": proposal.lists,
        "time": proposal.times,
    }
    return next((use for use, columns in uses.items() if column in columns), "")


def source_flags(config: DataConfig) -> list[list[str]]:
    """Return the flags that locate the data, without secrets."""
    flags = []
    public = config.public()
    for f in fields(DataConfig):
        value = public.get(f.name)
        if value is None or value == f.default or f.name in ("strict", "extra_columns"):
            continue
        name = f.name.replace("_", "-")
        if config.data_source == "mysql":
            name = name.replace("doris-", "mysql-")
        flags.append([f"--{name}", str(value)])
    return flags


def train_command(model: str, flags: Sequence[Sequence[str]]) -> str:
    """Return a command for bash that trains a model, with a flag on each line."""
    lines = [" ".join(map(_quote, flag)) for flag in flags]
    # make expands $, and hands the rest to sh.
    arguments = " \\\n    ".join(lines).replace("$", "$$").replace("'", "'\\''")
    return f"make train MODEL={model} ARGS='{arguments}'"


def _quote(word: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./-]+", word):
        return word
    return '"' + re.sub(r'([\\"$`])', r"\\\1", word) + '"'


def request(proposal: Proposal) -> str:
    """Return a command for bash that asks for the prediction of the first row."""
    items = []
    for column in [*proposal.features, *proposal.lists, *proposal.times]:
        value = _request_value(column, column in proposal.categorical)
        if value is not None:
            items.append(f"{_json(column.name)}: {_json(value)}")
    lines = ['  -d \'{"data": [{']
    for i, item in enumerate(items):
        text = item + (", " if i + 1 < len(items) else "}]}' \\")
        if len(lines[-1] + text.rstrip()) > WIDTH:
            lines[-1] = lines[-1].rstrip()
            lines.append("    ")
        lines[-1] += text
    body = "\n".join(lines) if items else "  -d '{\"data\": [{}]}' \\"
    return f"curl -H 'Content-Type: application/json' \\\n{body}\n  {URL}"


def _request_value(column: Column, is_category: bool) -> Any:
    value = column.head
    if column.kind == "list" and column.separator and value is not None:
        return [part.strip() for part in value.split(column.separator) if part.strip()]
    if column.kind == "number" and not is_category and value is not None:
        return float(value) if isinstance(value, str) else value
    return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("'", "\\u0027")


def remarks(proposal: Proposal) -> Iterator[str]:
    """Yield what else to know."""
    yield from proposal.notes
    if names := proposal.text_only:
        yield (
            "A client that sends numbers only, such as map[string]float64 of Go, cannot send "
            f"{', '.join(names)}: add --hash-ids, which takes integers for texts, or write integer "
            "ids below 2^53."
        )
    if proposal.lists:
        names = [c.name for c in proposal.lists]
        yield f"Nor can it send lists: {', '.join(names)} take map[string]any."


def report(config: DataConfig, inspection: Inspection) -> Iterator[Table | str]:
    """Yield what to print."""
    proposal = propose(inspection)
    data = config.data(Path())
    part = "all" if inspection.is_all else "a sample of"
    yield f"{data.name}: {part} {inspection.rows:,} rows"
    yield table(inspection, proposal)
    if proposal.left_out:
        reasons = Table("left out", "because", box=box.SIMPLE_HEAD, width=WIDTH, pad_edge=False)
        reasons.columns[0].overflow = "fold"
        for name, why in proposal.left_out.items():
            reasons.add_row(name, why)
        yield reasons
    for remark in remarks(proposal):
        yield textwrap.fill(f"* {remark}", WIDTH, subsequent_indent="  ", break_long_words=False)
    source = source_flags(config)
    yield "\nTo train (xgb takes the same flags):\n"
    yield train_command("deepfm", [*source, *proposal.flags()])
    if proposal.targets:
        yield f"\nTo predict {', '.join(c.name for c in proposal.targets)} too:\n"
        yield train_command("mmoe", [*source, *proposal.flags(multi_task=True)])
    yield "\nTo ask for a prediction, after `make archive MODEL=deepfm` and `make serve`:\n"
    yield request(proposal)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    config = tyro.cli(Config, prog="python -m scripts.inspect_data", args=argv)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        if config.uses_default_data:
            raise UserError("expected a file or --data-source; try: make inspect DATA=clicks.csv")
        for part in report(config, inspect(config.data(Path()))):
            console.print(part)
    except (UserError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
