"""Commands that look at and prepare what is around us: topics, config, status, releases, doctor."""

from __future__ import annotations

import json
from functools import partial
from math import isinf
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from infra.cli.options import AsJson, answer
from infra.cli.session import Session
from infra.platform.settings import Kafka, Settings, dump_settings, variable_of


def topics(
    context: typer.Context,
    create: Annotated[bool, typer.Option("--create", help="Make the topics that are missing")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the cluster with the design; exit 1 on a difference")
    ] = False,
    alter: Annotated[
        bool, typer.Option("--alter", help="Set right the settings that differ (policy, retention, sizes)")
    ] = False,
    sample: Annotated[
        int, typer.Option(min=0, help="Show what so many newest records of each topic to ingest would become")
    ] = 0,
    mapping: Annotated[
        Path | None, typer.Option("--map", help="With --sample: [[ingest.topics]] of this file, in place of ours")
    ] = None,
    suggest: Annotated[str, typer.Option(help="Look at this topic of yours and propose a mapping, as TOML")] = "",
    as_json: AsJson = False,
) -> None:
    """List the topics with key, partitions and cleanup policy; make, check or alter them on the cluster.

    With --sample: what topics of your own would become, before anything is started; exit 1 where a record would be
    refused.
    """
    from infra.cli.ingest import show_sample, show_suggestion
    from streams.kafka.partition_counts import check_raise
    from streams.kafka.requirements import alter_topics
    from streams.kafka.topic_ids import check_topic_ids
    from streams.topics import check_topics, create_topics

    session: Session = context.obj
    if suggest:
        show_suggestion(session.connected, suggest)
        return
    if sample:
        show_sample(session.connected, sample, mapping, as_json=as_json)
    made = create_topics(session.connected.kafka) if create else []
    altered = alter_topics(session.connected.kafka) if alter else []
    problems = []
    if check or create or alter:
        kafka = session.connected.kafka
        problems = [*check_topics(kafka), *check_topic_ids(kafka), *check_raise(kafka)]
    report: dict[str, list[Any]] = {"topics": _topic_rows(session.settings.kafka)}
    report |= {"created": made, "altered": altered, "problems": problems}
    answer(report, partial(_print_topics, asked=create or check or alter), as_json=as_json)
    raise typer.Exit(1 if problems else 0)


def config(context: typer.Context, as_json: AsJson = False) -> None:
    """Print the effective settings (secrets masked), each with its environment variable."""
    answer(dump_settings(context.obj.settings), _print_settings, as_json=as_json)


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Processes, lags, versions, index size and freshness on this data_dir; exit 1 if a process is not ready."""
    from infra.operate.status import read_status, render_status

    report = read_status(context.obj.settings)
    answer(report, lambda found: Console().print(render_status(found)), as_json=as_json)
    raise typer.Exit(0 if report.ready else 1)


def releases(
    context: typer.Context,
    back: Annotated[bool, typer.Option("--rollback", help="Make the spare live, and wait for the servers")] = False,
    to: Annotated[str, typer.Option(metavar="VERSION", help="With --rollback: only if this is the spare")] = "",
    announce: Annotated[
        bool, typer.Option("--announce", help="Announce the newest bundle on this disk, if none is newer, and end")
    ] = False,
    wait_s: Annotated[float, typer.Option(min=0, help="With --rollback: how long to wait for them; 0: not")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Bundles, collections, and which server answers from which release; which is live, and which the spare.

    Exit 2 when Kafka or Milvus does not answer (the rest is listed) or when there is nothing to roll back to, 1 when a
    living server does not answer from the spare in time.
    """
    if back:
        _roll_back(context.obj.with_milvus, to, wait_s, as_json=as_json)
    if announce:
        _announce(context.obj.connected, as_json=as_json)
    from infra.operate.releases import print_releases, read_releases

    report = read_releases(context.obj.connected)
    answer(report, partial(print_releases, console=Console()), as_json=as_json)
    raise typer.Exit(2 if report.problems else 0)


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


def _announce(settings: Settings, *, as_json: bool) -> None:
    from infra.operate.newest_release import announce_newest

    version = announce_newest(settings, is_asked=True)
    text = (
        f"{version} is announced" if version else "nothing to announce: no bundle here is newer than the announced one"
    )
    answer({"announced": version}, lambda _: Console().print(text), as_json=as_json)
    raise typer.Exit(0)


def _roll_back(settings: Settings, to: str, wait_s: float, *, as_json: bool) -> None:
    from infra.operate.roll_back import roll_back

    say = Console(stderr=True, highlight=False)
    done = roll_back(settings, wait_s, lambda what: say.print(escape(what)), to=to)
    answer(done, partial(_print_roll_back, waited=wait_s > 0), as_json=as_json)
    raise typer.Exit(0 if done.is_served or not wait_s else 1)


def _print_roll_back(done: Any, *, waited: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"rolled back from {escape(done.before)} to {escape(done.version)} in {done.spent_s:.1f} s")
    if done.waiting_for:
        console.print(f"[red]not served yet[/] by {escape(', '.join(done.waiting_for))}")
    elif waited and not done.served_by:
        console.print("[red]no server[/] has been heard")
    if done.coming:
        console.print(f"[yellow]note[/]: {escape(done.coming)} goes live when its index is ready")


def _topic_rows(kafka: Kafka) -> list[dict[str, Any]]:
    from streams.topics import TOPICS, partitions_of

    return [
        {
            "topic": kafka.topic_prefix + topic.name,
            "key": topic.key,
            "partitions": partitions_of(topic, kafka),
            "cleanup": topic.cleanup,
        }
        for topic in TOPICS
    ]


def _print_topics(report: dict[str, list[Any]], *, asked: bool) -> None:
    console = Console()
    table = Table("topic", "key", "partitions", "cleanup", box=None, pad_edge=False)
    for row in report["topics"]:
        table.add_row(*map(str, row.values()))
    console.print(table)
    if made := report["created"]:
        console.print(f"\nmade {len(made)}: {', '.join(made)}")
    for change in report["altered"]:
        console.print(f"altered  {escape(change)}", highlight=False)
    for problem in report["problems"]:
        console.print(f"[red]differs[/]  {escape(problem)}", highlight=False)
    if asked and not report["problems"]:
        console.print("\nthe cluster is as it must be")


def _print_settings(tree: dict[str, Any]) -> None:
    table = Table("setting", "value", "variable", box=None, pad_edge=False)
    for section, values in tree.items():
        leaves = (
            {f"{section}.{leaf}": v for leaf, v in values.items()} if isinstance(values, dict) else {section: values}
        )
        for name, value in leaves.items():
            text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
            table.add_row(name, escape(text), variable_of(name))
    Console().print(table)


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
