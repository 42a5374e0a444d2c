"""The whole system as one set of supervised processes: what `nextwatch up` and `nextwatch demo` run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from infra.local.processes import command_part, embedded_services
from infra.local.supervisor import Report, Supervisor
from infra.platform.guarded_process import ServiceError
from infra.platform.port_locks import free_port
from infra.platform.settings import Gateway, Milvus, Settings

COMMANDS = {
    "history": ("worker", "history"),
    "join": ("worker", "join"),
    "trending": ("worker", "trending"),
    "trainer": ("worker", "trainer"),
    "indexer": ("indexer",),
    "serving": ("serve",),
    "gateway": ("gateway",),
}
INGEST = {"ingest": ("ingest",)}  # where there are topics to ingest


@contextmanager
def running_stack(
    settings: Settings, report: Report, *, is_limited: bool = False
) -> Iterator[tuple[Settings, Supervisor]]:
    """Embedded services where none are set, topics, and our processes, all ready; the settings that reach them.

    What lives is waited for and reported while it is late: to catch up may take minutes, and who were stopped for it
    would begin again at the next start. With `is_limited` the embedded services' limit is ours too. The ingest is not
    waited for: it waits for topics and schemas of others.

    Whatever ends the block stops everything, in order. Raises ServiceError when an embedded service does not get ready
    in time, and when something crashes again and again.
    """
    from infra.platform.kafka_access import require_access
    from streams.topics import create_topics

    with Supervisor(report) as supervisor, embedded_services(settings, supervisor, probe=milvus_answers) as reachable:
        require_access(reachable.kafka)
        create_topics(reachable.kafka)
        ours = with_gateway_port(reachable)
        commands = COMMANDS | more_servers(settings)
        for name, arguments in (commands | (INGEST if settings.ingest.topics else {})).items():
            supervisor.add(command_part(name, arguments, ours))
        timeout_s = settings.embedded.ready_timeout_s if is_limited else None
        supervisor.wait_ready(timeout_s, commands, setting="embedded.ready_timeout_s")
        yield reachable, supervisor


def more_servers(settings: Settings) -> dict[str, Sequence[str]]:
    """The servers beside the first one, by name."""
    return {f"serving-{number}": COMMANDS["serving"] for number in range(2, settings.serving.processes + 1)}


def gateway_address(supervisor: Supervisor) -> str:
    """Return the gateway's address, as its health page tells it."""
    health = next((state.health for state in supervisor.states() if state.name == "gateway"), {})
    return str(health.get("gateway", "(no gateway)"))


def with_gateway_port(settings: Settings) -> Settings:
    """The same with a free port for the gateway where its default one is taken: that is no reason not to start. A port
    that was set is kept, and whoever cannot have it says so."""
    gateway = settings.gateway
    if gateway.port != Gateway().port:
        return settings
    try:
        free_port(gateway.port, "gateway.port", gateway.host)
    except ServiceError:
        return settings.model_copy(update={"gateway": gateway.model_copy(update={"port": 0})})
    return settings


def milvus_answers(uri: str) -> bool:
    """True when this Milvus answers a real request."""
    from indexer.collection import Index

    with closing(Index(Milvus(uri=uri, timeout_s=3.0))) as index:
        return index.is_ready()
