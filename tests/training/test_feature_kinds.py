"""Models that have no example with lists and times train on them and serve them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from archive import catalog
from handlers.feature import MISSING_INDEX, OOV_INDEX
from handlers.models.inputs import FeatureInputs
from handlers.request_rows import HISTORY_KEY, QUERY_FEATURES_KEY, USER_FEATURES_KEY
from serving.testing import numbers
from tests.examples import close, load_handler, predict, train
from training import artifacts
from training.artifacts import IDS_FILE
from training.engine import fit
from training.tasks.ranking.data import load_ranking_data
from training.train_xgb import Config

N = 400


@pytest.fixture
def table() -> pd.DataFrame:
    """Draw rows with lists, ids and times."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(20, size=N), rng.integers(30, size=N)
    at = pd.Timestamp("2026-11-25", tz="UTC") + pd.to_timedelta(rng.integers(10**6, size=N), "s")
    return pd.DataFrame(
        {
            "user_id": user,
            "item_id": item + 10**12,
            "tags": [[f"t{i % 3}", f"t{i % 5}", f"t{i % 7}"][: i % 4] for i in item.tolist()],
            "likes": [f"{u % 3}|{u % 4}" for u in user.tolist()],
            "at": at,
            "born": at - pd.to_timedelta(item, "D"),
            "price": rng.lognormal(size=N),
            "label": (rng.random(N) < 0.3).astype(int),
            "watch": rng.random(N),
        }
    )


@pytest.fixture
def run(table: pd.DataFrame, tmp_path: Path) -> Callable[..., Path]:
    """Train a model on the table and return its artifact folder."""
    path = tmp_path / "table.parquet"
    table.to_parquet(path)

    def run(model: str, *flags: str) -> Path:
        places = ["--data-path", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
        assert train(model, *places, "--version", "v1", *flags) == 0
        return tmp_path / "artifacts" / catalog.get(model).artifacts / "v1"

    return run


def answers(model: str, folder: Path, rows: list[Any]) -> Any:
    """Replay the golden rows and return the predictions for other rows."""
    handler = load_handler(model, folder)
    handler.replay_golden_rows(folder / catalog.get(model).golden_file)
    return predict(handler, rows)


LISTS = ("--multi", "tags,likes:|", "--max-values", "2", "--hash", "likes:50", "--hash-ids")


def test_mmoe_takes_lists_and_times(run: Callable[..., Path]) -> None:
    folder = run(
        "mmoe",
        *("--features", "price", "--timestamp", "at,born", *LISTS),
        *("--targets", "label,watch", "--tasks", "ctr,watch_time"),
        *("--epochs", "1", "--batch-size", "64", "--no-single-task"),
    )
    row = {"price": 1.5, "tags": ["t1", "t2", "t3"], "likes": [1, 2], "born": "2026-11-01"}
    first, *same = answers(
        "mmoe",
        folder,
        [
            row | {"at": "2026-11-25T08:00:00Z"},
            row | {"at": 1_795_593_600, "likes": "1|2"},
            row | {"at": "1795593600000", "likes": ["1|2"], "tags": ["t1", None, "t2"]},
            [1.5, ["t1", "t2"], "1|2", "2026-11-25 16:00+08:00", "2026-11-01T00:00Z"],
        ],
    )
    assert all(dict(numbers(other)) == close(first) for other in same)


def test_dssm_takes_lists_in_queries_and_documents(run: Callable[..., Path]) -> None:
    folder = run(
        "dssm",
        *("--query-cols", "user_id,likes", "--doc-cols", "price,tags", *LISTS),
        *("--categorical", "user_id", "--epochs", "1"),
    )
    rows = [{"user_id": 3, "likes": likes} for likes in ([1, "2"], "1|2", "1 | 2|3", ["1|2"])]
    first, *same = answers("dssm", folder, [rows[0], {QUERY_FEATURES_KEY: rows[1]}, *rows[2:]])
    assert all(dict(numbers(other)) == close(first) for other in same)
    assert "\\u001f" not in (folder / IDS_FILE).read_text()


def test_youtube_dnn_takes_lists_of_a_user(run: Callable[..., Path]) -> None:
    folder = run("youtube_dnn", "--user-features", "tags,likes", *LISTS, "--epochs", "1")
    history = [10**12 + 1, str(10**12 + 2)]
    features = [{"tags": ["t1"], "likes": likes} for likes in ([1, "2"], "1|2")]
    rows: list[Any] = [{USER_FEATURES_KEY: user, HISTORY_KEY: history} for user in features]
    first, second = answers("youtube_dnn", folder, [*rows])
    assert dict(numbers(second)) == close(first)


def test_a_column_may_have_two_roles_that_do_not_conflict(
    run: Callable[..., Path], table: pd.DataFrame
) -> None:
    path = run(
        "xgb",
        *("--features", "price", "--multi", "likes:|", "--timestamp", "at"),
        *("--group", "likes", "--time-column", "at", "--epochs", "2"),
    )
    assert artifacts.read_meta(path)["feature_columns"] == ["price", "likes", "at"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--multi", "label"], "label: is both a feature and a target"),
        (["--timestamp", "label"], "label: is both a feature and a target"),
        (["--multi", "likes", "--timestamp", "at"], "expected a list, got the text"),
        (
            ["--multi", "likes:|", "--categorical", "likes"],
            "--categorical and --multi: likes: exp",
        ),
        (["--multi", "at", "--timestamp", "at"], "--multi and --timestamp: at: expected"),
        (["--multi", "ns:likes"], "ns:likes: expected a separator such as | or comma, got likes"),
        (["--multi", "likes:\t"], "--multi: spell a tab or a space as in tags:tab"),
        (["--hash", "price:10"], "--hash price: expected names of --categorical or --multi"),
        (["--hash", "likes:1", "--multi", "likes:|"], "--hash likes:1: expected a category and"),
        (["--timestamp", "at", "--timezone", "Mars"], "--timezone: expected a time zone such"),
        (["--timestamp", "price", "--max-values", "0"], "--max-values"),
        (["--timestamp", "likes"], "column likes: expected epoch seconds, epoch milliseconds or"),
    ],
)
def test_flags_and_cells_that_cannot_be_are_explained(
    table: pd.DataFrame,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    path = tmp_path / "table.parquet"
    table.to_parquet(path)
    places = ["--data-path", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
    assert train("xgb", *places, "--features", "price", *flags) != 0
    assert message in " ".join(capsys.readouterr().err.split())


def test_lists_that_are_cut_are_logged_once(
    table: pd.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "table.parquet"
    table.to_parquet(path)
    config = Config(data_path=str(path), features="price", multi="tags", max_values=2)
    with caplog.at_level(logging.INFO):
        data = load_ranking_data(config, ["label"])
    lengths = np.array([len(cell.split("\x1f")) for cell in data.train_frame["tags"].dropna()])
    expected = f"tags: {(lengths > 2).sum()} of {len(lengths)} lists are longer than --max-values 2"
    assert [r.getMessage() for r in caplog.records if "longer" in r.getMessage()] == [expected]


def test_training_hides_tokens_of_lists_but_adds_none() -> None:
    inputs = FeatureInputs([0, 50, (50, 40)], embedding_dim=2)
    batch = torch.full((1000, 42), 7.0)
    batch[:, 20:] = MISSING_INDEX
    torch.manual_seed(0)
    hidden = fit.hide_tokens(batch.clone(), inputs)
    assert (hidden[:, 20:] == MISSING_INDEX).all()
    assert (hidden[:, 2:20] == OOV_INDEX).float().mean() == pytest.approx(fit.OOV_SHARE, rel=0.2)
    assert (hidden[:, 0] == 7).all()
    # The categories are hidden as without the list.
    without = FeatureInputs([0, 50], embedding_dim=2)
    torch.manual_seed(0)
    alone = fit.hide_tokens(batch[:, :2].clone(), without)
    assert (alone == hidden[:, :2]).all()
