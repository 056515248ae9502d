"""Propose the models that fit a data set, with their flags and an example request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.inspection.columns import (
    ITEMS,
    USERS,
    Column,
    Inspection,
    find_id,
    has_word,
    names,
)
from training.data.inspection.ranking import Flags, Ranking, multi, request_value

RANKER = "deepfm"
QUERY_WORDS = {"query", "question", "search", "keyword", "keywords"}
DOC_WORDS = {"doc", "document", "answer", "passage", "title", "intent", "product", "article"}
# Names that graph_recall reads.
EDGE = ("source", "target")
EDGE_PAIRS = (("src", "dst"), ("from", "to"), ("follower", "followee"), ("u", "v"))


@dataclass(frozen=True)
class Proposal:
    """A model that fits.

    Attributes:
        model: Name of the model.
        goal: What it learns from this data, after "To".
        flags: Flags that name columns.
        row: A request row.
        uses: What columns are used as, by their names.
        needs_label: Whether the label has to be written first.
    """

    model: str
    goal: str
    flags: Flags
    row: dict[str, Any]
    uses: dict[str, str]
    needs_label: bool = False


def propose_models(inspection: Inspection, ranking: Ranking) -> list[Proposal]:
    """Propose models, the best fit first."""
    edges, searches = list(_edges(inspection.columns)), list(_searches(inspection, ranking))
    if edges:
        return edges
    label, rankers = ranking.label, list(_rankers(ranking))
    if label and not label.is_new:
        return [*searches, *rankers, *_towers(ranking)]
    return [*(searches or _sequences(inspection, ranking)), *rankers]


def every_proposal(inspection: Inspection, ranking: Ranking) -> Iterator[Proposal]:
    """Yield a proposal for each model that can be trained, well or not."""
    yield from _edges(inspection.columns)
    yield from _searches(inspection, ranking)
    yield from _rankers(ranking)
    yield from _towers(ranking)
    yield from _sequences(inspection, ranking)


def remarks(inspection: Inspection, ranking: Ranking, proposals: Sequence[Proposal]) -> list[str]:
    """Return what else to know or to do."""
    found: list[str] = []
    if any(p.model == RANKER for p in proposals):
        found += ranking.notes
        if ranking.text_only:
            found.append(
                "A client that sends numbers only, such as Go's map[string]float64, cannot send "
                f"{', '.join(ranking.text_only)}: add --hash-ids, or write integer ids"
            )
        if ranking.lists:
            shown = names(ranking.lists).replace(",", ", ")
            found.append(f"A client that sends numbers only cannot send lists: {shown}")
    if not proposals:
        found.append(
            "No model fits: ranking needs a column of 0 and 1, such as clicked, and features; "
            "recall needs the ids of users and items"
        )
    if numbers := [c.name for c in inspection.columns if re.fullmatch(r"-?\d+(\.\d+)?", c.name)]:
        found.append(
            f"{', '.join(numbers)}: if that is a row of data, put the names of the columns above it"
        )
    lower = {c.name.lower(): c.name for c in inspection.columns}
    for pair in EDGE_PAIRS:
        if set(pair) <= set(lower):
            shown = " and ".join(lower[name] for name in pair)
            found.append(f"{shown}: if rows are edges, rename them source and target")
    if any("--timestamp" in flag for p in proposals for flag in p.flags) and not any(
        c.time_zone for c in ranking.times
    ):
        found.append(
            "Hours and weekdays are those of UTC: add --timezone with that of the users, such as "
            "Asia/Shanghai"
        )
    return found


def _rankers(ranking: Ranking) -> Iterator[Proposal]:
    label = ranking.label
    if label is None or not ranking.row():
        return
    shared = ranking.row(), ranking.uses(), label.is_new or label.column.missing > 0
    goal = f"predict {label.name} (xgb takes the same flags)"
    yield Proposal(RANKER, goal, ranking.flags(label), *shared)
    if ranking.targets:
        flags = ranking.flags(label, multi_task=True)
        yield Proposal("mmoe", f"predict {names(ranking.targets)} too", flags, *shared)


def _towers(ranking: Ranking) -> Iterator[Proposal]:
    user, item = find_id(ranking.categorical, USERS), find_id(ranking.categorical, ITEMS)
    if ranking.label is None or user is None or item is None:
        return
    others = [c for c in (*ranking.features, *ranking.lists) if c not in (user, item)]
    of_user = [user, *(c for c in others if c.depends_on(user))]
    of_item = [item, *(c for c in others if c.depends_on(item) and c not in of_user)]
    flags = [
        ["--user-cols", names(of_user)],
        ["--item-cols", names(of_item)],
        ["--categorical", names(c for c in ranking.categorical if c in (*of_user, *of_item))],
        *_lists((*of_user, *of_item)),
        ["--item-id-col", item.name],
        ["--label", ranking.label.name],
    ]
    # Not split by time: most users of the last tenth of a log are new to the towers.
    has_gaps = ranking.label.column.missing > 0
    yield Proposal("two_tower", "recall items for a user", flags, _row(of_user), {}, has_gaps)


def _sequences(inspection: Inspection, ranking: Ranking) -> Iterator[Proposal]:
    usable = [c for c in inspection.columns if c.name not in ranking.left_out]
    user, item = find_id(usable, USERS), find_id(usable, ITEMS)
    if user is None or item is None or not user.repeats:
        return
    time = _split_by(ranking)
    # Nobody takes an item twice, so that the model should not recommend one of the history.
    once = user.n_pairs(item) == inspection.rows
    shared = [*time, *([["--exclude-history"]] if once else [])]
    flags = [["--user-col", user.name], ["--sequence-col", item.name], *shared]
    uses = {user.name: "user", item.name: "item"} | {flag[1]: "order" for flag in time}
    similar = Proposal("item2vec", "find similar items", flags, {"sequence": [item.first]}, uses)
    others = [c for c in (*ranking.features, *ranking.lists) if c not in (user, item)]
    features = [c for c in others if c.depends_on(user)]
    if features:
        flags = [
            ["--user-col", user.name],
            ["--item-col", item.name],
            ["--user-features", names(features)],
            *_categorical(features),
            *_lists(features),
            *shared,
        ]
        row = {"user_features": _row(features), "history_item_ids": [item.first]}
        goal = "recall the next item of a user"
        uses = uses | {c.name: "user feature" for c in features}
        yield Proposal("youtube_dnn", goal, flags, row, uses)
    yield similar


def _searches(inspection: Inspection, ranking: Ranking) -> Iterator[Proposal]:
    texts = [c for c in inspection.columns if c.is_text and c.distinct > 1]
    query = next((c for c in texts if c.is_prose and has_word(c, QUERY_WORDS)), None)
    doc = next((c for c in texts if c is not query and has_word(c, DOC_WORDS)), None)
    if query is None or doc is None:
        return
    label = ranking.label if ranking.label and not ranking.label.is_new else None
    flags = [
        ["--text"],
        ["--query-cols", query.name],
        ["--doc-cols", doc.name],
        *([["--label", label.name]] if label else []),
        *_split_by(ranking),
    ]
    row = {"query_features": _row([query])}
    uses = {query.name: "query", doc.name: "document"} | ({label.name: "label"} if label else {})
    goal, has_gaps = f"find the {doc.name} of a {query.name}", bool(label and label.column.missing)
    yield Proposal("dssm", goal, flags, row, uses, has_gaps)


def _edges(columns: Sequence[Column]) -> Iterator[Proposal]:
    ends = [c for c in columns if c.name in EDGE]
    uses = {c.name: c.name for c in columns if c.name in (*EDGE, "weight")}
    if len(ends) < len(EDGE) or any(c.kind == "boolean" for c in columns):
        return
    row = {"user_id": ends[0].first, "top_k": 20}
    yield Proposal("graph_recall", "find the nearest nodes of a node", [], row, uses)


def _row(columns: Sequence[Column]) -> dict[str, Any]:
    return {c.name: request_value(c) for c in columns if c.first is not None}


def _categorical(columns: Sequence[Column]) -> Flags:
    found = names(c for c in columns if c.is_category)
    return [["--categorical", found]] if found else []


def _lists(columns: Sequence[Column]) -> Flags:
    lists = [c for c in columns if c.kind == "list"]
    return [["--multi", multi(lists)]] if lists else []


def _split_by(ranking: Ranking) -> Flags:
    return [["--time-column", ranking.split_by]] if ranking.split_by else []
