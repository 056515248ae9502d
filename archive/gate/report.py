"""The gate's report: a single HTML file that loads nothing else."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from archive.gate.compare import Comparison
from training.evaluation import Evaluation, Results
from training.metrics.ranking import auc, calibration_bins

TEMPLATE = Path(__file__).with_name("report.html")
# Readable on a light and on a dark background.
OLD, NEW = "#d97706", "#3b82f6"
# Placeholder in the drawings for the page's text color.
INK = "#808182"
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.titlecolor"), INK),
}
# What "± 95 %" means, in the report and on the terminal.
INTERVAL = "± 95 %: the margin of 95 of 100 changes when the test split is resampled"
CURVE_POINTS = 200
MAX_FEATURES = 20


@dataclass(frozen=True)
class Page:
    """The content of the report.

    Attributes:
        model: Name of the model.
        comparison: The verdict and what led to it.
        evaluation: The test split.
        baselines: Reports of further baselines, for a first version.
        notes: Why this reference, and why the comparison may be unfair.
    """

    model: str
    comparison: Comparison
    evaluation: Evaluation
    baselines: Mapping[str, Mapping[str, float]]
    notes: Sequence[str]

    def save(self, path: Path) -> None:
        """Write the report; an existing file is replaced."""
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        with mpl.rc_context(STYLE):
            # Markup: these drawings are our own, and matplotlib has escaped their texts.
            figures = [(title, Markup(_svg(figure))) for title, figure in self.figures()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            template.render(
                page=self,
                comparison=self.comparison,
                figures=figures,
                interval=INTERVAL,
                colors={"old": OLD, "new": NEW},
                now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            ),
            encoding="utf-8",
        )

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the title and the drawing of each figure that applies to the model."""
        versions = (self.comparison.old, OLD), (self.comparison.new, NEW)
        predicted = [
            (scored.name, color, *labels_and_probabilities)
            for scored, color in versions
            if (labels_and_probabilities := self.evaluation.probabilities(scored.results))
        ]
        ranked = [
            (scored.name, color, ranks)
            for scored, color in versions
            if (ranks := self.evaluation.ranks(scored.results)) is not None
        ]
        if predicted:
            yield "ROC", _roc(predicted)
            yield "Calibration, tenths of the rows", _calibration(predicted)
            yield "Predictions", _histogram(predicted)
        if ranked:
            yield "Hit rate", _hit_rate(ranked)
        if self.comparison.slices:
            yield f"{self.evaluation.primary} by slice, change ± 95 %", _slices(self.comparison)
        if self.comparison.new.importance:
            title = f"{self.evaluation.primary} lost when a feature is shuffled"
            yield title, _importance(self.comparison)


Predicted = Sequence[tuple[str, str, Results, Results]]


def _roc(predicted: Predicted) -> Figure:
    figure, axes = _plot("false positive rate", "true positive rate")
    grid = np.linspace(0, 1, CURVE_POINTS)
    for name, color, labels, probs in predicted:
        false_positives, true_positives, _ = roc_curve(labels, probs)
        curve = np.interp(grid, false_positives, true_positives)
        axes.plot(grid, curve, color=color, label=f"{name}, {auc(labels, probs):.4f}")
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":")
    return _with_legend(figure)


def _calibration(predicted: Predicted) -> Figure:
    figure, axes = _plot("predicted rate", "actual rate")
    top = 0.0
    for name, color, labels, probs in predicted:
        bins = calibration_bins(labels, probs)
        axes.plot(bins.predicted, bins.actual, color=color, marker="o", markersize=4, label=name)
        top = max(top, bins.predicted.max(), bins.actual.max())
    axes.plot([0, top], [0, top], color=INK, linestyle=":")
    return _with_legend(figure)


def _histogram(predicted: Predicted) -> Figure:
    figure, axes = _plot("predicted probability", "share of rows")
    top = max(probs.max() for *_, probs in predicted)
    edges = np.linspace(0, top, 41)
    for name, color, _, probs in predicted:
        counts, _ = np.histogram(probs, edges)
        axes.stairs(counts / len(probs), edges, color=color, label=name)
    return _with_legend(figure)


def _hit_rate(ranked: Sequence[tuple[str, str, Results]]) -> Figure:
    figure, axes = _plot("k", "share of items among the first k")
    ks = np.arange(1, 101)
    for name, color, ranks in ranked:
        rates = np.searchsorted(np.sort(ranks), ks, side="right") / len(ranks)
        axes.plot(ks, rates, color=color, label=name)
    axes.set_ylim(bottom=0)
    return _with_legend(figure)


def _slices(comparison: Comparison) -> Figure:
    slices = comparison.slices[::-1]
    figure, axes = _plot("new - old", "", height=1.2 + 0.22 * len(slices))
    for position, part in enumerate(slices):
        change = part.change
        axes.errorbar(
            change.difference, position, xerr=change.margin, fmt="o", color=NEW, markersize=4
        )
    axes.axvline(0, color=INK, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(-0.6, len(slices) - 0.4)
    axes.set_yticks(range(len(slices)), [f"{part.column} {part.value}" for part in slices])
    return figure


def _importance(comparison: Comparison) -> Figure:
    new, old = comparison.new.importance, comparison.old.importance
    names = sorted(new, key=new.__getitem__)[-MAX_FEATURES:]
    figure, axes = _plot("", "", height=1.2 + 0.28 * len(names))
    positions = np.arange(len(names))
    axes.barh(
        positions + 0.2, [new[name] for name in names], 0.4, color=NEW, label=comparison.new.name
    )
    if old:
        lost = [old.get(name, 0.0) for name in names]
        axes.barh(positions - 0.2, lost, 0.4, color=OLD, label=comparison.old.name)
    axes.set_yticks(positions, names)
    return _with_legend(figure)


def _plot(x_label: str, y_label: str, height: float = 3.4) -> tuple[Figure, Axes]:
    # A bare Figure needs no pyplot, so no display and no global state.
    figure = Figure(figsize=(4.6, height), layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3, color=INK)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _with_legend(figure: Figure) -> Figure:
    figure.axes[0].legend(frameon=False)
    return figure


def _svg(figure: Figure) -> str:
    """Return the drawing as an HTML element."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
