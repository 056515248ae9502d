"""Commands that are killed at random moments: what they write stays readable, they run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

import numpy as np

from archive.registry.store import Registry
from bench.chaos_world import NUMBERS, TIMEOUT_S, TRAINED, FaultError, World, run
from handlers.errors import UserError
from serving.archive_file import ArchiveFile
from serving.milvus import connected
from serving.testing import ROOT
from training import artifacts
from training.artifacts import IDS_FILE, VECTORS_FILE

Flags = list[str | Path]

N_ITEMS, DIM = 3000, 16
INDEXED, COLLECTION = "two_tower", "item_embeddings"


@dataclass(frozen=True)
class Command:
    """A command to kill.

    Attributes:
        module: The module to run.
        flags: Its flags.
        check: Checks what it writes; raises a `FaultError` or a `UserError`.
        folders: Folders in which nothing unfinished may lie once it has run to its end.
    """

    module: str
    flags: Flags
    check: Callable[[], None]
    folders: Sequence[Path]


def commands(world: World) -> dict[str, Callable[[int], Command]]:
    """Return the commands by name, each made for the number of a try."""
    scratch, trained = world.scratch, world.scratch / "artifacts"
    store, fresh = scratch / "packaged", scratch / "trained"

    def package(_: int) -> Command:
        flags: Flags = ["--model", TRAINED, "--artifacts-dir", trained, "--store", store]
        return Command("archive.package", flags, lambda: _check_archives(store), [store])

    def register(number: int) -> Command:
        registry = scratch / "registered" / str(number)
        flags: Flags = ["--model", TRAINED, "--model-dir", trained, "--registry", registry]
        return Command(
            "scripts.register_model", flags, lambda: _check_registry(registry), [registry]
        )

    def deploy(number: int) -> Command:
        flags: Flags = [*world.deploy_flags([*NUMBERS][(number + 1) % 2])]
        return Command("scripts.deploy", flags, lambda: _check_archives(world.store), [world.store])

    def index(number: int) -> Command:
        folder, uri, name = scratch / "towers", scratch / "milvus.db", f"v{number}"
        _write_vectors(folder / INDEXED / name, space_id=f"space_{number}")
        flags: Flags = ["--model", INDEXED, "--version", name, "--artifacts-dir", folder]
        flags += ["--uri", uri]
        return Command("scripts.index_items", flags, lambda: _check_index(uri), [])

    def train(number: int) -> Command:
        flags: Flags = ["--model", TRAINED, "--version", f"v{number}", "--artifacts-dir", fresh]
        flags += ["--data-path", scratch / "table.csv", "--features", "price,ctr", "--epochs", "20"]
        return Command("scripts.train", flags, lambda: _check_artifacts(fresh), [fresh])

    return {
        "make archive": package,
        "make register": register,
        "make deploy": deploy,
        "make index": index,
        "make train": train,
    }


def kill(world: World, make: Callable[[int], Command], n_kills: int) -> tuple[int, float, str]:
    """Kill a command at random moments, check what is left, and let it run to its end.

    Args:
        world: The instance, for a command that changes it.
        make: Returns the command for the number of a try.
        n_kills: Number of kills.

    Returns:
        The number of kills that were survived, the seconds of the last run, and the first problem.
    """
    temporary = world.scratch / "tmp"
    temporary.mkdir(exist_ok=True)
    env = {**os.environ, "TMPDIR": str(temporary)}
    random, survived, problem = Random(0), 0, ""
    whole_s = last_s = _finish(make(0), env)
    numbers, killed = count(1), 0
    while killed < n_kills:
        command = make(next(numbers))
        # Most of a short command's time goes to imports, during which it writes nothing.
        moment_s = whole_s * random.uniform(0.4, 1.0)
        try:
            if not _killed_after(command, moment_s, env):
                whole_s *= 0.95  # it was faster than the first time
                continue
            killed += 1
            command.check()
            last_s = _finish(command, env)
            command.check()
            _check_leftovers([temporary, *command.folders])
            survived += 1
        except (FaultError, UserError, OSError) as error:
            problem = problem or f"killed after {moment_s:.2f} s: {error}"
    return survived, last_s, problem


def _finish(command: Command, env: dict[str, str]) -> float:
    started = time.monotonic()
    run(command.module, *command.flags, env=env)
    return time.monotonic() - started


def _killed_after(command: Command, seconds: float, env: dict[str, str]) -> bool:
    """Kill a command after some seconds; returns False if it had ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", command.module, *map(str, command.flags)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait(TIMEOUT_S) == -signal.SIGKILL
    return False


def _check_archives(store: Path) -> None:
    for mar in store.glob("*.mar"):
        ArchiveFile.read(mar)


def _check_registry(folder: Path) -> None:
    for entry, _ in Registry(folder).listing():
        ArchiveFile.read(folder / entry.path, entry.model)


def _check_artifacts(folder: Path) -> None:
    for version in artifacts.versions(TRAINED, folder):
        artifacts.find(TRAINED, version, folder)


def _check_index(uri: Path) -> None:
    with connected(str(uri)) as client:
        if client.has_collection(COLLECTION):
            client.load_collection(COLLECTION)
            [row] = client.query(COLLECTION, filter="", output_fields=["count(*)"])
            if row["count(*)"] != N_ITEMS:
                raise FaultError(f"the alias names {row['count(*)']} of {N_ITEMS} items")


def _check_leftovers(folders: Sequence[Path]) -> None:
    """Check that nothing unfinished is left.

    Raises:
        FaultError: If something is.
    """
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            unfinished = path.name.startswith((".", "recmar-")) or path.suffix == ".part"
            if unfinished and path.name != ".lock":
                found.append(path.relative_to(folder.parent).as_posix())
    if found:
        raise FaultError(f"left behind: {', '.join(found[:5])}")


def _write_vectors(folder: Path, space_id: str) -> None:
    """Write the part of a tower's artifacts that an index is made of."""
    folder.mkdir(parents=True, exist_ok=True)
    vectors = np.random.default_rng(0).normal(size=(N_ITEMS, DIM)).astype(np.float32)
    np.save(folder / VECTORS_FILE, vectors)
    artifacts.write_json(folder / IDS_FILE, [f"item_{i}" for i in range(N_ITEMS)])
    artifacts.write_json(folder / "two_tower_meta.json", {"files": {}, "space_id": space_id})
