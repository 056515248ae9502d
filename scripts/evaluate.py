"""Judge a new version of a model: ``python -m scripts.evaluate --model deepfm --version v2``.

The archives of both versions answer the same test split, each in a process that sees nothing else,
and what they answer is measured as training measures. Exit status: 0 the new version may ship, 1 it
may not, 2 it could not be judged.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pydantic
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from archive import catalog, package
from archive.gate import isolated_worker as answers
from archive.gate.compare import Comparison, GateError, Scored, compare
from archive.gate.report import Page
from archive.registry.documents import CHAMPION, RegistryError
from archive.registry.store import RegistryConfig
from handlers import logs
from handlers.errors import ArchiveError
from handlers.signature import Signature, verify_archive
from training import artifacts
from training.data.sources import DataError
from training.engine.worker import TrainingError
from training.evaluation import ALL, ArchiveOutput, Evaluation
from training.run import INTERRUPTED, load_script, split_names

logger = logging.getLogger(__name__)

PASSED, FAILED, NOT_JUDGED = 0, 1, 2
REQUEST_ROWS = 1000
# So many are enough to see which feature matters.
IMPORTANCE_ROWS = 5000


@dataclass(frozen=True)
class Config(RegistryConfig):
    """Judge a new version of a model against the one that serves.

    Attributes:
        model: Its name.
        version: The one to judge, a version or an alias; the newest that was trained by default.
        current_version: The one to judge it against: by default the registry's champion, and where
            there is none, the baselines.
        data_path: The data to judge on, as training takes it; by default what the new version was
            trained on. Its test split counts.
        min_ratio: Metrics that must reach a share of the current version's: auc=0.99.
        max_ratio: Metrics that must stay below a multiple of it: logloss=1.01.
        slice: Columns to report by; user_gender and user_age by default, where there are such.
        model_dir: Folder that training wrote to, for versions that are not registered.
        report: Where the report goes; by default reports/<model>/<version>/report.html.
    """

    model: str = tyro.MISSING
    version: str = ""
    current_version: str = ""
    data_path: str | None = None
    min_ratio: tuple[str, ...] = ()
    max_ratio: tuple[str, ...] = ()
    slice: tuple[str, ...] = ()
    model_dir: Path = artifacts.ARTIFACTS
    report: Path | None = None


@dataclass(frozen=True)
class Archive:
    """An unpacked archive, whose hashes are right.

    Attributes:
        folder: Where it is.
        signature: What it says of itself.
        meta: Its meta file.
    """

    folder: Path
    signature: Signature
    meta: dict[str, Any]

    @property
    def version(self) -> str:
        """Of the model."""
        return self.signature.model_version

    def ask(
        self, evaluation: Evaluation, questions: Sequence[Sequence[Any]]
    ) -> list[ArchiveOutput]:
        """Let the archive's own code answer, in a process that sees only its folder.

        Args:
            evaluation: Brings the items that vectors are compared with.
            questions: Lists of request rows.

        Raises:
            ArchiveError: If it cannot be loaded or does not answer.
        """
        items = evaluation.items()
        with tempfile.TemporaryDirectory(prefix="recmar-answers-") as scratch:
            work = Path(scratch)
            with (work / "requests.jsonl").open("wb") as file:
                for rows in questions:
                    for start in range(0, len(rows), REQUEST_ROWS):
                        body = {"data": rows[start : start + REQUEST_ROWS]}
                        file.write(orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE))
            (work / "items.json").write_bytes(orjson.dumps(items))
            (work / "config.json").write_text(json.dumps(dict(evaluation.handler_config)))
            command = [sys.executable, "-I", answers.__file__, str(self.folder), scratch]
            run = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
            if run.returncode != 0:
                last = run.stderr.strip().rpartition("\n")[2]
                raise ArchiveError(
                    f"{self.signature.model_name} {self.version}: its handler failed: {last}"
                )
            vectors = np.load(work / "item_vectors.npy") if items else np.empty((0, 0), np.float32)
            with (work / "answers.jsonl").open("rb") as file:
                return [
                    ArchiveOutput(list(_predictions(file, len(rows))), vectors, self.meta)
                    for rows in questions
                ]


def _predictions(file: Iterator[bytes], n_rows: int) -> Iterator[Any]:
    """The answers to so many rows; that to a single row may be a flat vector."""
    for start in range(0, n_rows, REQUEST_ROWS):
        predictions = orjson.loads(next(file))["predictions"]
        alone = n_rows - start == 1 and len(predictions) != 1
        yield from [predictions] if alone else predictions


def open_archive(config: Config, version: str, folder: Path) -> Archive:
    """Unpack the archive of a version, from the registry or packaged from its artifacts.

    Raises:
        GateError: If there is neither.
        ArchiveError: If it is damaged.
        RegistryError: The same.
    """
    registry = config.open_registry()
    try:
        registry.entry(config.model, version)
    except RegistryError as not_registered:
        places = package.Config(store=folder, artifacts_dir=config.model_dir)
        try:
            mar = package.package(catalog.get(config.model), version, places)
        except artifacts.ArtifactError as error:
            raise GateError(f"{not_registered}\n{error}") from error
    else:
        mar = registry.fetch(config.model, version, folder)
    signature = verify_archive(mar)
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(mar) as packed:
        packed.extractall(unpacked)
    return Archive(unpacked, signature, artifacts.read_meta(unpacked))


def held_out(model: catalog.Model, new: Archive, old: Archive | None, config: Config) -> Evaluation:
    """The test split of the data that the new version was trained on, or of ``--data-path``.

    Raises:
        DataError: If it cannot be read.
        GateError: If an archive does not say how it was trained.
    """
    script = load_script(model.training[0])
    schema = pydantic.TypeAdapter(script.Config)
    try:
        runs = [schema.validate_python(a.meta["hyperparameters"]) for a in (new, old) if a]
    except (KeyError, pydantic.ValidationError) as error:
        raise GateError(
            f"{model.name}: an archive does not say how it was trained: {error}; train again"
        ) from error
    run = runs[0]
    if config.data_path is not None:
        run = run.reading(config.data_path)
    # Each version gets all of its features, whichever the other one has.
    columns = {
        flag: dict.fromkeys(name for r in runs for name in split_names(getattr(r, flag)))
        for flag in run.column_flags
    }
    every: dict[str, Any] = {flag: ",".join(both) for flag, both in columns.items()}
    # What no flag of training names takes no part in where a row of a database goes: else the
    # split would be another one.
    own = {
        name for flag in vars(run).values() if isinstance(flag, str) for name in split_names(flag)
    }
    extra = {*config.slice, *(name for both in columns.values() for name in both)} - own
    run = replace(run, engine="local", extra_columns=tuple(extra), **every)
    return script.evaluation(run, config.slice)


def notes(new: Archive, old: Archive | None, evaluation: Evaluation) -> Iterator[str]:
    """What may make the comparison unfair."""
    if evaluation.data_sha256 != new.meta["data_sha256"]:
        yield f"{new.version} was trained on other data; it may have seen some of these rows"
    trained_on = [(a.meta["data_sha256"], a.meta["seed"]) for a in (new, old) if a is not None]
    if old is not None and trained_on[0] != trained_on[1]:
        yield (
            f"{old.version} was trained on other data, or with another seed, than {new.version}; "
            "unless the test split is a file of its own, it may have seen some of it, which "
            "flatters it"
        )


def shuffles(rows: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """The rows once for each feature, whose values are dealt anew."""
    keys = dict.fromkeys(key for row in rows for key in _keys(row))
    if len(keys) < 2:  # nothing to tell apart
        return
    order = np.random.default_rng(0).permutation(len(rows))
    for *parents, name in keys:
        dealt = []
        for row, other in zip(rows, order.tolist(), strict=True):
            inner, source = dict(row), rows[other]
            changed = inner
            for parent in parents:
                inner[parent] = dict(inner[parent])
                inner, source = inner[parent], source[parent]
            inner.pop(name, None)
            if name in source:
                inner[name] = source[name]
            dealt.append(changed)
        yield name, dealt


def _keys(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in row.items():
        if isinstance(value, dict):
            yield from ((key, inner) for inner in value)
        else:
            yield (key,)


def scored(archive: Archive, evaluation: Evaluation) -> Scored:
    """What an archive's answers are worth, and what each feature adds to that."""
    rows = evaluation.rows()
    alone = len(rows) == len(evaluation.frame)  # a result is of one row, not of several
    some = np.arange(len(rows))
    if alone and len(rows) > IMPORTANCE_ROWS:
        some = np.random.default_rng(0).choice(len(rows), IMPORTANCE_ROWS, replace=False)
    dealt = dict(shuffles([rows[i] for i in some]))
    answer, *shuffled = archive.ask(evaluation, [rows, *dealt.values()])
    results = evaluation.results(answer)
    importance = {}
    for name, other in zip(dealt, shuffled, strict=True):
        predictions = list(answer.predictions)
        for i, prediction in zip(some.tolist(), other.predictions, strict=True):
            predictions[i] = prediction
        without = evaluation.results(replace(answer, predictions=predictions))
        kept, left = (
            evaluation.report(r, some if alone else ALL).get(evaluation.primary, np.nan)
            for r in (results, without)
        )
        importance[name] = kept - left
    return Scored(archive.version, results, importance)


def ratios(flag: str, values: Sequence[str]) -> dict[str, float]:
    """Parse ``auc=0.99``.

    Raises:
        GateError: If one is not of that form.
    """
    found = {}
    for value in values:
        metric, _, ratio = value.partition("=")
        try:
            found[metric] = float(ratio)
        except ValueError as error:
            raise GateError(f'{flag}: expected metric=ratio, got "{value}"') from error
    return found


def judge(config: Config) -> Page:
    """Let both versions answer, and compare.

    Raises:
        GateError: If there is no verdict.
        ArchiveError: If an archive is damaged or does not answer.
        DataError: If the test split cannot be read.
    """
    model = catalog.get(config.model)
    version = config.version or artifacts.find(model.artifacts, None, config.model_dir).name
    current = config.current_version or config.open_registry().aliases(model.name).get(CHAMPION, "")
    with tempfile.TemporaryDirectory(prefix="recmar-evaluate-") as scratch:
        folder = Path(scratch)
        new = open_archive(config, version, folder / "new")
        old = open_archive(config, current, folder / "old") if current else None
        if old is not None and old.version == new.version:
            raise GateError(
                f"{model.name} {new.version} is the current version itself; "
                "name another one: --current-version"
            )
        with _told("reading the test split"):
            evaluation = held_out(model, new, old, config)
        with _told(f"{new.version} answers"):
            candidate = scored(new, evaluation)
        baselines: dict[str, Scored] = {}
        with _told(f"{old.version} answers" if old else "fitting the baselines"):
            if old is None:
                found = evaluation.baselines()
                baselines = {name: Scored(name, results, {}) for name, results in found.items()}
                reference = baselines.pop(evaluation.floor)
            else:
                reference = scored(old, evaluation)
        least, most = dict(evaluation.min_ratio), dict(evaluation.max_ratio)
        if old is None:  # a first version may not be below what needs no model
            least, most = dict.fromkeys(least, 1.0), dict.fromkeys(most, 1.0)
        least |= ratios("--min-ratio", config.min_ratio)
        most |= ratios("--max-ratio", config.max_ratio)
        with _told("comparing"):
            comparison = compare(evaluation, reference, candidate, least, most, config.slice)
        return Page(
            model.name,
            comparison,
            evaluation,
            {name: evaluation.report(scored.results) for name, scored in baselines.items()},
            list(notes(new, old, evaluation)),
        )


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what takes its time, where somebody looks on."""
    with Console(stderr=True).status(what):
        yield


def tables(model: str, comparison: Comparison) -> Iterator[Table]:
    """The comparison for people, within 80 columns."""
    title = f"{model} {comparison.new.name} against {comparison.old.name}, on the test split"
    look: Any = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    look |= {"title_justify": "left", "title_style": "bold"}
    table = Table("", "old", "new", "change ± 95 %", "limit", "", title=title, **look)
    for change in comparison.changes:
        limit = comparison.limits.get(change.metric)
        verdict = ("" if limit.holds(change.new) else "FAIL") if limit else ""
        table.add_row(
            change.metric,
            f"{change.old:.4f}",
            f"{change.new:.4f}",
            f"{change.difference:+.4f} ± {change.margin:.4f}",
            str(limit or ""),
            verdict,
        )
    yield table
    if comparison.slices:
        metric = comparison.slices[0].change.metric
        table = Table("", "results", "old", "new", "change ± 95 %", "", title=metric, **look)
        for part in comparison.slices:
            change = part.change
            table.add_row(
                f"{part.column} {part.value}",
                f"{part.n_results:,}",
                f"{change.old:.4f}",
                f"{change.new:.4f}",
                f"{change.difference:+.4f} ± {change.margin:.4f}",
                "worse" if part.is_worse else "",
            )
        yield table


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, args=argv)
    logs.to_stderr(logging.WARNING)
    logging.getLogger("ts").setLevel(logging.ERROR)  # it misses accelerators at import
    try:
        page = judge(config)
        path = config.report or Path("reports", page.model, page.comparison.new.name, "report.html")
        page.save(path)
    except (
        GateError,
        artifacts.ArtifactError,
        ArchiveError,
        RegistryError,
        DataError,
        TrainingError,
        catalog.UnknownModelError,
        OSError,
    ) as error:
        logger.error("%s", error)
        return NOT_JUDGED
    except KeyboardInterrupt:
        logger.warning("interrupted; there is no verdict")
        return INTERRUPTED
    comparison = page.comparison
    for table in tables(page.model, comparison):
        Console().print(table)
    for note in page.notes:
        print(f"note: {note}")
    print(f"report: {path}")
    for failure in comparison.failures:
        print(f"FAIL {failure}")
    if comparison.failures:
        return FAILED
    print(f"PASS {page.model} {comparison.new.name} against {comparison.old.name}")
    return PASSED


if __name__ == "__main__":
    sys.exit(main())
