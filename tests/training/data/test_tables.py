"""Every accepted kind of file reads alike, and every kind of bad file gives a useful message."""

import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from training.data import files, splits, tables
from training.data.sources import DataError
from training.data.splits import Splits, label_problems

TABLE = pd.DataFrame({"price": [1.5, np.nan, 3.0], "age": [20, 30, 40], "city": ["a", None, "c"]})


def read_table(path: Path, *columns: Any, **options: Any) -> pd.DataFrame:
    return tables.read_table(files.find(str(path)).table, *columns, **options)


def load_splits(path: Path, *columns: Any, **options: Any) -> Splits:
    return splits.load_splits(files.find(str(path)), *columns, **options)


def data_sha256(path: Path) -> str:
    return files.find(str(path)).sha256()


def write(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    elif ".jsonl" in path.suffixes:
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in path.suffixes else ",")
    return path


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", [f"t{suffix}" for suffix in files.SUFFIXES])
def test_every_kind_of_file_reads_alike(tmp_path: Path, name: str) -> None:
    path = write(TABLE, tmp_path / name)
    table = read_table(path, ["age", "price"], ["city"], optional=["cross"])
    expected = TABLE[["age", "price", "city"]].astype(
        {"age": "float32", "price": "float32", "city": "str"}
    )
    pd.testing.assert_frame_equal(table, expected)


def test_optional_columns_are_read_when_the_file_has_them(tmp_path: Path) -> None:
    path = write(TABLE, tmp_path / "t.csv")
    table = read_table(path, ["age"], optional=["price", "cross"])
    assert table.columns.tolist() == ["age", "price"]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
@pytest.mark.parametrize(
    ("ids", "tokens"),
    [
        ([196, 7], ["196", "7"]),
        ([196.0, None], ["196", None]),
        (["196", "x"], ["196", "x"]),
        (["1.0", "1.5"], ["1", "1.5"]),
        ([1.0, 2.5], ["1", "2.5"]),
        ([123456789012.0, None], ["123456789012", None]),
        ([2**53 + 1, 2], ["9007199254740993", "2"]),
    ],
    ids=["integers", "floats", "strings", "mixed", "not integers", "long", "large integers"],
)
def test_an_id_is_the_same_token_however_it_is_stored(
    tmp_path: Path, name: str, ids: list[Any], tokens: list[str | None]
) -> None:
    path = write(pd.DataFrame({"id": ids, "age": [1, 2]}), tmp_path / name)
    got = read_table(path, ["age"], ["id"])["id"]
    assert [None if pd.isna(token) else token for token in got] == tokens


def test_large_ids_keep_their_digits_next_to_a_missing_one(tmp_path: Path) -> None:
    ids = pd.array([2**53 + 1, None], dtype="Int64")
    path = write(pd.DataFrame({"id": ids}), tmp_path / "t.parquet")
    assert read_table(path, [], ["id"])["id"][0] == "9007199254740993"


@pytest.mark.parametrize("cell", ["", "NaN", "null", "NA"])
def test_missing_numbers_become_nan_and_their_words_may_be_categories(
    tmp_path: Path, cell: str
) -> None:
    path = write_text(tmp_path / "t.csv", f"age,country\n{cell},{cell}\n1,b\n")
    table = read_table(path, ["age"], ["country"])
    assert table["age"].isna().tolist() == [True, False]
    assert table["country"].fillna("").tolist() == [cell, "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("price,age\n1,2\n3,abc\n", 'row 3, column age: expected a number, got "abc"'),
        ("price,age\n1,yes\n", 'row 2, column age: expected a number, got "yes"'),
        (
            "price,age\n1,2\ninf,2\n",
            'row 3, column price: expected a finite float32 number, got "inf"',
        ),
        (
            "price,age\n1e39,2\n",
            'row 2, column price: expected a finite float32 number, got "1e39"',
        ),
        ("price,ages\n1,2\n", "missing column age (did you mean ages?); it has price, ages"),
        ("x,y\n1,2\n", "missing column price, age; it has x, y"),
        ("price,age,age\n1,2,3\n", "column age is there 2 times; rename or remove one"),
        ("price,age, age\n1,2,3\n", "column age is there 2 times; rename or remove one"),
        ("price,my age\n1,2\n", "missing column age (did you mean my age?); it has price, my age"),
        ("1,20\n2,30\n", "it has 1, 20; if that is a row of data, put the names of the columns"),
        ("price,age\n", "has no rows"),
        ("price,age", "has no rows"),
        ("", "it is empty; expected a header with the names of the columns"),
        ("\n\r\n", "it is empty; expected a header with the names of the columns"),
        (
            "price,age\n1,2\n3\n",
            "cannot be read: CSV parse error: Row #3: Expected 2 columns, got 1",
        ),
    ],
)
def test_bad_csv_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write_text(tmp_path / "t.csv", text)
    with pytest.raises(DataError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        read_table(path, ["price", "age"])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1", "abc"], 'row 2, column age: expected a number, got "abc"'),
        ([1.0, np.inf], 'row 2, column age: expected a finite float32 number, got "inf"'),
    ],
    ids=["text", "infinity"],
)
def test_bad_parquet_is_refused_with_its_place(
    tmp_path: Path, cells: list[Any], message: str
) -> None:
    path = write(pd.DataFrame({"age": cells}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=re.escape(message)):
        read_table(path, ["age"])


def test_a_missing_file_and_an_unknown_suffix_have_different_messages(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "t.csv", ["age"])
    path = write_text(tmp_path / "t.xlsx", "age\n1\n")
    with pytest.raises(DataError, match=r"expected a file ending in \.csv, \.csv\.gz, \.tsv"):
        read_table(path, ["age"])


def test_one_file_is_cut_into_three_without_losing_or_repeating_a_row(tmp_path: Path) -> None:
    path = write(pd.DataFrame({"age": range(100)}), tmp_path / "t.csv")
    splits = load_splits(path, ["age"], seed=0)
    parts = [splits.train, splits.valid, splits.test]
    assert [len(part) for part in parts] == [80, 10, 10]
    ages = pd.concat(parts)["age"].tolist()
    assert sorted(ages) == list(range(100))
    assert ages != list(range(100))
    pd.testing.assert_frame_equal(load_splits(path, ["age"], seed=0).test, splits.test)
    assert load_splits(path, ["age"], seed=1).test["age"].tolist() != splits.test["age"].tolist()


@pytest.mark.parametrize(
    "times",
    [[9 - i for i in range(10)], [f"2026-01-{19 - i} 10:00" for i in range(10)]],
    ids=["numbers", "dates"],
)
def test_a_time_column_puts_the_latest_rows_last(tmp_path: Path, times: list[Any]) -> None:
    path = write(pd.DataFrame({"age": range(10), "time": times}), tmp_path / "t.csv")
    splits = load_splits(path, ["age"], time_column="time")
    assert splits.train["age"].tolist() == [9, 8, 7, 6, 5, 4, 3, 2]
    assert splits.test["age"].tolist() == [0]
    assert splits.test.columns.tolist() == ["age"]


@pytest.mark.parametrize("time_column", [None, "time"])
def test_a_group_is_never_cut_in_two(tmp_path: Path, time_column: str | None) -> None:
    session = np.random.default_rng(0).integers(40, size=300)
    table = pd.DataFrame({"age": range(300), "session": session, "time": range(300)})
    path = write(table, tmp_path / "t.csv")
    options = {"time_column": time_column, "group_column": "session"}
    splits = load_splits(path, ["age"], ["session"], **options)
    parts = [splits.train, splits.valid, splits.test]
    assert sorted(pd.concat(parts)["age"]) == list(range(300))
    sessions = [set(part["session"]) for part in parts]
    assert sum(map(len, sessions)) == 40
    assert len(splits.train) == pytest.approx(240, abs=10)
    assert len(splits.test) == pytest.approx(30, abs=10)
    if time_column:
        starts = [part.groupby("session")["age"].min() for part in parts]
        assert starts[0].max() < starts[1].min() < starts[1].max() < starts[2].min()
    else:
        other = load_splits(path, ["age"], ["session"], seed=1, group_column="session")
        assert set(other.test["session"]) != sessions[2]


@pytest.mark.parametrize("sizes", [(98, 1, 1), (1, 98, 1), (1, 1, 98), (50, 49, 1)])
def test_every_split_gets_a_group(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    session = np.repeat(["a", "b", "c"], sizes)
    path = write(pd.DataFrame({"age": range(100), "session": session}), tmp_path / "t.csv")
    for seed in range(3):
        splits = load_splits(path, ["age"], ["session"], seed=seed, group_column="session")
        assert [part["session"].nunique() for _, part in splits.items()] == [1, 1, 1]


def test_too_few_groups_are_refused(tmp_path: Path) -> None:
    table = pd.DataFrame({"age": range(20), "session": ["a", "b"] * 10})
    path = write(table, tmp_path / "t.csv")
    with pytest.raises(DataError, match="column session: expected 3 groups or more, got 2"):
        load_splits(path, ["age"], ["session"], group_column="session")


def test_a_time_that_is_neither_number_nor_date_is_refused(tmp_path: Path) -> None:
    times = [*range(9), "soon"]
    path = write(pd.DataFrame({"age": range(10), "time": times}), tmp_path / "t.csv")
    with pytest.raises(
        DataError, match=r'row 11, column time: expected a number, as .* got "soon"'
    ):
        load_splits(path, ["age"], time_column="time")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([*range(9), None], "a number, as in the first row"),
        (["2026-01-01", *[None] * 9], "an ISO 8601 date"),
    ],
)
def test_an_empty_time_is_refused(tmp_path: Path, times: list[Any], expected: str) -> None:
    path = write(pd.DataFrame({"age": range(10), "time": times}), tmp_path / "t.csv")
    with pytest.raises(DataError, match=f"column time: expected {expected}, got an empty cell"):
        load_splits(path, ["age"], time_column="time")


def test_rows_without_an_order_are_split_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.File, "ordered", False)
    table = pd.DataFrame({"age": range(50), "city": "a", "slice": range(50)})
    tests, hashes = [], set()
    for seed in (1, 2):
        path = tmp_path / f"{seed}.csv"
        shuffled = write(table.sample(frac=1, random_state=seed), path)
        # The gate reads more columns than training, in another order.
        data = replace(files.find(str(shuffled)), extra_columns=["slice"])
        columns = (["age"], ["city"]) if seed == 1 else (["slice", "age"], ["city"])
        parts = splits.load_splits(data, *columns)
        tests.append(parts.test["age"].tolist())
        hashes.add(data.row_hashes(parts.test).tobytes())
    assert tests[0] == tests[1]
    assert len(hashes) == 1
    other = load_splits(path, ["age"], ["city"], seed=1)
    assert other.test["age"].tolist() != tests[0]


def test_histories_without_an_order_give_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(TABLE, tmp_path / "t.csv")
    read_table(path, ["age"])
    monkeypatch.setattr(files.File, "ordered", False)
    read_table(path, ["age"], order_by="age")
    assert caplog.messages == []
    read_table(path, ["age"])
    assert "another order in each run" in caplog.text


def test_a_file_too_short_to_cut_is_refused(tmp_path: Path) -> None:
    path = write(TABLE, tmp_path / "t.csv")
    with pytest.raises(DataError, match="expected 10 rows or more to cut 80/10/10, got 3"):
        load_splits(path, ["age"])


def test_a_folder_holds_a_file_for_each_split(tmp_path: Path) -> None:
    for i, name in enumerate(["train.csv", "valid.parquet", "test.csv.gz"]):
        write(pd.DataFrame({"age": [i, i]}), tmp_path / name)
    splits = load_splits(tmp_path, ["age"])
    assert [part["age"].tolist() for part in splits] == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("names", "got"),
    [([], "got none"), (["train.csv", "train.parquet"], "got train.csv and train.parquet")],
)
def test_a_folder_must_hold_one_file_for_each_split(
    tmp_path: Path, names: list[str], got: str
) -> None:
    for name in names:
        write(TABLE, tmp_path / name)
    with pytest.raises(DataError, match=f"expected one of train.csv, .*{got}"):
        load_splits(tmp_path, ["age"])


def splits_with(label: list[float], watch_time: list[float]) -> Splits:
    good = pd.DataFrame({"label": [0.0, 1.0], "watch_time": [0.0, 2.5]})
    return Splits(good, good, pd.DataFrame({"label": label, "watch_time": watch_time}))


def test_good_labels_are_no_problem() -> None:
    assert label_problems(splits_with([0, 1], [3, 0]), ["label"], ["watch_time"]) == []


@pytest.mark.parametrize(
    ("label", "watch_time", "message"),
    [
        ([0, np.nan], [0, 1], "column label: 1 of 2 rows are empty"),
        ([0, 2], [0, 1], "column label: expected 0 or 1, got 2"),
        ([1, 1], [0, 1], "column label: expected both 0 and 1, got only 1"),
        ([0, 0], [0, 1], "column label: expected both 0 and 1, got only 0"),
        ([0, 1], [np.nan, 1], "column watch_time: 1 of 2 rows are empty"),
        ([0, 1], [-0.5, 1], "column watch_time: expected 0 or more, got -0.5"),
        ([0, 1], [0, 0], "column watch_time: expected some value above 0, got only 0"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    label: list[float], watch_time: list[float], message: str
) -> None:
    found = label_problems(splits_with(label, watch_time), ["label"], ["watch_time"])
    assert found == [f"test split, {message}"]


def test_the_hash_changes_only_with_the_content(tmp_path: Path) -> None:
    first, copy = (write(TABLE, tmp_path / name) for name in ("a.csv", "b.csv"))
    other = write(TABLE[:2], tmp_path / "c.csv")
    assert data_sha256(first) == data_sha256(copy) != data_sha256(other)

    for split in ("train", "valid", "test"):
        write(TABLE, tmp_path / f"{split}.csv")
    before = data_sha256(tmp_path)
    write(TABLE, tmp_path / "train_truth.parquet")
    assert data_sha256(tmp_path) == before
    write(TABLE[:2], tmp_path / "test.csv")
    assert data_sha256(tmp_path) != before


@pytest.mark.parametrize("pattern", ["", "*.csv", "part-?.csv"])
def test_the_parts_of_a_folder_or_pattern_are_one_table(tmp_path: Path, pattern: str) -> None:
    for i in (2, 1):
        write(TABLE.assign(age=i), tmp_path / f"part-{i}.csv")
    write_text(tmp_path / "_SUCCESS", "")
    assert read_table(tmp_path / pattern, ["age"])["age"].tolist() == [1] * 3 + [2] * 3


def test_the_message_names_the_file_and_row_of_a_cell(tmp_path: Path) -> None:
    write(TABLE, tmp_path / "a.csv")
    write_text(tmp_path / "b.csv", "age,price\n1,2\nold,2\nolder,x\n")
    with pytest.raises(DataError) as error:
        read_table(tmp_path, ["age", "price"])
    assert str(error.value).splitlines() == [
        f'{tmp_path}/b.csv: row 3, column age: expected a number, got "old"',
        f'{tmp_path}/b.csv: row 4, column price: expected a number, got "x"',
    ]


def test_one_message_lists_the_problems_of_all_splits(tmp_path: Path) -> None:
    write_text(tmp_path / "train.csv", "age,prize\n1,2\n")
    write_text(tmp_path / "valid.csv", "age,price\nold,2\n")
    write_text(tmp_path / "test.csv", "price\n1\n")
    with pytest.raises(DataError) as error:
        load_splits(tmp_path, ["age", "price"])
    assert [line.removeprefix(f"{tmp_path}/") for line in str(error.value).splitlines()] == [
        "train.csv: missing column price (did you mean prize?); it has age, prize",
        'valid.csv: row 2, column age: expected a number, got "old"',
        "test.csv: missing column age; it has price",
    ]


def test_one_message_lists_wrong_labels_and_wrong_cells(tmp_path: Path) -> None:
    table = pd.DataFrame({"age": ["old", *range(9)], "label": 1, "clicks": ["x", *range(9)]})
    path = write(table, tmp_path / "t.csv")
    with pytest.raises(DataError) as error:
        load_splits(
            path,
            ["age", "label", "clicks"],
            time_column="label",
            check=lambda splits: label_problems(splits, ["label"], ["clicks"]),
        )
    assert [line.removeprefix(f"{path}: ") for line in str(error.value).splitlines()] == [
        'row 2, column age: expected a number, got "old"',
        'row 2, column clicks: expected a number, got "x"',
        *(
            f"{split} split, column label: expected both 0 and 1, got only 1"
            for split in ("train", "valid", "test")
        ),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"age": 1}\n{"age": "old"}\n', 'row 2, column age: expected a number, got "old"'),
        ('{"age": 1}\n{"age": 2\n', "row 2 is not JSON: "),
        ('{"age": 1}\n[2]\n', "row 2: expected an object, got [2]"),
        ('{"ages": 1}\n', "missing column age (did you mean ages?); it has ages"),
        ("", "is empty; expected a JSON object in each line"),
    ],
)
def test_bad_json_lines_are_refused_with_their_place(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write_text(tmp_path / "t.jsonl", text)
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        read_table(path, ["age"])


def test_a_decimal_is_the_same_token_as_the_number(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [Decimal("26.00"), Decimal("100.50")], "age": [1, 2]})
    path = write(frame, tmp_path / "t.parquet")
    assert read_table(path, ["age"], ["id"])["id"].tolist() == ["26", "100.5"]


def test_json_lines_may_mix_types_and_omit_cells(tmp_path: Path) -> None:
    lines = ['{"age": 1, "id": 7}', '{"age": "", "id": "x"}', '{"age": 0.5, "id": ""}\n']
    path = write_text(tmp_path / "t.jsonl", "\n".join(lines))
    read = read_table(path, ["age"], ["id"])
    assert read["age"].fillna(-1).tolist() == [1, -1, 0.5]
    assert read["id"].fillna("none").tolist() == ["7", "x", "none"]


def test_json_lines_may_hold_ids_beyond_int64(tmp_path: Path) -> None:
    path = write_text(tmp_path / "t.jsonl", f'{{"id": {2**63}}}\n{{"id": 7}}\n')
    assert read_table(path, [], ["id"])["id"].tolist() == [str(2**63), "7"]


def test_a_column_of_many_batches_is_one_column(tmp_path: Path) -> None:
    numbers = np.arange(300_000)
    table = pd.DataFrame({"age": numbers, "id": numbers % 1000})
    for suffix in ("csv", "parquet", "jsonl"):
        read = read_table(write(table, tmp_path / f"t.{suffix}"), ["age"], ["id"])
        np.testing.assert_array_equal(read["age"], numbers)
        assert read["id"].tolist() == table["id"].astype(str).tolist()
