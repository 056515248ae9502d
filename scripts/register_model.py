"""Register trained models and maintain the registry: ``python -m scripts.register_model``.

Without a subcommand it registers: ``python -m scripts.register_model --model deepfm --version v1``.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from archive import catalog, package
from archive.files import scratch_folder
from archive.registry.documents import CHALLENGER, CHAMPION, RegistryError
from archive.registry.store import RegistryConfig
from handlers import logs
from handlers.errors import UserError
from serving.here import versions_here
from serving.model_store import stale_copies
from serving.rollout import changing
from serving.settings import Settings
from training import artifacts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Register(RegistryConfig):
    """Package a trained model and register it as the challenger.

    Attributes:
        model: Name of a model, or of a training run for all archives of that run.
        version: The version; the newest by default.
        model_dir: Folder that training wrote to.
    """

    model: str
    version: str = ""
    model_dir: Path = artifacts.ARTIFACTS

    def run(self) -> None:
        """Package the model and register its archives."""
        chosen = catalog.get(self.model)
        models = [catalog.get(name) for name in catalog.model_names()]
        # Another run may finish, and be the newest, while the archives of this one are packaged.
        version = artifacts.find(chosen.artifacts, self.version or None, self.model_dir).name
        for model in models:
            if self.model not in (model.name, model.artifacts):
                continue
            with scratch_folder("register") as scratch:
                config = package.Config(store=scratch, artifacts_dir=self.model_dir)
                mar = package.package(model, version, config)
                entry = self.open_registry().register(model.name, version, mar)
            print(f"{entry.model} {entry.version} {self.registry / entry.path}")


@dataclass(frozen=True, kw_only=True)
class List(RegistryConfig):
    """List the registered versions."""

    def run(self) -> None:
        """Print a table of all versions."""
        look: Any = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
        table = Table("model", "version", "alias", "gate", "sha256", "registered", **look)
        for entry, aliases in self.open_registry().listing():
            time = entry.registered_at[:16].replace("T", " ")
            named = " ".join(aliases)
            table.add_row(entry.model, entry.version, named, entry.gate, entry.sha256[:8], time)
        if not table.row_count:
            raise RegistryError(
                f"{self.s3_bucket or self.registry} has no models; "
                "run: make register MODEL=<model> VERSION=<version>"
            )
        Console().print(table)


@dataclass(frozen=True, kw_only=True)
class Show(RegistryConfig):
    """Print the entry of a version, as JSON.

    Attributes:
        model: Name of the model.
        version: A version or an alias: champion, challenger, previous.
    """

    model: str
    version: str = CHAMPION

    def run(self) -> None:
        """Print the entry."""
        entry = self.open_registry().entry(self.model, self.version)
        print(json.dumps(asdict(entry), indent=2))


@dataclass(frozen=True, kw_only=True)
class Promote(RegistryConfig):
    """Make a version the champion. Deploying a version does this too.

    Attributes:
        model: Name of the model.
        version: A version or an alias.
        ungated: Why the version may serve although the gate refused it or has not judged it.
    """

    model: str
    version: str = CHALLENGER
    ungated: str = ""

    def run(self) -> None:
        """Move the alias."""
        registry = self.open_registry()
        registry.check_gate(self.model, self.version, self.ungated)
        version = registry.promote(self.model, self.version, self.ungated)
        print(f"{self.model} {version} is the champion")


@dataclass(frozen=True, kw_only=True)
class Rollback(RegistryConfig):
    """Make the previous champion the champion again, without changing what is served.

    Attributes:
        model: Name of the model.
    """

    model: str

    def run(self) -> None:
        """Move the alias back."""
        print(f"{self.model} {self.open_registry().rollback(self.model)} is the champion")


@dataclass(frozen=True, kw_only=True)
class StoreConfig(RegistryConfig):
    """The registry and a model store.

    Attributes:
        store: The model store; by default MODEL_STORE, or model-store/ if that is not set.
    """

    store: Path = field(
        default_factory=lambda: Path(os.environ.get("MODEL_STORE") or package.MODEL_STORE)
    )


@dataclass(frozen=True, kw_only=True)
class Prune(StoreConfig):
    """Remove old versions from the registry, and their copies from the model store.

    What has an alias, serves on this machine or is served at the next start always stays.

    Attributes:
        model: Name of the model.
        keep: Number of newest versions that stay.
    """

    model: str
    keep: int

    def run(self) -> None:
        """Remove entries and archives, and print what was removed."""
        if self.keep < 0:
            raise RegistryError(f"--keep {self.keep}: expected 0 or more")
        loaded = versions_here(Settings.from_env(os.environ), self.model) or []
        registry = self.open_registry()
        for entry in registry.prune(self.model, self.keep):
            print(f"removed {entry.model} {entry.version}")
        if not self.store.is_dir():
            return
        kept = {entry.version for entry, _ in registry.listing() if entry.model == self.model}
        kept |= {version.version for version in loaded}
        with changing(self.store):
            copies = stale_copies(self.store, self.model, self.keep, kept)
            for copy in copies:
                print(f"removing {copy}", flush=True)
            for copy in copies:
                copy.unlink()


@dataclass(frozen=True, kw_only=True)
class Pull(StoreConfig):
    """Copy the champions into a model store, to be served at the next start.

    Attributes:
        model: Names separated by commas; by default every model that has a champion.
    """

    model: str = ""

    def run(self) -> None:
        """Copy the archives and check their hashes."""
        registry = self.open_registry()
        names = [name.strip() for name in self.model.split(",")] if self.model else []
        names = names or [e.model for e, aliases in registry.listing() if CHAMPION in aliases]
        if not names:
            raise RegistryError(
                f"{self.s3_bucket or self.registry} has no champion; "
                "run: python -m scripts.register_model promote --model <model>"
            )
        self.store.mkdir(parents=True, exist_ok=True)
        with changing(self.store):
            for name in names:
                entry = registry.entry(name, CHAMPION)
                print(f"{registry.fetch(name, entry.version, self.store)} {entry.version}")


@dataclass(frozen=True, kw_only=True)
class Rebuild(RegistryConfig):
    """Write a registry.json that was lost or damaged anew, from the archives.

    Every archive is checked. Aliases, verdicts and dates come from registry.json or, if that is
    not readable, from its copy.
    """

    def run(self) -> None:
        """Write it, and print what it holds and what it could not take."""
        registry = self.open_registry()
        for problem in registry.rebuild():
            logger.warning("%s", problem)
        for entry, aliases in registry.listing():
            print(" ".join((entry.model, entry.version, *aliases)))


COMMANDS: dict[str, Callable[..., Any]] = {
    "register": Register,
    "list": List,
    "show": Show,
    "promote": Promote,
    "rollback": Rollback,
    "prune": Prune,
    "pull": Pull,
    "rebuild": Rebuild,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].startswith("--") and arguments[0] != "--help":
        arguments.insert(0, "register")
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="python -m scripts.register_model", args=arguments
    )
    logs.to_stderr(logging.WARNING)
    logging.getLogger("ts").setLevel(logging.ERROR)  # TorchServe warns of missing accelerators
    try:
        command.run()
    except (UserError, OSError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.warning("interrupted; run it again to continue")
        return 130
    return 0


if __name__ == "__main__":
    # Process 1 of a container ignores signals that it does not handle.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
