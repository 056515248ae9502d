"""A deploy loses no request and leaves no host without a version that serves."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
import requests

from archive.registry.documents import RegistryError
from archive.registry.store import Registry
from handlers.errors import UserError
from handlers.signature import Signature
from scripts import deploy
from serving import contract, rollout
from serving.archive_file import ArchiveFile
from serving.client import TorchServe
from serving.distance import Distance, lost_distinctions
from serving.load import calling
from serving.replay import Replay, read_requests
from serving.testing import ROOT, Server, make_archive, running_server

MODEL = "deployed"
CONNECTIONS = 32
SWITCHES = 20

# Scores a row by a feature plus the version's number.
STAND_IN = """
import json
import logging
import os
import time

class Handler:
    calls = 0

    def initialize(self, context):
        logging.getLogger().setLevel(logging.WARNING)
        {at_load}

    def handle(self, data, context):
        {at_call}
        return [self.answer(json.loads(row["body"])["data"]) for row in data]

    def answer(self, rows):
        scores = [{number} + row.get("{feature}", 0) for row in rows]
        return json.dumps({{"predictions": scores}}).encode()
"""
NUMBERS = {"v1": 100, "v2": 200, "v3": 300, "v4": 400}
ROWS = [{"x": x} for x in range(4)]


# Loaded versions, default first; version of the next start; aliases; files of the store without
# the folder of the versions that have served.
Deployed = tuple[list[str], str, dict[str, str], list[str]]


def archive(
    folder: Path,
    version: str,
    number: int,
    at_load: str = "pass",
    at_call: str = "pass",
    feature: str = "x",
    features: Sequence[dict[str, Any]] = (),
) -> Path:
    """Make an archive that adds a number; its golden rows expect ``NUMBERS[version]``."""
    folder.mkdir(exist_ok=True)
    golden = {
        "rows": [{feature: row["x"]} for row in ROWS],
        "predictions": [NUMBERS[version] + row["x"] for row in ROWS],
    }
    source = STAND_IN.format(number=number, at_load=at_load, at_call=at_call, feature=feature)
    return make_archive(
        folder, MODEL, source, version=version, golden=json.dumps(golden), features=features
    )


@dataclass(frozen=True)
class World:
    """A server of v1, and a registry of v1 and v2.

    Attributes:
        server: Server that requires tokens.
        registry: Registry in its own folder.
    """

    server: Server
    registry: Registry

    @property
    def store(self) -> Path:
        """The server's model store."""
        return Path(self.server.env["MODEL_STORE"])

    @property
    def flags(self) -> list[str]:
        """Flags of the command that name the server and the registry."""
        return [
            *("--model", MODEL, "--registry", str(self.registry.folder)),
            *("--service-url", self.server.management_url),
            *("--inference-url", self.server.inference_url),
            *("--model-store", str(self.store)),
            *("--key-file", str(self.server.run_folder / "key_file.json")),
            *("--watch-s", "0.3", "--ungated", "a test"),
        ]

    def deploy(self, *flags: str) -> int:
        """Run the command."""
        return deploy.main([*self.flags, *flags])

    def deployed(self) -> Deployed:
        """Return what is deployed."""
        stored = ArchiveFile.read(self.store / f"{MODEL}.mar").version
        files = sorted(path.name for path in self.store.iterdir() if path.name != MODEL)
        return versions(self.server), stored, self.registry.aliases(MODEL), files


def deployed(version: str, **aliases: str) -> Deployed:
    """Return what is deployed after a deploy."""
    return [version], version, {"champion": version, **aliases}, [f"{MODEL}.mar"]


def token(server: Server, key: str) -> dict[str, str]:
    """Return the header that a server requires, if any."""
    key_file = server.run_folder / "key_file.json"
    if not key_file.exists():
        return {}
    return {"Authorization": f"Bearer {json.loads(key_file.read_text())[key]['key']}"}


def versions(server: Server) -> list[str]:
    """Return the loaded versions, the default one first."""
    url = f"{server.management_url}/models/{MODEL}"

    def listed(path: str) -> list[str]:
        answer = requests.get(url + path, headers=token(server, "management"), timeout=10)
        return [version["modelVersion"] for version in answer.json()]

    default = listed("")
    return default + sorted(set(listed("/all")) - set(default))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("model-store")
    archive(store, "v1", 100)
    with running_server(store, TOKEN_AUTH="1") as running:
        yield running


@pytest.fixture
def world(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Make v1 serve and be the champion, whatever the previous test left."""
    # The stand-in answers within milliseconds: no need to wait for a second.
    monkeypatch.setattr(rollout, "SERVICE_TIME_S", 0.2)
    # By these the command knows that the server runs on this machine.
    for name in ("INFERENCE_PORT", "MANAGEMENT_PORT", "LOG_LOCATION"):
        monkeypatch.setenv(name, server.env[name])
    world = World(server, Registry(tmp_path / "registry"))
    for version in ("v1", "v2"):
        mar = archive(tmp_path / version, version, NUMBERS[version])
        world.registry.register(MODEL, version, mar)
    if versions(server) != ["v1"]:
        assert world.deploy("--version", "v1", "--watch-s", "0", "--allow-contract-change") == 0
    world.registry.promote(MODEL, "v1")
    assert world.deployed()[:2] == (["v1"], "v1")
    return world


@dataclass
class Load:
    """The callers' results.

    Attributes:
        n_answers: Number of responses, by the version that answered.
        wrong: Responses of no version, and failures.
        current: Version that must answer from now on, once a deploy is done.
    """

    n_answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    current: str | None = None


@contextmanager
def load(server: Server) -> Iterator[Load]:
    """Call the default version over 32 connections while the block runs."""
    seen = Load()
    url = f"{server.inference_url}/predictions/{MODEL}"
    answers = {(n, n + 7): version for version, n in NUMBERS.items()}

    async def call(session: aiohttp.ClientSession) -> None:
        expected = seen.current
        try:
            body = {"data": [{"x": 0}, {"x": 7}]}
            async with session.post(url, json=body) as response:
                text = await response.text()
                if response.status != 200:
                    raise ValueError(f"{response.status}: {text}")
            version = answers[tuple(json.loads(text)["predictions"])]
            if expected is not None and version != expected:
                raise ValueError(f"{version} answered after the switch to {expected}")
            seen.n_answers[version] += 1
        except (aiohttp.ClientError, TimeoutError, LookupError, ValueError) as error:
            seen.wrong.append(repr(error))
        await asyncio.sleep(0.05)

    with calling(call, CONNECTIONS, 20, token(server, "inference")):
        yield seen


def test_twenty_switches_under_load_lose_no_request(world: World) -> None:
    with load(world.server) as seen:
        for i in range(SWITCHES):
            version = ("v2", "v1")[i % 2]
            seen.current = None
            assert world.deploy("--version", version) == 0
            seen.current = version
    assert seen.wrong == []
    assert min(seen.n_answers["v1"], seen.n_answers["v2"]) > 1000
    assert world.deployed() == deployed("v1", previous="v2")


CONSTANT = "deployed v3: golden.json: row 1: training computed 301, this handler computes 300"
# Answers as if all rows were empty.
CONSTANT_AFTER = (
    "self.calls += 1; self.calls < {} or "
    "[row.update(body='{{\"data\": [{{}}, {{}}, {{}}, {{}}]}}') for row in data]"
)


@dataclass(frozen=True)
class Fault:
    """A version that must not be served.

    Attributes:
        message: Message of the command.
        number: Number that it adds to a row's x; its golden rows expect 300.
        at_load: Statement that its handler runs at load.
        at_call: Statement that its handler runs at each call.
        feature: Feature that it reads.
    """

    message: str
    number: int = 300
    at_load: str = "pass"
    at_call: str = "pass"
    feature: str = "x"


FAULTS = {
    "dies": Fault(
        "load: deployed v3: a worker died while it loaded the model: ZeroDivisionError",
        at_load="1 / 0",
    ),
    "computes_something_else": Fault("golden rows: deployed v3: golden.json: row 0", number=400),
    "is_slow": Fault("replay: p99: expected at most 250 ms", at_call="time.sleep(0.3)"),
    "ignores_the_feature": Fault(
        "replay: rows that the old version tells apart get the same prediction, such as 300, "
        "in 1 of 1 cases",
        feature="y",
    ),
    "is_soon_constant": Fault(f"replay: {CONSTANT}", at_call=CONSTANT_AFTER.format(4)),
    # The sample, the golden rows twice and the five requests of the replay come before the switch.
    "is_constant_later": Fault(
        "watch: of 1 requests 0 failed, 0 took more than 250 ms (--max-p99-ms) and 1 were answered "
        "otherwise than in the replay",
        at_call=CONSTANT_AFTER.format(9),
    ),
    "fails_later": Fault(
        "watch: of 1 requests 1 failed",
        at_call="self.calls += 1; assert self.calls < 9",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_version_is_removed(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    caplog.set_level(logging.INFO)
    broken = FAULTS[fault]
    mar = archive(
        tmp_path / "v3", "v3", broken.number, broken.at_load, broken.at_call, broken.feature
    )
    world.registry.register(MODEL, "v3", mar)
    before = world.deployed()
    assert world.deploy("--version", "v3", "--max-p99-ms", "250") == 1
    assert broken.message in capsys.readouterr().err
    assert f"{world.server.management_url}: {MODEL} v1 serves" in caplog.text
    assert (": switch" in caplog.text) == ("later" in fault)
    assert world.deployed() == before


def test_shadow_compares_and_leaves_everything_as_it_was(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    before = world.deployed()
    assert world.deploy("--version", "v2", "--shadow") == 0
    printed = capsys.readouterr().out
    assert re.search(r"score difference, max +100\.0", printed)
    assert re.search(r"Kendall tau +1\.000", printed)
    assert world.deployed() == before


def test_rollback_takes_one_command(world: World) -> None:
    assert world.deploy("--version", "v2") == 0
    assert world.deploy("--rollback") == 0
    assert world.deployed() == deployed("v1")


def test_the_version_that_serves_is_kept_and_registered(world: World, tmp_path: Path) -> None:
    """Users package v2, which replaces v1's file, and register it; v1 was never registered."""
    registry = Registry(tmp_path / "fresh")
    mar = archive(world.store, "v2", 200)
    registry.register(MODEL, "v2", mar)
    fresh = World(world.server, registry)
    assert fresh.deploy("--version", "v2") == 0
    assert fresh.deployed() == deployed("v2", previous="v1")
    assert registry.entry(MODEL, "v2").ungated == "a test"
    assert fresh.deploy("--rollback") == 0
    assert fresh.deployed() == deployed("v1")


def test_without_a_way_back_nothing_is_loaded(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    registry = Registry(tmp_path / "fresh")
    registry.register(MODEL, "v2", archive(world.store, "v2", 200))
    shutil.rmtree(world.store / MODEL)
    fresh = World(world.server, registry)
    assert fresh.deploy("--version", "v2") == 1
    assert "deployed v1 serves, and there is no way back to it" in capsys.readouterr().err
    assert ": load" not in caplog.text
    assert fresh.deployed()[:3] == (["v1"], "v2", {"challenger": "v2"})
    assert fresh.deploy("--version", "v2", "--no-way-back") == 0
    assert fresh.deployed() == deployed("v2")


def test_a_changed_contract_needs_a_flag(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = [{"name": "age", "kind": "number"}]
    mar = archive(tmp_path / "v3", "v3", 300, features=features)
    world.registry.register(MODEL, "v3", mar)
    before = world.deployed()
    assert world.deploy("--version", "v3") == 1
    message = "contract: deployed v3 differs from v1 for callers: feature age (number) added"
    assert message in capsys.readouterr().err
    assert world.deployed() == before
    assert world.deploy("--version", "v3", "--allow-contract-change") == 0
    assert world.deployed()[0] == ["v3"]
    assert world.deploy("--rollback") == 0
    assert world.deployed()[:2] == before[:2]


def test_a_worker_that_takes_much_more_memory_is_reported(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mar = archive(tmp_path / "v4", "v4", 400, at_load="Handler.ballast = b'x' * 800_000_000")
    world.registry.register(MODEL, "v4", mar)
    assert world.deploy("--version", "v4", "--shadow") == 0
    assert re.search(r"a worker of deployed v4 takes .* times as much", caplog.text)


def test_a_version_needs_the_consent_of_the_gate(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    before = world.deployed()
    assert world.deploy("--version", "v2", "--ungated", "") == 1
    assert "deployed v2 was not judged; run: make evaluate" in capsys.readouterr().err
    assert world.deployed() == before


@contextmanager
def watching(world: World) -> Iterator[subprocess.Popen[str]]:
    """Start a deploy of v2; the block runs once v2 has become the default."""
    command = [sys.executable, "-m", "scripts.deploy", *world.flags]
    with subprocess.Popen(
        [*command, "--version", "v2", "--watch-s", "60"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.endswith(": watch\n"):
                    break
            assert versions(world.server) == ["v2", "v1"]
            yield process
        finally:
            process.kill()


def test_ctrl_c_goes_back(world: World) -> None:
    before = world.deployed()
    with watching(world) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert world.deployed() == before


def test_after_a_kill_the_next_start_serves_the_old_version_and_the_same_command_finishes(
    world: World,
) -> None:
    with watching(world) as process:
        process.kill()
    loaded, stored, _, _ = world.deployed()
    assert (loaded, stored) == (["v2", "v1"], "v1")
    assert world.deploy("--version", "v2") == 0
    assert world.deployed() == deployed("v2", previous="v1")


def test_after_a_kill_in_the_commit_the_same_command_finishes(world: World, tmp_path: Path) -> None:
    with watching(world) as process:
        process.kill()
    shutil.copyfile(tmp_path / "v2" / f"{MODEL}.mar", world.store / f"{MODEL}.mar")
    assert world.deploy("--version", "v2") == 0
    assert world.deployed() == deployed("v2", previous="v1")


def test_a_commit_that_fails_goes_back(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = world.deployed()
    promote = Registry.promote

    def fail(registry: Registry, model: str, version: str, ungated: str = "") -> str:
        if version == "v2":
            assert ArchiveFile.read(world.store / f"{MODEL}.mar").version == "v2"
            raise RegistryError("the bucket is gone")
        return promote(registry, model, version, ungated)

    monkeypatch.setattr(Registry, "promote", fail)
    assert world.deploy("--version", "v2") == 1
    assert "commit: the bucket is gone" in capsys.readouterr().err
    assert world.deployed() == before


def test_two_hosts_switch_together_or_not_at_all(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    where = "os.path.exists(os.environ['TMPDIR'] + '/broken')"
    mar = archive(tmp_path / "v3", "v3", 300, at_load=f"assert not {where}")
    world.registry.register(MODEL, "v3", mar)
    store = tmp_path / "other-store"
    archive(store, "v1", 100)
    with running_server(store) as other:

        def deploy_to_both() -> int:
            return deploy.main(
                [
                    *("--model", MODEL, "--version", "v3", "--watch-s", "0.3"),
                    *("--registry", str(world.registry.folder), "--ungated", "a test"),
                    *("--service-url", world.server.management_url, other.management_url),
                    *("--inference-url", world.server.inference_url, other.inference_url),
                    *("--model-store", str(world.store), str(store)),
                    *("--key-file", str(world.server.run_folder / "key_file.json")),
                ]
            )

        before = world.deployed()
        (other.run_folder / "broken").touch()
        assert deploy_to_both() == 1
        assert f"{world.server.management_url}: watched" in caplog.text
        printed = capsys.readouterr().err
        assert f"{other.management_url}: load: deployed v3: a worker died" in printed
        assert (world.deployed(), versions(other)) == (before, ["v1"])
        (other.run_folder / "broken").unlink()
        assert deploy_to_both() == 0
        assert (world.deployed()[:2], versions(other)) == ((["v3"], "v3"), ["v3"])
    with running_server(store) as restarted:
        assert versions(restarted) == ["v3"]


@pytest.mark.parametrize(
    ("output", "old", "new", "expected"),
    [
        ("number", [[1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0, 4.0, 3.0]], (0.5, 1.0, 1.0, 2 / 3)),
        ("number", [[1.0], [2.0]], [[2.0], [1.0]], (1.0, 1.0, 0.0, -1.0)),
        ("number", [[1.0, 2.0], None], [[1.0, 2.0], [5.0]], (0.0, 0.0, 1.0, 1.0)),
        # A rotation of the space changes no inner product.
        (
            "vector",
            [[[1.0, 0.0], [0.5, 0.0], [0.0, 1.0]]],
            [[[0.0, 1.0], [0.0, 0.5], [1.0, 0.0]]],
            (0.0, 0.0, 1.0, 1.0),
        ),
        ("object", [[{"a": 1.0}, {"a": 2.0}]], [[{"a": 4.0}, {"a": 2.0}]], (1.5, 3.0, 0.0, -1.0)),
        (  # tasks that only one version has
            "object",
            [[{"a": 1.0, "b": 0.0}, {"a": 2.0, "b": 1.0}]],
            [[{"c": 0.0, "a": 4.0}, {"c": 1.0, "a": 2.0}]],
            (1.5, 3.0, 0.0, -1.0),
        ),
        (
            "object",
            [[{"item_ids": ["x", "y"], "scores": [2.0, 1.0]}]],
            [[{"item_ids": ["z", "x"], "scores": [2.0, 1.0]}]],
            (1.0, 1.0, 0.0, math.nan),
        ),
    ],
)
def test_the_distance_of_two_versions(
    output: str, old: list[Any], new: list[Any], expected: tuple[float, ...]
) -> None:
    distance = Distance.between(Replay(old), Replay(new), output)
    assert astuple(distance) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("old", "new", "is_lost"),
    [
        ([[1.0, 2.0, 3.0]], [[0.5, 0.5, 0.5]], True),
        ([[1.0, 2.0], [3.0, 4.0]], [[5.0, 5.0], [6.0, 7.0]], False),  # in half of the cases
        ([[1.0], [2.0]], [[5.0], [5.0]], True),
        ([[1.0, 1.0]], [[5.0, 5.0]], False),
        ([[1.0, 2.0], None], [None, [5.0, 5.0]], False),
        ([[{"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 2.0}]], [[{"a": 3.0}, {"a": 3.0}]], True),
        ([[[1.0, 0.0], [0.0, 1.0]]], [[[1.0, 1.0], [1.0, 1.0]]], True),
    ],
)
def test_lost_distinctions(old: list[Any], new: list[Any], is_lost: bool) -> None:
    output = "vector" if isinstance(old[0][0], list) else "object"
    assert (lost_distinctions(Replay(old), Replay(new), output) is not None) == is_lost


def test_what_callers_must_know_of_a_new_version() -> None:
    def signature(kinds: dict[str, str], output: dict[str, Any]) -> Signature:
        features = [{"name": name, "kind": kind} for name, kind in kinds.items()]
        return Signature("m", "v", "m_handler.py", features, output, {}, {}, "space")

    old = signature({"age": "number", "city": "category"}, {"type": "number"})
    new = signature({"city": "multi", "tags": "multi"}, {"type": "vector", "length": 4})
    assert list(contract.changes(old, old)) == []
    assert list(contract.changes(old, new)) == [
        "feature age (number) removed",
        "feature city: category became multi",
        "feature tags (multi) added",
        "output: number became vector of length 4",
    ]
    turned = signature({"city": "category", "age": "number"}, {"type": "number"})
    [order] = contract.changes(old, turned)
    assert order.endswith("now city, age")
    assert contract.space_change(old, new) is None
    assert contract.space_change(old, replace(new, space_id=None)) is not None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--version", "v9"], "the registry has no version v9 of deployed"),
        (["--model-store", "nowhere"], "nowhere: expected the model store"),
        (["--requests", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["--service-url", "host:8081"], "host:8081: expected a URL such as http://host:8081"),
        (["--service-url", "http://127.0.0.1:9"], "TorchServe is unreachable"),
        (["--watch-s", "nan"], "--watch-s nan: expected a number, 0 or more"),
        (["--max-p99-ms", "nan"], "--max-p99-ms nan: expected a number, 0 or more"),
        (["--max-error-share", "2"], "--max-error-share 2.0: expected a number, 0 to 1"),
        (["--rollback"], "--rollback: expected no --version, got v2"),
        (["--service-url", "http://a:1", "http://a:2"], "--inference-url: expected a URL"),
    ],
)
def test_invalid_flag_is_explained(
    world: World, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    before = world.deployed()
    assert world.deploy("--version", "v2", *flags) == 1
    assert message in capsys.readouterr().err
    assert world.deployed() == before


def test_tunnel_needs_an_inference_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy.main(["--model", MODEL, "--service-url", "http://127.0.0.1:18081"]) == 1
    assert "http://127.0.0.1:18081: where do its callers reach it?" in capsys.readouterr().err


def test_line_that_is_not_a_request_is_named(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"data": [{}]}\n{"rows": []}\n')
    with pytest.raises(UserError, match=r"requests.jsonl:2: expected .* got '\{\"rows"):
        read_requests(path)


def test_concurrent_deploy_and_reload_are_refused(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with rollout.changing(world.store):
        assert world.deploy("--version", "v2") == 1
        reload = requests.post(f"{world.server.sidecar_url}/reload", timeout=10)
    assert reload.status_code == 409
    for message in (capsys.readouterr().err, reload.json()["detail"]):
        assert "another deploy or reload is under way" in message


def test_interrupted_load_is_undone_after_it_has_completed(tmp_path: Path) -> None:
    """TorchServe completes a request that its caller broke off."""
    done: list[str] = []

    class SlowTorchServe:
        async def version(self, model: str, version: str) -> None:
            return None

        async def register(self, archive: str) -> None:
            await asyncio.sleep(0.1)
            done.append("register")

        async def unregister(self, model: str, version: str) -> None:
            done.append("unregister")

    async def interrupted() -> None:
        async with rollout.loaded(cast("TorchServe", SlowTorchServe()), "m", "v", tmp_path):
            pass

    async def run() -> None:
        task = asyncio.ensure_future(interrupted())
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())
    assert done == ["register", "unregister"]
