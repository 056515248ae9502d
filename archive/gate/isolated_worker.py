"""Let an unpacked archive answer, in a process that sees nothing but its folder.

``python -I isolated_worker.py <archive> <work>`` reads ``requests.jsonl``, ``items.json`` and
``config.json`` in the work folder and writes ``answers.jsonl`` and ``item_vectors.npy``. It loads
the handler as a worker of TorchServe does, so hashes and golden rows are checked first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def load(archive: Path) -> Any:
    """The archive's handler."""
    # As a worker does it: the archive's own code comes first.
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
    """Answer what is in the work folder."""
    handler = load(archive)
    if config := json.loads((work / "config.json").read_text()):
        handler.load(archive, {**handler.config, **config})
    with (work / "requests.jsonl").open("rb") as requests, (work / "answers.jsonl").open("wb") as f:
        for request in requests:
            [(status, body)], _ = handler.answer([request])
            if status != 200:
                raise RuntimeError(body.decode())
            f.write(body + b"\n")
    items = json.loads((work / "items.json").read_text())
    if items:
        import numpy as np

        np.save(work / "item_vectors.npy", handler.embed_items(items, archive))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
