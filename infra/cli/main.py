"""The `nextwatch` command: where settings are built, and where every error that a person can mend ends as one line.

Exit codes: 0 done, 1 a check or claim did not hold, 2 a setting, file or service is not as it must be, 70 a bug.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infra.cli import ask, cluster, learn, processes, up
from infra.cli.session import Session

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="nextwatch: a streaming, real-time video recommender. Watch events in Kafka, recommendations that follow.",
)
for module in (up, processes, learn, ask, cluster):
    module.register(app)


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="Settings file, TOML [default: $NEXTWATCH_CONFIG, else ./nextwatch.toml]")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where bundles and embedded services keep their data")] = None,
) -> None:
    context.obj = Session(config, {} if data_dir is None else {"data_dir": data_dir})


def main() -> None:
    """Run the command line; never returns."""
    from kafka.errors import KafkaError

    try:
        app()
    except _mendable() as error:
        _say(str(error))
    except KafkaError as error:
        _say(f"Kafka: {error}. Is kafka.bootstrap (NEXTWATCH_KAFKA__BOOTSTRAP) right, and the broker up?")
    sys.exit(2)


def _mendable() -> tuple[type[Exception], ...]:
    """Errors whose text already names the setting or file and the way out."""
    from indexer.errors import IndexFailure
    from infra.child import ServiceError
    from infra.settings import SettingsError
    from models.bundle import BundleError
    from models.log import LogError
    from serving.client import RequestFailed
    from streams.follow import TopicMissing

    return (SettingsError, ServiceError, BundleError, LogError, TopicMissing, IndexFailure, RequestFailed)


def _say(text: str) -> None:
    Console(stderr=True).print(f"[bold red]error[/]: {text}", highlight=False, soft_wrap=True)
