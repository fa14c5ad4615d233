"""Dashboard and alerts are about metrics that there are: every expression is parsed, every name and label looked up."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

import make_grafana_dashboard
from make_metrics_table import exported

ALERTS = Path("deploy/grafana/alerts.yml")
VARIABLES = {"$__rate_interval": "5m", "$job": ".*"}
ADDED_BY_PROMETHEUS = frozenset({"job", "instance", "le"})


def selectors(node: Any) -> Iterator[promql.VectorSelector]:
    """Yield what an expression reads."""
    match node:
        case promql.VectorSelector():
            yield node
        case promql.MatrixSelector():
            yield node.vector_selector
        case promql.BinaryExpr():
            yield from selectors(node.lhs)
            yield from selectors(node.rhs)
        case promql.Call():
            for argument in node.args:
                yield from selectors(argument)
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            yield from selectors(node.expr)
        case promql.NumberLiteral() | promql.StringLiteral():
            return
        case _:
            raise AssertionError(f"{node} is of no kind that is known here")


def dashboard_expressions() -> list[str]:
    dashboard = json.loads(make_grafana_dashboard.FILE.read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def check(expression: str, known: Mapping[str, frozenset[str]]) -> None:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    read = list(selectors(promql.parse(expression)))
    assert read, f"{expression} reads nothing"
    for selector in read:
        assert selector.name is not None
        assert selector.name in known, f"{selector.name} is not exported"
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert labels <= known[selector.name] | ADDED_BY_PROMETHEUS, f"{selector.name} has no such labels: {labels}"


def test_the_dashboard_is_what_the_code_says() -> None:
    assert make_grafana_dashboard.FILE.read_text() == make_grafana_dashboard.render(), "run `make docs`"


@pytest.mark.parametrize("expression", dashboard_expressions())
def test_a_graph_shows_what_is_exported(expression: str) -> None:
    check(expression, exported())


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_watches_what_is_exported(rule: dict[str, Any]) -> None:
    check(rule["expr"], exported())
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"].keys() == {"summary", "description"}


def test_every_alert_is_in_the_operations_guide() -> None:
    guide = Path("docs/operations.md").read_text()
    assert [rule["alert"] for rule in rules() if rule["alert"] not in guide] == []


def test_a_name_that_is_not_exported_is_found() -> None:
    with pytest.raises(AssertionError, match="is not exported"):
        check("rate(diptych:no_such_thing_total[5m])", exported())
    with pytest.raises(AssertionError, match="no such labels"):
        check('diptych:worker_up{colour="red"}', exported())
