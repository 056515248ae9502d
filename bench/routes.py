"""The sidecar routes that `bench.serving` measures, each next to the two ways to do without it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from bench.measure import COMPARED, Case, Results, Service, Target
from serving.archive_file import SAMPLE_FILE
from serving.testing import Server
from sidecar.translate import ROUTES

MEASURED = ("/query_embedding", "/recall")
MIN_REQUESTS_PER_S = 1_500


def services(
    archives: Mapping[str, Path], server: Server, fastapi_url: str, scratch: Path
) -> dict[str, list[Service]]:
    """Return the services to compare for each route.

    These are the route itself, the model behind it called directly, and FastAPI with the model in
    its process.

    Args:
        archives: Archives by model.
        server: Instance that serves them.
        fastapi_url: Base URL of the FastAPI service.
        scratch: Folder for the request bodies.
    """
    measured = {}
    for route in MEASURED:
        model = ROUTES[route]
        with zipfile.ZipFile(archives[model]) as archive:
            [row] = json.loads(archive.read(SAMPLE_FILE))["data"]
        direct, translated = scratch / f"{model}-direct.json", scratch / f"{model}-translated.json"
        direct.write_text(json.dumps({"data": [row]}))
        translated.write_text(json.dumps(row))
        name = route[1:].partition("_")[0]
        measured[route] = [
            Service(f"{name} sidecar", server.sidecar_url + route, {1: translated}),
            Service(f"{name} direct", f"{server.inference_url}/predictions/{model}", {1: direct}),
            Service(f"{name} FastAPI", fastapi_url + route, {1: translated}),
        ]
    return measured


def targets(measured: Mapping[str, list[Service]], results: Results) -> list[Target]:
    """Return throughput and errors of each route with their bars, and the ratios without a bar."""
    found = []
    for route, (ours, *others) in measured.items():
        load = results[ours.name][Case(1, COMPARED)]
        found.append(Target(f"{route}: requests/s", load.requests_per_s, MIN_REQUESTS_PER_S))
        for other in others:
            compared = results[other.name][Case(1, COMPARED)]
            name = other.name.split()[1]
            ratio = load.requests_per_s / compared.requests_per_s
            found.append(Target(f"{route}: requests/s over {name}", ratio, None))
            ratio = load.latency_p99_ms / compared.latency_p99_ms
            found.append(Target(f"{route}: p99 over {name}", ratio, None))
        errors = sum(load.errors for load in results[ours.name].values())
        found.append(Target(f"{route}: errors", errors, 0, at_least=False))
    return found
