"""Full disks, and the scratch folders of processes that were killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from archive.files import replacing, scratch_folder
from handlers.errors import UserError

HOLD = """
import time
from archive.files import scratch_folder
with scratch_folder("test") as folder:
    (folder / "some").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TMPDIR of our own, with a folder of another program in it."""
    folder = tmp_path / "scratch"
    (folder / "recmar-scratches").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_folder_goes_with_its_block_and_stays_while_its_process_lives(scratch: Path) -> None:
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        held = Path(holder.stdout.readline().strip())
        try:
            with scratch_folder("test") as folder:
                assert folder.parent == held.parent == scratch
                assert [*folder.iterdir()] == []
                assert (held / "some").exists()
            assert not folder.exists()
        finally:
            holder.send_signal(signal.SIGKILL)
    assert held.exists()
    with scratch_folder("other"):
        assert not held.exists()
    assert [path.name for path in scratch.iterdir()] == ["recmar-scratches"]


def test_what_is_not_a_folder_of_ours_stays(scratch: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (scratch / "recmar-scratch-link").symlink_to(tmp_path / "elsewhere")
    (scratch / "recmar-scratch-file").touch()
    with scratch_folder("test"):
        pass
    assert (scratch / "recmar-scratch-link").is_dir()
    assert (scratch / "recmar-scratch-file").exists()


def test_full_disk_is_named_and_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "registry.json"
    target.write_text("before")
    (tmp_path / ".registry.json.part").symlink_to("/dev/full")
    advice = f"free some in {tmp_path}"
    with (
        pytest.raises(UserError, match=rf"^{target}: the disk is full; {advice}"),
        replacing(target) as part,
    ):
        part.write_bytes(b"after")
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_full_temporary_folder_is_named(scratch: Path) -> None:
    message = rf"^{scratch}: the disk is full; .* another TMPDIR, and"
    with pytest.raises(UserError, match=message), scratch_folder("test"):
        Path("/dev/full").write_bytes(b"some")
