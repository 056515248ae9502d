"""The processes of a server."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from handlers import logs
from serving.settings import ServeError

LOG_TAIL_LINES = 20
MAX_LOG_BYTES = 100 << 20
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ManagedProcess:
    """A process that ends with this one.

    Attributes:
        name: Name for messages.
        process: The process, leader of its own group.
        log: File that receives its output.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        cwd: Path,
        env: Mapping[str, str],
        as_json: bool = False,
    ) -> ManagedProcess:
        """Start a process; the log of the previous run is kept next to the new one.

        Args:
            name: Name for messages.
            command: Program and arguments.
            log: File that receives its output.
            cwd: Its working directory.
            env: Its environment.
            as_json: Make a line of JSON of each line that it writes.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists():
            log.replace(_previous(log))
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if as_json else output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # or Ctrl-C would reset connections before they are drained
                preexec_fn=ending_with_parent(signal.SIGKILL),
            )
        if process.stdout is not None:
            threading.Thread(target=_copy, args=(process.stdout, log), daemon=True).start()
        return cls(name, process, log)

    def check(self) -> None:
        """Check that it still runs, and rotate its log if that has grown large.

        Raises:
            ServeError: If it has ended on its own.
        """
        if self.process.poll() is not None:
            raise ServeError(
                f"{self.name} ended with exit code {self.process.returncode}; "
                f"{self.log} ends with:\n{tail(self.log)}"
            )
        with suppress(OSError):  # log4j2 is renaming it, or the disk is full
            if self.log.stat().st_size > MAX_LOG_BYTES:
                shutil.copyfile(self.log, _previous(self.log))
                os.truncate(self.log, 0)  # writers append, so they continue at the new end


def _copy(output: IO[bytes], log: Path) -> None:
    """Copy the lines of an output to a log, as JSON."""
    formatter = logs.JsonFormatter()
    with output:
        for line in output:
            text = line.decode(errors="replace").rstrip()
            record = logging.LogRecord("", logging.INFO, log.stem, 0, text, None, None)
            with suppress(OSError), log.open("a", encoding="utf-8") as file:  # or the disk is full
                file.write(f"{formatter.format(record)}\n")


def ending_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return a ``preexec_fn``: the kernel sends the child a signal when this process dies."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it has died in the meantime
            os.kill(os.getpid(), number)

    return prepare


def _previous(log: Path) -> Path:
    return log.with_suffix(".previous.log")


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return str(error)
    return "\n".join(lines[-LOG_TAIL_LINES:])
