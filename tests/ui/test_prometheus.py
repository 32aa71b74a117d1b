"""promtool on every service's metrics, a real Prometheus over all of them, and the queries of dashboard and alerts."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.ports import free_port
from tests.ui.fleet import ROOT, Fleet, fleet, get, process, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not (shutil.which("promtool") and shutil.which("prometheus")),
        reason="promtool and prometheus are missing (Debian: apt install prometheus)",
    ),
]
DEPLOY = ROOT / "deploy"
REPLICAS = {"r1": "small", "r2": "large"}
CONFIG = """
global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: inference-svc
    http_sd_configs: [ {{ url: "{registry}/sd/prometheus", refresh_interval: 1s }} ]
"""


@dataclass(frozen=True)
class Watched:
    """A fleet and the Prometheus that scrapes it."""

    fleet: Fleet
    prometheus: str

    def ask(self, path: str) -> Any:
        """`data` of one call of Prometheus' API."""
        answer = json.loads(get(f"{self.prometheus}/api/v1/{path}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> Any:
        """What an expression gives now."""
        return self.ask(f"query?query={quote(expression)}")["result"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    with fleet(folder, REPLICAS, agent=True) as made:
        port = free_port()
        config = folder / "prometheus.yml"
        config.write_text(CONFIG.format(registry=made.registry, rules=DEPLOY / "prometheus/rules.yml"))
        command = ("prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}")
        with process(folder, *command, f"--web.listen-address=127.0.0.1:{port}", log="prometheus"):
            watched = Watched(made, f"http://127.0.0.1:{port}")
            until("prometheus is ready", lambda: get(f"{watched.prometheus}/-/ready"))
            made.chat("small")
            until("all is scraped", lambda: len(watched.query("up == 1")) == 5)
            yield watched


def urls(made: Fleet) -> dict[str, str]:
    return {"registry": made.registry, "router": made.router, "babysitter": made.babysitters["r1"], "agent": made.agent}


@pytest.mark.parametrize("service", ["registry", "router", "babysitter", "agent"])
def test_metrics_pass_promtool(watched: Watched, service: str) -> None:
    page = get(f"{urls(watched.fleet)[service]}/metrics")
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")


def test_prometheus_finds_and_scrapes_the_whole_fleet(watched: Watched) -> None:
    up = {(one["metric"]["job"], one["metric"]["service"]) for one in watched.query("up == 1")}
    router = next(service for job, service in up if job == "router")
    assert router.startswith("router-")
    babysitters = {("babysitter", name) for name in REPLICAS}
    assert up == {("registry", "registry"), ("router", router), ("agent", "agent-node-1"), *babysitters}
    assert [one["health"] for one in watched.ask("targets")["activeTargets"]] == ["up"] * 5
    ready = until("states are scraped", lambda: watched.query("svc_babysitter_server_ready == 1"))
    assert {one["metric"]["service"] for one in ready} == {"r1", "r2"}
    counted = 'svc_router_requests_total{outcome="ok",replica="r1-server"} == 1'
    until("the request is counted", lambda: watched.query(counted))


def rules() -> list[Any]:
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> Any:
    return json.loads((DEPLOY / "grafana/dashboard.json").read_text())


def dashboard_expressions() -> list[str]:
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    variables = {"$__rate_interval": "1m", "$router": ".*", "$model": ".*"}
    for name, value in variables.items():
        found = [expression.replace(name, value) for expression in found]
    return found


def metric_names(expression: str) -> set[str]:
    return set(re.findall(r"\b((?:svc_|registry_|engine_|up\b)[a-z0-9_]*)", re.sub(r'"[^"]*"', "", expression)))


def test_every_metric_that_dashboard_and_alerts_name_exists(watched: Watched) -> None:
    queries = [variable["definition"] for variable in dashboard()["templating"]["list"][1:]]
    named = {
        name
        for expression in [*dashboard_expressions(), *queries, *(rule["expr"] for rule in rules())]
        for name in metric_names(expression)
    }
    assert len(named) > 20
    known = set(watched.ask("label/__name__/values"))
    pages = [f"{url}/metrics" for url in urls(watched.fleet).values()]
    for page in [*pages, f"{watched.fleet.router}/metrics/engines"]:
        # a metric of which there is no sample yet, as of stages without a deployment
        known |= set(re.findall(r"^# TYPE (\w+)", get(page).decode(), re.MULTILINE))
    assert sorted(named - known) == []


def test_every_query_of_the_dashboard_is_understood(watched: Watched) -> None:
    expressions = dashboard_expressions()
    assert len(expressions) > 25
    for expression in expressions:
        assert "$" not in expression
        watched.query(expression)


def test_a_healthy_fleet_raises_no_alert(watched: Watched) -> None:
    until("the rules were judged", lambda: all(rule["lastEvaluation"] > "2" for rule in loaded(watched)))
    assert {rule["name"] for rule in loaded(watched)} == {rule["alert"] for rule in rules()}
    assert [rule["name"] for rule in loaded(watched) if rule["health"] == "err" or rule["state"] == "firing"] == []


def loaded(watched: Watched) -> list[Any]:
    return [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]


def test_rules_and_configuration_pass_promtool() -> None:
    for check in (["rules", "rules.yml"], ["config", "prometheus.yml"]):
        subprocess.run(["promtool", "check", *check], cwd=DEPLOY / "prometheus", check=True, timeout=30)


def test_alerts_fire_when_they_should() -> None:
    subprocess.run(
        ["promtool", "test", "rules", str(Path(__file__).with_name("alerts.yml"))], cwd=ROOT, check=True, timeout=60
    )
