"""The alert rules speak of metrics that exist, under the labels that they have."""

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from infra import metrics

INFRA = Path(metrics.__file__).parent
RULES = [rule for group in yaml.safe_load((INFRA / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def test_prometheus_loads_the_rules():
    assert yaml.safe_load((INFRA / "prometheus.yml").read_text())["rule_files"] == ["alerts.yml"]


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_every_metric_of_a_rule_is_one_of_ours(rule: dict):
    families = {family.name: family for family in REGISTRY.collect()}
    for name in re.findall(r"nextwatch_\w+", rule["expr"]):
        assert name.removesuffix("_total") in families, name
    assert rule["annotations"]["summary"]
