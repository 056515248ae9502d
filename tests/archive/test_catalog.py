"""The models' cards: what is wrong with one is said, and each model has a usable one."""

from __future__ import annotations

from pathlib import Path

import pytest

from archive import catalog
from archive.catalog import Text, read_card
from handlers.errors import UserError

CARD = """
learns: {en: clicks, zh: 点击率}
row: features
prediction: probability
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "card.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_one_text_serves_both_languages(tmp_path: Path) -> None:
    card = read_card(write(tmp_path, f"{CARD}bars: {{auc: 0.75}}"), needs_bars=True)
    assert card.learns == Text(en="clicks", zh="点击率")
    assert card.row == Text(en="features", zh="features")
    assert card.bars == {"auc": 0.75}


@pytest.mark.parametrize(
    ("text", "needs_bars", "message"),
    [
        ("[", True, "card.yaml is not readable YAML: "),
        ("", True, "card.yaml: Input should be a valid dictionary"),
        ("learns: clicks", False, "card.yaml: row: Field required; prediction: Field required"),
        (CARD.replace("zh:", "cn:"), False, "learns.zh: Field required; learns.cn: Extra inputs"),
        (f"{CARD}bars: {{auc: high}}", True, "bars.auc: Input should be a valid number"),
        (f"{CARD}bar: 1", True, "bar: Extra inputs are not permitted"),
        (CARD, True, "bars: expected a metric and its least value, such as auc: 0.75"),
        (f"{CARD}bars: {{auc: 0.75}}", False, "bars: this model shares another's training run"),
    ],
)
def test_card_that_is_wrong_is_refused_with_the_reason(
    tmp_path: Path, text: str, needs_bars: bool, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as refusal:
        read_card(path, needs_bars=needs_bars)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_card_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"card\.yaml is missing; write one"):
        read_card(tmp_path / "card.yaml", needs_bars=True)


@pytest.mark.parametrize("name", catalog.model_names())
def test_each_model_has_a_usable_card(name: str) -> None:
    assert catalog.get(name).card.learns.en
