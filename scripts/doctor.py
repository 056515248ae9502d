"""Find what would keep this machine from serving: ``python -m scripts.doctor``.

It checks what `make serve` would do with the same environment, and changes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from archive import catalog
from archive.checks import archives, artifact_folders
from handlers.errors import UserError
from serving import checks
from serving.budget import Budget
from serving.checks import Check, Finding, Machine
from serving.settings import Settings
from training import artifacts

CHECKS = (
    Check("Java starts, and is new enough", checks.java),
    Check("TorchServe finds the command with which it ends workers", checks.kill_command),
    Check("The ports are free, or held by this server", checks.ports),
    Check("Each enabled model has a sound archive of the newest artifacts", archives),
    Check("The newest artifacts of each enabled model are complete", artifact_folders),
    Check("Java and all workers fit into the memory", checks.memory),
    Check("No model keeps more threads busy than there are cores", checks.cores),
    Check("The limit of open files allows many concurrent callers", checks.open_files),
    Check("The disk has room for the unpacked archives and the logs", checks.disk),
    Check("Logs and temporary files can be written", checks.writable),
    Check("No killed run left sockets or incomplete files", checks.leftovers),
    Check("The path of the temporary folder leaves room for a socket's name", checks.socket_path),
    Check("All callers need a key, and no archive comes from elsewhere", checks.exposure),
    Check("wrk is installed for bench and tune", checks.load_generator),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Check this machine and the configuration before `make serve`.

    Settings come from the environment, like those of `make serve`.

    Attributes:
        artifacts_dir: Folder that training wrote to.
    """

    artifacts_dir: Path = artifacts.ARTIFACTS


def this_machine(env: Mapping[str, str], artifacts_dir: Path) -> Machine:
    """Return this machine with the server that `make serve` would start.

    Raises:
        UserError: If a setting is invalid.
    """
    settings = Settings.from_env(env)
    known = catalog.model_names()
    models = list(dict.fromkeys(settings.enabled_models)) or known
    configs = {name: catalog.get(name).config for name in models if name in known}
    return Machine(settings, models, configs, artifacts_dir, Budget.read())


def table(findings: Sequence[tuple[Check, Sequence[Finding]]]) -> Table:
    """Lay out the findings of each check, at most 80 columns wide."""
    shown = Table(box=box.SIMPLE_HEAD, show_header=False, width=80)
    shown.add_column()
    shown.add_column(overflow="fold")  # a path stays whole for copying
    for check, found in findings:
        if not found:
            shown.add_row("ok", check.passed)
        for finding in found:
            fix = f"\n-> {finding.fix}" if finding.fix else ""
            shown.add_row("error" if finding.fatal else "warning", finding.what + fix)
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if something keeps the server from serving as it should."""
    config = tyro.cli(Config, prog="python -m scripts.doctor", args=argv)
    try:
        machine = this_machine(os.environ, config.artifacts_dir)
        findings = [(check, list(check.find(machine))) for check in CHECKS]
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    Console(highlight=False, markup=False).print(table(findings))
    return int(any(finding.fatal for _, found in findings for finding in found))


if __name__ == "__main__":
    sys.exit(main())
