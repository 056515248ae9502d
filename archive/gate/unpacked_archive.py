"""An unpacked archive, which answers with its own code in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from archive.files import digest, scratch_folder
from archive.gate import isolated_worker
from handlers.errors import ArchiveError
from handlers.signature import Signature
from serving.archive_file import ArchiveFile
from training import artifacts
from training.evaluation import ArchiveOutput, Evaluation

REQUEST_ROWS = 1000


@dataclass(frozen=True)
class UnpackedArchive:
    """An unpacked archive whose hashes are right.

    Attributes:
        folder: Folder that it was unpacked to.
        signature: Its signature.
        meta: Its meta file.
        sha256: Hash of the archive.
    """

    folder: Path
    signature: Signature
    meta: dict[str, Any]
    sha256: str

    @classmethod
    def unpack(cls, mar: Path, folder: Path) -> UnpackedArchive:
        """Check and unpack an archive.

        Args:
            mar: The archive.
            folder: Folder to unpack to.

        Raises:
            ArchiveError: If the archive is damaged.
            ArtifactError: If it has no readable meta file.
        """
        signature = ArchiveFile.read(mar).signature
        with zipfile.ZipFile(mar) as packed:
            packed.extractall(folder)
        return cls(folder, signature, artifacts.read_meta(folder), digest(mar))

    @property
    def version(self) -> str:
        """Version of the model."""
        return self.signature.model_version

    def predict(
        self, evaluation: Evaluation, row_lists: Sequence[Sequence[Any]]
    ) -> list[ArchiveOutput]:
        """Run the archive's own code, in a process that sees only its folder.

        Args:
            evaluation: The test split; its items are embedded too.
            row_lists: Lists of request rows.

        Returns:
            The output for each list.

        Raises:
            ArchiveError: If the archive cannot be loaded, or fails on a row.
        """
        items = evaluation.items()
        with scratch_folder("gate") as work:
            with (work / isolated_worker.REQUESTS_FILE).open("wb") as file:
                for rows in row_lists:
                    for start in range(0, len(rows), REQUEST_ROWS):
                        body = {"data": rows[start : start + REQUEST_ROWS]}
                        file.write(orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE))
            (work / isolated_worker.ITEMS_FILE).write_bytes(orjson.dumps(items))
            config = json.dumps(dict(evaluation.handler_config))
            (work / isolated_worker.CONFIG_FILE).write_text(config)
            self._run_worker(work)
            vectors = np.empty((0, 0), np.float32)
            if items:
                vectors = np.load(work / isolated_worker.VECTORS_FILE)
            with (work / isolated_worker.RESPONSES_FILE).open("rb") as file:
                return [
                    ArchiveOutput(list(_predictions(file, len(rows))), vectors, self.meta)
                    for rows in row_lists
                ]

    def _run_worker(self, work: Path) -> None:
        """Run the isolated worker over the files of a folder."""
        # -I: neither this folder nor the environment adds to what the archive can import.
        command = [sys.executable, "-I", isolated_worker.__file__, str(self.folder), str(work)]
        run = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            last_line = run.stderr.strip().rpartition("\n")[2]
            raise ArchiveError(
                f"{self.signature.model_name} {self.version}: its handler failed: {last_line}"
            )


def _predictions(responses: Iterator[bytes], n_rows: int) -> Iterator[Any]:
    """Yield the predictions for the next ``n_rows`` rows."""
    for start in range(0, n_rows, REQUEST_ROWS):
        predictions = orjson.loads(next(responses))["predictions"]
        # The answer to a single row may be a flat vector.
        is_flat = n_rows - start == 1 and len(predictions) != 1
        yield from [predictions] if is_flat else predictions
