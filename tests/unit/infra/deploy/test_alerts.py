"""The alarms: their metrics exist under the labels that they have, Prometheus can read them, and each one fires when it
should and is silent when it should be (alerts_test.yml, by `promtool`)."""

import json
import operator
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from infra.platform import metrics
from infra.platform.metrics import LAG
from tests.harness.needs import PROMTOOL, require

INFRA = Path(metrics.__file__).parents[1] / "deploy"
UNIT_TESTS = Path(__file__).with_name("alerts_test.yml")
RULES = [rule for group in yaml.safe_load((INFRA / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
METRIC = re.compile(r"(?<![:\w])((?:nextwatch|process)_\w+)(?:\{([^}]*)\})?")
SCRAPED = {"instance", "job", "process"}  # labels that Prometheus and its target file add


def test_prometheus_loads_the_rules():
    assert yaml.safe_load((INFRA / "prometheus.yml").read_text())["rule_files"] == ["alerts.yml"]


@pytest.mark.parametrize("rule", RULES, ids=[rule.get("alert", rule.get("record")) for rule in RULES])
def test_every_metric_of_a_rule_is_one_of_ours_under_the_labels_that_it_has(rule: dict):
    for name, matchers in METRIC.findall(rule["expr"]):
        assert_ours(name, set(re.findall(r"(\w+)\s*[=!]", matchers)))


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_every_alarm_says_what_is_wrong_the_way_out_and_how_urgent_it_is(rule: dict):
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"] and len(rule["annotations"]["description"]) > 60


def test_every_recorded_series_of_an_alarm_is_recorded():
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    used = {name for rule in ALERTS for name in re.findall(r"nextwatch:[\w:]+", rule["expr"])}
    assert used == recorded


def test_every_alarm_has_a_case_in_which_it_fires():
    text = UNIT_TESTS.read_text()
    assert [rule["alert"] for rule in ALERTS if f'{{alertname="{rule["alert"]}"' not in text] == []


def panel_expressions() -> list[str]:
    panels = json.loads((INFRA / "grafana.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_panels_of_the_dashboard_show_metrics_that_exist():
    assert len(panel_expressions()) >= 20
    for expression in panel_expressions():
        for name, matchers in METRIC.findall(expression):
            assert_ours(name, set(re.findall(r"(\w+)\s*[=!]", matchers)))


def assert_ours(name: str, labels: set[str]) -> None:
    """A sample of this name is served, and these are labels of it."""
    families = {family.name: family for family in REGISTRY.collect()}
    known = families.get(re.sub(r"_(total|bucket|count|sum)$", "", name)) or families.get(name)
    assert known is not None, f"{name} is no metric of infra/platform/metrics.py"
    collector = REGISTRY._names_to_collectors.get(name)
    own = set(getattr(collector, "_labelnames", ())) | ({"le"} if name.endswith("_bucket") else set())
    assert labels <= own | SCRAPED, f"{name} has no label {labels - own - SCRAPED}"


def test_the_name_check_finds_a_metric_and_a_label_that_are_not_there():
    assert_ours("nextwatch_consumer_lag_messages", {"topic", "process"})
    with pytest.raises(AssertionError, match="no metric"):
        assert_ours("nextwatch_consumer_lags", set())
    with pytest.raises(AssertionError, match="no label"):
        assert_ours(LAG._name, {"topics"})


# --- what every process serves, whatever its work is -----------------------------------------------------------------

LIMIT = re.compile(r"(?<![:\w])(nextwatch_\w+) ([<>]) ([\d.]+)")
SAMPLES = (
    "from prometheus_client import REGISTRY, generate_latest\n"
    "import infra.platform.metrics\n"
    "print(generate_latest(REGISTRY).decode())"
)


@pytest.fixture(scope="module")
def fresh() -> dict[str, float]:
    """Samples without labels on the page of a process that has measured nothing yet."""
    text = run(sys.executable, "-c", SAMPLES)
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    return {each.name: each.value for each in samples if not each.labels}


def limits_of(expression: str, samples: dict[str, float]) -> dict[str, bool]:
    """By comparison of a sample with a number, whether it holds."""
    holds = {"<": operator.lt, ">": operator.gt}
    return {
        f"{name} {sign} {limit}": holds[sign](samples[name], float(limit))
        for name, sign, limit in LIMIT.findall(expression)
        if name in samples
    }


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_no_limit_is_passed_by_a_process_that_has_measured_nothing(rule: dict, fresh: dict[str, float]):
    assert [limit for limit, holds in limits_of(rule["expr"], fresh).items() if holds] == []


def test_limits_are_found_and_a_zero_passes_those_that_it_would_have_passed(fresh: dict[str, float]):
    every = " or ".join(rule["expr"] for rule in ALERTS)
    passed = {limit for limit, holds in limits_of(every, dict.fromkeys(fresh, 0.0)).items() if holds}
    assert {"nextwatch_index_probe_recall < 0.95", "nextwatch_item_row_growth < 0.5"} < passed
    assert {"nextwatch_ranking_calibration < 0.7", "nextwatch_audit_recall < 0.95"} < passed


# --- with promtool: Debian's package of the same name, or Prometheus' own download -----------------------------------


@pytest.fixture(scope="module")
def promtool() -> str:
    return str(require(PROMTOOL))


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_its_configuration_and_every_rule(promtool: str):
    for name in ("prometheus.yml", "prometheus-compose.yml"):
        assert f"{len(RULES)} rules found" in run(promtool, "check", "config", str(INFRA / name))


def test_every_alarm_fires_when_it_should_and_is_silent_when_it_should(promtool: str):
    assert "SUCCESS" in run(promtool, "test", "rules", str(UNIT_TESTS))


def test_the_panels_of_the_dashboard_can_be_computed(promtool: str, tmp_path: Path):
    rules = [{"record": "panel:x", "expr": each.replace("$__rate_interval", "5m")} for each in panel_expressions()]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run(promtool, "check", "rules", "--lint=none", str(file))


def test_a_limit_that_is_wrong_is_found(promtool: str, tmp_path: Path):
    """The unit tests can fail: with the limit of one alarm out of reach its case does."""
    rules = tmp_path / "alerts.yml"
    text = (INFRA / "alerts.yml").read_text()
    rules.write_text(text.replace("nextwatch_audit_recall < 0.95", "nextwatch_audit_recall < 0.1"))
    cases = yaml.safe_load(UNIT_TESTS.read_text())
    own = [case for case in cases["tests"] if "answers wrongly" in case["name"]]
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump(cases | {"rule_files": [str(rules)], "tests": own}))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "NextwatchIndexAnswersWrongly" in done.stdout + done.stderr
