"""A plan as others take it: a table for people, JSON for programs, TOML for `diptych simulate` and the launcher."""

import json
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from diptych.hardware.specs import GBIT_S
from diptych.planner.placements import Group, Verdict
from diptych.planner.search import Plan

SHOWN = 10
"""Placements in the table."""


def ranking_table(plan: Plan) -> Table:
    """Return the best placements, the best first."""
    table = Table(
        *("", "workers", "KV by", "GPUs", "$/h", "req/s", "of parts", "a GPU", "a dollar", "TTFT P90", "TPOT P90"),
        box=None,
        pad_edge=False,
    )
    for rank, verdict in enumerate(plan.verdicts[:SHOWN], 1):
        placement, goodput = verdict.placement, verdict.goodput
        table.add_row(
            str(rank),
            str(placement),
            placement.kv_link.name if placement.method != "mixed" else "-",
            str(placement.num_gpus),
            f"{placement.usd_per_hour:.2f}",
            f"{goodput.per_s:.2f}",
            f"{goodput.per_s / verdict.expected_per_s:.0%}",
            f"{verdict.per_gpu_s:.3f}",
            f"{verdict.per_usd:,.0f}",
            f"{goodput.ttft_p90_s:.3f} s",
            f"{goodput.tpot_p90_s * 1e3:.1f} ms",
        )
    return table


def as_json(plan: Plan) -> dict[str, Any]:
    """Return everything that was found."""
    question = plan.question
    return {
        "question": {
            "model": question.model.name,
            "hardware": [device.name for device in question.devices],
            "nodes": question.num_nodes,
            "gpus_per_node": question.gpus_per_node,
            "network": question.network.name,
            "slo_ttft_s": question.slo.ttft_s,
            "slo_tpot_s": question.slo.tpot_s,
            "rate_per_s": question.rate_per_s,
            "objective": question.objective,
            "hit_rate": question.load.hit_rate,
            "seed": question.load.seed,
            "costs": question.costs,
        },
        "is_simulated": True,
        "placements": [_verdict(verdict) for verdict in plan.verdicts],
        "single_workers": [{**_group(part.group), "goodput_per_s": part.per_s} for part in plan.parts],
        "left_out": dict(plan.left_out),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    placement, goodput = verdict.placement, verdict.goodput
    return {
        "method": placement.method,
        "workers": [_group(group) for group in placement.total_groups],
        "num_units": placement.num_units,
        "kv_link": placement.kv_link.name,
        "num_gpus": placement.num_gpus,
        "usd_per_hour": placement.usd_per_hour,
        "goodput_per_s": goodput.per_s,
        "expected_per_s": verdict.expected_per_s,
        "goodput_per_gpu_s": verdict.per_gpu_s,
        "requests_per_usd": verdict.per_usd,
        "attainment": goodput.attainment,
        "ttft_p90_s": goodput.ttft_p90_s,
        "tpot_p90_s": goodput.tpot_p90_s,
    }


def _group(group: Group) -> dict[str, Any]:
    shape = group.shape
    return {
        "role": str(group.role),
        "number": group.number,
        "hardware": shape.device.name,
        "tp": shape.tp,
        "pp": shape.pp,
    }


def as_toml(plan: Plan, verdict: Verdict) -> str:
    """Return a placement as a cluster that `diptych simulate --config` takes."""
    return "\n".join(_toml_lines(plan, verdict)) + "\n"


def _toml_lines(plan: Plan, verdict: Verdict) -> Iterator[str]:
    question, placement, goodput = plan.question, verdict.placement, verdict.goodput
    yield f"# Written by `diptych plan`: {placement}, {placement.method}."
    yield f"# Simulated goodput {goodput.per_s:.3f} requests/s, {verdict.per_gpu_s:.3f} a GPU."
    yield f"block_tokens = {question.load.block_size}"
    if placement.num_units > 1:
        yield f"units = {placement.num_units}  # of these workers; each keeps its requests to itself"
    yield ""
    yield "[slo]"
    yield f"ttft_s = {question.slo.ttft_s:g}"
    yield f"tpot_s = {question.slo.tpot_s:g}"
    num_used = 0
    for group in placement.groups:
        num_nodes, first = _nodes(group, num_used, question.gpus_per_node)
        num_used += group.num_gpus if placement.method == "high affinity" else 0
        table = {
            "role": group.role.value,
            "workers": group.number,
            "hardware": group.shape.device.name,
            "model": question.model.name,
            "tensor_parallel": group.shape.tp,
            "pipeline_parallel": group.shape.pp,
            **_stage_link(group),
            "costs": question.costs,
            "machines": num_nodes,
            "first_machine": first,
        }
        yield ""
        yield "[[pool]]"
        yield from (f"{key} = {json.dumps(value)}" for key, value in table.items())
    link = placement.kv_link
    yield ""
    yield f"[link]  # {link.name}"
    yield f"gbit_per_s = {link.bytes_per_s / GBIT_S:g}"
    yield f"latency_us = {link.latency_s * 1e6:g}"


def _stage_link(group: Group) -> dict[str, float]:
    """Return what stages hand on by, where that is not the devices' own link."""
    link = group.shape.stage_link
    return {} if link is None else {"stage_gbit_per_s": link.bytes_per_s / GBIT_S}


def _nodes(group: Group, num_used: int, gpus_per_node: int) -> tuple[int, int]:
    """Return on how many nodes workers begin, and on which they begin to, behind GPUs that are taken already."""
    first = num_used // gpus_per_node
    last = (num_used + (group.number - 1) * group.shape.num_devices) // gpus_per_node
    return last - first + 1, first
