"""The version that a run starts from: ``--init-from``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from handlers.models.weights import load_network
from handlers.schema import SCHEMA_VERSION, FeatureSchema, read_vocabularies
from training import artifacts
from training.artifacts import ArtifactError

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class BaseVersion:
    """The artifacts of a version that was trained before.

    Attributes:
        folder: The artifact folder.
        meta: Its meta file.
    """

    folder: Path
    meta: dict[str, Any]

    @classmethod
    def find(cls, text: str, model: str, root: Path) -> BaseVersion:
        """Find a version.

        Args:
            text: A version of the model, or the path of an artifact folder, with a slash.
            model: Name of the model.
            root: Folder of all artifacts.

        Raises:
            ArtifactError: If there is no such version.
        """
        known = artifacts.versions(model, root)
        if "/" in text:
            folder = Path(text)
            if not folder.is_dir():
                raise ArtifactError(f"--init-from {text}: no such folder")
        elif text in known:
            folder = root / model / text
        else:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ArtifactError(f"--init-from {text}: {root / model} has no such version; {has}")
        return cls(folder, artifacts.read_meta(folder))

    def check_files(self) -> None:
        """Raise an ArtifactError if a file is missing or was altered."""
        artifacts.check_files(self.folder, "choose another version for --init-from")

    def schema(self, key: str = "features") -> FeatureSchema:
        """Return the features at a key of the meta file."""
        return FeatureSchema.from_json(self.meta[key], self.vocabularies())

    def vocabularies(self) -> dict[str, list[str]]:
        """Return the tokens of each category."""
        return read_vocabularies(self.folder)

    def file(self, name: str, arch_version: int) -> Path:
        """Return the path of the weights.

        Args:
            name: Name of the file that a model is saved in.
            arch_version: Version of the code that loads it.

        Raises:
            ArtifactError: If the version is of another model, or of other code.
        """
        path = self.folder / name
        if not path.exists():
            raise ArtifactError(f"--init-from: expected a folder with {name}, got {self.folder}")
        for key, known in (("arch_version", arch_version), ("schema_version", SCHEMA_VERSION)):
            if self.meta.get(key) != known:
                raise ArtifactError(
                    f"--init-from: {self.folder}: {key}: expected {known}, got "
                    f"{self.meta.get(key)}; train without --init-from"
                )
        return path

    def network(self, network_class: type[Network], name: str, arch_version: int) -> Network:
        """Load the network; the arguments are those of :meth:`file`."""
        return load_network(network_class, self.file(name, arch_version), torch.device("cpu"))
