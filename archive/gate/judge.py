"""Judge a new version of a model against the one that serves, or against the baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pydantic
from rich.console import Console

from archive import catalog, package
from archive.files import scratch_folder
from archive.gate.compare import Scored, compare
from archive.gate.reference import Reference, choose_reference
from archive.gate.report import Page
from archive.gate.scoring import score
from archive.gate.unpacked_archive import UnpackedArchive
from archive.gate.verdict import archives_of_run, verdict_on
from archive.registry.documents import RegistryError, Verdict
from archive.registry.store import RegistryConfig
from handlers.errors import UserError
from training import artifacts
from training.data.feature_flags import named_columns
from training.evaluation import Evaluation
from training.run import RunConfig, load_script


@dataclass(frozen=True, kw_only=True)
class GateConfig(RegistryConfig):
    """The versions to compare, the data and the limits.

    Attributes:
        model: Name of the model.
        version: Version to judge, or an alias; the newest that was trained by default.
        current_version: Version to judge it against; by default the one that serves on this
            machine, or else the registry's champion, or the baselines if there is none.
        data_path: Data whose test split to judge on, as training takes it; by default the data
            that the new version was trained on.
        min_ratio: Metrics that must reach a share of the current version's: auc=0.99.
        max_ratio: Metrics that must stay below a multiple of the current version's: logloss=1.01.
        slice: Columns to report by; by default user_gender and user_age, where they exist.
        model_dir: Folder that training wrote to, for versions that are not registered.
    """

    model: str
    version: str = ""
    current_version: str = ""
    data_path: str | None = None
    min_ratio: tuple[str, ...] = ()
    max_ratio: tuple[str, ...] = ()
    slice: tuple[str, ...] = ()
    model_dir: Path = artifacts.ARTIFACTS


@dataclass(frozen=True)
class Judgement:
    """What the gate found.

    Attributes:
        page: The report.
        verdict: The verdict, for the registry.
        archives: sha256 of each archive of the training run, by model.
    """

    page: Page
    verdict: Verdict
    archives: Mapping[str, str]


def judge(config: GateConfig) -> Judgement:
    """Run both versions over the test split, and compare what they are worth.

    Raises:
        UserError: If there is no verdict; the message says why and what to do.
        OSError: If a file cannot be read or written.
    """
    model = catalog.get(config.model)
    version = config.version or artifacts.find(model.artifacts, None, config.model_dir).name
    registry = config.open_registry()
    registry.check_writable()  # rather now than when the verdict is there
    with scratch_folder("evaluate") as folder:
        new = open_archive(config, version, folder / "new")
        others = package.Config(store=folder / "others", artifacts_dir=config.model_dir)
        archives = archives_of_run(registry, model, new.version, new.sha256, others)
        if config.current_version:
            reference = Reference(config.current_version, "")
        else:
            reference = choose_reference(registry, model.name, new.version)
        old = open_reference(config, reference, folder / "old")
        if old is not None and old.version == new.version:
            raise UserError(
                f"{model.name} {new.version} is the current version itself; "
                "name another one: --current-version"
            )
        with _spinner("reading the test split"):
            evaluation = held_out(model, new, old, config)
        with _spinner(f"scoring {new.version}"):
            candidate = score(new, evaluation)
        baselines: dict[str, Scored] = {}
        with _spinner(f"scoring {old.version}" if old else "fitting the baselines"):
            if old is None:
                results_by_name = evaluation.baselines()
                baselines = {name: Scored(name, r, {}) for name, r in results_by_name.items()}
                current = baselines.pop(evaluation.floor)
            else:
                current = score(old, evaluation)
        min_ratio, max_ratio = dict(evaluation.min_ratio), dict(evaluation.max_ratio)
        if old is None:  # a first version must be no worse than a baseline
            min_ratio = dict.fromkeys(min_ratio, 1.0)
            max_ratio = dict.fromkeys(max_ratio, 1.0)
        min_ratio |= parse_ratios("--min-ratio", config.min_ratio)
        max_ratio |= parse_ratios("--max-ratio", config.max_ratio)
        with _spinner("comparing"):
            comparison = compare(evaluation, current, candidate, min_ratio, max_ratio, config.slice)
        page = Page(
            model.name,
            comparison,
            evaluation,
            {name: evaluation.report(scored.results) for name, scored in baselines.items()},
            [
                *([f"reference: {reference.reason}"] if reference.reason else []),
                *notes(new, old, evaluation),
            ],
        )
        return Judgement(page, verdict_on(page, old.version if old else ""), archives)


def open_archive(config: GateConfig, version: str, folder: Path) -> UnpackedArchive:
    """Unpack the archive of a version, from the registry or packaged from its artifacts.

    Args:
        config: Where the registry and the artifacts are.
        version: A version or an alias.
        folder: Folder for the archive and its content.

    Raises:
        ArchiveError: If the archive is damaged.
        ArtifactError: If the artifacts of the version are not usable.
        RegistryError: If the registry's archive is missing or altered.
        UserError: If there are neither an archive nor artifacts.
    """
    registry = config.open_registry()
    try:
        registry.entry(config.model, version)
    except RegistryError as not_registered:
        places = package.Config(store=folder, artifacts_dir=config.model_dir)
        try:
            mar = package.package(catalog.get(config.model), version, places)
        except artifacts.ArtifactError as error:
            raise UserError(f"{not_registered}\n{error}") from error
    else:
        mar = registry.fetch(config.model, version, folder)
    return UnpackedArchive.unpack(mar, folder / "unpacked")


def open_reference(
    config: GateConfig, reference: Reference, folder: Path
) -> UnpackedArchive | None:
    """Unpack the archive of the version to compare with; None stands for the baselines.

    Raises:
        ArchiveError: If the archive is damaged.
        UserError: If there are neither an archive nor artifacts.
    """
    if reference.mar is not None:
        return UnpackedArchive.unpack(reference.mar, folder)
    return open_archive(config, reference.version, folder) if reference.version else None


def held_out(
    model: catalog.Model, new: UnpackedArchive, old: UnpackedArchive | None, config: GateConfig
) -> Evaluation:
    """Read the test split of the new version's training data, or of ``--data-path``.

    Raises:
        DataError: If the data cannot be read.
        UserError: If an archive does not say how it was trained.
    """
    script = load_script(model.training[0])
    schema = pydantic.TypeAdapter(script.Config)
    try:
        runs = [schema.validate_python(a.meta["hyperparameters"]) for a in (new, old) if a]
    except (KeyError, pydantic.ValidationError) as error:
        raise UserError(
            f"{model.name}: an archive does not say how it was trained: {error}; train again"
        ) from error
    run = runs[0]
    if config.data_path is not None:
        run = run.reading(config.data_path)
    columns = merged_columns(runs)
    column_flags: dict[str, Any] = {flag: ",".join(c.values()) for flag, c in columns.items()}
    # A row of a database is assigned to a split by the hash of its columns. A column that training
    # did not read must not count, or the split would be another one.
    values = {field.name: getattr(run, field.name) for field in fields(run)}
    read_in_training = {
        name for flag, v in values.items() if isinstance(v, str) for name in named_columns(flag, v)
    }
    wanted = {*config.slice, *(name for names in columns.values() for name in names)}
    extra = tuple(wanted - read_in_training)
    run = replace(run, engine="local", init_from="", extra_columns=extra, **column_flags)
    return script.evaluation(run, config.slice)


def merged_columns(runs: Sequence[RunConfig]) -> dict[str, dict[str, str]]:
    """Merge the flags that list columns, so that each version gets all of its features.

    Returns:
        The parts of each flag by column, those of the first run first.

    Raises:
        UserError: If a feature is of two kinds, and no row can be sent to both versions.
    """
    columns: dict[str, dict[str, str]] = {flag: {} for flag in runs[0].column_flags}
    kinds: dict[str, str] = {}
    for run in runs:
        kinds_of_run: dict[str, str] = {}
        for flag, merged in columns.items():
            for name, part in named_columns(flag, getattr(run, flag)).items():
                merged.setdefault(name, part)
                if flag in ("categorical", "multi", "timestamp", "history"):
                    kinds_of_run[name] = flag
                else:
                    kinds_of_run.setdefault(name, "")
        for name, kind in kinds_of_run.items():
            pair = {kind, kinds.setdefault(name, kind)}
            if pair == {"categorical", "multi"}:
                # Both versions take the text of a category; one of them splits it.
                columns["multi"].pop(name, None)
            elif len(pair) > 1 and pair != {"", "categorical"}:
                found = " and ".join(sorted(f"--{k}" if k else "a number" for k in pair))
                raise UserError(
                    f"{name}: is {found} in the two versions, so that no row can be sent to both; "
                    "rename the column for one of them"
                )
    return columns


def notes(
    new: UnpackedArchive, old: UnpackedArchive | None, evaluation: Evaluation
) -> Iterator[str]:
    """Yield what may make the comparison unfair."""
    if evaluation.data_sha256 != new.meta["data_sha256"]:
        yield f"{new.version} was trained on other data; it may have seen some of these rows"
    trained_on = [(a.meta["data_sha256"], a.meta["seed"]) for a in (new, old) if a is not None]
    if old is not None and trained_on[0] != trained_on[1]:
        yield (
            f"{old.version} was trained on other data, or with another seed, than {new.version}; "
            "unless the test split is a file of its own, it may have seen some of it, which "
            "flatters it"
        )


def parse_ratios(flag: str, values: Sequence[str]) -> dict[str, float]:
    """Parse values such as ``auc=0.99``.

    Raises:
        UserError: If a value is not of that form.
    """
    ratios = {}
    for value in values:
        metric, _, ratio = value.partition("=")
        try:
            ratios[metric] = float(ratio)
        except ValueError as error:
            raise UserError(f'{flag}: expected metric=ratio, got "{value}"') from error
    return ratios


def _spinner(text: str) -> AbstractContextManager[Any]:
    """Show what takes time, if stderr is a terminal."""
    return Console(stderr=True).status(text)
