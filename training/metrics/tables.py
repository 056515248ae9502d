"""Show metrics as a table."""

from collections.abc import Mapping

from rich import box
from rich.table import Table


def metric_table(reports: Mapping[str, Mapping[str, float]], title: str | None = None) -> Table:
    """Build a table with a row for each metric and a column for each model."""
    table = Table("", box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for model in reports:
        table.add_column(model, justify="right")
    for metric in dict.fromkeys(metric for report in reports.values() for metric in report):
        cells = [f"{r[metric]:.4f}" if metric in r else "" for r in reports.values()]
        table.add_row(metric, *cells)
    return table
