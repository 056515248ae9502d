"""Faults of a running instance, and versions and archives that must not get to serve."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import aiohttp
import psutil
import requests

from archive.registry.documents import RegistryError
from bench.chaos_world import (
    CONNECTIONS,
    MODEL,
    TIMEOUT_S,
    TRAINED,
    FaultError,
    World,
    archive,
    full,
    run,
)
from bench.soak_scenario import memory
from serving.archive_file import ArchiveFile
from serving.settings import Settings
from serving.testing import running_server, start, stop, wait_until

MAX_GROWTH = 0.03  # of the memory, from one pass of fuzzed bodies to the next
WARM_UP_PASSES = 1  # after which the memory must stay
MIN_FUZZED = 10_000  # bodies in a pass; with fewer, Java's heap grows and shrinks by chance

# A fault disturbs the world, checks what becomes of it, and returns the seconds until all is well.
Fault = Callable[[World], float]

# Versions that must not get to serve: what `archive` makes of them, and what the deploy must say.
BAD_VERSIONS: dict[str, tuple[dict[str, Any], str]] = {
    "fails to load": ({"at_load": "raise ValueError('chaos')"}, "ValueError: chaos"),
    "ends at a call": ({"at_call": "os._exit(3)"}, "expected an answer to sample_request.json"),
    "raises": ({"at_call": "assert len(rows) < 4, 'chaos'"}, "Prediction failed"),
    "answers NaN": ({"at_call": "predictions = [float('nan')] * len(rows)"}, "NaN"),
    "turns constant": (
        {"at_call": "predictions = [1] * len(rows) if Handler.calls > 15 else predictions"},
        "were answered otherwise than in the replay",
    ),
    "is slow": ({"at_call": "time.sleep(2)"}, "--max-p99-ms"),
    "is not itself": ({"golden": 1}, "row 0: training computed"),
}


def _worker(world: World) -> int:
    """Return the process of a worker of the stand-in."""
    [version] = world.versions()
    pid = next(iter(version.pids.values()))
    if pid <= 0:  # kill(-1) signals every process
        raise FaultError("no worker runs")
    return pid


def killed_worker(world: World) -> float:
    """Kill a worker."""
    pid = _worker(world)
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()

    def replaced() -> bool:
        [version] = world.versions()
        return version.ready and pid not in version.pids.values()

    wait_until(replaced, TIMEOUT_S)
    wait_until(world.healthy, TIMEOUT_S)
    return time.monotonic() - started


def hung_worker(world: World) -> float:
    """Stop a worker, and let it go on once readiness has noticed."""
    pid = _worker(world)
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    try:
        wait_until(lambda: not world.healthy(), TIMEOUT_S)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    wait_until(world.healthy, TIMEOUT_S)
    return time.monotonic() - started


def killed_sidecar(world: World) -> float:
    """Kill the sidecar, without which TorchServe goes on."""
    sidecar = world.process("sidecar")
    sidecar.kill()
    started = time.monotonic()
    wait_until(lambda: not sidecar.is_running() and world.healthy(), TIMEOUT_S)
    return time.monotonic() - started


def killed_torchserve(world: World) -> float:
    """Kill TorchServe: `make serve` ends and says so, and can be started again."""
    return _restarted(world, "java", expected_status=1)


def killed_serve(world: World) -> float:
    """Kill `make serve` itself: nothing stays behind, and it can be started again."""
    return _restarted(world, "", expected_status=-signal.SIGKILL)


def _restarted(world: World, part: str, expected_status: int) -> float:
    """Kill a part of a further instance, or itself, and start it again in the same places."""
    with running_server(world.store) as server:
        further = replace(world, server=server)
        family = psutil.Process(server.process.pid).children(recursive=True)
        (further.process(part) if part else server.process).kill()
        status = server.process.wait(TIMEOUT_S)
        if status != expected_status:
            raise FaultError(f"make serve ended with {status}, expected {expected_status}")
        _, alive = psutil.wait_procs(family, TIMEOUT_S)
        if alive:
            raise FaultError(f"still running: {', '.join(map(str, alive))}")
        started = time.monotonic()
        again = start(server.env)
        try:
            wait_until(further.healthy, TIMEOUT_S)
            return time.monotonic() - started
        finally:
            stop(again)


def switched(world: World) -> float:
    """Deploy another version, and go back: what a deploy is for."""
    started = time.monotonic()
    for version in ("v2", "v1"):
        run("scripts.deploy", *world.deploy_flags(version), env=world.server.env)
        world.check_serves(version)
    return time.monotonic() - started


def bad_version(name: str) -> Fault:
    """Return the fault: a version is deployed that does something wrong."""
    version, (wrong, reason) = name.replace(" ", "-"), BAD_VERSIONS[name]

    def refused(world: World) -> float:
        mar = archive(world.scratch / version, version, **wrong)
        with suppress(RegistryError):  # from an earlier try
            world.registry.register(MODEL, version, mar)
        started = time.monotonic()
        world.refuse(version, reason)
        return time.monotonic() - started

    return refused


def _with_hidden_record(content: bytes) -> bytes:
    """Add a record that Java unpacks, and Python's directory does not list."""
    end = content.rindex(b"PK\5\6")
    [directory] = struct.unpack_from("<L", content, end + 16)
    name, code = b"handlers/base.py", b"raise SystemExit"
    head = struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, len(code), len(code), len(name), 0)
    record = b"PK\3\4" + head + name + code
    changed = bytearray(content[:directory] + record + content[directory:])
    struct.pack_into("<L", changed, end + len(record) + 16, directory + len(record))
    return bytes(changed)


BAD_ARCHIVES: dict[str, Callable[[World, bytes], bytes]] = {
    "is cut off": lambda _, content: content[: len(content) // 2],
    "hides a record": lambda _, content: _with_hidden_record(content),
    "is of another model": lambda world, _: (world.store / f"{TRAINED}.mar").read_bytes(),
}


def bad_archive(name: str) -> Fault:
    """Return the fault: an archive in the store is replaced, and a reload asked for."""

    def run(world: World) -> float:
        mar = world.store / f"{MODEL}.mar"
        good = mar.read_bytes()
        newer = archive(world.scratch / "newer", "v2").read_bytes()
        started = time.monotonic()
        try:
            mar.write_bytes(BAD_ARCHIVES[name](world, newer))
            answer = requests.post(f"{world.server.sidecar_url}/reload", timeout=TIMEOUT_S)
        finally:
            mar.write_bytes(good)
        if answer.status_code != 500:
            raise FaultError(f"/reload answered {answer.status_code}, expected 500")
        world.check_serves("v1")
        return time.monotonic() - started

    return run


def full_store(world: World) -> float:
    """Deploy to a store whose disk is full."""
    started = time.monotonic()
    with full(world.store):
        world.refuse("v2", "the disk is full")
    return time.monotonic() - started


def fuzzed(n_requests: int) -> Fault:
    """Return the fault: bodies that are hardly JSON, in passes; the memory must not grow."""

    def run(world: World) -> float:
        golden = ArchiveFile.read(world.store / f"{TRAINED}.mar").golden.requests
        url = f"{world.server.inference_url}/predictions/{TRAINED}"
        used = []
        for number in range(WARM_UP_PASSES + 2):
            asyncio.run(_send(url, [_mutated(golden, Random(i)) for i in range(n_requests)]))
            time.sleep(2)  # until the worker has flushed its counts
            used.append(sum(memory(world.server).values()))
            if number <= WARM_UP_PASSES or n_requests < MIN_FUZZED:
                continue
            if used[-1] > used[-2] * (1 + MAX_GROWTH):
                shown = ", ".join(f"{size / 2**20:,.0f} MB" for size in used)
                raise FaultError(f"memory after each pass: {shown}")
        log = Settings.from_env(world.server.env).log
        text = log.read_text(encoding="utf-8", errors="replace")
        if count := text.count("Incorrect number of labels"):
            raise FaultError(f"{count} metrics that TorchServe could not read")
        return 0.0

    return run


def _mutated(bodies: list[bytes], random: Random) -> bytes:
    """Return a body with an odd key or value, or with bytes changed, cut or repeated."""
    body = bytearray(random.choice(bodies))
    if random.random() < 0.5:
        rows = json.loads(body)["data"]
        keys = ["", "x" * 100, "a,b:c|d", "\u2028", f"k{random.randrange(10_000)}"]
        odd: list[Any] = [None, True, "", "NaN", 1e308, -(2**63), 10**30, [], {}, [[]], "x" * 1000]
        rows[0][random.choice([*keys, *rows[0]])] = random.choice(odd)
        return json.dumps({"data": rows}).encode()
    for _ in range(random.choice((1, 1, 4))):
        at = random.randrange(len(body) + 1)
        match random.randrange(3):
            case 0:
                body[at : at + 1] = random.randbytes(1)
            case 1:
                del body[at : at + random.randrange(20)]
            case 2:
                body[at:at] = body[:at]
    return bytes(body)


async def _send(url: str, bodies: list[bytes]) -> None:
    """Send bodies over several connections.

    Raises:
        FaultError: If one is answered with anything but predictions or a refusal.
    """
    left = iter(bodies)
    headers = {"Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)

    async def connection(session: aiohttp.ClientSession) -> None:
        for body in left:
            async with session.post(url, data=body, headers=headers) as response:
                text = await response.text()
                if response.status not in (200, 400, 413):
                    raise FaultError(f"{response.status} {text[:200]} for {body[:200]!r}")

    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(connection(session) for _ in range(CONNECTIONS)))
