"""Faults that a command must report, and by which nothing may be lost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.chaos_world import (
    CAN_MOUNT,
    TIMEOUT_S,
    TRAINED,
    FaultError,
    World,
    archive,
    complete,
    full,
    run,
)
from serving.testing import CONFIG, ROOT, instance_env
from training import artifacts


def _refused(
    reason: str, module: str, *flags: str | Path, env: dict[str, str] | None = None
) -> None:
    """Run a command that must fail and say why.

    Raises:
        FaultError: If it does not.
    """
    done = complete(module, *flags, env=env)
    if done.returncode != 1 or reason not in done.stderr or "Traceback" in done.stderr:
        raise FaultError(f"{module} ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def _register(world: World, registry: Path) -> tuple[str, ...]:
    trained = world.scratch / "artifacts"
    return ("--model", TRAINED, "--model-dir", str(trained), "--registry", str(registry))


def _train(world: World, folder: Path, *flags: str) -> tuple[str, ...]:
    data = ("--data-path", str(world.scratch / "table.csv"), "--features", "price,ctr")
    return ("--model", TRAINED, "--version", "v1", "--artifacts-dir", str(folder), *data, *flags)


def _empty(folder: Path) -> Path:
    """Make a folder with a name that no earlier try has used."""
    numbered = folder / str(time.monotonic_ns())
    numbered.mkdir(parents=True)
    return numbered


def lost_document(world: World) -> float:
    """Delete registry.json: no command goes on as if there were no versions."""
    registry = _empty(world.scratch / "lost")
    run("scripts.register_model", *_register(world, registry))
    (registry / "registry.json").unlink()
    places = ("--model", TRAINED, "--registry", str(registry))
    _refused("rebuild", "scripts.register_model", *_register(world, registry))
    _refused("rebuild", "scripts.register_model", "prune", *places, "--keep", "0")
    started = time.monotonic()
    run("scripts.register_model", "rebuild", "--registry", registry)
    seconds = time.monotonic() - started
    run("scripts.register_model", "promote", *places, "--ungated", "chaos")
    return seconds


def two_trainings(world: World) -> float:
    """Train one version twice at the same time: one of them is refused."""
    folder = _empty(world.scratch / "twice")
    flags = _train(world, folder, "--epochs", "200")
    command = [sys.executable, "-m", "scripts.train", *flags]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    statuses = sorted(process.wait(TIMEOUT_S) for process in both)
    if statuses != [0, 1]:
        raise FaultError(f"expected one to succeed and one to fail, got {statuses}")
    artifacts.find(TRAINED, "v1", folder)
    return 0.0


def orphaned_training(world: World) -> float:
    """Kill `scripts.train`: the process that trains ends too."""
    flags = _train(world, _empty(world.scratch / "orphan"), "--epochs", "100000")
    process = psutil.Popen(
        [sys.executable, "-m", "scripts.train", *flags],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + TIMEOUT_S
    while not (children := process.children(recursive=True)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise FaultError("scripts.train started no process")
        time.sleep(0.05)
    process.kill()
    started = time.monotonic()
    _, alive = psutil.wait_procs(children, TIMEOUT_S)
    if alive:
        for each in alive:
            each.kill()
        raise FaultError("the process that trains went on")
    return time.monotonic() - started


def full_artifacts(world: World) -> float:
    """Train to a disk that is full."""
    folder = _empty(world.scratch / "full-artifacts")
    with full(folder):
        _refused(str(folder), "scripts.train", *_train(world, folder, "--epochs", "20"))
    return 0.0


def full_registry(world: World) -> float:
    """Register to a disk that is full."""
    folder = _empty(world.scratch / "full-registry")
    with full(folder):
        _refused("disk is full", "scripts.register_model", *_register(world, folder))
    return 0.0


@contextmanager
def _stand_in(world: World, config: str = CONFIG) -> Iterator[dict[str, str]]:
    """Yield the environment of a further instance, which serves the stand-in."""
    store = _empty(world.scratch / "further")
    archive(store, "v1", config=config)
    with instance_env(store) as env:
        yield env


def full_tmpdir(world: World) -> float:
    """Start in a TMPDIR that is full."""
    with _stand_in(world) as env, full(Path(env["TMPDIR"])):
        started = time.monotonic()
        _refused("TMPDIR", "scripts.serve", env=env | {"LOG_LOCATION": str(world.scratch / "logs")})
        return time.monotonic() - started


def unwritable_logs(world: World) -> float:
    """Start with logs that cannot be written."""
    place = world.scratch / "a-file"
    place.touch()
    with _stand_in(world) as env:
        started = time.monotonic()
        _refused("LOG_LOCATION", "scripts.serve", env=env | {"LOG_LOCATION": str(place)})
        return time.monotonic() - started


def no_workers(world: World) -> float:
    """Start a model that asks for no workers."""
    with _stand_in(world, config="minWorkers: 0\n") as env:
        started = time.monotonic()
        _refused("minWorkers", "scripts.serve", env=env)
        return time.monotonic() - started


FAULTS = {
    "registry.json is deleted": lost_document,
    "two trainings of one version": two_trainings,
    "scripts.train is killed": orphaned_training,
    "start: logs cannot be written": unwritable_logs,
    "start: minWorkers is 0": no_workers,
}
if CAN_MOUNT:
    FAULTS |= {
        "train: the disk is full": full_artifacts,
        "register: the disk is full": full_registry,
        "start: TMPDIR is full": full_tmpdir,
    }
