"""Flags that locate the data of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import s3fs
import tyro

from training.data import files
from training.data.csv_stream import is_separator
from training.data.databases import MySQL, Postgres, Query, public_dsn
from training.data.sources import DataError, DataSet

PORTS = {"mysql": 3306, "doris": 9030}
SCHEMES = ("s3://", "oss://")
SEPARATOR_NAMES = {"tab": "\t", r"\t": "\t"}


def _aliases(*names: str) -> Any:
    return tyro.conf.arg(aliases=names)


@dataclass(frozen=True)
class DataConfig:
    """The location of a run's data.

    Attributes:
        data_path: A file, a folder, a pattern, or the URL of one.
        separator: Character between the cells of CSV files, such as ';' or tab; by default a comma,
            and a tab in .tsv files.
        data_source: Kind of source: file; oss for files in an object store, with a data-path such
            as s3://bucket/path or oss://bucket/path; or a database.
        oss_endpoint: URL of the object store; OSS_ENDPOINT or AWS_ENDPOINT_URL by default.
        oss_access_key: Access key; by default OSS_ACCESS_KEY_ID, or what AWS's own tools would use.
        oss_secret_key: Secret key; better set OSS_ACCESS_KEY_SECRET, or configure AWS's own tools.
        oss_region: Region; by default OSS_REGION or AWS_DEFAULT_REGION.
        table: Table of a database to read.
        query: Query to read instead of a table; the order of its rows counts for histories.
        doris_host: Host of the mysql or doris server.
        doris_port: Port of the server; by default 3306 for mysql and 9030 for doris.
        doris_user: Account to connect as.
        doris_password: Password of the account; better set MYSQL_PWD.
        doris_database: Database of a table that is named without one.
        dsn: Connection string of postgres, postgresql://user@host:5432/database; by default
            DATABASE_URL. Better set the password as PGPASSWORD.
        strict: Refuse data that validation warns of.
        extra_columns: Columns that the gate reads in addition to those that training read.
    """

    data_path: str | None = None
    separator: str = ""
    data_source: Literal["file", "oss", "mysql", "doris", "postgres"] = "file"
    oss_endpoint: str = ""
    oss_access_key: str = field(default="", repr=False)
    oss_secret_key: str = field(default="", repr=False)
    oss_region: str = ""
    table: Annotated[str, _aliases("--doris-table", "--mysql-table")] = ""
    query: Annotated[str, _aliases("--doris-query", "--mysql-query")] = ""
    doris_host: Annotated[str, _aliases("--mysql-host")] = "127.0.0.1"
    doris_port: Annotated[int | None, _aliases("--mysql-port")] = None
    doris_user: Annotated[str, _aliases("--mysql-user")] = "root"
    doris_password: Annotated[str, _aliases("--mysql-password")] = field(default="", repr=False)
    doris_database: Annotated[str, _aliases("--mysql-database")] = ""
    dsn: str = field(default="", repr=False)
    strict: bool = False
    extra_columns: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()

    @property
    def uses_default_data(self) -> bool:
        """Whether no data is named, so that the default data is generated."""
        return self.data_source == "file" and self.data_path is None

    def reading(self, path: str) -> Self:
        """Return the flags of the same run on the files of another path."""
        return replace(self, data_path=path, data_source="file", table="", query="", dsn="")

    def public(self) -> dict[str, Any]:
        """Return all flags that are not secret."""
        secrets = {f.name for f in fields(self) if not f.repr}
        shown = {name: value for name, value in asdict(self).items() if name not in secrets}
        return shown | ({"dsn": public_dsn(self.dsn)} if self.dsn else {})

    def data(
        self, default: Path, stem: str = "", suffixes: Sequence[str] = files.SUFFIXES
    ) -> DataSet:
        """Find the data.

        Args:
            default: Path to use if no flag names the data.
            stem: As for :func:`training.data.files.find`.
            suffixes: The same.

        Raises:
            DataError: If there is no data, or the flags contradict each other.
        """
        if self.data_source in ("file", "oss"):
            self._expect_no("--data-source mysql, doris or postgres", "table", "query", "dsn")
            path = self.data_path or str(default)
            scheme = next((scheme for scheme in SCHEMES if path.startswith(scheme)), "")
            if self.data_source == "oss" and not scheme:
                raise DataError(
                    "--data-source oss: expected --data-path s3://bucket/path or "
                    f"oss://bucket/path, got {self.data_path or 'none'}"
                )
            fs = self._object_store(scheme) if scheme else files.LOCAL
            path = path.removeprefix(scheme)
            separator = self._csv_separator()
            return files.find(
                path, fs, scheme=scheme, stem=stem, suffixes=suffixes, separator=separator
            )
        self._expect_no("--data-source file or oss", "data_path", "separator")
        if bool(self.table) == bool(self.query):
            raise DataError(f"--data-source {self.data_source}: expected --table or --query")
        source = self._database(Query(self.table, self.query))
        return DataSet(source.name, {"": [source]}, self.extra_columns)

    def _expect_no(self, where: str, *flags: str) -> None:
        if given := [f"--{flag.replace('_', '-')}" for flag in flags if getattr(self, flag)]:
            raise DataError(
                f"{', '.join(given)}: is for {where}, got --data-source {self.data_source}"
            )

    def _csv_separator(self) -> str:
        separator = SEPARATOR_NAMES.get(self.separator, self.separator)
        if separator and not is_separator(separator):
            raise DataError(
                f"--separator: expected tab or a character such as ; or |, got {self.separator!r}"
            )
        return separator

    def _object_store(self, scheme: str) -> s3fs.S3FileSystem:
        style = "virtual" if scheme == "oss://" else "auto"
        environ = os.environ.get
        return s3fs.S3FileSystem(
            # The S3 library takes what is None from AWS_* and its configuration files.
            key=self.oss_access_key or environ("OSS_ACCESS_KEY_ID"),
            secret=self.oss_secret_key or environ("OSS_ACCESS_KEY_SECRET"),
            endpoint_url=self.oss_endpoint or environ("OSS_ENDPOINT"),
            client_kwargs={"region_name": self.oss_region or environ("OSS_REGION")},
            config_kwargs={
                "s3": {"addressing_style": style},
                # Not every store knows the newer checksums of AWS.
                "response_checksum_validation": "when_required",
            },
        )

    def _database(self, query: Query) -> MySQL | Postgres:
        if self.data_source == "postgres":
            return Postgres(query, self.dsn or os.environ.get("DATABASE_URL", ""))
        return MySQL(
            query,
            host=self.doris_host,
            port=self.doris_port or PORTS[self.data_source],
            user=self.doris_user,
            password=self.doris_password or os.environ.get("MYSQL_PWD", ""),
            database=self.doris_database,
        )
