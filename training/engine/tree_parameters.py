"""The flags of a run that boosts trees, and XGBoost's parameters for them."""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import tyro
import xgboost as xgb
from pydantic import Field

from handlers.schema import FeatureSchema
from training.bounds import Count, LearningRate, Seed, Weight
from training.engine.fit import OOV_SHARE
from training.engine.worker import EngineConfig, TrainingError

# The rounding of a sum depends on the number of threads; a fixed number makes runs repeatable.
N_THREADS = 2
# Largest share of all hessians that a leaf may be required to hold. Without it, the default
# min_child_weight would never split a table of 800 rows.
MAX_LEAF_SHARE = 0.04
# Hessians of a ranking objective, as a share of those of the logistic one: the least seen, for
# lists of 100.
RANKING_HESSIANS = 0.25
# The rows with an unknown category fill this many leaves, so that the subsample of a tree has
# enough of them for one.
OOV_LEAVES = 1.5
MAX_OOV_SHARE = 0.12
# Parameters with a second name, by which they would be set twice.
ALIASES = {
    "learning_rate": "eta",
    "reg_lambda": "lambda",
    "reg_alpha": "alpha",
    "min_split_loss": "gamma",
    "n_jobs": "nthread",
    "random_state": "seed",
}
# Parameters that more depends on than the booster, and the flag that sets them.
OTHER_FLAGS = {
    "objective": "--objective",
    "monotone_constraints": "--monotone",
    "device": "--device",
    "eval_metric": "--objective, which chooses it",
}

Array = npt.NDArray[np.float32]
Pairs = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class BoostConfig(EngineConfig):
    """How trees are boosted.

    Attributes:
        epochs: Maximum number of boosting rounds, one tree each.
        batch_size: Rows that the quantile sketch takes at a time; bounds memory.
        patience: Stop after this many rounds without a better validation loss or NDCG.
        max_depth: Maximum depth of a tree.
        eta: Learning rate.
        min_child_weight: Minimum sum of hessians in a leaf; capped at 4 % of the sum over all rows,
            so that small tables can be split.
        subsample: Share of the rows that each tree is grown on.
        max_bin: Maximum number of quantile bins of a column.
        objective: What the trees learn: the probability of the label, or a score that ranks the
            rows of a group. A rank objective needs --group.
        monotone: Numbers that the prediction may only rise with (item_ctr:1) or fall with
            (item_price:-1).
        param: Any other parameter of XGBoost, such as lambda=2; wins over the flags above.
        seed: Seed of the subsamples.
    """

    epochs: Count = 1500
    batch_size: Count = 100_000
    patience: Count = 50
    max_depth: Count = 5
    eta: LearningRate = 0.15
    min_child_weight: Weight = 50.0
    subsample: Annotated[float, Field(ge=0.001, le=1)] = 0.8
    max_bin: Annotated[int, Field(ge=2)] = 256
    objective: Literal["binary:logistic", "rank:ndcg", "rank:pairwise", "rank:map"] = (
        "binary:logistic"
    )
    monotone: tuple[str, ...] = ()
    param: Annotated[Pairs, tyro.conf.UseAppendAction] = ()
    seed: Seed = 0

    @property
    def given(self) -> dict[str, Any]:
        """The parameters of ``--param`` by XGBoost's own name.

        Raises:
            TrainingError: If one is not of the form key=value, or a flag of its own sets it.
        """
        pairs = dict(_parse(pair) for pairs in self.param for pair in pairs)
        return {ALIASES.get(key, key): value for key, value in pairs.items()}

    @property
    def ranks(self) -> bool:
        """Whether the objective ranks the rows of a group."""
        return self.objective.startswith("rank:")

    @property
    def metric(self) -> str:
        """XGBoost's name of the metric that selects the number of trees."""
        return "ndcg@10" if self.ranks else "logloss"


def booster_parameters(config: BoostConfig) -> dict[str, Any]:
    """Return XGBoost's parameters: those of the flags, then those of ``--param``.

    Raises:
        TrainingError: If XGBoost does not know a parameter or refuses its value.
    """
    parameters = {
        "objective": config.objective,
        "eval_metric": config.metric,
        "tree_method": "hist",
        "device": config.device,
        "nthread": N_THREADS if config.engine == "local" else 1,
        "max_depth": config.max_depth,
        "eta": config.eta,
        "min_child_weight": config.min_child_weight,
        "subsample": config.subsample,
        "max_bin": config.max_bin,
        "seed": config.seed,
    }
    parameters |= config.given
    # One tree on two rows: XGBoost checks its parameters only when it trains.
    tiny = xgb.QuantileDMatrix(np.zeros((2, 1)), [0, 1], qid=[0, 0] if config.ranks else None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            checked = {**parameters, "validate_parameters": True, "verbosity": 1}
            xgb.train(checked, tiny, num_boost_round=1)[:1]
        except xgb.core.XGBoostError as error:
            reason = re.sub(r"^\[[^\n]*?\] \S+: ", "", str(error)).split("\n")[0]
            pairs = " ".join(pair for pairs in config.param for pair in pairs)
            raise TrainingError(f"--param {pairs}: XGBoost refuses it: {reason}") from error
    messages = "\n".join(str(warning.message) for warning in caught)
    if unused := re.search(r"Parameters: \{ (.*) \} are not used", messages):
        raise TrainingError("\n".join(_unused(re.findall(r'"(.*?)"', unused[1]), config)))
    return parameters


def _parse(pair: str) -> tuple[str, Any]:
    """Split ``key=value``; the value is an integer, a number, true or false, or text."""
    key, _, text = (part.strip() for part in pair.partition("="))
    if not key or not text:
        raise TrainingError(f'--param: expected key=value, got "{pair}"')
    if key in OTHER_FLAGS:
        raise TrainingError(f"--param {key}: use {OTHER_FLAGS[key]}")
    if text.lower() in ("true", "false"):
        return key, text.lower() == "true"
    for number in (int, float):
        try:
            return key, number(text)
        except ValueError:
            continue
    return key, text


def _unused(names: Sequence[str], config: BoostConfig) -> Iterator[str]:
    """Yield why XGBoost takes no notice of each of these parameters."""
    known = sorted({*_known_parameters(), *ALIASES} - OTHER_FLAGS.keys())
    for name in names:
        if name in known:
            yield f"--param {name}: XGBoost does not use it with {config.objective}"
        else:
            near = difflib.get_close_matches(name, known)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            yield f"--param {name}: XGBoost has no such parameter; {hint}"


def _known_parameters() -> Iterator[str]:
    tiny = xgb.DMatrix(np.zeros((2, 1)), [0, 1], qid=[0, 0])
    for kind in ({"booster": "dart"}, {"objective": "rank:ndcg"}):
        nodes = [json.loads(xgb.train(kind, tiny, num_boost_round=1).save_config())]
        while nodes:
            for key, value in nodes.pop().items():
                if isinstance(value, dict):
                    nodes.append(value)
                elif isinstance(value, str) and key != "name":
                    yield key


def monotone_constraints(
    flags: Sequence[str], schema: FeatureSchema, n_columns: int
) -> dict[str, str]:
    """Return XGBoost's parameter for ``--monotone``, empty without it.

    Args:
        flags: The values of the flag: name:1 or name:-1.
        schema: Schema of the matrix.
        n_columns: Columns that the trees see; those of the schema are the first.

    Raises:
        TrainingError: If a value has another form, or names no number of the schema.
    """
    starts = {f.name: schema.columns[f.name].start for f in schema.features if f.is_number}
    constraints = [0] * n_columns
    for flag in flags:
        name, _, direction = flag.rpartition(":")
        if direction not in ("1", "-1") or not name:
            raise TrainingError(f'--monotone: expected name:1 or name:-1, got "{flag}"')
        if name not in starts:
            kind = "is none" if name in schema.names else "is not among --features"
            raise TrainingError(
                f"--monotone {flag}: expected a number, {name} {kind}; "
                f"the numbers are {', '.join(starts) or 'none'}"
            )
        constraints[starts[name]] = int(direction)
    if not any(constraints):
        return {}
    return {"monotone_constraints": f"({','.join(map(str, constraints))})"}


def leaf_limit(config: BoostConfig, labels: Array, weights: Array) -> tuple[float, float]:
    """Compute the least hessians of a leaf, and the share of the rows to hide each category in.

    Args:
        config: How trees are boosted.
        labels: Labels of the training split, [B].
        weights: Weights of the rows, [B]; their mean is 1.

    Returns:
        ``min_child_weight`` in effect, and a share in [0, 1].
    """
    rate = float(np.average(labels > 0, weights=weights))
    hessians = len(labels) * rate * (1 - rate) * (RANKING_HESSIANS if config.ranks else 1)
    limit = min(config.min_child_weight, MAX_LEAF_SHARE * hessians)
    limit = float(config.given.get("min_child_weight", limit))
    subsample = float(config.given.get("subsample", config.subsample))
    share = OOV_LEAVES * limit / (subsample * hessians)
    return limit, min(max(OOV_SHARE, share), MAX_OOV_SHARE)
