"""The handler that every model's handler extends; the only place that knows TorchServe.

A request's way: bytes -> rows -> one prediction for the rows of the whole batch -> each request's
share of it -> bytes. A request that cannot be decoded gets its own 400 and leaves the
batch; the others do not notice.
"""

from __future__ import annotations

import json
import logging
import sys
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
from handlers.decoding import RequestDecoder
from handlers.errors import ArchiveError, RequestError
from handlers.schema import SCHEMA_VERSION, FeatureCounts
from handlers.signature import GOLDEN_FILE, first_difference, verify_folder
from handlers.telemetry import Telemetry

logger = logging.getLogger(__name__)

DEFAULT_MAX_ROWS = 10_000
# Rows scored at once: bounds a worker's memory whatever comes, and stays within the CPU's cache.
CHUNK_ROWS = 4096

OK = 200
CPU = torch.device("cpu")

Vectors = npt.NDArray[np.float32]
Predictions = Vectors | list[Any]
Answer = tuple[int, bytes]  # status and JSON body
Failed = Callable[[int, Exception], None]  # told the request's place in the batch

REQUEST_ID = "x-request-id"


def _log_failed(_: int, error: Exception) -> None:
    logger.error("scoring failed", exc_info=error)


class RecHandler(BaseHandler):  # type: ignore[misc]
    """Serves one model from its unpacked archive.

    A subclass names its meta file and the architecture version that it understands, says what a
    row is, loads its model and predicts. Models whose rows are features extend
    :class:`handlers.feature_rows.FeatureRowsHandler`, where a row is known already.

    Attributes:
        meta: The meta file.
        config: The section ``handler`` of ``model-config.yaml``.
        device: Where networks run.
        feature_names: What the counts are kept for, in order.
        counts: Missing, out of range and out of vocabulary, by feature.
    """

    meta_file: ClassVar[str]
    arch_version: ClassVar[int]
    # Whether the answer to a single row is its prediction alone, not a list of one.
    flat_single: ClassVar[bool] = False

    meta: dict[str, Any]
    config: Mapping[str, Any]
    device: torch.device
    feature_names: tuple[str, ...]
    counts: FeatureCounts

    # What a model brings

    @abstractmethod
    def load_model(self, model_dir: Path) -> None:
        """Set ``feature_names`` and load the model; meta, config and device are set."""

    @abstractmethod
    def row_type(self, forbid_unknown: bool) -> Any:
        """The msgspec type of a row, its structs with or without ``forbid_unknown_fields``."""

    @abstractmethod
    def predict(self, rows: list[Any]) -> Predictions:
        """Predict for rows of :meth:`row_type`, at most 4,096 of them.

        Returns:
            One prediction a row: float32 [B] or [B, ...], or a list of B values that JSON can hold;
            numbers are finite.
        """

    def encode(self, predictions: Predictions) -> bytes:
        """The JSON of one request's ``predictions``."""
        answer = predictions[0] if self.flat_single and len(predictions) == 1 else predictions
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    def embed_items(self, items: list[Any], model_dir: Path) -> Vectors:
        """What this model's answers are compared with, for models that answer with vectors.

        No request comes here: an index holds these vectors. The gate asks for them, to measure an
        archive by itself.

        Args:
            items: Features of items, or where the model has a table of items their ids, N.
            model_dir: The unpacked archive, for what serving does not keep in memory.

        Returns:
            float32 [N, D]; NaN for an item that the model does not know.
        """
        raise NotImplementedError

    @property
    def known_keys(self) -> Iterable[str]:
        """Every key that a row may have, at any depth."""
        return self.feature_names

    def describe_features(self) -> list[dict[str, Any]]:
        """What ``signature.json`` says of the inputs."""
        return [{"name": name} for name in self.feature_names]

    # What TorchServe calls

    def initialize(self, context: Context) -> None:
        """Load the archive and prove that it computes what training computed.

        Raises:
            ArchiveError: If a file was altered, the architecture is unknown, or a golden row's
                prediction is off by more than 1e-5.
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
        # The worker logs several lines a batch at INFO, each of which Java reads and parses.
        logging.getLogger().setLevel(logging.WARNING)
        # Ours only: Java parses the metrics' lines.
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logs.formatter())
        ours = logging.getLogger(__package__)
        ours.addHandler(handler)
        ours.propagate = False

    def handle(self, data: list[dict[str, Any]], context: Context) -> list[Any]:
        """Answer a batch of requests, one answer each, in order."""
        start = time.perf_counter()
        bodies = [row.get("body") for row in data]
        # GET /models/<name>?customized=true; looked for only where there is no body, since any
        # caller may send a header of that name.
        if bodies == [None] and context.get_request_header(0, "describe") == "True":
            return [orjson.dumps(self.signature.to_json())]

        def failed(i: int, error: Exception) -> None:
            headers = context.get_all_request_header(i)
            self._log_failure(error, headers, (time.perf_counter() - start) * 1e3)

        answers, n_rows = self.answer(bodies, failed)
        statuses: Counter[int] = Counter()
        for i, (status, _) in enumerate(answers):
            context.set_response_content_type(i, "application/json")
            if status != OK:
                context.set_response_status(status, HTTPStatus(status).phrase, i)
            statuses[status] += 1
        self.telemetry.observe((time.perf_counter() - start) * 1e3, n_rows, statuses)
        return [body for _, body in answers]

    def _log_failure(self, error: Exception, headers: Mapping[str, str], latency_ms: float) -> None:
        # TorchServe keeps the case in which the caller wrote them.
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

    # Without TorchServe: what tests and training may call

    def load(
        self,
        model_dir: Path,
        config: Mapping[str, Any] = MappingProxyType({}),
        device: torch.device = CPU,
    ) -> None:
        """Load an unpacked archive or an artifact folder.

        Args:
            model_dir: The folder.
            config: The section ``handler`` of ``model-config.yaml``.
            device: Where networks run.

        Raises:
            ArchiveError: If the meta file is of a version that this handler does not know.
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
        )

    def replay_golden_rows(self, path: Path) -> None:
        """Compare this handler's predictions with the ones that training computed.

        It also warms the handler up: the rows pass together, then one by one.

        Raises:
            ArchiveError: Naming the first row that is off.
        """
        golden = json.loads(path.read_text())
        rows, expected = golden["rows"], golden["predictions"]
        for start, stop in [(0, len(rows)), *((i, i + 1) for i in range(len(rows)))]:
            [(_, body)], _ = self.answer([orjson.dumps({"data": rows[start:stop]})])
            answer = orjson.loads(body)
            if "predictions" not in answer:
                raise ArchiveError(f"{GOLDEN_FILE}: rows {start}..{stop - 1}: {answer['message']}")
            predictions = answer["predictions"]
            if self.flat_single and stop - start == 1:
                predictions = [predictions]
            difference = first_difference(rows[start:stop], expected[start:stop], predictions)
            if difference is not None:
                raise ArchiveError(difference)
        # A replay is not traffic.
        self.counts = FeatureCounts.zeros(len(self.feature_names))
        self.decoder.unknown.clear()

    def answer(self, bodies: list[Any], failed: Failed = _log_failed) -> tuple[list[Answer], int]:
        """Answer a batch of request bodies.

        Args:
            bodies: As they came, bytes; None for a request whose body did not reach us.
            failed: Is told of a request that the model failed on; the log by default.

        Returns:
            A status and a JSON body for each request, and the number of rows scored.
        """
        answers: list[Answer] = [(OK, b"")] * len(bodies)
        requests: dict[int, list[Any]] = {}
        for i, body in enumerate(bodies):
            try:
                requests[i] = self.decoder.decode(_as_bytes(body))
            except RequestError as error:
                answers[i] = error.status, error.to_json()
        scored, n_rows = self._score(requests, failed) if requests else ([], 0)
        for i, answer in zip(requests, scored, strict=True):
            answers[i] = answer
        return answers, n_rows

    def _score(self, requests: dict[int, list[Any]], failed: Failed) -> tuple[list[Answer], int]:
        """Answer requests that are rows; what fails is neither scored nor counted."""
        counted = self.counts.copy()
        rows = list(chain.from_iterable(requests.values()))
        answers: list[Answer] = []
        start = 0
        try:
            predictions = self._predict(rows)
            for request in requests.values():
                share = predictions[start : start + len(request)]
                answers.append((OK, b'{"predictions":%b}' % self.encode(share)))
                start += len(request)
        except Exception as error:
            self.counts.restore(counted)
            if len(requests) > 1:  # One request must not take its batch-mates down.
                alone = [self._score({i: request}, failed) for i, request in requests.items()]
                return [answer for [answer], _ in alone], sum(n for _, n in alone)
            failed(next(iter(requests)), error)
            failure = RequestError(500, f"scoring failed: {type(error).__name__}; see the log")
            return [(failure.status, failure.to_json())], 0
        return answers, len(rows)

    def _predict(self, rows: list[Any]) -> Predictions:
        chunks = [
            self.predict(rows[start : start + CHUNK_ROWS])
            for start in range(0, len(rows), CHUNK_ROWS)
        ]
        predictions: Predictions
        if len(chunks) == 1:
            [predictions] = chunks
        elif isinstance(chunks[0], list):
            predictions = list(chain.from_iterable(chunks))
        else:
            predictions = np.concatenate(chunks)
        if not _finite(predictions):
            # JSON has no NaN; orjson would write null, which Go reads as 0.
            raise FloatingPointError("the model computed a prediction that is not finite")
        return predictions


def _finite(value: Any) -> bool:
    """Whether every number at any depth is finite."""
    if isinstance(value, list):
        return all(map(_finite, value))
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, float | np.generic | np.ndarray):
        return bool(np.isfinite(value).all())
    return True


def _as_bytes(body: Any) -> bytes | bytearray:
    if isinstance(body, bytes | bytearray):
        return body
    if body is None:
        raise RequestError(
            400, "body: expected JSON, got a form; send Content-Type: application/json"
        )
    # A TorchServe that runs without our decode_input_request=false has parsed it already.
    return orjson.dumps(body)


def _device(wanted: str, context: Context) -> torch.device:
    """``cuda`` in the config means: where there is one."""
    if wanted == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", context.system_properties.get("gpu_id") or 0)
    return CPU
