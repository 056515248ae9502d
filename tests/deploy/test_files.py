"""The files in ``deploy/`` are valid, name only what exists, and start the parts of the image.

No container is built or run: the commands of the image run as plain processes, on a read-only root
and without capabilities, in a tree of the files that .dockerignore lets through.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import psutil
import pytest
import requests
import yaml

from archive import catalog
from archive.registry.store import Registry
from scripts import register_model
from serving import lifecycle, rollout
from serving import server as torchserve
from serving import sidecar_process as sidecar
from serving.ports import free_ports
from serving.settings import Settings
from serving.testing import ROOT, Server, make_archive
from tests.conftest import lacking, register
from tests.examples import Example, examples

DEPLOY = ROOT / "deploy"
KUSTOMIZATIONS = ("base", "overlays/production")
KUBERNETES_VERSION = "1.34"
# Kinds of the Prometheus operator, which have no schema in Kubernetes.
OPERATOR_KINDS = ("PrometheusRule", "ServiceMonitor")
DEFAULTS = Settings.from_env({})
DRAIN_S = (
    sidecar.STOP_TIMEOUT_S
    + lifecycle.DRAIN_TIMEOUT_S
    + rollout.SERVICE_TIME_S
    + torchserve.TERMINATE_TIMEOUT_S
)


def tool(name: str, advice: str) -> str:
    return shutil.which(name) or lacking(f"no {name}; {advice}")


def promtool() -> str:
    return tool("promtool", "run: apt-get install prometheus")


@cache
def manifests(kustomization: str) -> list[dict[str, Any]]:
    kubectl = tool("kubectl", "install it, or kustomize")
    command = [kubectl, "kustomize", str(DEPLOY / "k8s" / kustomization)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(built))


def manifest(kustomization: str, kind: str) -> Any:
    [found] = [m for m in manifests(kustomization) if m["kind"] == kind]
    return found


def pods(kustomization: str) -> dict[str, Any]:
    """Return the specs of the pods by kind."""
    return {
        "Deployment": manifest(kustomization, "Deployment")["spec"]["template"]["spec"],
        "CronJob": manifest(kustomization, "CronJob")["spec"]["jobTemplate"]["spec"]["template"][
            "spec"
        ],
    }


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def settings_of(kustomization: str) -> dict[str, str]:
    """Return the settings that the pods get from the ConfigMap."""
    found = [m["data"] for m in manifests(kustomization) if m["kind"] == "ConfigMap"]
    [settings] = [data for data in found if "ENABLED_MODELS" in data]
    return dict(settings)


@cache
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@cache
def dockerfile() -> dict[str, list[str]]:
    """Return the arguments of each kind of instruction."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, list[str]] = {}
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        instruction, arguments = line.split(maxsplit=1)
        found.setdefault(instruction, []).append(arguments)
    return found


def image_env() -> dict[str, str]:
    [line] = dockerfile()["ENV"]
    return dict(word.split("=", 1) for word in shlex.split(line))


def healthcheck(port: int) -> list[str]:
    [line] = dockerfile()["HEALTHCHECK"]
    command = json.loads(line.partition("CMD")[2])
    return [word.replace(str(DEFAULTS.sidecar_port), str(port)) for word in command]


def expand(words: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Replace ``$(NAME)`` as Kubernetes does."""
    return [re.sub(r"\$\((\w+)\)", lambda match: env[match[1]], word) for word in words]


def commands() -> list[list[str]]:
    """Return every command that starts the image."""
    services = compose()["services"].values()
    found = [[*s.get("entrypoint", []), *s.get("command", [])] for s in services]
    for kustomization in KUSTOMIZATIONS:
        for pod in pods(kustomization).values():
            for container in containers(pod):
                command = [*container.get("command", []), *container.get("args", [])]
                found.append(expand(command, settings_of(kustomization)))
    return [default_command(), *filter(None, found)]


def default_command() -> list[str]:
    command: list[str] = json.loads(dockerfile()["CMD"][0])
    return command


def expressions() -> list[str]:
    """Return every PromQL expression of the alerts and of the dashboard."""
    dashboard = json.loads((DEPLOY / "k8s" / "base" / "dashboard.json").read_text())
    return [
        *(rule["expr"] for group in alert_rules()["groups"] for rule in group["rules"]),
        *(target["expr"] for panel in dashboard["panels"] for target in panel["targets"]),
    ]


def alert_rules() -> Any:
    """Return the rules as Prometheus reads them."""
    return yaml.safe_load((DEPLOY / "k8s" / "base" / "alerts.yaml").read_text())["spec"]


# The files are valid


def test_linter_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    subprocess.run([hadolint, DEPLOY / "Dockerfile"], check=True)


def test_compose_file_is_valid() -> None:
    # Dumped again, because PyCompose does not support merge keys.
    spec = compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose()))
    spec.validate()


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_manifests_are_valid(kustomization: str) -> None:
    for found in manifests(kustomization):
        if found["kind"] not in OPERATOR_KINDS:
            kubernetes_validate.validate(found, KUBERNETES_VERSION, strict=True)


def test_expressions_are_valid(tmp_path: Path) -> None:
    rules = [{"record": f"r{i}", "expr": expr} for i, expr in enumerate(expressions())]
    (tmp_path / "expressions.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]})
    )
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(alert_rules()))
    subprocess.run([promtool(), "check", "rules", *tmp_path.iterdir()], check=True)


# The files name only what exists


def test_every_command_exists_and_takes_its_arguments() -> None:
    for command in commands():
        program = sys.executable if command[0] == "python" else command[0]
        subprocess.run([program, *command[1:], "--help"], cwd=ROOT, capture_output=True, check=True)


def test_every_setting_of_the_image_is_one_of_the_commands() -> None:
    pages = [(ROOT / "docs" / page).read_text() for page in ("serving.md", "registry.md")]
    ours = image_env().keys() - {"PATH", "PYTHON", "PYTHONDONTWRITEBYTECODE", "GIT_SHA"}
    assert [name for name in ours if name not in "".join(pages)] == []


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_enabled_models_exist_and_are_listed_once(kustomization: str) -> None:
    enabled = settings_of(kustomization)["ENABLED_MODELS"].split(",")
    assert set(enabled) <= set(catalog.model_names())
    assert len(set(enabled)) == len(enabled)


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_ports_are_the_served_ones_without_the_management_port(
    kustomization: str,
) -> None:
    [serving] = pods(kustomization)["Deployment"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in serving["ports"]}
    open_ports = {
        "inference": DEFAULTS.inference_port,
        "metrics": DEFAULTS.metrics_port,
        "sidecar": DEFAULTS.sidecar_port,
    }
    assert ports == open_ports
    assert set(map(int, dockerfile()["EXPOSE"][0].split())) == set(open_ports.values())
    published = compose()["services"]["serve"]["ports"]
    assert {int(port.rpartition(":")[2]) for port in published} <= set(open_ports.values())

    service = manifest(kustomization, "Service")
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == open_ports
    policy = manifest(kustomization, "NetworkPolicy")["spec"]
    allowed = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert allowed == set(open_ports)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert serving[probe]["httpGet"]["port"] == "sidecar"


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_selectors_find_the_serving_pods_only(kustomization: str) -> None:
    deployment = manifest(kustomization, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    job = manifest(kustomization, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    service = manifest(kustomization, "Service")
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        manifest(kustomization, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        manifest(kustomization, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels
        assert not selector.items() <= job["metadata"]["labels"].items()
    monitor = manifest(kustomization, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    # The operator names the job after the Service; the rules and the dashboard use that name.
    assert service["metadata"]["name"] == "recmar"
    scraped = [endpoint["port"] for endpoint in monitor["endpoints"]]
    assert scraped == ["metrics", "sidecar"]


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_pods_write_to_volumes_only_and_have_no_privileges(kustomization: str) -> None:
    for pod in pods(kustomization).values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == int(dockerfile()["USER"][0])
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in containers(pod):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"].keys() == {"requests", "limits"}


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_the_reference_data_of_drift_outlasts_the_training_job(kustomization: str) -> None:
    pod = pods(kustomization)["CronJob"]
    [train] = pod["containers"]
    [name] = [m["name"] for m in train["volumeMounts"] if m["mountPath"] == "/app/artifacts"]
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == name]
    claim = manifest(kustomization, "PersistentVolumeClaim")
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_there_is_time_to_start_and_to_drain(kustomization: str) -> None:
    pod = pods(kustomization)["Deployment"]
    [serving] = pod["containers"]
    leaving_s = serving["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > leaving_s + DRAIN_S
    grace = compose()["services"]["serve"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > DRAIN_S
    startup = serving["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > lifecycle.START_TIMEOUT_S


# The parts of the image work


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The folder that ``COPY . .`` creates after the filter of .dockerignore."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    named = [line.removeprefix("!") for line in lines if line.startswith("!")]
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *named]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in filter(None, files.split("\0")):
        if (ROOT / file).exists():  # a tracked file may be deleted in the working tree
            (tmp_path / "app" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / "app" / file)
    return tmp_path / "app"


CONFINED = """
set -e
mount --bind "$WRITABLE" "$WRITABLE"
mount -o remount,bind,ro /
exec setpriv --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
"""


class Container:
    """Runs commands of the image on a read-only root without capabilities.

    Args:
        image: Folder of the image.
        writable: Folder of the volumes.
        env: Further environment variables.
    """

    def __init__(self, image: Path, writable: Path, env: Mapping[str, str]) -> None:
        self._image = image
        places = ("TMPDIR", "MODEL_STORE", "REGISTRY", "LOG_LOCATION")
        volumes = {name: str(writable / name.lower()) for name in places}
        for name in ("TMPDIR", "MODEL_STORE", "LOG_LOCATION"):
            Path(volumes[name]).mkdir()
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.env = {**os.environ, **image_env(), **path, **volumes, **env}
        self.env["WRITABLE"] = str(writable)

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command."""
        confined = ["unshare", "--mount", "--map-root-user", "sh", "-c", CONFINED, "sh"]
        return subprocess.Popen(
            [*confined, *command],
            cwd=self._image,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = self.start(command)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture
def container(image: Path) -> Iterator[Callable[..., Container]]:
    """Creates a container of the image with further environment variables."""
    # Not in tmp_path: the path of a socket must be shorter than 108 bytes.
    with tempfile.TemporaryDirectory(prefix="recmar-") as writable:
        yield lambda **env: Container(image, Path(writable), env)
        assert list((Path(writable) / "tmpdir").iterdir()) == []


def xgb() -> Example:
    return next(example for example in examples() if example.model == "xgb")


def test_image_pulls_the_champion_and_serves_it_on_a_read_only_root(
    tmp_path: Path,
    container: Callable[..., Container],
    archive_file: Callable[[Example], Path],
    bucket: str,
) -> None:
    registry = Registry(tmp_path / "registry", bucket)
    registry.register("xgb", xgb().version, archive_file(xgb()))
    registry.promote("xgb", xgb().version)
    names = ("INFERENCE_PORT", "MANAGEMENT_PORT", "METRICS_PORT", "SIDECAR_PORT")
    ports = dict(zip(names, free_ports(4), strict=True))
    settings = {"ENABLED_MODELS": "xgb", "S3_BUCKET": bucket}
    # Like a pod, except for the ports.
    pod = container(**settings, **{name: str(port) for name, port in ports.items()})

    [puller] = pods("base")["Deployment"]["initContainers"]
    pulled = pod.run(expand([*puller["command"], *puller["args"]], settings))
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.split() == [f"{pod.env['MODEL_STORE']}/xgb.mar", xgb().version]
    written = pod.run(["touch", "handlers/base.py"])
    assert "Read-only file system" in written.stderr

    process = pod.start(default_command())
    try:
        assert process.stdout is not None
        table = "".join(iter(process.stdout.readline, "\n"))
        assert "/predictions/xgb" in table, process.communicate()[1]
        assert capabilities(process.pid) == 0
        assert pod.run(healthcheck(ports["SIDECAR_PORT"])).returncode == 0
        closed = {ports["MANAGEMENT_PORT"]}
        assert open_ports(process.pid) == set(ports.values()) - closed
        url = f"http://127.0.0.1:{ports['INFERENCE_PORT']}/predictions/xgb"
        assert requests.post(url, json={"data": xgb().rows}, timeout=10).ok
    finally:
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    assert pod.run(healthcheck(ports["SIDECAR_PORT"])).returncode != 0


def capabilities(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"^Cap(?:Eff|Prm|Bnd):\s*(\w+)$", status, re.MULTILINE)[0], 16)


def open_ports(pid: int) -> set[int]:
    """Return the ports on which a process and its children listen beyond the loopback."""
    process = psutil.Process(pid)
    return {
        connection.laddr.port
        for part in (process, *process.children(recursive=True))
        for connection in part.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip.removeprefix("::ffff:") != "127.0.0.1"
    }


def test_pull_without_a_model_takes_every_champion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, store = Registry(tmp_path / "registry"), tmp_path / "store"
    pull = ["pull", "--registry", str(registry.folder), "--store", str(store)]
    for name in ("first", "second"):
        registry.register(name, "1.0", make_archive(tmp_path, name, ""))
    assert register_model.main(pull) == 1
    assert "has no champion" in capsys.readouterr().err
    registry.promote("first", "1.0")
    assert register_model.main(pull) == 0
    assert [mar.name for mar in store.iterdir()] == ["first.mar"]
    assert register_model.main([*pull, "--model", "first, second"]) == 1
    assert "second has no champion; it has 1.0, challenger 1.0" in capsys.readouterr().err


# The alerts and the dashboard


@contextmanager
def prometheus(server: Server, folder: Path) -> Iterator[str]:
    """Run Prometheus with the configuration of compose.yaml and the alerts; yield its URL."""
    program = tool("prometheus", "run: apt-get install prometheus")
    config = yaml.safe_load(compose()["configs"]["prometheus"]["content"])
    config["global"]["scrape_interval"] = "1s"
    config["rule_files"] = ["alerts.yaml"]
    [job] = config["scrape_configs"]
    [static] = job["static_configs"]
    assert static["targets"] == [f"serve:{port}" for port in (8082, 8090)]
    urls = (server.metrics_url, server.sidecar_url)
    static["targets"] = [url.removeprefix("http://") for url in urls]
    (folder / "alerts.yaml").write_text(yaml.safe_dump(alert_rules()))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    flags = ["--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, *flags, f"--web.listen-address={address}"], cwd=folder, stderr=log
        )
        try:
            wait_for(lambda: "Server is ready" in (folder / "log").read_text())
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(timeout=20)


def query(url: str, expr: str) -> list[dict[str, str]]:
    """Return the labels of each series that an expression yields."""
    answer = requests.get(f"{url}/api/v1/query", params={"query": expr}, timeout=10)
    answer.raise_for_status()
    return [series["metric"] for series in answer.json()["data"]["result"]]


def wait_for(found: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.2)


FAILING = """
class Handler:
    def initialize(self, context): pass
    def handle(self, data, context): raise ValueError
"""


def send_requests_of_every_kind(server: Server) -> None:
    """Make the server count at least one event in every metric."""
    odd_row = {"item_price": 1e9, "nobody_knows": 1}  # missing, out of range, unknown
    bodies: dict[str, list[Any]] = {
        "deepfm": [{"data": [odd_row]}, {"data": "wrong"}],
        "item2vec": [{"data": [{"sequence": ["nobody_knows"]}]}],
        "failing": [{"data": [{}]}],
    }
    mar = make_archive(Path(server.env["MODEL_STORE"]), "failing", FAILING)
    register(server, mar).raise_for_status()
    for model, sent in bodies.items():
        for body in sent:
            requests.post(f"{server.inference_url}/predictions/{model}", json=body, timeout=10)
    requests.get(f"{server.sidecar_url}/ping", timeout=10)
    requests.delete(f"{server.management_url}/models/failing", timeout=10).raise_for_status()
    mar.unlink()


def test_prometheus_finds_every_metric_and_label_of_the_expressions(
    server: Server, tmp_path: Path
) -> None:
    send_requests_of_every_kind(server)
    with prometheus(server, tmp_path) as url:
        # The handlers report their counts once a second.
        wait_for(lambda: query(url, "recmar_feature_out_of_vocabulary"))
        wait_for(lambda: len(query(url, 'up{job="recmar"} == 1')) == 2)
        for expr in expressions():
            selectors = re.findall(r"(\w+)\{([^}]*)\}", expr)
            labels = {"kind", "pod"}  # added by label_replace and by the operator
            for metric, matchers in selectors:
                series = query(url, f'{metric}{{job="recmar"}}')
                assert series, metric
                known = {label for found in series for label in found}
                assert set(re.findall(r"(\w+)[=!]", matchers)) <= known, expr
                labels |= known
            grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expr)
            assert {name for names in grouped for name in names.split(", ")} <= labels, expr
            query(url, expr)


def per_minute(increase: float) -> str:
    """Return a counter in promtool's notation: one sample per minute for an hour."""
    return f"0+{increase}x60"


def always(value: float, minutes: int = 60) -> str:
    """Return a constant series in promtool's notation."""
    return f"{value}+0x{minutes - 1}"


BUCKET = 'recmar_handler_latency_ms_bucket{job="recmar",model_name="m",le="%s"}'
READY = 'sidecar_model_ready_workers{job="recmar",model="m",default="true",version="%s",pod="%s"}'
SIDECAR = 'sidecar_requests_total{job="recmar",route="%s",status="%s"}'
MISSING = 'recmar_feature_missing{job="recmar",model_name="m",feature="f"}'

# For each alert, an hour of series at which it fires and one at which it does not.
ALERTS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "RecmarDown": (
        {'up{job="recmar",instance="a"}': always(0)},
        {'up{job="recmar",instance="a"}': always(1)},
    ),
    "RecmarGone": ({}, {'up{job="recmar",instance="a"}': always(1)}),
    "RecmarServerErrors": (
        {'Requests5XX{job="recmar"}': per_minute(2), 'Requests2XX{job="recmar"}': per_minute(98)},
        {'Requests5XX{job="recmar"}': per_minute(1), 'Requests2XX{job="recmar"}': per_minute(199)},
    ),
    "RecmarSidecarErrors": (
        {SIDECAR % ("/recall", 503): per_minute(2), SIDECAR % ("/recall", 200): per_minute(98)},
        {SIDECAR % ("/health", 503): per_minute(50), SIDECAR % ("/health", 200): per_minute(50)},
    ),
    "RecmarSlow": (
        {
            BUCKET % 100: per_minute(98),
            BUCKET % 250: per_minute(100),
            BUCKET % "+Inf": per_minute(100),
        },
        {BUCKET % 100: per_minute(100), BUCKET % "+Inf": per_minute(100)},
    ),
    "RecmarQueue": (
        {
            'ts_queue_latency_microseconds{job="recmar",model_name="m"}': per_minute(6e6),
            'ts_inference_requests_total{job="recmar",model_name="m"}': per_minute(100),
        },
        {
            'ts_queue_latency_microseconds{job="recmar",model_name="m"}': per_minute(4e6),
            'ts_inference_requests_total{job="recmar",model_name="m"}': per_minute(100),
        },
    ),
    "RecmarWorkerRestarts": (
        {
            'WorkerLoadTime{job="recmar",WorkerName="w"}': " ".join(
                [always(8000, 40), always(9000, 5), always(9500, 16)]
            )
        },
        {'WorkerLoadTime{job="recmar",WorkerName="w"}': f"{always(8000, 40)} {always(9000, 21)}"},
    ),
    "RecmarWorkerUnresponsive": (
        {'sidecar_model_unresponsive_workers{job="recmar",model="m",version="v1"}': always(1)},
        {'sidecar_model_unresponsive_workers{job="recmar",model="m",version="v1"}': always(0)},
    ),
    "RecmarSkew": (
        {MISSING: per_minute(20), 'recmar_rows{job="recmar",model_name="m"}': per_minute(100)},
        {MISSING: per_minute(5), 'recmar_rows{job="recmar",model_name="m"}': per_minute(100)},
    ),
    "RecmarVersionsDiffer": (
        {READY % ("v1", "a"): always(2), READY % ("v2", "b"): always(2)},
        {READY % ("v1", "a"): always(2), READY % ("v1", "b"): always(2)},
    ),
    "RecmarIndexMismatch": (
        {'sidecar_index_mismatches{job="recmar"}': always(1)},
        {'sidecar_index_mismatches{job="recmar"}': always(0)},
    ),
}


def test_every_alert_has_cases() -> None:
    rules = [rule["alert"] for group in alert_rules()["groups"] for rule in group["rules"]]
    assert rules == list(ALERTS)


def test_every_alert_says_what_it_means_and_where_to_read_on() -> None:
    for rule in [rule for group in alert_rules()["groups"] for rule in group["rules"]]:
        assert rule["annotations"]["description"].endswith(".")
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        text = (ROOT / page).read_text()
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


FIRING = [{"labels": "{}", "value": 1}]


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(alert_rules()))
    count = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": v} for name, v in series.items()],
            "promql_expr_test": [{"expr": count, "eval_time": "59m", "exp_samples": expected}],
        }
        for series, expected in zip(ALERTS[alert], (FIRING, []), strict=True)
    ]
    cases = {"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases))
    done = subprocess.run(
        [promtool(), "test", "rules", "cases.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
