"""Judge a new version of a model: ``python -m scripts.evaluate --model deepfm --version v2``.

The archives of both versions score the same test split, each in a process that sees nothing else,
and the code that training measures with measures the result. The verdict goes to the registry, for
a deploy to find. Exit status: 0 the new version may ship, 1 it may not, 2 there is no verdict.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from archive.gate.compare import Comparison
from archive.gate.judge import GateConfig, judge
from archive.gate.report import INTERVAL
from handlers import logs
from handlers.errors import UserError
from training.run import INTERRUPTED

logger = logging.getLogger(__name__)

PASSED, FAILED, NOT_JUDGED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Config(GateConfig):
    """Judge a new version of a model against the one that serves.

    Attributes:
        report: File of the report; by default reports/<model>/<version>/report.html. The registry
            keeps a copy of it.
    """

    report: Path | None = None


def tables(model: str, comparison: Comparison) -> Iterator[Table]:
    """Yield the comparison as tables of at most 80 columns."""
    title = f"{model} {comparison.new.name} against {comparison.old.name}, on the test split"
    look: Any = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    look |= {"title_justify": "left", "title_style": "bold"}
    table = Table("", "old", "new", "change ± 95 %", "limit", "", title=title, **look)
    for change in comparison.changes:
        limit = comparison.limits.get(change.metric)
        verdict = ("" if limit.holds(change.new) else "FAIL") if limit else ""
        table.add_row(
            change.metric,
            f"{change.old:.4f}",
            f"{change.new:.4f}",
            f"{change.difference:+.4f} ± {change.margin:.4f}",
            str(limit or ""),
            verdict,
        )
    yield table
    if comparison.slices:
        metric = comparison.slices[0].change.metric
        table = Table("", "results", "old", "new", "change ± 95 %", "", title=metric, **look)
        for part in comparison.slices:
            change = part.change
            table.add_row(
                f"{part.column} {part.value}",
                f"{part.n_results:,}",
                f"{change.old:.4f}",
                f"{change.new:.4f}",
                f"{change.difference:+.4f} ± {change.margin:.4f}",
                "worse" if part.is_worse else "",
            )
        yield table


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, args=argv)
    logs.to_stderr(logging.WARNING)
    logging.getLogger("ts").setLevel(logging.ERROR)  # TorchServe warns of missing accelerators
    try:
        judgement = judge(config)
        page = judgement.page
        version = page.comparison.new.name
        path = config.report or Path("reports", page.model, version, "report.html")
        page.save(path)
        config.open_registry().record_verdict(
            version, judgement.verdict, judgement.archives, path.read_bytes()
        )
    except (UserError, OSError) as error:
        logger.error("%s", error)
        return NOT_JUDGED
    except KeyboardInterrupt:
        logger.warning("interrupted; there is no verdict")
        return INTERRUPTED
    comparison = page.comparison
    for table in tables(page.model, comparison):
        Console().print(table)
    print(INTERVAL)
    for note in page.notes:
        print(f"note: {note}")
    print(f"report: {path}")
    place = f"bucket {config.s3_bucket}" if config.s3_bucket else config.registry
    print(f"verdict: in the registry, {place}, for {', '.join(judgement.archives)} {version}")
    for failure in comparison.failures:
        print(f"FAIL {failure}")
    if comparison.failures:
        return FAILED
    print(f"PASS {page.model} {comparison.new.name} against {comparison.old.name}")
    return PASSED


if __name__ == "__main__":
    sys.exit(main())
