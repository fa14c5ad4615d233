"""Writes deploy/grafana/diptych.json, a dashboard of what /metrics tells: the two pools side by side.

Run `make docs` after a change; a test compares the file with what this would write, and every expression with the
metrics that there are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "deploy" / "grafana" / "diptych.json"
COLUMNS = 24
HEIGHT = 8
HERE = '{job=~"$job"}'
"""Which servers: as chosen at the top of the page."""
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Query:
    """A line of a panel, or several."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A graph. `help` stands behind its little i."""

    title: str
    unit: str
    queries: Sequence[Query]
    help: str = ""
    is_stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Panels side by side, each as wide as the others."""

    title: str
    panels: Sequence[Panel]


def percentiles(name: str, more: str = "") -> list[Query]:
    """Return a histogram's median, 90th and 99th percentile."""
    labels = f'{{job=~"$job"{more}}}'
    return [
        Query(f"histogram_quantile({share}, sum by (le) (rate(diptych:{name}_bucket{labels}{RATE})))", legend)
        for share, legend in ((0.5, "median"), (0.9, "90 %"), (0.99, "99 %"))
    ]


def by(label: str, name: str, more: str = "") -> list[Query]:
    """Return a counter's rate, a line a value of `label`."""
    return [Query(f'sum by ({label}) (rate(diptych:{name}{{job=~"$job"{more}}}{RATE}))', f"{{{{{label}}}}}")]


def mean_by_worker(name: str) -> list[Query]:
    """Return a histogram's mean, a line a worker that has any."""
    parts = [f"sum by (worker) (rate(diptych:{name}_{part}{HERE}{RATE}))" for part in ("sum", "count")]
    return [Query(f"{parts[0]} / ({parts[1]} > 0)", "{{worker}}")]


def of_role(expression: str, role: str) -> str:
    """Return what an expression by worker says of the workers of a role."""
    return f'{expression} * on (instance, worker) (diptych:worker_role{{job=~"$job", role=~"{role}"}} == 1)'


def busy(role: str) -> Query:
    """Return the share of its time that each worker of a role spends in steps."""
    expression = f"sum by (instance, worker) (rate(diptych:worker_step_seconds_sum{HERE}{RATE}))"
    return Query(of_role(expression, role), "{{worker}}")


def limit(name: str) -> Query:
    """Return a limit of the SLO."""
    return Query(f'max(diptych:slo_limit_seconds{{job=~"$job", limit="{name}"}})', "SLO")


OVERVIEW = Row(
    "Requests",
    [
        Panel(
            "Time to first token",
            "s",
            [
                *percentiles("time_to_first_token_seconds"),
                limit("ttft"),
            ],
            "High: look at the prefill pool's queue, then at the decode pool's wait for blocks.",
        ),
        Panel(
            "Time per output token",
            "s",
            [
                *percentiles("request_time_per_output_token_seconds"),
                limit("tpot"),
            ],
            "Mean of each request's tokens after the first. High: the decode pool has too much to do.",
        ),
        Panel(
            "SLO attainment and goodput",
            "percentunit",
            [
                Query(
                    f'sum(rate(diptych:slo_requests_total{{job=~"$job", result="met"}}{RATE})) '
                    f"/ (sum(rate(diptych:slo_requests_total{HERE}{RATE})) > 0)",
                    "met both limits",
                )
            ],
            "Refused and failed requests count as missed.",
        ),
        Panel(
            "Requests",
            "reqps",
            [*by("finished_reason", "request_success_total"), *by("reason", "request_rejections_total")],
            "By how they ended, and by why they were not served.",
        ),
        Panel(
            "Running and waiting",
            "short",
            [
                Query(f"sum(diptych:num_requests_running{HERE})", "writing answers"),
                Query(f"sum(diptych:num_requests_waiting{HERE})", "without a first token"),
            ],
            is_stacked=True,
        ),
        Panel(
            "Where the time goes",
            "s",
            [
                Query(
                    f"sum by (phase) (rate(diptych:request_phase_seconds_sum{HERE}{RATE})) "
                    "/ ignoring (phase) group_left () "
                    f"(sum(rate(diptych:e2e_request_latency_seconds_count{HERE}{RATE})) > 0)",
                    "{{phase}}",
                )
            ],
            "Mean seconds of each phase of a request.",
            is_stacked=True,
        ),
    ],
)
PREFILL = Row(
    "Prefill pool",
    [
        Panel("Busy", "percentunit", [busy("prefill")], "Near 1 with a growing queue: prefill is the bottleneck."),
        Panel("Wait to be read", "s", percentiles("request_phase_seconds", ', phase="queue"')),
        Panel("Queued prompt tokens", "short", [Query(f"diptych:worker_queued_prompt_tokens{HERE}", "{{worker}}")]),
        Panel(
            "Step time by kind",
            "s",
            [
                Query(
                    f"sum by (worker, kind) (rate(diptych:worker_step_seconds_sum{HERE}{RATE})) "
                    f"/ (sum by (worker, kind) (rate(diptych:worker_step_seconds_count{HERE}{RATE})) > 0)",
                    "{{worker}} {{kind}}",
                )
            ],
        ),
        Panel("Prompt tokens in a step", "short", mean_by_worker("prefill_batch_tokens")),
        Panel("Prompt tokens computed", "short", by("worker", "prefill_batch_tokens_sum"), "A second."),
    ],
)
DECODE = Row(
    "Decode pool",
    [
        Panel("Busy", "percentunit", [busy("decode|mixed")], "Near 1 with slow tokens: decode is the bottleneck."),
        Panel("Wait for blocks and a place", "s", percentiles("request_phase_seconds", ', phase="admit"')),
        Panel("Answers in a step", "short", mean_by_worker("decode_batch_size")),
        Panel("Time between tokens", "s", percentiles("inter_token_latency_seconds")),
        Panel("Hand-over", "s", percentiles("handoff_time_seconds"), "From the first token to the step that goes on."),
        Panel(
            "Tokens written", "short", [Query(f"sum(rate(diptych:generation_tokens_total{HERE}{RATE}))", "tokens/s")]
        ),
    ],
)
CACHE = Row(
    "KV cache",
    [
        Panel("Prompt tokens by source", "short", by("source", "prompt_tokens_by_source_total"), is_stacked=True),
        Panel(
            "Found in the cache",
            "percentunit",
            [
                Query(
                    f"sum(rate(diptych:prefix_cache_hits_total{HERE}{RATE})) "
                    f"/ (sum(rate(diptych:prefix_cache_queries_total{HERE}{RATE})) > 0)",
                    "share of prompt tokens",
                )
            ],
        ),
        Panel("Blocks in use", "percentunit", [Query(f"diptych:kv_cache_usage_perc{HERE}", "{{worker}}")]),
        Panel("Evicted blocks", "short", by("tier", "kv_evictions_total")),
        Panel("KV moved", "Bps", by("way", "kv_transfer_bytes_total")),
        Panel("KV on disk", "bytes", [Query(f"diptych:disk_used_bytes{HERE}", "{{worker}}")]),
    ],
)
HEALTH = Row(
    "Health",
    [
        Panel("Workers up", "short", [Query(f"diptych:worker_up{HERE}", "{{worker}}")]),
        Panel(
            "Restarts, migrations, preemptions",
            "short",
            [
                Query(f"sum(increase(diptych:worker_restarts_total{HERE}{RATE}))", "workers replaced"),
                Query(f"sum(increase(diptych:request_migrations_total{HERE}{RATE}))", "requests migrated"),
                Query(f"sum(increase(diptych:num_preemptions_total{HERE}{RATE}))", "answers preempted"),
            ],
        ),
        Panel(
            "Trouble",
            "short",
            [
                Query(f"sum(increase(diptych:dropped_messages_total{HERE}{RATE}))", "messages dropped"),
                Query(f"sum(increase(diptych:worker_failed_steps_total{HERE}{RATE}))", "steps failed"),
                Query(f"sum(increase(diptych:disk_failures_total{HERE}{RATE}))", "disk failures"),
                Query(f"sum(increase(diptych:shared_store_failures_total{HERE}{RATE}))", "shared store failures"),
                Query(f"sum(increase(diptych:kv_damaged_blocks_total{HERE}{RATE}))", "blocks damaged"),
            ],
        ),
        Panel(
            "Memory",
            "bytes",
            [
                Query(f"diptych:worker_memory_bytes{HERE}", "{{worker}}"),
                Query(f"process_resident_memory_bytes{HERE}", "frontend"),
            ],
        ),
        Panel("Frontend's CPU", "percentunit", [Query(f"rate(process_cpu_seconds_total{HERE}{RATE})", "cores")]),
        Panel("Heartbeats", "s", [Query(f"diptych:worker_heartbeat_age_seconds{HERE}", "{{worker}}")]),
    ],
)
ROWS = [OVERVIEW, PREFILL, DECODE, CACHE, HEALTH]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PANELS_A_LINE = 3


def render() -> str:
    """Return the file's text."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        panels.append(_header(row, len(panels) + 1, y))
        y += 1
        width = COLUMNS // PANELS_A_LINE
        for index, panel in enumerate(row.panels):
            line, column = divmod(index, PANELS_A_LINE)
            place = {"x": column * width, "y": y + line * HEIGHT, "w": width, "h": HEIGHT}
            panels.append(_graph(panel, len(panels) + 1, place))
        y += HEIGHT * -(-len(row.panels) // PANELS_A_LINE)
    return json.dumps(_dashboard(panels), indent=1) + "\n"


def _header(row: Row, number: int, y: int) -> dict[str, Any]:
    place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
    return {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}


def _graph(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    stacking = {"mode": "normal" if panel.is_stacked else "none", "group": "A"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "gridPos": place,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {"fillOpacity": 25 if panel.is_stacked else 0, "stacking": stacking, "showPoints": "never"},
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _dashboard(panels: list[dict[str, Any]]) -> dict[str, Any]:
    job = {
        "name": "job",
        "type": "query",
        "label": "Job",
        "datasource": SOURCE,
        "query": {"query": "label_values(diptych:build_info, job)", "refId": "job"},
        "definition": "label_values(diptych:build_info, job)",
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }
    source = {"name": "datasource", "type": "datasource", "label": "Data", "query": "prometheus"}
    return {
        "uid": "diptych",
        "title": "Diptych",
        "description": "Prefill and decode side by side. docs/operations.md says what to do about what it shows.",
        "tags": ["llm", "diptych"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [source, job]},
        "annotations": {"list": []},
        "panels": panels,
    }


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
