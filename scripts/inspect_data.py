"""Propose commands that train on a data set: ``python -m scripts.inspect_data clicks.csv``.

It reads a sample of the rows, prints what the columns hold, the models that fit, and a request.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from handlers.errors import UserError
from training.data.config import DataConfig
from training.data.csv_stream import likely_separator
from training.data.files import File
from training.data.inspection import commands
from training.data.inspection.columns import Column
from training.data.inspection.kinds import inspect
from training.data.inspection.models import Proposal, propose_models, remarks
from training.data.inspection.ranking import propose_ranking
from training.data.sources import DataSet, readable_columns
from training.tasks.links.data import EDGES_SUFFIXES, LINE_SUFFIXES, SOURCE, TARGET, read_edges

INTERRUPTED = 130
# Flags of the data that no training run needs.
_NOT_SHOWN = ("strict", "extra_columns")


@dataclass(frozen=True)
class Config(DataConfig):
    """Print what the columns of a data set hold, and commands that train on them.

    Attributes:
        data_path: A file, a folder, a pattern, or the s3:// URL of one.
    """

    data_path: tyro.conf.Positional[str | None] = None


def find_data(config: Config) -> tuple[Config, DataSet]:
    """Find the data and, where no flag names it, the separator of its cells.

    Raises:
        UserError: If there is no data.
        OSError: If it cannot be read.
    """
    data = config.data(Path(), suffixes=EDGES_SUFFIXES)
    first = data.table[0]
    if isinstance(first, File) and not config.separator and first.path.endswith(commands.CSV):
        header = readable_columns(first)
        if len(header) == 1 and (separator := likely_separator(header[0])):
            return find_data(replace(config, separator="tab" if separator == "\t" else separator))
    return config, data


def source_flags(config: DataConfig) -> list[list[str]]:
    """Return the flags that locate the data, without secrets."""
    flags = []
    public = config.public()
    for f in fields(DataConfig):
        value = public.get(f.name)
        if value is None or value == f.default or f.name in _NOT_SHOWN:
            continue
        name = f.name.replace("_", "-")
        if config.data_source == "mysql":
            name = name.replace("doris-", "mysql-")
        flags.append([f"--{name}", str(value)])
    return flags


def columns_table(columns: Sequence[Column], uses: Mapping[str, str]) -> Table:
    """Lay out the columns and their use, at most 80 columns wide."""
    shown = Table(box=box.SIMPLE_HEAD, width=commands.WIDTH, pad_edge=False)
    shown.add_column("column", overflow="fold", ratio=3)
    shown.add_column("type", no_wrap=True)
    shown.add_column("distinct", justify="right", no_wrap=True)
    shown.add_column("missing", justify="right", no_wrap=True)
    shown.add_column("example", no_wrap=True, overflow="ellipsis", ratio=3)
    shown.add_column("use", no_wrap=True)
    for c in columns:
        missing = f"{c.missing:.1%}" if c.missing else ""
        example = "" if c.first is None else json.dumps(c.first, ensure_ascii=False, default=str)
        shown.add_row(c.name, c.kind, f"{c.distinct:,}", missing, example, uses.get(c.name, ""))
    return shown


def left_out_table(left_out: dict[str, str]) -> Table:
    """Lay out why columns are left out, at most 80 columns wide."""
    shown = Table("left out", "because", box=box.SIMPLE_HEAD, width=commands.WIDTH, pad_edge=False)
    shown.columns[0].overflow = "fold"
    for name, reason in left_out.items():
        shown.add_row(name, reason)
    return shown


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        commands.WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def report(config: Config) -> Iterator[Table | str]:
    """Yield what to print."""
    config, data = find_data(config)
    source = source_flags(config)
    if isinstance(first := data.table[0], File) and first.path.endswith(LINE_SUFFIXES):
        yield from _report_edges(data, source)
        return
    inspection = inspect(data)
    ranking = propose_ranking(inspection)
    proposals = propose_models(inspection, ranking)
    part = "all" if inspection.is_all else "the first"
    yield f"{data.name}: {part} {inspection.rows:,} rows"
    yield columns_table(inspection.columns, proposals[0].uses if proposals else {})
    used = {name for p in proposals for name in p.uses}
    if left_out := {name: why for name, why in ranking.left_out.items() if name not in used}:
        yield left_out_table(left_out)
    for remark in remarks(inspection, ranking, proposals):
        yield _fill(f"* {remark}", "  ")
    labeled = None
    for p in proposals:
        if p.needs_label and labeled is None and ranking.label:
            step = commands.label_step(ranking.label, data)
            labeled = [["--data-path", step.path]] if step.path else source
            yield "\n" + _fill(f"To {p.goal}, first {step.task}:") + f"\n\n{step.command}\n"
        else:
            yield f"\nTo {p.goal}:\n"
        yield commands.train(p.model, [*(labeled or source), *p.flags])
    if proposals:
        yield from _request(proposals[0])


def _request(proposal: Proposal) -> Iterator[str]:
    made = f"`make archive MODEL={proposal.model}`"
    yield f"\nAfter {made} and `make serve`, ask for a prediction:\n"
    yield commands.request(proposal.model, proposal.row)


def _report_edges(data: DataSet, source: list[list[str]]) -> Iterator[str]:
    edges = read_edges(data)
    nodes = len(set(edges[SOURCE]) | set(edges[TARGET]))
    yield f"{data.name}: {len(edges):,} edges between {nodes:,} nodes"
    row = {"user_id": edges[SOURCE][0], "top_k": 20}
    proposal = Proposal("graph_recall", "find the nearest nodes of a node", [], row, {})
    yield f"\nTo {proposal.goal}:\n"
    yield commands.train(proposal.model, source)
    yield from _request(proposal)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    config = tyro.cli(Config, prog="python -m scripts.inspect_data", args=argv)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        if config.uses_default_data:
            raise UserError("expected a file or --data-source; try: make inspect DATA=clicks.csv")
        for part in report(config):
            console.print(part)
    except (UserError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
