"""A proposal of flags follows rules of which each has an example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from training.data import files
from training.data.inspection.kinds import inspect
from training.data.inspection.models import propose_models, remarks
from training.data.inspection.ranking import Ranking, propose_ranking

N = 600
SNOWFLAKE = 7_234_567_890_123_456_789

RNG = np.random.default_rng(0)
# Labels, and a feature that says a little about them.
LABEL = (np.arange(N) % 3 == 0).astype(int)
CITIES = np.array(["a", "b"] * (N // 2), dtype=object)
PRICE = (RNG.normal(size=N) + LABEL).round(2)


def proposed(tmp_path: Path, max_rows: int = N, **columns: Any) -> Ranking:
    """Propose flags for a table with a price and further columns."""
    path = tmp_path / "t.parquet"
    pd.DataFrame({"price": PRICE, **columns}).to_parquet(path, index=False)
    return propose_ranking(inspect(files.find(str(path)), max_rows))


def flag(ranking: Ranking, name: str) -> str:
    """Return the value of a flag, empty without the flag."""
    assert ranking.label
    return dict(ranking.flags(ranking.label)).get(name, "")


@pytest.mark.parametrize(
    ("columns", "name", "condition"),
    [
        ({"clicked": LABEL}, "clicked", ""),
        ({"is_new": 1 - LABEL, "clicked": LABEL}, "clicked", ""),
        ({"purchased": LABEL, "clicked": LABEL}, "clicked", ""),
        ({"clicked": LABEL == 1}, "clicked", ""),
        ({"income": np.where(LABEL, ">50K", "<=50K")}, "label", "income is >50K"),
        ({"y": np.where(LABEL, "no", "yes")}, "label", "y is yes"),
        ({"target": 1 - 2 * LABEL}, "label", "target >= 1"),
        ({"rating": 3 + 2 * LABEL}, "label", "rating >= 5"),
        ({"stars": [1, 3, 4, 5] * (N // 4)}, "label", "stars >= 4"),
        ({"is_new": LABEL}, "is_new", ""),
    ],
)
def test_the_label_is_chosen_by_its_values_and_its_name(
    columns: dict[str, Any], name: str, condition: str, tmp_path: Path
) -> None:
    label = proposed(tmp_path, **columns).label
    assert label
    assert label.name == name
    assert label.is_new == bool(condition)
    if condition:
        assert label.condition == condition


def test_what_describes_a_user_is_no_label(tmp_path: Path) -> None:
    user = np.arange(N) // 10
    assert proposed(tmp_path, user_id=user, gender=user % 2).label is None


def test_an_undecided_label_is_named(tmp_path: Path) -> None:
    [note] = proposed(tmp_path, a=LABEL, b=RNG.integers(0, 2, N)).notes
    assert note.startswith("a, b each hold 0 and 1")


@pytest.mark.parametrize(
    ("name", "cells", "reason"),
    [
        ("app", ["x"] * N, "always x"),
        ("note", [None] * N, "empty"),
        ("same", LABEL * 5, "says the same as the label"),
        ("opposite", 5 - LABEL, "says what the label says: alone, it ranks with an AUC of 1.000"),
        ("coupon", pd.Series(CITIES).where(LABEL == 1), "says the same as the label"),
        (
            "seconds",
            np.where(LABEL == 1, np.arange(N) % 7, 0),
            "0 or empty in every row whose label is 0: known only after it",
        ),
        ("converted", RNG.integers(0, 2, N), "by its name, known only after the label"),
        ("dwell", RNG.random(N), "by its name, known only after the label"),
        ("request", [f"r{i * 7 % N}" for i in range(N)], "text that hardly ever repeats"),
        ("request_id", [f"r{i * 7 % N}" for i in range(N)], "a row id: no value repeats"),
        ("index", np.arange(N) + 5, "a row number"),
        ("headline", [f"read number {i}" for i in range(N)], "text that hardly ever repeats"),
        ("user_id", [7.2e18, None, 5e18] * (N // 3), "400 of its ids are floats of 2^53 or more"),
        ("vector", [[0.5, 1.5]] * N, "vectors or objects: write a column for each number"),
        ("tags", ['["a", "b"]', '["b"]'] * (N // 2), "text of lists: write a|b, or lists"),
        ("a,b", PRICE, "rename it: flags and requests cannot hold its name"),
        ("ratio", [np.inf, *PRICE[1:]], "has infinite numbers: empty those cells"),
    ],
)
def test_columns_are_left_out_for_a_reason(
    name: str, cells: Any, reason: str, tmp_path: Path
) -> None:
    ranking = proposed(tmp_path, clicked=LABEL, **{name: cells})
    assert list(ranking.left_out) == [name]
    assert ranking.left_out[name].startswith(reason)
    assert flag(ranking, "--features") == "price"


def test_another_name_of_an_id_is_left_out(tmp_path: Path) -> None:
    item = np.arange(N) % 50
    names = [f"Movie {i} (1995)" for i in item]
    genre = [f"genre {i % 5}" for i in item]
    ranking = proposed(tmp_path, clicked=LABEL, item_id=item, title=names, genre=genre)
    assert ranking.left_out == {"title": "another name of item_id"}
    assert flag(ranking, "--categorical") == "item_id,genre"


def test_codes_are_categories_and_amounts_are_numbers(tmp_path: Path) -> None:
    hour = RNG.integers(0, 24, 6000)
    amount = RNG.integers(0, 24, 6000)
    label = RNG.random(6000) < 0.2 + 0.3 * (hour % 2) + amount / 100
    path = tmp_path / "t.parquet"
    pd.DataFrame({"hour": hour, "amount": amount, "clicked": label}).to_parquet(path)
    assert flag(propose_ranking(inspect(files.find(str(path)))), "--categorical") == "hour"


def test_outcomes_become_targets_of_mmoe(tmp_path: Path) -> None:
    ranking = proposed(tmp_path, clicked=LABEL, watch_time=LABEL * RNG.integers(1, 99, N))
    assert ranking.label
    assert [c.name for c in ranking.targets] == ["watch_time"]
    flags = dict(ranking.flags(ranking.label, multi_task=True))
    assert flags["--targets"] == flags["--tasks"] == "clicked,watch_time"


def test_the_time_of_the_event_comes_first_and_splits(tmp_path: Path) -> None:
    at = 1_764_000_000 + 60 * RNG.permutation(N)
    item = np.arange(N) % 20
    release = pd.to_datetime(1_700_000_000 + 86_400 * item, unit="s")
    ranking = proposed(tmp_path, clicked=LABEL, item_id=item, released_at=release, ts=at)
    assert flag(ranking, "--timestamp") == "ts,released_at"
    assert flag(ranking, "--time-column") == "ts"
    ranking = proposed(tmp_path, clicked=LABEL, item_id=item, released_at=release)
    assert ranking.left_out["released_at"].startswith("one time for each item_id")
    assert flag(ranking, "--timestamp") == flag(ranking, "--time-column") == ""


def test_a_day_as_a_number_only_splits(tmp_path: Path) -> None:
    ranking = proposed(tmp_path, clicked=LABEL, dt=20_261_101 + RNG.integers(0, 20, N))
    assert flag(ranking, "--time-column") == "dt"
    assert ranking.left_out["dt"].startswith("a day as a number")


def test_a_time_zone_that_the_data_names_is_proposed(tmp_path: Path) -> None:
    at = pd.to_datetime(1_764_000_000 + 60 * RNG.permutation(N), unit="s", utc=True)
    ranking = proposed(tmp_path, clicked=LABEL, at=at.tz_convert("Asia/Shanghai"))
    assert flag(ranking, "--timezone") == "Asia/Shanghai"


def test_ids_with_ever_new_values_are_hashed(tmp_path: Path) -> None:
    users = np.append(RNG.permutation(N - 1), 1)
    ranking = proposed(tmp_path, max_rows=N - 50, clicked=LABEL, user_id=users)
    assert flag(ranking, "--hash") == "user_id:1000000"
    ranking = proposed(tmp_path, clicked=LABEL, user_id=users)
    assert flag(ranking, "--hash") == ""


def test_lists_have_their_separator(tmp_path: Path) -> None:
    texts = ["a|b", "b|a", "a", "b"] * (N // 4)
    commas = ["x,y", "y,x", "x", "y"] * (N // 4)
    lists = [["a", "b"], ["b"]] * (N // 2)
    ranking = proposed(tmp_path, clicked=LABEL, genres=texts, colors=commas, tags=lists)
    assert flag(ranking, "--multi") == "genres:|,colors:comma,tags"
    row = ranking.row()
    assert (row["genres"], row["colors"], row["tags"]) == (["a", "b"], ["x", "y"], ["a", "b"])


def test_texts_that_a_client_of_numbers_cannot_send_are_named(tmp_path: Path) -> None:
    ids: dict[str, Any] = {"item_id": np.arange(N) % 7, "shop_id": SNOWFLAKE + np.arange(N) % 7}
    ranking = proposed(tmp_path, clicked=LABEL, city=CITIES, **ids)
    assert ranking.text_only == ["city", "shop_id"]


@pytest.mark.parametrize(
    ("columns", "models", "note"),
    [
        ({"39": PRICE, "x": PRICE}, [], "39: if that is a row of data, put the names"),
        ({"price": PRICE}, [], "No model fits: ranking needs a column of 0 and 1"),
        ({"src": np.arange(N) % 9, "dst": np.arange(N) % 7}, [], "src and dst: if rows are edges"),
        ({"source": np.arange(N) % 9, "target": np.arange(N) % 7}, ["graph_recall"], ""),
        ({"user_id": np.arange(N) % 9, "item_id": np.arange(N) % 7}, ["item2vec"], ""),
    ],
)
def test_the_models_that_fit_are_proposed(
    columns: dict[str, Any], models: list[str], note: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame(columns).to_parquet(path, index=False)
    inspection = inspect(files.find(str(path)))
    ranking = propose_ranking(inspection)
    proposals = propose_models(inspection, ranking)
    assert [p.model for p in proposals] == models
    found = remarks(inspection, ranking, proposals)
    assert any(text.startswith(note) for text in found) if note else found == []
