"""Tuning: which settings are measured, which one is chosen, and what becomes of the file."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from archive import catalog, package
from bench.services import DO_NOTHING_HANDLER as HANDLER
from handlers.signature import verify_archive
from scripts import tune
from scripts.tune import Point, Setting, TuneError
from serving.budget import JAVA_BYTES, Budget
from serving.load import Load, load
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
PRESENT = Setting(workers=2, batch_size=16, delay_ms=1, threads=1)
GB = 10**9


def point(
    requests_per_s: float, p99_ms: float, setting: Setting = PRESENT, errors: int = 0
) -> Point:
    return Point(setting, Load(requests_per_s, p99_ms / 2, p99_ms, errors), GB)


def climb(
    present: Setting, budget: Budget, speed: Callable[[Setting], float]
) -> dict[Setting, Point]:
    """Tune a model whose requests/s are a function of the setting."""
    points: dict[Setting, Point] = {}

    async def measure(setting: Setting) -> Point:
        return points.setdefault(setting, point(speed(setting), 5, setting))

    asyncio.run(tune.climb(present, budget, measure))
    return points


def test_climb_finds_the_best_setting_without_the_whole_grid() -> None:
    def speed(setting: Setting) -> float:
        parallel = setting.workers * (setting.threads or 1)
        return 1000 * parallel - 40 * abs(setting.batch_size - 64) - 20 * setting.delay_ms

    points = climb(PRESENT, Budget(8, 100 * GB), speed)
    best = max(points.values(), key=lambda p: p.load.requests_per_s)
    assert best.setting == Setting(workers=8, batch_size=64, delay_ms=1, threads=1)
    assert len(points) < 20


def test_climb_stays_within_cores_and_memory() -> None:
    budget = Budget(cores=8, memory_bytes=JAVA_BYTES + 3 * GB)
    points = climb(PRESENT, budget, lambda s: s.workers * (s.threads or 1))
    assert {setting.workers for setting in points} == {1, 2}
    assert max(setting.threads or 1 for setting in points) == 8
    assert all(s.workers * (s.threads or 1) <= 8 for s in points)


def test_present_setting_beyond_the_cores_is_measured_and_left() -> None:
    present = Setting(workers=8, batch_size=16, delay_ms=1, threads=2)
    points = list(climb(present, Budget(2, 100 * GB), lambda s: s.workers).values())
    assert points[0].setting == present
    assert tune.choose(points, cores=2).setting.workers == 2


def test_threads_stay_out_of_a_model_that_has_none() -> None:
    present = Setting(workers=1, batch_size=8, delay_ms=1, threads=None)
    points = climb(present, Budget(4, 100 * GB), lambda s: s.workers)
    assert {setting.threads for setting in points} == {None}


def test_pareto_front_has_those_that_no_other_beats() -> None:
    fast, quick, both_worse = point(100, 9), point(80, 3), point(79, 4)
    broken = point(200, 1, errors=5)
    assert tune.pareto_front([both_worse, quick, broken, fast]) == [fast, quick]


def test_choice_is_the_lowest_p99_of_about_the_most_requests() -> None:
    present, fastest = point(50, 9), point(100, 5)
    quicker, slow = point(97, 4), point(60, 1)
    assert tune.choose([present, fastest, quicker, slow], cores=2) is quicker


def test_present_setting_stays_when_the_gain_is_noise() -> None:
    present, other = point(98, 4.1), point(100, 4)
    assert tune.choose([present, other], cores=2) is present


def test_settings_with_errors_are_not_chosen() -> None:
    present = point(50, 9)
    assert tune.choose([present, point(100, 1, errors=1)], cores=2) is present
    with pytest.raises(TuneError, match="no setting answered every request"):
        tune.choose([point(100, 1, errors=1)], cores=2)


@pytest.mark.parametrize("model", catalog.model_names())
def test_every_model_s_file_can_be_edited_and_keeps_its_comments(model: str) -> None:
    text = catalog.get(model).config_path.read_text()
    present = Setting.read(text)
    assert present.write(text) == text
    threads = None if present.threads is None else 3
    changed = Setting(workers=7, batch_size=128, delay_ms=5, threads=threads).write(text)
    n_changed = sum(a != b for a, b in zip(text.splitlines(), changed.splitlines(), strict=True))
    assert n_changed == 4 + (threads is not None)
    assert present.write(changed) == text


def test_file_without_a_line_for_a_setting_is_refused() -> None:
    with pytest.raises(TuneError, match="expected 'batchSize'"):
        Setting.read("minWorkers: 1\nmaxWorkers: 1\nmaxBatchDelay: 1\n")
    with pytest.raises(TuneError, match="expected a line for each of minWorkers"):
        PRESENT.write("{minWorkers: 1, batchSize: 1, maxBatchDelay: 1}\n")


def test_figures_of_an_earlier_run_are_replaced() -> None:
    config = tune.Config(model="deepfm")
    present = point(50, 9, Setting.read(CONFIG))
    chosen = Setting(workers=2, batch_size=32, delay_ms=1, threads=None)
    text = tune.annotated(CONFIG, config, present, present)
    text = tune.annotated(text, config, present, point(1234.4, 2.346, chosen))
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
    verify_archive(tmp_path / "tuned" / "first.mar")


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
    monkeypatch.setattr(tune, "BATCH_SIZES", (8, 16))
    monkeypatch.setattr(tune, "DELAYS_MS", (1,))
    monkeypatch.setattr(tune, "WARM_UP_S", 1)
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
def test_mistake_is_told(
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
    assert "interrupted: archive/xgb/model-config.yaml is as it was" in output
    assert "Traceback" not in output
    assert list(temp.iterdir()) == []
