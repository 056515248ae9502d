"""Tuning: requests, real measurements and what is written to the file."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from archive import catalog, package
from bench.services import DO_NOTHING_HANDLER as HANDLER
from scripts import tune
from serving import settings_search, trial
from serving.archive_file import ArchiveFile
from serving.budget import Budget
from serving.load import Load, load
from serving.settings_search import Measurement, Setting
from serving.testing import ROOT, make_archive
from tests.conftest import lacking

REFUSING_HANDLER = HANDLER.replace(
    "return", "context.set_response_status(200 + 200 * (b'bad' in data[0]['body'])); return"
)
CONFIG = """\
# As many as there are cores.
minWorkers: 1
maxWorkers: 1   # the same
batchSize: 8
# 0 would mean 100.
maxBatchDelay: 1
handler:
  max_rows: 100
"""
GOLDEN = json.dumps({"rows": [{"item_ctr": 0.1}], "predictions": [0.5]})
GB = 10**9


def test_figures_of_an_earlier_run_are_replaced() -> None:
    config = tune.Config(model="deepfm")
    present = Measurement(Setting.read(CONFIG), Load(50, 4.5, 9, 0), GB)
    chosen = Setting(workers=2, batch_size=32, delay_ms=1, threads=None)
    text = tune.annotated(CONFIG, config, present, present)
    better = Measurement(chosen, Load(1234.4, 1.2, 2.346, 0), GB)
    text = tune.annotated(text, config, present, better)
    notes = [line for line in text.splitlines() if line.startswith(tune.NOTE)]
    assert "1,234 requests/s, p99 2.35 ms" in notes[1]
    assert "# tuned from workers 1" in notes[2]
    assert len(notes) == 3
    assert Setting.read(text) == chosen
    assert "# As many as there are cores." in text


def test_archive_with_other_settings_passes_its_checks(tmp_path: Path) -> None:
    mar = make_archive(tmp_path, "first", HANDLER, config=CONFIG)
    (tmp_path / "tuned").mkdir()
    package.with_config(mar, CONFIG.replace("8", "9"), tmp_path / "tuned" / "first.mar")
    ArchiveFile.read(tmp_path / "tuned" / "first.mar")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a catalog whose only model is ``first``, its archive in ``store``."""
    root = tmp_path / "root"
    (root / "archive" / "first").mkdir(parents=True)
    (root / "archive" / "first" / catalog.CONFIG_FILE).write_text(CONFIG)
    monkeypatch.setattr(catalog, "ROOT", root)
    (root / "store").mkdir()
    make_archive(root / "store", "first", HANDLER, config=CONFIG, golden=GOLDEN)
    return root


def test_sweep_measures_on_torchserve_and_writes_the_choice(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(settings_search, "BATCH_SIZES", (8, 16))
    monkeypatch.setattr(settings_search, "DELAYS_MS", (1,))
    monkeypatch.setattr(trial, "WARM_UP_S", 1)
    monkeypatch.setattr(Budget, "read", lambda: Budget(1, 100 * GB))
    assert tune.main(["--model", "first", "--store", f"{model}/store", "--seconds", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("1 x 1") == 2
    assert max(map(len, out.splitlines())) <= 80
    text = (model / "archive" / "first" / catalog.CONFIG_FILE).read_text()
    assert text.startswith(tune.NOTE)
    assert text.endswith("  max_rows: 100\n")
    assert Setting.read(text).batch_size in (8, 16)


def test_request_that_the_model_refuses_is_named(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_archive(model / "store", "first", REFUSING_HANDLER, config=CONFIG, golden=GOLDEN)
    requests = model / "mine.jsonl"
    requests.write_text('{"data": [1]}\n{"data": "bad"}\n')
    flags = ["--requests", str(requests), "--store", f"{model}/store"]
    assert tune.main(["--model", "first", *flags]) == 1
    assert f"error: {requests}:2: 400" in capsys.readouterr().err
    assert (model / "archive" / "first" / catalog.CONFIG_FILE).read_text() == CONFIG


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--model", "frist"], "no model 'frist'; there are first"),
        (["--model", "first", "--rows", "0"], "--rows 0: expected 1 or more"),
        (["--model", "first", "--store", "nowhere"], "nowhere/first.mar: not a readable archive"),
        (["--model", "first", "--requests", "nothing.jsonl"], "nothing.jsonl: No such file"),
    ],
)
def test_a_mistake_is_reported(
    model: Path, capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str
) -> None:
    assert tune.main(["--store", f"{model}/store", *flags]) == 1
    assert complaint in capsys.readouterr().err


def test_lines_of_a_mix_are_sent_in_turn(tmp_path: Path) -> None:
    if shutil.which("wrk") is None:
        lacking("wrk is not installed")
    came: Counter[bytes] = Counter()

    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            came[self.rfile.read(int(self.headers["Content-Length"]))] += 1
            self.send_response_only(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    lines = [b'{"data": [1]}', b'{"data": [22]}', b'{"data": [3, 3]}']
    (tmp_path / "mix.jsonl").write_bytes(b"\n".join(lines))
    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        load(f"http://127.0.0.1:{server.server_port}", tmp_path / "mix.jsonl", 1, 1)
        server.shutdown()
        thread.join()
    assert came.keys() == set(lines)
    assert max(came.values()) - min(came.values()) <= 1


def test_interrupted_sweep_leaves_nothing(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "archive" / "xgb", tmp_path / "xgb")
    store, temp = tmp_path / "store", tmp_path / "t"
    store.mkdir()
    temp.mkdir()
    make_archive(store, "xgb", HANDLER, config=CONFIG, golden=GOLDEN)
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.tune", "--model", "xgb", "--store", str(store)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(temp)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list(temp.glob("recmar-tune-*/logs/*.log")):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted: archive/xgb/model-config.yaml is unchanged" in output
    assert "Traceback" not in output
    assert list(temp.iterdir()) == []
