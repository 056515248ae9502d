"""Counters and a latency histogram of one worker, passed to TorchServe once a second.

TorchServe reads each metric from a line of the worker's output, which it parses with a regular
expression. A line per request would take more time than most predictions.
"""

from __future__ import annotations

import logging
import re
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ts.metrics.caching_metric import CachingMetric
from ts.metrics.metric_type_enum import MetricTypes

from handlers.counts import FeatureCounts

FLUSH_INTERVAL_S = 1.0
LATENCY_BUCKETS_MS = (0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 1000)
# Callers choose the names of unknown features, so the number of labels needs a limit.
MAX_UNKNOWN_LABELS = 64
OTHER = "other"


class _DiscardedMetric(CachingMetric):  # type: ignore[misc]
    """A metric whose values are discarded.

    TorchServe's worker adds a value to ``PredictionTime`` after every batch, which prints a line,
    and has no setting to prevent it. It looks the metric up in its cache by name, so a metric of
    this class, put there beforehand, receives the values.
    """

    def add_or_update(self, *args: Any, **kwargs: Any) -> None:
        """Discard the value."""


class Telemetry:
    """Collects the metrics of one worker.

    All series are counters with the labels ``model_name`` and ``model_version``:

    - ``recmar_feature_{missing,out_of_range,out_of_vocabulary,truncated,unknown}`` by ``feature``
    - ``recmar_handler_latency_ms_bucket`` by ``le``, with ``_sum`` and ``_count``: the time that
      the batch of a request spends in the handler
    - ``recmar_requests`` by ``status``, and ``recmar_rows``

    Args:
        cache: TorchServe's metrics cache, ``context.metrics``.
        model_name: Name of the model in URLs.
        model_version: Version in URLs.
        features: Feature names, in the order of the counts.
        counts: Counts that the handler adds to; each flush sets them to zero.
        unknown: Counts of unknown feature names; each flush clears them.
    """

    def __init__(
        self,
        cache: Any,
        model_name: str,
        model_version: str,
        features: Sequence[str],
        counts: FeatureCounts,
        unknown: Counter[str],
    ) -> None:
        self._cache = cache
        self._labels = [model_name, model_version]
        self._features = features
        self._counts = counts
        self._unknown = unknown
        self._unknown_labels: set[str] = set()
        self._statuses: Counter[int] = Counter()
        self._buckets = [0] * (len(LATENCY_BUCKETS_MS) + 1)
        self._latency_sum_ms = 0.0
        self._rows = 0
        self._metrics: dict[str, CachingMetric] = {}
        self._lock = threading.Lock()
        cache.cache[MetricTypes.GAUGE]["PredictionTime"] = _DiscardedMetric("PredictionTime", "ms")
        logging.getLogger("ts.metrics.caching_metric").setLevel(logging.INFO)
        threading.Thread(target=self._flush_forever, daemon=True, name="telemetry").start()

    def observe(self, latency_ms: float, n_rows: int, statuses: Counter[int]) -> None:
        """Record one batch.

        Args:
            latency_ms: Time in the handler, the same for all requests of the batch.
            n_rows: Number of rows scored.
            statuses: Number of requests by HTTP status.
        """
        with self._lock:
            n_requests = statuses.total()
            self._buckets[bisect_left(LATENCY_BUCKETS_MS, latency_ms)] += n_requests
            self._latency_sum_ms += latency_ms * n_requests
            self._rows += n_rows
            self._statuses.update(statuses)

    def _flush_forever(self) -> None:
        pause = threading.Event()
        while not pause.wait(FLUSH_INTERVAL_S):
            self.flush()

    def flush(self) -> None:
        """Emit everything recorded since the last flush."""
        with self._lock:
            statuses, self._statuses = self._statuses, Counter()
            buckets, self._buckets = self._buckets, [0] * len(self._buckets)
            latency_sum_ms, self._latency_sum_ms = self._latency_sum_ms, 0.0
            rows, self._rows = self._rows, 0
        if not statuses:
            return
        for status, n in statuses.items():
            self._emit("requests", n, "status", str(status))
        self._emit("rows", rows)
        below = 0
        for bound, n in zip([*LATENCY_BUCKETS_MS, "+Inf"], buckets, strict=True):
            below += n
            self._emit("handler_latency_ms_bucket", below, "le", str(bound))
        self._emit("handler_latency_ms_sum", latency_sum_ms)
        self._emit("handler_latency_ms_count", below)
        self._flush_features()

    def _flush_features(self) -> None:
        for kind in FeatureCounts.kinds():
            totals = getattr(self._counts, kind)
            for i in totals.nonzero()[0]:
                n = int(totals[i])
                totals[i] -= n
                self._emit(f"feature_{kind}", n, "feature", self._features[i])
        unknown: Counter[str] = Counter()
        for name in list(self._unknown):
            unknown[self._label(name)] += self._unknown.pop(name)
        for label, n in unknown.items():
            self._emit("feature_unknown", n, "feature", label)

    def _label(self, name: str) -> str:
        """Return the label of an unknown feature: the first 64 names, ``other`` for the rest."""
        if len(self._unknown_labels) < MAX_UNKNOWN_LABELS:
            self._unknown_labels.add(name)
        return name if name in self._unknown_labels else OTHER

    def _emit(self, name: str, value: float, label: str = "", label_value: str = "") -> None:
        metric = self._metrics.get(name)
        if metric is None:
            labels = ["model_name", "model_version", *([label] if label else [])]
            metric = self._cache.add_metric_to_cache(f"recmar_{name}", "count", labels)
            self._metrics[name] = metric
        # TorchServe splits the line at commas, colons and bars, and loses a label without a value.
        safe = re.sub(r"[^\w.+-]", "_", label_value)[:64] or "_"
        metric.add_or_update(value, [*self._labels, *([safe] if label else [])])
