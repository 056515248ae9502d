"""Run an unpacked archive's handler, in a process that sees nothing but the archive's folder.

``python -I isolated_worker.py <archive> <work>`` reads requests, items and settings from the folder
``work`` and writes responses and item vectors there. It loads the handler as a TorchServe worker
does, so hashes and golden rows are checked first.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
REQUESTS_FILE = "requests.jsonl"
RESPONSES_FILE = "responses.jsonl"
ITEMS_FILE = "items.json"
VECTORS_FILE = "item_vectors.npy"
CONFIG_FILE = "config.json"


def load(archive: Path) -> Any:
    """Return the archive's handler."""
    # The archive's own code comes first, as in a TorchServe worker.
    sys.path.insert(0, str(archive))
    import ts
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    from ts.model_loader import TsModelLoader

    metrics = MetricsCacheYamlImpl(Path(ts.__file__).with_name("configs") / "metrics.yaml")
    metrics.initialize_cache()
    manifest = json.loads((archive / "MAR-INF" / "MANIFEST.json").read_text())
    handler_file = manifest["model"]["handler"]
    service = TsModelLoader().load(
        "model", str(archive), handler_file, None, 1, metrics_cache=metrics
    )
    return service._entry_point.__self__


def main(archive: Path, work: Path) -> None:
    """Answer the requests and embed the items of the work folder."""
    # Not longer than the gate, whose folders its next run removes.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    handler = load(archive)
    if config := json.loads((work / CONFIG_FILE).read_text()):
        handler.load(archive, {**handler.config, **config})
    with (work / REQUESTS_FILE).open("rb") as requests, (work / RESPONSES_FILE).open("wb") as file:
        for request in requests:
            [(status, body)], _ = handler.answer([request])
            if status != 200:
                raise RuntimeError(body.decode())
            file.write(body + b"\n")
    items = json.loads((work / ITEMS_FILE).read_text())
    if items:
        import numpy as np

        np.save(work / VECTORS_FILE, handler.embed_items(items, archive))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
