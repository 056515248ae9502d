"""Disturb an instance and the commands, and see what becomes of them: ``python -m bench.chaos``.

Each fault is tried on a real instance under load, or on a real command. The table says how often it
was tried and survived, how many requests callers lost, and how long it took until all was well. The
exit status is 1 if a fault was not survived.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from archive.registry.store import Registry
from bench import chaos_commands, chaos_faults, chaos_kills
from bench.chaos_faults import BAD_ARCHIVES, BAD_VERSIONS, Fault, bad_archive, bad_version
from bench.chaos_world import (
    CAN_MOUNT,
    CONNECTIONS,
    MODEL,
    NUMBERS,
    TIMEOUT_S,
    TRAINED,
    FaultError,
    World,
    archive,
    run,
    table,
)
from handlers import logs
from handlers.errors import UserError
from serving.testing import running_server, wait_until

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Disturb an instance and the commands, and print a table of what was survived.

    Attributes:
        only: Parts of the names of the faults to try, separated by commas; all by default.
        times: How often each fault of an instance is tried.
        kills: How often each command is killed.
        fuzzed: Number of fuzzed bodies in each of three passes.
    """

    only: str = ""
    times: int = 3
    kills: int = 50
    fuzzed: int = 50_000

    def chooses(self, name: str) -> bool:
        """Return whether a fault is to be tried."""
        return any(part.strip() in name for part in self.only.split(","))


@dataclass(frozen=True)
class Outcome:
    """What became of a fault.

    Attributes:
        fault: Its name.
        tried: How often it was tried.
        survived: How often all was well in the end.
        lost: Requests of callers that failed, or were answered wrongly; None without callers.
        recovery_s: The longest time until all was well.
        problem: What went wrong the first time.
    """

    fault: str
    tried: int
    survived: int
    lost: int | None
    recovery_s: float
    problem: str = ""


def faults(config: Config) -> Iterator[tuple[str, Fault, int | None]]:
    """Yield the name of each fault of an instance, the fault, and how many requests it may cost.

    None stands for a fault without callers, because the whole instance goes down.
    """
    yield "a worker is killed", chaos_faults.killed_worker, CONNECTIONS
    yield "a worker hangs", chaos_faults.hung_worker, 0
    yield "the sidecar is killed", chaos_faults.killed_sidecar, 0
    yield "a switch and back", chaos_faults.switched, 0
    for name in BAD_VERSIONS:
        # It passes the replay, so callers get its answers until the watch has noticed.
        yield f"deploy: {name}", bad_version(name), 500 if name == "turns constant" else 0
    if CAN_MOUNT:
        yield "deploy: the store is full", chaos_faults.full_store, 0
    for name in BAD_ARCHIVES:
        yield f"reload: {name}", bad_archive(name), 0
    yield "fuzzed bodies, memory", chaos_faults.fuzzed(config.fuzzed), 0
    for name, fault in chaos_commands.FAULTS.items():
        yield name, fault, 0
    yield "TorchServe is killed", chaos_faults.killed_torchserve, None
    yield "make serve is killed", chaos_faults.killed_serve, None


def outcomes(config: Config) -> Iterator[Outcome]:
    """Try all faults, and yield what becomes of each.

    Raises:
        FaultError: If the instance does not start.
    """
    with tempfile.TemporaryDirectory(prefix="recmar-chaos-") as folder:
        scratch = Path(folder)
        data = table(scratch / "table.csv")
        trained, store = scratch / "artifacts", scratch / "store"
        flags = ["--data-path", str(data), "--features", "price,ctr", "--epochs", "20"]
        run("scripts.train", "--model", TRAINED, *flags, "--artifacts-dir", trained)
        run("archive.package", "--model", TRAINED, "--artifacts-dir", trained, "--store", store)
        registry = Registry(scratch / "registry")
        for version in NUMBERS:
            registry.register(MODEL, version, archive(scratch / version, version))
        archive(store, "v1")
        with running_server(store) as server:
            world = World(scratch, store, registry, server)
            for name, fault, may_lose in faults(config):
                if config.chooses(name):
                    yield _try(world, name, fault, may_lose, config.times)
            for command, make in chaos_kills.commands(world).items():
                name = f"{command} is killed"
                if config.chooses(name) and config.kills:
                    with world.load() as load:
                        survived, last_s, problem = chaos_kills.kill(world, make, config.kills)
                    problem = problem or load.problem(0)
                    yield Outcome(name, config.kills, survived, len(load.lost), last_s, problem)


def _try(world: World, name: str, fault: Fault, may_lose: int | None, times: int) -> Outcome:
    survived, lost, recovery_s, problem = 0, 0, 0.0, ""
    for _ in range(times):
        found = ""
        try:
            if may_lose is None:
                recovery_s = max(recovery_s, fault(world))
            else:
                wait_until(world.healthy, TIMEOUT_S)
                with world.load() as load:
                    time.sleep(0.2)
                    recovery_s = max(recovery_s, fault(world))
                lost += len(load.lost)
                found = load.problem(may_lose)
        except (FaultError, UserError, OSError, subprocess.SubprocessError) as error:
            found = f"{type(error).__name__}: {error}"
        survived += not found
        problem = problem or found
    return Outcome(name, times, survived, None if may_lose is None else lost, recovery_s, problem)


def report(found: Sequence[Outcome]) -> Table:
    """Return the table, at most 80 columns wide."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("fault")
    for name in ("tried", "survived", "lost requests", "recovery s"):
        shown.add_column(name, justify="right")
    for each in found:
        lost = "-" if each.lost is None else str(each.lost)
        numbers = (str(each.tried), str(each.survived), lost, f"{each.recovery_s:.1f}")
        shown.add_row(each.fault, *numbers)
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    config = tyro.cli(Config, prog="python -m bench.chaos", args=argv)
    logs.to_stderr(logging.ERROR)
    logging.getLogger("ts").setLevel(logging.ERROR)  # at import it warns of missing accelerators
    found: list[Outcome] = []
    status = 0
    try:
        for outcome in outcomes(config):
            found.append(outcome)
            print(
                f"{outcome.fault}: {outcome.survived} of {outcome.tried} {outcome.problem}",
                file=sys.stderr,
            )
    except (FaultError, UserError, OSError) as error:
        logger.error("%s", error)
        status = 1
    except KeyboardInterrupt:
        logger.warning("interrupted")
        status = 130
    Console(width=80).print(report(found))
    for outcome in found:
        if outcome.problem:
            logger.error("%s: %s", outcome.fault, outcome.problem)
            status = status or 1
    return status


if __name__ == "__main__":
    sys.exit(main())
