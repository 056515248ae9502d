"""Files in an object store read like local ones, completely or not at all."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
import s3fs

from tests.examples import train
from tests.services.proxy import Proxy, proxy
from training.data import files
from training.data.config import DataConfig
from training.data.sources import SPLIT_NAMES, DataError, DataSet
from training.data.splits import load_splits
from training.data.tables import read_table
from training.tasks.ranking.world import impressions

TABLE = pd.DataFrame({"x": [1.5, np.nan, 3.0], "city": ["a", None, "c"]})
COLUMNS = ["x"], ["city"]
WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".csv.gz": lambda table, path: table.to_csv(path, index=False),
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
    ".jsonl": lambda table, path: table.to_json(path, orient="records", lines=True),
}


def read(url: str, **flags: str) -> pd.DataFrame:
    data = DataConfig(data_path=url, data_source="oss", **flags).data(Path("unused"))  # type: ignore[arg-type]
    return read_table(data.table, *COLUMNS)


def upload(bucket: str, name: str, table: pd.DataFrame, folder: Path) -> str:
    """Upload a table, and return its URL."""
    path = folder / Path(name).name
    WRITERS["".join(path.suffixes)](table, path)
    s3fs.S3FileSystem(skip_instance_cache=True).put_file(str(path), f"{bucket}/{name}")
    return f"s3://{bucket}/{name}"


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_file_reads_like_a_local_one(
    bucket: str, tmp_path: Path, suffix: str
) -> None:
    url = upload(bucket, f"deep/down/t{suffix}", TABLE, tmp_path)
    local = files.find(str(tmp_path / f"t{suffix}"))
    pd.testing.assert_frame_equal(read(url), read_table(local.table, *COLUMNS))


def test_a_folder_and_a_pattern_read_their_files_in_order(bucket: str, tmp_path: Path) -> None:
    for i in (2, 1, 3):
        upload(bucket, f"clicks/part-{i}.csv", TABLE.assign(x=i), tmp_path)
    upload(bucket, "clicks/_hidden.csv", TABLE.assign(x=9), tmp_path)
    for path, parts in {"": [1, 2, 3], "/": [1, 2, 3], "/*-[12].csv": [1, 2]}.items():
        assert read(f"s3://{bucket}/clicks{path}")["x"].unique().tolist() == parts


def test_a_folder_may_hold_the_splits(bucket: str, tmp_path: Path) -> None:
    for i, split in enumerate(SPLIT_NAMES):
        upload(bucket, f"data/{split}.parquet", TABLE.assign(x=i), tmp_path)
    data = DataConfig(data_path=f"s3://{bucket}/data").data(Path("unused"))
    assert load_splits(data, *COLUMNS).test["x"].unique().tolist() == [2]


def test_the_hash_depends_on_the_content_only(bucket: str, tmp_path: Path) -> None:
    urls = [
        upload(bucket, name, table, tmp_path)
        for name, table in (("a.csv", TABLE), ("b.csv", TABLE), ("c.csv", TABLE[:2]))
    ]
    hashes = [DataConfig(data_path=url).data(Path("unused")).sha256() for url in urls]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.csv", "none.csv: no such file"),
        ("no-*.csv", "no-*.csv: no such file"),
        ("../no-such-bucket/t.csv", "no such file"),
        ("t.xlsx", "expected a file ending in .csv"),
        ("bad.csv", 'bad.csv: row 3, column x: expected a number, got "two"'),
    ],
)
def test_the_message_names_what_is_wrong(
    bucket: str, tmp_path: Path, path: str, message: str
) -> None:
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    fs.pipe_file(f"{bucket}/t.xlsx", b"?")
    fs.pipe_file(f"{bucket}/bad.csv", b"x,city\n1,a\ntwo,b\n")
    url = f"s3://{bucket}/{path}".replace(f"{bucket}/../", "")
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read(url)
    assert str(error.value).startswith("s3://")


def test_an_unreachable_store_is_an_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError, match=f"s3://{bucket}/t.csv: cannot be read: .*127.0.0.1:1"):
        read(f"s3://{bucket}/t.csv", oss_endpoint="http://127.0.0.1:1")


def test_a_store_that_stops_answering_is_an_error(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    upload(bucket, "t.csv", TABLE, tmp_path)
    gone = s3fs.S3FileSystem(endpoint_url="http://127.0.0.1:1", skip_instance_cache=True)
    data = DataSet("t", {"": [files.File(f"{bucket}/t.csv", gone, "s3://t.csv")]})
    with pytest.raises(DataError, match=r"cannot be read: .*127\.0\.0\.1:1"):
        data.sha256()


@pytest.fixture
def between(s3_endpoint: str) -> Iterator[Proxy]:
    """Run a proxy in front of the store."""
    port = urlsplit(s3_endpoint).port
    assert port is not None
    with proxy(port) as running:
        yield running


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_connection_that_drops_during_a_read_is_resumed(
    bucket: str, tmp_path: Path, between: Proxy, suffix: str
) -> None:
    numbers = np.random.default_rng(0).random(200_000)
    table = pd.DataFrame({"x": numbers, "city": "somewhere"})
    url = upload(bucket, f"t{suffix}", table, tmp_path)
    between.break_after_bytes, between.breaks_left = 500_000, 1
    found = read(url, oss_endpoint=f"http://127.0.0.1:{between.port}")
    assert between.broken == 1
    np.testing.assert_array_equal(found["x"], numbers.astype(np.float32))


def test_a_connection_that_keeps_dropping_is_an_error(
    bucket: str, tmp_path: Path, between: Proxy
) -> None:
    url = upload(bucket, "t.csv", pd.DataFrame({"x": range(200_000), "city": "a"}), tmp_path)
    between.break_after_bytes = 500_000
    with pytest.raises(DataError, match="cannot be read"):
        read(url, oss_endpoint=f"http://127.0.0.1:{between.port}")
    assert between.broken > 1


def test_oss_puts_the_bucket_into_the_host_and_reads_its_own_variables(
    bucket: str, tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(bucket, "t.csv", TABLE, tmp_path).replace("s3://", "oss://")
    asked = []
    resolve = socket.getaddrinfo

    def loopback(host: str, *rest: Any, **options: Any) -> Any:
        asked.append(host)
        return resolve("127.0.0.1", *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", loopback)  # no DNS server knows the store
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    port = urlsplit(s3_endpoint).port
    monkeypatch.setenv("OSS_ENDPOINT", f"http://s3.oss-test.amazonaws.com:{port}")
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", "secret")
    monkeypatch.setenv("OSS_REGION", "oss-test")
    assert len(read(url)) == len(TABLE)
    assert set(asked) == {f"{bucket}.s3.oss-test.amazonaws.com"}


def test_a_model_is_trained_from_a_store(bucket: str, tmp_path: Path) -> None:
    url = upload(bucket, "clicks.parquet", impressions(2_000, seed=5)[0], tmp_path)
    flags = ["--epochs", "3", "--data-path", url, "--oss-access-key", "id"]
    flags += ["--oss-secret-key", "very secret"]
    places = ["--artifacts-dir", str(tmp_path), "--version", "v1", "--data-source", "oss"]
    assert train("xgb", *flags, *places) == 0
    meta = (tmp_path / "xgb" / "v1" / "feature_meta.json").read_text()
    assert url in meta
    assert "very secret" not in meta
