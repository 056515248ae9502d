"""The nightly chain: train, judge, register, deploy; and what a failure does to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from archive import catalog
from archive.registry.store import Registry
from serving.ports import free_ports
from serving.testing import ROOT
from tests.examples import Example, module

STEPS = ("train", "gate", "register", "index", "deploy")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The code in its own folder, to which artifacts, registry and reports go."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("archive", "handlers", "scripts", "serving", "sidecar", "training"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Return a function that makes an environment with a stand-in for Python.

    The stand-in records its arguments and runs the shell case that matches them.
    """

    def make(cases: str) -> dict[str, str]:
        python = tmp_path / "python"
        python.write_text(
            f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\ncase "$*" in\n{cases}\n'
            '*register_model*--model\\ two_tower*) echo "item_tower v x"; echo "two_tower v x" ;;\n'
            '*register_model*) echo "$4 v x" ;;\nesac\n'
        )
        python.chmod(0o755)
        return {**os.environ, "PYTHON": str(python)}

    return make


def chain(checkout: Path, env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [checkout / "scripts" / "run_training.sh", *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def summary(out: str) -> dict[str, list[str]]:
    """The outcome of each step by model."""
    table = [line.split() for line in out.rpartition("\nmodel ")[2].splitlines()]
    assert table[0] == ["version", *STEPS]
    return {model: steps for model, _, *steps in table[1:]}


def test_model_that_fails_does_not_stop_the_others(
    checkout: Path, data_folder: Callable[[Example], Path]
) -> None:
    example: Example = module("item2vec").EXAMPLES[0]
    [management] = free_ports(1)
    env = {**os.environ, "PYTHON": sys.executable, "MANAGEMENT_PORT": str(management)}
    env |= {"REGISTRY": str(checkout / "registry"), "MODEL_STORE": str(checkout)}
    flags = ["--models", "xgb,item2vec", "--data-path", str(data_folder(example)), "--deploy"]
    run = chain(checkout, env, *flags, "--", "--epochs", "5")
    out, err = run.communicate()
    assert run.returncode == 1
    assert summary(out) == {
        "xgb": ["failed", "-", "-", "-", "-"],  # has no data in that folder
        "item2vec": ["ok", "ok", "ok", "-", "failed"],  # no server is running
    }, err
    assert [entry.model for entry, _ in Registry(checkout / "registry").listing()] == ["item2vec"]


def test_steps_follow_each_other_and_refused_models_go_no_further(
    checkout: Path, tmp_path: Path, stand_in: Callable[[str], dict[str, str]]
) -> None:
    statuses = {"*evaluate*mmoe*": 1, "*evaluate*xgb*": 2, "*deploy*deepfm*": 1}
    env = stand_in("\n".join(f"{call}) exit {status} ;;" for call, status in statuses.items()))
    env["INDEX_URI"] = "http://milvus:19530"
    hosts = ["--service-url", "http://a:8081", "--service-url", "http://b:8081"]
    hosts += ["--inference-url", "http://a:8080", "--inference-url", "http://b:8080"]
    hosts += ["--model-store", "/a b", "--model-store", "/c", "--key-file", "k"]
    flags = ["--models", "mmoe,xgb,deepfm,two_tower", "--deploy", *hosts, "--s3-bucket", "b"]
    run = chain(checkout, env, *flags)
    out, err = run.communicate()
    assert run.returncode == 1
    assert summary(out) == {
        "mmoe": ["ok", "refused", "-", "-", "-"],
        "xgb": ["ok", "failed", "-", "-", "-"],
        "deepfm": ["ok", "ok", "ok", "-", "failed"],
        "two_tower": ["ok", "ok", "ok", "ok", "ok"],
    }, err
    version = out.splitlines()[-1].split()[1]
    flags_of_step = f"--version {version} --s3-bucket b"
    urls = "--service-url http://a:8081 http://b:8081 --inference-url http://a:8080 http://b:8080"
    urls += " --model-store /a b /c --key-file k"
    assert (tmp_path / "calls").read_text().splitlines()[-6:] == [
        f"-m scripts.train --model two_tower --version {version}",
        f"-m scripts.evaluate --model two_tower {flags_of_step}",
        f"-m scripts.register_model --model two_tower {flags_of_step}",
        f"-m scripts.index_items --model two_tower --version {version} --uri {env['INDEX_URI']}",
        f"-m scripts.deploy --model item_tower {flags_of_step} {urls}",
        f"-m scripts.deploy --model two_tower {flags_of_step} {urls}",
    ]


def test_steps_can_be_skipped_and_all_training_runs_are_the_default(
    checkout: Path, tmp_path: Path, stand_in: Callable[[str], dict[str, str]]
) -> None:
    run = chain(checkout, stand_in(""), "--skip-eval", "--skip-register", "--", "--seed", "7")
    out, err = run.communicate()
    assert run.returncode == 0, err
    runs = {name for name in catalog.model_names() if catalog.get(name).has_own_run}
    assert summary(out) == {run: ["ok", "skipped", "skipped", "-", "-"] for run in runs}
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == len(runs)
    assert all(call.endswith(" --seed 7") for call in calls)


def test_deploy_without_a_verdict_records_why(
    checkout: Path, tmp_path: Path, stand_in: Callable[[str], dict[str, str]]
) -> None:
    flags = ["--models", "xgb", "--skip-eval", "--deploy", "--allow-contract-change"]
    run = chain(checkout, stand_in(""), *flags)
    out, err = run.communicate()
    assert run.returncode == 0, err
    assert summary(out) == {"xgb": ["ok", "skipped", "ok", "-", "ok"]}
    deploy = (tmp_path / "calls").read_text().splitlines()[-1]
    assert deploy.startswith("-m scripts.deploy --model xgb ")
    assert deploy.endswith(" --allow-contract-change --ungated run_training.sh --skip-eval")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_the_step_and_reports_the_progress(
    checkout: Path, tmp_path: Path, stand_in: Callable[[str], dict[str, str]], number: int
) -> None:
    stop = f"kill $!; echo stopped >>{tmp_path}/calls; exit 130"
    wait = f"*train*xgb*) trap '{stop}' INT; sleep 60 >/dev/null 2>&1 & echo ready; wait ;;"
    run = chain(checkout, stand_in(wait), "--models", "deepfm,xgb,mmoe")
    assert run.stdout is not None
    assert run.stdout.readline() == "deepfm v x\n"
    assert run.stdout.readline() == "ready\n"
    run.send_signal(number)
    out, _ = run.communicate()
    assert run.returncode == 130
    assert summary(out) == {
        "deepfm": ["ok", "ok", "ok", "-", "-"],
        "xgb": ["interrupted", "-", "-", "-", "-"],
    }
    assert (tmp_path / "calls").read_text().endswith("stopped\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modles", "xgb"], "unknown option --modles"),
        (["--models"], "--models needs a value"),
        (["--models", ""], "--models names none"),
        (["--models", "xbg"], "no model xbg; there are deepfm din dssm "),
        (["--deploy", "--skip-register"], "--deploy takes archives from the registry"),
    ],
)
def test_wrong_option_is_refused_before_anything_runs(
    checkout: Path, arguments: list[str], message: str
) -> None:
    run = chain(checkout, dict(os.environ), *arguments)
    out, err = run.communicate()
    assert (run.returncode, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.endswith("; see scripts/run_training.sh --help\n")
