"""The search over a model's settings: which ones are measured, and which one is chosen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from archive import catalog
from handlers.errors import UserError
from serving import settings_search
from serving.budget import JAVA_BYTES, Budget
from serving.load import Load
from serving.settings_search import Measurement, Setting

PRESENT = Setting(workers=2, batch_size=16, delay_ms=1, threads=1)
GB = 10**9


def measurement(
    requests_per_s: float, p99_ms: float, setting: Setting = PRESENT, errors: int = 0
) -> Measurement:
    return Measurement(setting, Load(requests_per_s, p99_ms / 2, p99_ms, errors), GB)


def climb(
    present: Setting, budget: Budget, speed: Callable[[Setting], float]
) -> dict[Setting, Measurement]:
    """Search the settings of a model whose requests/s are a function of the setting."""
    measured: dict[Setting, Measurement] = {}

    async def measure(setting: Setting) -> Measurement:
        return measured.setdefault(setting, measurement(speed(setting), 5, setting))

    asyncio.run(settings_search.climb(present, budget, measure))
    return measured


def test_climb_finds_the_best_setting_without_the_whole_grid() -> None:
    def speed(setting: Setting) -> float:
        parallel = setting.workers * (setting.threads or 1)
        return 1000 * parallel - 40 * abs(setting.batch_size - 64) - 20 * setting.delay_ms

    measured = climb(PRESENT, Budget(8, 100 * GB), speed)
    best = max(measured.values(), key=lambda p: p.load.requests_per_s)
    assert best.setting == Setting(workers=8, batch_size=64, delay_ms=1, threads=1)
    assert len(measured) < 20


def test_climb_stays_within_cores_and_memory() -> None:
    budget = Budget(cores=8, memory_bytes=JAVA_BYTES + 3 * GB)
    measured = climb(PRESENT, budget, lambda s: s.workers * (s.threads or 1))
    assert {setting.workers for setting in measured} == {1, 2}
    assert max(setting.threads or 1 for setting in measured) == 8
    assert all(s.workers * (s.threads or 1) <= 8 for s in measured)


def test_present_setting_beyond_the_cores_is_measured_and_replaced() -> None:
    present = Setting(workers=8, batch_size=16, delay_ms=1, threads=2)
    measured = list(climb(present, Budget(2, 100 * GB), lambda s: s.workers).values())
    assert measured[0].setting == present
    assert settings_search.choose(measured, cores=2).setting.workers == 2


def test_a_model_without_threads_gets_none() -> None:
    present = Setting(workers=1, batch_size=8, delay_ms=1, threads=None)
    measured = climb(present, Budget(4, 100 * GB), lambda s: s.workers)
    assert {setting.threads for setting in measured} == {None}


def test_pareto_front_holds_the_settings_that_no_other_beats() -> None:
    fast, quick, both_worse = measurement(100, 9), measurement(80, 3), measurement(79, 4)
    broken = measurement(200, 1, errors=5)
    assert settings_search.pareto_front([both_worse, quick, broken, fast]) == [fast, quick]


def test_choice_is_the_lowest_p99_of_about_the_most_requests() -> None:
    present, fastest = measurement(50, 9), measurement(100, 5)
    quicker, slow = measurement(97, 4), measurement(60, 1)
    assert settings_search.choose([present, fastest, quicker, slow], cores=2) is quicker


def test_present_setting_is_kept_when_the_gain_is_noise() -> None:
    present, other = measurement(98, 4.1), measurement(100, 4)
    assert settings_search.choose([present, other], cores=2) is present


def test_settings_with_errors_are_not_chosen() -> None:
    present = measurement(50, 9)
    assert settings_search.choose([present, measurement(100, 1, errors=1)], cores=2) is present
    with pytest.raises(UserError, match="no setting answered every request"):
        settings_search.choose([measurement(100, 1, errors=1)], cores=2)


@pytest.mark.parametrize("model", catalog.model_names())
def test_every_model_s_file_can_be_edited_and_keeps_its_comments(model: str) -> None:
    text = catalog.get(model).config_path.read_text()
    present = Setting.read(text)
    assert present.write(text) == text
    threads = None if present.threads is None else 3
    changed = Setting(workers=7, batch_size=128, delay_ms=5, threads=threads).write(text)
    n_changed = sum(a != b for a, b in zip(text.splitlines(), changed.splitlines(), strict=True))
    assert n_changed == 4 + (threads is not None)
    assert present.write(changed) == text


def test_file_without_a_line_for_each_key_is_rejected() -> None:
    with pytest.raises(UserError, match="expected 'batchSize'"):
        Setting.read("minWorkers: 1\nmaxWorkers: 1\nmaxBatchDelay: 1\n")
    with pytest.raises(UserError, match="expected a line for each of minWorkers"):
        PRESENT.write("{minWorkers: 1, batchSize: 1, maxBatchDelay: 1}\n")
