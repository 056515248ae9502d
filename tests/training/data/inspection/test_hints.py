"""Messages about data name the flags that were forgotten, whole and with the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from tests.examples import load_handler, train
from training.data.inspection.hints import flag_for

N = 60
LABEL = [0, 1, 1] * (N // 3)
CITIES = ["Berlin", "Paris", "Rome"] * (N // 3)
FLAGS = ("--categorical", "--multi", "--timestamp")


@pytest.mark.parametrize(
    ("name", "cells", "flag"),
    [
        ("city", ["Berlin", "Paris", "Berlin"], "--categorical city"),
        ("city", ["Berlin"], "--categorical city"),
        ("zip", ["10115", "80331", "W1A"], "--categorical zip"),
        ("age", ["10", "80", "x"], ""),
        ("genres", ["Action|Comedy", "Comedy|Action", "Comedy"], '--multi "genres:|"'),
        ("genres", ["a,b", "b,a", "b"], "--multi genres:comma"),
        ("at", ["2026-11-25 08:00", "2026-11-26 08:00"], "--timestamp at"),
        ("my city", ["Berlin", "Paris"], '--categorical "my city"'),
    ],
)
def test_the_flag_follows_from_the_cells(name: str, cells: list[str], flag: str) -> None:
    assert flag_for(name, pa.array(cells), FLAGS) == flag


def test_only_flags_of_the_model_are_named() -> None:
    times = pa.array(["2026-11-25", "2026-11-26"])
    assert flag_for("at", times, ["--categorical", "--multi"]) == "--categorical at"
    assert flag_for("at", times, []) == ""


def message(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, *flags: str) -> str:
    """Return what a run that fails prints, with the folder left out."""
    places = ["--artifacts-dir", str(tmp_path / "artifacts")]
    assert train(model, *flags, *places) == 1
    return capsys.readouterr().err.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("name", "cells", "problem"),
    [
        ("city", CITIES, 'row 2, column city: expected a number, got "Berlin"; add {}city'),
        (
            "genres",
            ["Action|Comedy", "Comedy|Action", "Comedy"] * (N // 3),
            'row 2, column genres: expected a number, got "Action|Comedy"; add --multi "genres:|"',
        ),
        (
            "event_time",
            [f"2026-11-{day % 28 + 1:02}" for day in range(N)],
            'row 2, column event_time: expected a number, got "2026-11-01"; '
            "add --timestamp event_time",
        ),
    ],
)
def test_text_where_numbers_are_expected_names_the_flag(
    name: str,
    cells: list[str],
    problem: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pd.DataFrame({"clicked": LABEL, name: cells}).to_csv(tmp_path / "t.csv", index=False)
    flags = ["--data-path", str(tmp_path / "t.csv"), "--features", name, "--label", "clicked"]
    expected = problem.format("--categorical ")
    assert message(tmp_path, capsys, "xgb", *flags) == f"error: t.csv: {expected}\n"


@pytest.mark.parametrize("flags", [(), ("--categorical", "tags")], ids=["number", "category"])
def test_lists_name_their_flag(
    flags: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.DataFrame({"clicked": LABEL, "tags": [["a", "b"], ["b"], ["c"]] * (N // 3)})
    table.to_parquet(tmp_path / "t.parquet")
    path = str(tmp_path / "t.parquet")
    columns = ["--features", "tags", "--label", "clicked", *flags]
    assert message(tmp_path, capsys, "xgb", "--data-path", path, *columns) == (
        "error: t.parquet: column tags: expected one value per cell, got lists (list<string>); "
        "add --multi tags\n"
    )


MISSING: list[tuple[str, dict[str, Any], str]] = [
    (
        "deepfm",
        {"clicked": LABEL, "price": range(3, N + 3), "city": CITIES},
        "missing column item_ctr, item_cvr, item_price, user_age, user_gender, label, the default "
        "of --features and --label; it has clicked, price, city; for this data, add "
        "--label clicked --features price,city --categorical city, or run: "
        "make inspect DATA=t.csv",
    ),
    (
        "mmoe",
        {"clicked": LABEL, "price": range(N)},
        "missing column item_ctr, item_cvr, item_price, user_age, user_gender, label, watch_time, "
        "gmv, the default of --features and --targets; it has clicked, price; for this data, run: "
        "make inspect DATA=t.csv",
    ),
    (
        "youtube_dnn",
        {"uid": [i // 6 for i in range(N)], "sku": [i % 7 for i in range(N)], "x": [1, 2] * 30},
        "missing column user_id, item_id, user_age, user_gender, the default of --user-col and "
        "--item-col and --user-features; it has uid, sku, x; for this data, run: "
        "make inspect DATA=t.csv",
    ),
    (
        "two_tower",
        {"price": range(N), "uid": LABEL},
        "missing column user_age, user_gender, item_ctr, item_cvr, item_price, label, the default "
        "of --user-cols and --item-cols and --label; it has price, uid; for this data, run: "
        "make inspect DATA=t.csv",
    ),
]


@pytest.mark.parametrize(("model", "columns", "problem"), MISSING)
def test_missing_default_columns_say_what_this_file_needs(
    model: str,
    columns: dict[str, Any],
    problem: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False)
    found = message(tmp_path, capsys, model, "--data-path", str(tmp_path / "t.csv"))
    assert found == f"error: t.csv: {problem}\n"


def test_the_flags_of_the_message_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"clicked": LABEL, "price": [i * 7 % N for i in range(N)], "city": CITIES}
    pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False)
    data = ["--data-path", str(tmp_path / "t.csv")]
    found = message(tmp_path, capsys, "xgb", *data)
    flags = found.split(" add ")[1].split(", or run")[0].split()
    places = ["--artifacts-dir", str(tmp_path / "artifacts"), "--version", "v1"]
    assert train("xgb", *data, *flags, *places, "--epochs", "2") == 0


def test_categories_that_are_lists_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genres = ["Action|Comedy", "Comedy|Action", "Comedy"] * (N // 3)
    pd.DataFrame({"clicked": LABEL, "genres": genres}).to_csv(tmp_path / "t.csv", index=False)
    columns = ["--features", "genres", "--categorical", "genres", "--label", "clicked"]
    found = message(
        tmp_path, capsys, "xgb", "--data-path", str(tmp_path / "t.csv"), *columns, "--strict"
    )
    assert "lists such as" in found
    assert '--multi "genres:|"' in found


def test_training_and_the_description_say_who_has_to_send_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pd.DataFrame({"clicked": LABEL, "city": CITIES, "shop": [7, 8] * (N // 2)})
    table["tags"] = [["a", "b"], ["b"], ["c"]] * (N // 3)
    table.to_parquet(tmp_path / "t.parquet")
    flags = ["--data-path", str(tmp_path / "t.parquet"), "--label", "clicked", "--epochs", "2"]
    flags += ["--features", "city,shop", "--categorical", "city,shop", "--multi", "tags"]
    flags += ["--artifacts-dir", str(tmp_path / "artifacts")]
    caplog.set_level("INFO")
    assert train("xgb", *flags, "--version", "v1") == 0
    assert (
        "a client that sends numbers only, such as Go's map[string]float64, cannot send city: "
        "add --hash-ids, or write integer ids"
    ) in caplog.messages
    assert "a client that sends numbers only cannot send lists: tags" in caplog.messages
    caplog.clear()
    assert train("xgb", *flags, "--version", "v2", "--hash-ids") == 0
    assert not any("cannot send city" in message for message in caplog.messages)
    sent_as = {}
    for version in ("v1", "v2"):
        described = load_handler("xgb", tmp_path / "artifacts" / "xgb" / version)
        features = described.describe_features()
        sent_as[version] = {f["name"]: f["sent_as"] for f in features}
        json.dumps(features)
    assert sent_as["v1"] == {"city": "text", "shop": "number", "tags": "list"}
    assert sent_as["v2"] == {"city": "number", "shop": "number", "tags": "list"}
