"""Write commands for bash, to be copied from a terminal: train, write a label, send a request."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from training.data.files import LOCAL, File
from training.data.inspection.labels import NEW_LABEL, Label
from training.data.sources import DataSet

WIDTH = 80
CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
URL = "http://127.0.0.1:8080/predictions/"


def train(model: str, flags: Sequence[Sequence[str]]) -> str:
    """Return a command that trains a model, with a flag on each line."""
    lines = [line for flag in flags for line in _lines(flag)]
    # make expands $, and hands the rest to sh.
    arguments = "\n".join(lines)[: -len(" \\")].replace("$", "$$").replace("'", "'\\''")
    return f"make train MODEL={model} ARGS='{arguments.lstrip()}'"


def _lines(flag: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a flag, which are broken after commas."""
    text = "    " + " ".join(map(quote, flag)) + " \\"
    while len(text) > WIDTH and (end := text.rfind(",", 0, WIDTH - 1) + 1):
        # No blanks before the rest: they would end the word.
        yield text[:end] + "\\"
        text = text[end:]
    yield text


def quote(word: str) -> str:
    """Quote a word for bash if it needs it."""
    if re.fullmatch(r"[\w@%+=:,./-]+", word):
        return word
    return '"' + re.sub(r'([\\"$`])', r"\\\1", word) + '"'


class LabelStep(NamedTuple):
    """How to write the label.

    Attributes:
        task: What to do.
        command: A command that does it; empty if the data is not a single file of a table.
        path: The file that it writes.
    """

    task: str
    command: str = ""
    path: str = ""


def label_step(label: Label, data: DataSet) -> LabelStep:
    """Return how to write a label of 0 and 1, without the rows that have none."""
    task = f"drop the rows without {label.column.name}" if label.column.missing else ""
    if label.is_new:
        add = f"add a column {NEW_LABEL}, 1 if {label.condition}, else 0"
        task = f"{task}; {add}" if task else add
    files = [f for f in data.table if isinstance(f, File) and f.fs is LOCAL]
    kind = "parquet" if files and files[0].path.endswith(".parquet") else "csv"
    if len(data.table) != 1 or not files or not files[0].path.endswith((*CSV, ".parquet")):
        return LabelStep(task)
    path = f"{files[0].path.removesuffix('.gz').rsplit('.', 1)[0]}.labeled.{kind}"
    source, name = repr(files[0].path), label.column.name
    if kind == "csv":
        options = "dtype=str, keep_default_na=False, na_values=[''], skipinitialspace=True"
        separator = files[0].separator or ("\t" if ".tsv" in files[0].path else ",")
        read = f"d = pd.read_csv({source}, sep={separator!r},\n    {options})"
        write = f"d.to_csv({path!r}, index=False)"
    else:
        read = f'd = pd.read_parquet({source}, dtype_backend="pyarrow")'
        write = f"d.to_parquet({path!r}, index=False)"
    lines = ["import pandas as pd", read]
    if label.column.missing:
        lines.append(f"d = d.dropna(subset=[{name!r}])")
    if label.equals is not None:
        text = f"d[{name!r}].astype(str).str.strip()"
        lines.append(f"d[{NEW_LABEL!r}] = ({text} == {label.equals!r}).astype(int)")
    elif label.at_least is not None:
        number = f"pd.to_numeric(d[{name!r}])"
        lines.append(f"d[{NEW_LABEL!r}] = ({number} >= {label.at_least:g}).astype(int)")
    program = "\n".join([*lines, write])
    return LabelStep(task, f".venv/bin/python - <<'END'\n{program}\nEND", path)


def request(model: str, row: Mapping[str, Any]) -> str:
    """Return a command that asks for the prediction of a row."""
    body = json.dumps({"data": [row]}, ensure_ascii=False).replace("'", "\\u0027")
    start = '{"data": ['
    lines = [f"  -d '{start}"]
    # No value ends in a blank, so these commas are not in texts.
    for part in re.split(r'(?<=,) (?=")', f"{body[len(start) :]}' \\"):
        if len(lines[-1]) + len(part) > WIDTH:
            lines.append("    ")
        lines[-1] += part if lines[-1].endswith(("[", "    ")) else f" {part}"
    text = "\n".join(lines)
    return f"curl -H 'Content-Type: application/json' \\\n{text}\n  {URL}{model}"
