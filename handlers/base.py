"""The base class of every handler, and the interface to TorchServe.

The requests of a batch are decoded one by one, their rows are scored together, and the predictions
are divided among the requests again. A request that cannot be decoded gets its own 400 and does not
affect the rest of the batch.
"""

from __future__ import annotations

import json
import logging
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import orjson
import torch
from ts.context import Context
from ts.torch_handler.base_handler import BaseHandler

from handlers import logs
from handlers.counts import FeatureCounts
from handlers.decoding import RequestDecoder
from handlers.errors import ArchiveError, RequestError, RowError
from handlers.schema import SCHEMA_VERSION
from handlers.signature import GOLDEN_FILE, first_difference, verify_folder
from handlers.telemetry import Telemetry

logger = logging.getLogger(__name__)

DEFAULT_MAX_ROWS = 10_000
# Most rows that are scored together: bounds the memory of a worker and fits the CPU's cache.
CHUNK_ROWS = 4096

OK = 200
CPU = torch.device("cpu")

Vectors = npt.NDArray[np.float32]
Predictions = Vectors | list[Any]
Response = tuple[int, bytes]  # status and JSON body
OnFailure = Callable[[int, Exception], None]  # arguments: index of the request, its error

REQUEST_ID = "x-request-id"


def _log_error(_: int, error: Exception) -> None:
    logger.error("scoring failed", exc_info=error)


class RecHandler(BaseHandler):  # type: ignore[misc]
    """Serves one model from its unpacked archive.

    A subclass names its meta file and its architecture version, defines the type of a row, loads
    its model and predicts. Two subclasses define the row already:
    :class:`handlers.feature_rows.FeatureRowsHandler` for rows that are features, and
    :class:`handlers.wrapped_rows.WrappedRowsHandler` for rows with features under a key.

    Attributes:
        meta_file: Name of the meta file.
        arch_version: The architecture version that the handler can load.
        flat_single: Whether the predictions for a single row are the prediction itself, not a list
            that holds it.
        meta: Content of the meta file.
        config: Section ``handler`` of ``model-config.yaml``.
        device: Device that networks run on.
        feature_names: Names of the features in :attr:`counts`, in order.
        counts: Missing, out-of-range and out-of-vocabulary values by feature.
    """

    meta_file: ClassVar[str]
    arch_version: ClassVar[int]
    flat_single: ClassVar[bool] = False

    meta: dict[str, Any]
    config: Mapping[str, Any]
    device: torch.device
    feature_names: tuple[str, ...]
    counts: FeatureCounts

    # Implemented by each model

    @abstractmethod
    def load_model(self, model_dir: Path) -> None:
        """Load the model and set ``feature_names``; meta, config and device are set already."""

    @abstractmethod
    def row_type(self, forbid_unknown: bool) -> Any:
        """Return the msgspec type of a row.

        Args:
            forbid_unknown: Value of ``forbid_unknown_fields`` for its structs.
        """

    @abstractmethod
    def predict(self, rows: list[Any]) -> Predictions:
        """Predict for at most 4,096 rows of :meth:`row_type`.

        Returns:
            One prediction per row: float32 [B] or [B, ...], or a list of B values that JSON can
            represent. All numbers are finite.

        Raises:
            RowError: If a value has the right type, but cannot be used. Its request gets a 400.
        """

    def encode(self, predictions: Predictions) -> bytes:
        """Encode the predictions of one request as the JSON value of ``predictions``."""
        value = predictions[0] if self.flat_single and len(predictions) == 1 else predictions
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)

    def embed_items(self, items: list[Any], model_dir: Path) -> Vectors:
        """Compute the item vectors that an embedding model's predictions are compared with.

        Requests never reach this method: in production, an index holds these vectors. The gate
        calls it to evaluate an archive without an index.

        Args:
            items: N items: their features, or their ids if the model has a table of items.
            model_dir: The unpacked archive, for files that serving does not keep in memory.

        Returns:
            float32 [N, D]; NaN for unknown items.
        """
        raise NotImplementedError

    @property
    def known_keys(self) -> Iterable[str]:
        """Keys that a row may have, at any depth."""
        return self.feature_names

    def describe_features(self) -> list[dict[str, Any]]:
        """Describe the inputs for ``signature.json``."""
        return [{"name": name} for name in self.feature_names]

    # Called by TorchServe

    def initialize(self, context: Context) -> None:
        """Load the archive and check that it reproduces the predictions of training.

        Raises:
            ArchiveError: If a file was altered, the architecture is unknown, or the prediction for
                a golden row is off by more than 1e-5.
        """
        model_dir = Path(context.system_properties["model_dir"])
        config = (context.model_yaml_config or {}).get("handler") or {}
        torch.set_num_threads(int(config.get("threads", 1)))
        self.signature = verify_folder(model_dir)
        self.load(model_dir, config, _device(str(config.get("device", "cpu")), context))
        self.replay_golden_rows(model_dir / GOLDEN_FILE)
        self.telemetry = Telemetry(
            context.metrics,
            self.signature.model_name,
            self.signature.model_version,
            self.feature_names,
            self.counts,
            self.decoder.unknown,
        )
        self.context = context
        self.initialized = True
        logs.configure_worker()

    def handle(self, data: list[dict[str, Any]], context: Context) -> list[Any]:
        """Return the response body of each request of a batch, in order, and set the statuses."""
        start = time.perf_counter()
        bodies = [row.get("body") for row in data]
        # GET /models/<name>?customized=true. Such a request has no body; without that condition,
        # any caller could send the header.
        if bodies == [None] and context.get_request_header(0, "describe") == "True":
            return [orjson.dumps(self.signature.to_json())]

        def on_failure(i: int, error: Exception) -> None:
            headers = context.get_all_request_header(i)
            self._log_failure(error, headers, (time.perf_counter() - start) * 1e3)

        responses, n_rows = self.answer(bodies, on_failure)
        statuses: Counter[int] = Counter()
        for i, (status, _) in enumerate(responses):
            context.set_response_content_type(i, "application/json")
            if status != OK:
                context.set_response_status(status, HTTPStatus(status).phrase, i)
            statuses[status] += 1
        self.telemetry.observe((time.perf_counter() - start) * 1e3, n_rows, statuses)
        return [body for _, body in responses]

    def _log_failure(self, error: Exception, headers: Mapping[str, str], latency_ms: float) -> None:
        # TorchServe does not normalize the case of header names.
        request_id = next((v for name, v in headers.items() if name.lower() == REQUEST_ID), "none")
        model, version = self.signature.model_name, self.signature.model_version
        fields = {
            "request_id": request_id,
            "model": model,
            "version": version,
            "status": HTTPStatus.INTERNAL_SERVER_ERROR,
            "latency_ms": round(latency_ms, 2),
        }
        message = f"{model} {version}: scoring failed, request {request_id}"
        logger.error(message, exc_info=error, extra={"fields": fields})

    # Usable without TorchServe

    def load(
        self,
        model_dir: Path,
        config: Mapping[str, Any] = MappingProxyType({}),
        device: torch.device = CPU,
    ) -> None:
        """Load an unpacked archive or an artifact folder.

        Args:
            model_dir: The folder.
            config: Section ``handler`` of ``model-config.yaml``.
            device: Device that networks run on.

        Raises:
            ArchiveError: If the meta file has a version that this handler cannot load, or a value
                of the config is invalid.
        """
        self.config, self.device = config, device
        self.meta = json.loads((model_dir / self.meta_file).read_text())
        for key, known in (
            ("schema_version", SCHEMA_VERSION),
            ("arch_version", self.arch_version),
        ):
            if self.meta.get(key) != known:
                raise ArchiveError(
                    f"{self.meta_file}: {key}: expected {known}, got {self.meta.get(key)}; "
                    "train the model again with this version of the code"
                )
        self.load_model(model_dir)
        self.counts = FeatureCounts.zeros(len(self.feature_names))
        self.decoder = RequestDecoder(
            self.row_type,
            self.feature_names,
            self.known_keys,
            int(config.get("max_rows", DEFAULT_MAX_ROWS)),
            _max_unknown_share(config),
        )

    def replay_golden_rows(self, path: Path) -> None:
        """Compare the handler's predictions for the golden rows with those of training.

        The rows are scored together, then one by one, which also warms the handler up.

        Raises:
            ArchiveError: If a prediction differs; names the first such row.
        """
        golden = json.loads(path.read_text())
        rows, expected = golden["rows"], golden["predictions"]
        for start, stop in [(0, len(rows)), *((i, i + 1) for i in range(len(rows)))]:
            [(status, body)], _ = self.answer([orjson.dumps({"data": rows[start:stop]})])
            content = orjson.loads(body)
            if status != OK:
                raise ArchiveError(f"{GOLDEN_FILE}: rows {start}..{stop - 1}: {content['message']}")
            predictions = content["predictions"]
            if self.flat_single and stop - start == 1:
                predictions = [predictions]
            difference = first_difference(rows[start:stop], expected[start:stop], predictions)
            if difference is not None:
                raise ArchiveError(difference)
        # The replay is not traffic.
        self.counts = FeatureCounts.zeros(len(self.feature_names))
        self.decoder.unknown.clear()

    def answer(
        self, bodies: list[Any], on_failure: OnFailure = _log_error
    ) -> tuple[list[Response], int]:
        """Respond to a batch of requests.

        The gate calls this method of archives that earlier code has built; do not rename it.

        Args:
            bodies: Request bodies as bytes; None if TorchServe did not pass the body on.
            on_failure: Called for each request that the model fails to score.

        Returns:
            Status and JSON body for each request, and the number of rows scored.
        """
        responses: list[Response] = [(OK, b"")] * len(bodies)
        requests: dict[int, list[Any]] = {}
        for i, body in enumerate(bodies):
            try:
                requests[i] = self.decoder.decode(body)
            except RequestError as error:
                responses[i] = error.status, error.to_json()
        scored, n_rows = self._score(requests, bodies, on_failure) if requests else ([], 0)
        for i, response in zip(requests, scored, strict=True):
            responses[i] = response
        return responses, n_rows

    def _score(
        self, requests: dict[int, list[Any]], bodies: list[Any], on_failure: OnFailure
    ) -> tuple[list[Response], int]:
        """Respond to decoded requests; those that fail do not count as scored rows."""
        counts_before = self.counts.copy()
        rows = list(chain.from_iterable(requests.values()))
        responses: list[Response] = []
        start = 0
        try:
            predictions = self._predict(rows)
            for request in requests.values():
                share = predictions[start : start + len(request)]
                responses.append((OK, b'{"predictions":%b}' % self.encode(share)))
                start += len(request)
        except Exception as error:
            self.counts.restore(counts_before)
            if len(requests) > 1:  # Score each request alone, to fail only those that must.
                alone = [
                    self._score({i: request}, bodies, on_failure) for i, request in requests.items()
                ]
                return [response for [response], _ in alone], sum(n for _, n in alone)
            [i] = requests
            if isinstance(error, RowError):  # the caller's fault, so not a failure to log
                refusal = RequestError(400, self.decoder.explain_row(bodies[i], error))
                return [(refusal.status, refusal.to_json())], 0
            on_failure(i, error)
            failure = RequestError(500, f"scoring failed: {type(error).__name__}; see the log")
            return [(failure.status, failure.to_json())], 0
        return responses, len(rows)

    def _predict(self, rows: list[Any]) -> Predictions:
        chunks = []
        for start in range(0, len(rows), CHUNK_ROWS):
            try:
                chunks.append(self.predict(rows[start : start + CHUNK_ROWS]))
            except RowError as error:
                raise RowError(start + error.row, error.feature, error.problem) from None
        predictions: Predictions
        if len(chunks) == 1:
            [predictions] = chunks
        elif isinstance(chunks[0], list):
            predictions = list(chain.from_iterable(chunks))
        else:
            predictions = np.concatenate(chunks)
        if not _finite(predictions):
            # JSON has no NaN: orjson would write null, which a Go client reads as 0.
            raise FloatingPointError("the model computed a prediction that is not finite")
        return predictions


def _finite(value: Any) -> bool:
    """Check that every number at any depth is finite."""
    if isinstance(value, list):
        return all(map(_finite, value))
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, float | np.generic | np.ndarray):
        return bool(np.isfinite(value).all())
    return True


def _max_unknown_share(config: Mapping[str, Any]) -> float:
    share = config.get("max_unknown_share", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ArchiveError(
            "model-config.yaml: handler: max_unknown_share: "
            f"expected a number from 0 to 1, got {share}"
        )
    return float(share)


def _device(configured: str, context: Context) -> torch.device:
    """Return the worker's GPU if ``cuda`` is configured and available, else the CPU."""
    if configured == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", context.system_properties.get("gpu_id") or 0)
    return CPU
