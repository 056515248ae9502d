"""scripts.serve with real TorchServe and trivial handlers."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import requests

from serving import run_folder, testing
from serving import server as torchserve
from serving.process import ManagedProcess
from serving.settings import ServeError, Settings
from serving.sidecar_process import MAX_RESTARTS
from serving.testing import Server, make_archive, running_server, wait_until

GONE_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 5.0  # of a management call
PR_SET_CHILD_SUBREAPER = 36

HANDLER = """
import logging

class Handler:
    def initialize(self, context):
        logging.getLogger().setLevel(logging.WARNING)

    def handle(self, data, context):
        return [b'{"predictions":[0.5]}' for _ in data]
"""
SLOW_HANDLER = HANDLER.replace("return", "__import__('time').sleep(0.7); return")
SLOW_LOADING_HANDLER = HANDLER.replace("logging.get", "__import__('time').sleep(4); logging.get")
REFUSING_HANDLER = """
class Handler:
    def initialize(self, context):
        raise {error}("refusing_model.pt: expected 7 features, got 6")

    def handle(self, data, context):
        return data
"""
CRASHING_HANDLER = REFUSING_HANDLER.replace("raise {error}", "import os; os._exit").replace(
    '"refusing_model.pt: expected 7 features, got 6"', "3"
)


@pytest.fixture(scope="module")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model-store")
    make_archive(folder, "first", HANDLER)
    make_archive(folder, "second", HANDLER, version="2.0")
    return folder


@pytest.fixture(scope="module")
def server(model_store: Path) -> Iterator[Server]:
    with running_server(model_store) as running:
        yield running


def run(env: dict[str, str], *command: str) -> tuple[int, str, str]:
    """Run scripts.serve until it exits; return its exit code, stdout and stderr."""
    process = testing.start(env, *command)
    stdout, stderr = process.communicate(timeout=90)
    return process.returncode, stdout, stderr


def failed_start(model_store: Path, **env: str) -> str:
    """Start a server that must fail; return its messages."""
    with testing.instance_env(model_store, **env) as environment:
        code, stdout, stderr = run(environment)
        assert code == 1, stderr
        assert stdout == ""
        assert leftovers(Path(environment["TMPDIR"])) == []
        assert "Traceback" not in stderr or "refusing_handler.py" in stderr
        return stderr


def leftovers(temp_folder: Path) -> list[str]:
    """List what is left of a server: files other than its logs, and processes."""
    files = [str(path) for path in temp_folder.iterdir() if path.name != "logs"]
    return files + [" ".join(process.cmdline()) for process in processes(temp_folder)]


def processes(temp_folder: Path) -> list[psutil.Process]:
    """Return the Java, worker and sidecar processes of the servers with this TMPDIR."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # of another user, or gone
            if process.environ().get("TMPDIR", "").startswith(f"{temp_folder}/recmar-"):
                found.append(process)
    return found


def predict(url: str, **headers: str) -> requests.Response:
    return requests.post(url, json={"data": [{}]}, headers=headers, timeout=10)


def test_ready_server_prints_its_models_and_a_request_that_works(server: Server) -> None:
    lines = server.output.splitlines()
    assert lines[0].split() == ["model", "version", "workers", server.inference_url]
    assert lines[1].split() == ["first", "1.0", "1/1", "READY", "/predictions/first"]
    assert lines[2].split() == ["second", "2.0", "1/1", "READY", "/predictions/second"]
    assert lines[3].split() == ["sidecar", server.sidecar_url]
    assert requests.get(f"{server.sidecar_url}/ping", timeout=10).ok
    assert max(map(len, lines)) <= 80

    assert server.process.stdout is not None
    curl = server.process.stdout.readline()
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, check=True).stdout
    assert json.loads(answer) == {"predictions": [0.5]}


def test_everything_listens_on_the_loopback_only(server: Server) -> None:
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes(server.temp_folder)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"] * 6


def test_run_folder_is_private(server: Server) -> None:
    assert stat.S_IMODE(server.run_folder.stat().st_mode) == 0o700


def test_archives_are_registered_from_the_model_store_only(server: Server) -> None:
    for url in ("http://127.0.0.1:9/x.mar", f"file://{server.env['MODEL_STORE']}/first.mar"):
        answer = requests.post(f"{server.management_url}/models", params={"url": url}, timeout=10)
        assert answer.status_code == 404
        assert "does not match any allowed URL" in answer.text


def test_status_lists_versions_and_fails_while_one_is_not_ready(
    server: Server, model_store: Path, tmp_path: Path
) -> None:
    loading = HANDLER.replace("logging.getLogger()", "__import__('time').sleep(60)\n" + " " * 8)
    for version, handler in (("2.0", HANDLER), ("3.0", loading)):
        archive = make_archive(tmp_path, "first", handler, version=version)
        archive = archive.rename(model_store / f"first-{version}.mar")
        requests.post(
            f"{server.management_url}/models",
            params={"url": archive.name, "model_name": "first", "initial_workers": "1"}
            | {"synchronous": str(version == "2.0").lower()},
            timeout=30,
        ).raise_for_status()
        code, stdout, _ = run(server.env, "status")
        assert code == (0 if version == "2.0" else 1)

    assert [line.split()[1:] for line in stdout.splitlines()[1:]] == [
        ["1.0", "1/1", "READY", "/predictions/first"],
        ["2.0", "1/1", "READY", "/predictions/first/2.0"],
        ["3.0", "0/1", "READY", "/predictions/first/3.0"],
        ["2.0", "1/1", "READY", "/predictions/second"],
        [server.sidecar_url],
    ]


def test_second_start_on_the_same_port_names_the_running_instance(server: Server) -> None:
    code, _, stderr = run(server.env)
    assert code == 1
    assert f"an instance is running (pid {server.process.pid})" in stderr
    assert predict(f"{server.inference_url}/predictions/first").ok


def test_two_instances_run_side_by_side_and_stop_apart(server: Server, tmp_path: Path) -> None:
    make_archive(tmp_path, "third", HANDLER)
    with running_server(tmp_path, TMPDIR=server.env["TMPDIR"]) as other:
        assert predict(f"{other.inference_url}/predictions/third").ok
        assert predict(f"{server.inference_url}/predictions/third").status_code == 404

        code, _, stderr = run(other.env, "stop")
        assert code == 0
        assert f"pid {other.process.pid}" in stderr
        assert other.process.wait(timeout=5) == 0
        assert not other.run_folder.exists()
    assert predict(f"{server.inference_url}/predictions/first").ok


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_requests_in_flight_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    make_archive(tmp_path, "slow", SLOW_HANDLER)
    with running_server(tmp_path) as server:
        answers: list[int] = []
        url = f"{server.inference_url}/predictions/slow"
        callers = [
            threading.Thread(target=lambda: answers.append(predict(url).status_code))
            for _ in range(3)
        ]
        for caller in callers:
            caller.start()
        time.sleep(0.3)
        os.killpg(server.process.pid, number)  # the whole group, as a terminal does
        for caller in callers:
            caller.join()
        assert server.process.wait(timeout=30) == 0
        assert answers == [200, 200, 200]
        assert leftovers(server.temp_folder) == []


def test_signal_during_start_leaves_nothing(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER)
    with testing.instance_env(tmp_path) as env:
        process = testing.start(env)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("starting TorchServe")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert leftovers(Path(env["TMPDIR"])) == []
        process.communicate()


def test_zombie_workers_do_not_delay_the_end_of_the_server(tmp_path: Path) -> None:
    """Process 1 of a container inherits the workers of the Java that it killed."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        script = "sleep 60 & echo $!; wait"
        log = tmp_path / "log"
        java = ManagedProcess.start("Java", ["sh", "-c", script], log, cwd=tmp_path, env=os.environ)
        while not (pid := log.read_text()).endswith("\n"):
            time.sleep(0.01)
        worker, started = psutil.Process(int(pid)), time.monotonic()
        torchserve.terminate(java)
        assert worker.status() == psutil.STATUS_ZOMBIE
        assert time.monotonic() - started < torchserve.TERMINATE_TIMEOUT_S
        os.waitpid(worker.pid, 0)
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


def test_killed_server_leaves_no_processes_and_its_folder_is_reused(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER)
    with running_server(tmp_path) as server:
        stale = processes(server.temp_folder)
        assert len(stale) == 3  # Java, a worker and the sidecar
        server.process.kill()
        assert psutil.wait_procs(stale, timeout=GONE_TIMEOUT_S)[1] == []
        assert (server.run_folder / "pid").exists()
        assert run(server.env, "status")[0] == 1
        assert run(server.env, "stop")[0] == 0

        with running_server(tmp_path, **server.env) as again:
            assert predict(f"{again.inference_url}/predictions/first").ok
        assert leftovers(server.temp_folder) == []


def child(server: Server, name: str) -> psutil.Process:
    """Return the process of TorchServe (java) or of the sidecar (python)."""
    children = psutil.Process(server.process.pid).children()
    [found] = [child for child in children if child.name().startswith(name)]
    return found


def test_server_fails_when_torchserve_ends(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER)
    with running_server(tmp_path) as server:
        child(server, "java").kill()
        assert server.process.wait(timeout=30) == 1
        assert server.process.stderr is not None
        assert "error: TorchServe ended with exit code -9" in server.process.stderr.read()
        assert leftovers(server.temp_folder) == []


def test_a_killed_sidecar_is_started_again_but_not_for_ever(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER)
    with running_server(tmp_path) as server:

        def kill_sidecar() -> None:
            child(server, "python").kill()

        def answers() -> bool:
            with suppress(requests.ConnectionError):
                return requests.get(f"{server.sidecar_url}/ping", timeout=10).status_code == 200
            return False

        kill_sidecar()
        url = f"{server.inference_url}/predictions/first"
        with requests.Session() as session:
            wait_until(lambda: session.post(url, json={}, timeout=10).ok and answers(), 30)
            for _ in range(MAX_RESTARTS):
                old = child(server, "python").pid
                kill_sidecar()
                wait_until(partial(ended_or_new, server, old), 30)
        assert server.process.wait(timeout=30) == 1
        assert server.process.stderr is not None
        messages = server.process.stderr.read()
        assert messages.count("starting it again") == MAX_RESTARTS
        assert "error: the sidecar ended with exit code -9" in messages
        assert leftovers(server.temp_folder) == []


def ended_or_new(server: Server, old: int) -> bool:
    """Whether the server has ended, or its sidecar is another process than before."""
    if server.process.poll() is not None:
        return True
    with suppress(psutil.Error, ValueError):
        return child(server, "python").pid != old
    return False


def test_a_stopped_worker_is_not_ready(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER)
    with running_server(tmp_path) as server:

        def health() -> requests.Response:
            return requests.get(f"{server.sidecar_url}/health", timeout=10)

        java = child(server, "java")
        [worker] = [each for each in java.children(recursive=True) if "python" in each.name()]
        worker.suspend()
        wait_until(lambda: health().status_code == 503, 30)
        assert f"(pid {worker.pid}) is stopped" in health().json()["detail"]
        metrics = requests.get(f"{server.sidecar_url}/metrics", timeout=10).text
        assert 'sidecar_model_unresponsive_workers{model="first",version="1.0"} 1.0' in metrics
        status = testing.start(server.env, "status")
        assert f"(pid {worker.pid}) is stopped" in status.communicate(timeout=60)[1]
        assert status.returncode == 1
        worker.resume()
        wait_until(lambda: health().status_code == 200, 30)


def test_a_start_waits_for_calls_that_take_longer_than_the_timeout(tmp_path: Path) -> None:
    """A machine under full load, made certain: Java stops for longer than a call may take."""
    make_archive(tmp_path, "first", SLOW_LOADING_HANDLER)
    with testing.instance_env(tmp_path) as env:
        process = testing.start(env)
        try:
            started = psutil.Process(process.pid)
            wait_until(lambda: "java" in [each.name() for each in started.children()], 30)
            [java] = [each for each in started.children() if each.name() == "java"]
            wait_until(lambda: any("python" in each.name() for each in java.children()), 60)
            java.suspend()
            time.sleep(CALL_TIMEOUT_S + 1)
            java.resume()
            assert process.stdout is not None
            assert "first" in process.stdout.readline() + process.stdout.readline()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def test_log_is_rotated_before_it_fills_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.process.MAX_LOG_BYTES", 10)
    log, gate = tmp_path / "part.log", tmp_path / "gate"
    os.mkfifo(gate)
    command = ["sh", "-c", "echo a long first line; read -r _ < gate; echo second"]
    part = ManagedProcess.start("a part", command, log, cwd=tmp_path, env=os.environ)
    try:
        with gate.open("w"):  # the process has reached the gate
            part.check()
            assert log.read_text() == ""
        part.process.wait(timeout=10)
    finally:
        part.process.kill()
    assert log.read_text() == "second\n"
    assert (tmp_path / "part.previous.log").read_text() == "a long first line\n"


def test_token_auth_asks_callers_for_the_inference_key(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER)
    with running_server(tmp_path, TOKEN_AUTH="1") as server:
        keys = json.loads((server.run_folder / "key_file.json").read_text())
        url = f"{server.inference_url}/predictions/first"
        assert predict(url).status_code == 400  # TorchServe's own choice of status
        assert predict(url, Authorization="Bearer wrong").status_code == 400
        assert predict(url, Authorization=f"Bearer {keys['inference']['key']}").ok
        assert requests.get(f"{server.management_url}/models", timeout=10).status_code == 400
        assert keys["inference"]["expiration time"] > "2030"

        env = {name: value for name, value in server.env.items() if name != "TOKEN_AUTH"}
        assert run(env, "status")[0] == 0
        assert server.process.stdout is not None
        script = "".join(server.process.stdout.readline() for _ in range(2))
        answer = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
        assert json.loads(answer) == {"predictions": [0.5]}
        assert run(env, "stop")[0] == 0


@pytest.mark.parametrize(
    ("error", "log_format"), [("RuntimeError", "text"), ("ValueError", "json")]
)
def test_worker_that_dies_at_load_shows_the_handlers_traceback(
    tmp_path: Path, error: str, log_format: str
) -> None:
    make_archive(tmp_path, "first", HANDLER)
    make_archive(tmp_path, "refusing", REFUSING_HANDLER.format(error=error))
    stderr = failed_start(tmp_path, LOG_FORMAT=log_format)
    assert "refusing 1.0: a worker died while it loaded the model" in stderr
    assert stderr.count("Traceback (most recent call last)") == 1
    assert "refusing_handler.py" in stderr
    assert f"{error}: refusing_model.pt: expected 7 features, got 6" in stderr


def test_worker_that_dies_without_a_traceback_is_reported_too(tmp_path: Path) -> None:
    make_archive(tmp_path, "crashing", CRASHING_HANDLER)
    stderr = failed_start(tmp_path)
    assert "crashing 1.0: a worker died while it loaded the model" in stderr
    assert "it left no traceback; the log ends with:" in stderr


def test_setting_that_torchserve_ignores_is_an_error(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER, config="batchsize: 32\nmaxBatchDelay: 0\n")
    assert (
        "first 1.0: model-config.yaml: batchsize: expected 32, TorchServe has no such setting; "
        "maxBatchDelay: expected 0, TorchServe has 100; correct archive/first/model-config.yaml"
    ) in failed_start(tmp_path)


def test_taken_port_names_its_owner_and_the_setting(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        stderr = failed_start(tmp_path, MANAGEMENT_PORT=str(port))
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in stderr
    assert f"(pid {os.getpid()})" in stderr
    assert "make serve MANAGEMENT_PORT=" in stderr


def test_missing_archive_says_how_to_make_it(tmp_path: Path) -> None:
    stderr = failed_start(tmp_path, ENABLED_MODELS="deepfm")
    assert f"{tmp_path} has no archive of deepfm; run: make train archive MODEL=deepfm" in stderr


def test_unknown_model_lists_the_known_ones(tmp_path: Path) -> None:
    stderr = failed_start(tmp_path, ENABLED_MODELS="deepfn")
    assert "no model is called deepfn; there are " in stderr
    assert "deepfm" in stderr


def test_model_named_twice_is_refused(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER)
    assert "expected each model once" in failed_start(tmp_path, ENABLED_MODELS="first,first")


def test_altered_archive_is_refused_before_anything_starts(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, "first", HANDLER)
    archive.write_bytes(archive.read_bytes().replace(b"[0.5]", b"[0.9]"))
    stderr = failed_start(tmp_path)
    assert str(archive) in stderr
    assert "starting TorchServe" not in stderr


def test_archive_of_another_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER).rename(tmp_path / "second.mar")
    stderr = failed_start(tmp_path, ENABLED_MODELS="second")
    assert "second.mar: expected second, this is first 1.0" in stderr
    assert "starting TorchServe" not in stderr


def test_unsigned_archive_is_refused_where_a_key_is_set(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER)
    key = base64.b64encode(bytes(32)).decode()
    stderr = failed_start(tmp_path, RECMAR_PUBLIC_KEY=key)
    assert "first.mar: it is not signed; sign it: RECMAR_SIGNING_KEY=... make archive" in stderr


def test_long_temporary_folder_is_refused(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER)
    with testing.instance_env(tmp_path) as env:
        folder = Path(env["TMPDIR"]) / ("x" * 80)
        folder.mkdir()
        code, _, stderr = run(env | {"TMPDIR": str(folder)})
        assert code == 1
        assert "choose a shorter TMPDIR" in stderr


def test_old_java_is_refused(tmp_path: Path) -> None:
    make_archive(tmp_path, "first", HANDLER)
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("""#!/bin/sh\necho 'openjdk version "11.0.2"' >&2\n""")
    java.chmod(0o755)
    stderr = failed_start(tmp_path, JAVA_HOME=str(tmp_path))
    assert 'expected Java >= 17, got openjdk version "11.0.2"; unset JAVA_HOME' in stderr


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({"INFERENCE_PORT": "http"}, "INFERENCE_PORT=http: expected a port"),
        ({"METRICS_PORT": "8081"}, "expected four different ports"),
        ({"TOKEN_AUTH": "yes"}, "TOKEN_AUTH=yes: expected 0 or 1"),
    ],
)
def test_invalid_setting_is_refused(env: dict[str, str], complaint: str) -> None:
    with pytest.raises(ServeError, match=complaint):
        Settings.from_env(env)


def test_symbolic_link_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "recmar-1").symlink_to(tmp_path)
    with (
        pytest.raises(ServeError, match="expected a folder of yours"),
        run_folder.claim(tmp_path / "recmar-1"),
    ):
        pass
