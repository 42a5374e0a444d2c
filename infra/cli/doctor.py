"""The command that says what is wrong, and what a load would need."""

from __future__ import annotations

from math import isinf
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from infra.cli.options import AsJson, answer
from infra.cli.session import Session


def doctor(
    context: typer.Context,
    plan: Annotated[bool, typer.Option("--plan", help="What a load needs, in place of what is wrong here")] = False,
    users: Annotated[float, typer.Option(min=1, help="With --plan: whose histories are kept")] = 1e6,
    items: Annotated[float, typer.Option(min=1, help="With --plan: in the catalogue")] = 100e3,
    events: Annotated[float, typer.Option(min=0, help="With --plan: watches a second at the busiest")] = 1000,
    requests: Annotated[float, typer.Option(min=0, help="With --plan: requests a second at the busiest")] = 200,
    memory_gb: Annotated[float, typer.Option(min=1, help="With --plan: what one process may take")] = 64,
    costs: Annotated[
        Path | None, typer.Option(help="With --plan: measured costs [default: ours, on two cores]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at broker, topics, Milvus, releases and processes, and say what to do; exit 1 if something is not right.

    With --plan: processes, cores, memory and traffic of a load, from measured costs of one event, request, user and
    item, and what breaks first.
    """
    if plan:
        from infra.operate.capacity_plan import COSTS, Load, plan_for, read_costs

        load = Load(users=users, items=items, events_per_s=events, requests_per_s=requests, memory_gb=memory_gb)
        answer(plan_for(load, read_costs(costs or COSTS)), _print_plan, as_json=as_json)
        return
    from infra.operate.doctor import diagnose

    session: Session = context.obj
    findings = diagnose(session.settings, lambda: session.connected)
    answer(findings, _print_findings, as_json=as_json)
    raise typer.Exit(1 if any(finding.way_out for finding in findings) else 0)


def _print_findings(findings: list[Any]) -> None:
    table = Table("", "", "found", "way out", box=None, pad_edge=False)
    for each in findings:
        mark = "[red]not right[/]" if each.way_out else "[green]ok[/]"
        table.add_row(each.what, mark, escape(each.told), escape(each.way_out))
    Console().print(table)


def _print_plan(plan: Any) -> None:
    console = Console(highlight=False)
    parts = Table("part", *map(_right, ("processes", "cores", "memory, GB")), box=None, pad_edge=False)
    for need in plan.needs:
        parts.add_row(
            need.part, f"{need.processes:,}" if need.processes else "", _told(need.cores), _told(need.memory_gb)
        )
    flows = Table("topic", *map(_right, ("messages/s", "MB/s", "stored, GB")), box=None, pad_edge=False)
    for flow in plan.flows:
        flows.add_row(flow.topic, f"{flow.messages_per_s:,.0f}", _told(flow.mb_per_s), _told(flow.stored_gb))
    console.print(parts, f"\npartitions: at least {plan.partitions:,}\n", flows, "")
    for told in plan.breaks or ["nothing that one process must do alone is too much for it"]:
        console.print(f"[yellow]breaks[/]  {escape(told)}" if plan.breaks else told, soft_wrap=True)


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _told(value: float) -> str:
    if isinf(value):
        return "too much"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
