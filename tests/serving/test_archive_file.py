"""Archives, read without their code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handlers.errors import ArchiveError
from serving.archive_file import ArchiveFile
from serving.testing import make_archive

HANDLER = "raise AssertionError('the code must not run')"


def test_contents_are_read_without_the_code(tmp_path: Path) -> None:
    golden = json.dumps({"rows": [{"x": 1}, {"x": 2}], "predictions": [0.1, 0.2]})
    mar = make_archive(tmp_path, "first", HANDLER, version="2", golden=golden)
    archive = ArchiveFile.read(mar)
    assert (archive.name, archive.version) == ("first", "2")
    assert archive.config["batchSize"] == 8
    assert json.loads(archive.sample_request) == {"data": [{"item_ctr": 0.1}]}
    assert archive.golden.predictions == [0.1, 0.2]
    assert archive.golden.requests[1:] == [b'{"data":[{"x":1}]}', b'{"data":[{"x":2}]}']


def test_missing_golden_rows_are_an_error_only_where_they_are_needed(tmp_path: Path) -> None:
    archive = ArchiveFile.read(make_archive(tmp_path, "first", HANDLER))
    with pytest.raises(ArchiveError, match=r"golden\.json is missing; run: make archive"):
        _ = archive.golden


def test_altered_archive_is_not_read(tmp_path: Path) -> None:
    mar = make_archive(tmp_path, "first", HANDLER)
    mar.write_bytes(mar.read_bytes().replace(b"0.1", b"0.2"))
    with pytest.raises(ArchiveError, match=r"first\.mar"):
        ArchiveFile.read(mar)
