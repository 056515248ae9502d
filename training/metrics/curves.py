"""Plot loss by epoch, ROC and calibration as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from training.metrics.ranking import Array, auc, calibration_bins


def save_loss(folder: Path, history: Mapping[str, Sequence[float]], unit: str = "logloss") -> None:
    """Write ``loss.png``; the same input gives the same bytes.

    Args:
        folder: Folder to write to; must exist.
        history: Loss after each epoch or round, by split: train and valid.
        unit: Name of the loss, for the axis.
    """
    loss, axes = _plot("Loss", "epoch or round", unit)
    for name, losses in history.items():
        axes.plot(range(1, len(losses) + 1), losses, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(loss, folder / "loss.png")


def save_curves(
    folder: Path, history: Mapping[str, Sequence[float]], labels: Array, probs: Array
) -> None:
    """Write ``loss.png``, ``roc.png`` and ``calibration.png``; the same input gives the same bytes.

    Args:
        folder: Folder to write to; must exist.
        history: Logloss after each epoch or round, by split: train and valid.
        labels: Labels of the test split, 0 or 1, [B].
        probs: Predicted probabilities on the test split, [B].
    """
    save_loss(folder, history)

    roc, axes = _plot("ROC", "false positive rate", "true positive rate")
    false_positives, true_positives, _ = roc_curve(labels, probs)
    axes.plot(false_positives, true_positives, label=f"model, AUC {auc(labels, probs):.3f}")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="guessing")
    _save(roc, folder / "roc.png")

    calibration, axes = _plot("Calibration", "predicted rate", "actual rate")
    bins = calibration_bins(labels, probs)
    top = max(bins.predicted.max(), bins.actual.max())
    axes.plot(bins.predicted, bins.actual, marker="o", label="model, tenths of the rows")
    axes.plot([0, top], [0, top], color="grey", linestyle=":", label="exact")
    _save(calibration, folder / "calibration.png")


def _plot(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    # A bare Figure draws without pyplot, so it needs neither a display nor global state.
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
