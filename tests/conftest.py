"""Shared fixtures: a tiny training run of every model, its archive, one TorchServe for all."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import NoReturn

import pytest
import requests
import s3fs

from archive import catalog, package
from serving import server as torchserve
from serving.settings import ServeError
from serving.testing import Server, running_server
from tests.examples import Example, examples, model_names, train
from tests.services.databases import (
    Database,
    NotInstalledError,
    mariadb_server,
    postgres_server,
)
from tests.services.s3 import CREDENTIALS, s3_server

STATUS = pytest.StashKey[int]()


def pytest_configure() -> None:
    """Treat SIGTERM as Ctrl-C, so that fixtures stop their processes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the exit status for `pytest_unconfigure`."""
    session.config.stash[STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Exit here: threads of native libraries may hang the shutdown of the interpreter."""
    if STATUS in config.stash:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[STATUS])


def lacking(part: str) -> NoReturn:
    """Skip a test because this machine lacks a part; on CI, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(part)
    pytest.skip(part)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Example], Path]:
    """Write the training data of an example once; return its folder."""

    @cache
    def write(write_data: Callable[[Path], None]) -> Path:
        folder = tmp_path_factory.mktemp("data") / "data"
        write_data(folder)
        return folder

    return lambda example: write(example.write_data)


@pytest.fixture(scope="session")
def artifact_folder(
    tmp_path_factory: pytest.TempPathFactory, data_folder: Callable[[Example], Path]
) -> Callable[[Example], Path]:
    """Train an example once; return the artifact folder, which models of one run share."""
    root = tmp_path_factory.mktemp("artifacts")

    def make(example: Example) -> Path:
        folder = root / catalog.get(example.model).artifacts / example.version
        if not folder.exists():
            places = ["--data-path", str(data_folder(example)), "--artifacts-dir", str(root)]
            flags = [*example.arguments, *places, "--version", example.version]
            assert train(example.model, *flags) == 0
        return folder

    return make


@pytest.fixture(scope="session")
def archive_file(
    tmp_path_factory: pytest.TempPathFactory, artifact_folder: Callable[[Example], Path]
) -> Callable[[Example], Path]:
    """Package an example once; return the .mar."""
    root = tmp_path_factory.mktemp("archives")

    @cache
    def pack(example: Example) -> Path:
        artifacts, store = artifact_folder(example).parents[1], root / example.version
        arguments = ["--model", example.model, "--version", example.version]
        places = ["--artifacts-dir", str(artifacts), "--store", str(store)]
        assert package.main([*arguments, *places]) == 0
        return store / f"{example.model}.mar"

    return pack


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, archive_file: Callable[[Example], Path]
) -> Iterator[Server]:
    """Serve all examples, each under its own version."""
    try:
        torchserve.java()
    except ServeError as error:
        lacking(str(error))
    store = tmp_path_factory.mktemp("model-store")
    others = []
    for example in examples():
        mar = store / f"{example.model}.mar"
        if mar.exists():
            mar = store / f"{example}.mar"
            others.append(mar)
        mar.write_bytes(archive_file(example).read_bytes())
    with running_server(store, ENABLED_MODELS=",".join(model_names())) as running:
        with ThreadPoolExecutor() as pool:
            for answer in pool.map(partial(register, running), others):
                answer.raise_for_status()
        yield running


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a running S3 server."""
    with s3_server(tmp_path_factory.mktemp("s3") / "server.log") as url:
        yield url


@pytest.fixture(scope="session")
def mysql() -> Iterator[Database]:
    """Run a MariaDB server."""
    try:
        with mariadb_server() as port:
            yield Database("mysql", port)
    except NotInstalledError as error:
        lacking(str(error))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Database]:
    """Run a PostgreSQL server."""
    try:
        with postgres_server() as port:
            yield Database("postgres", port)
    except NotInstalledError as error:
        lacking(str(error))


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Create an empty bucket, and set the environment to reach it."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_endpoint}.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    return name


def register(server: Server, mar: Path, **params: str) -> requests.Response:
    """Load an archive of a server's model store with one worker."""
    return requests.post(
        f"{server.management_url}/models",
        params={"url": mar.name, "initial_workers": "1", "synchronous": "true", **params},
        timeout=60,
    )


@pytest.fixture(params=examples(), ids=str)
def example(request: pytest.FixtureRequest) -> Example:
    """Return each example of each model in turn."""
    found: Example = request.param
    return found
