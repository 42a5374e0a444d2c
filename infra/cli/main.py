"""The `nextwatch` command: where settings are built, and where every error that a person can mend ends as one line.

Exit codes: 0 done, 1 a check or claim did not hold, 2 a setting, file or service is not as it must be, 3 a new release
was refused, 70 a bug.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from infra.cli import (
    ask,
    backtest,
    cluster,
    dead_letters,
    experiment,
    forget,
    learn,
    load,
    processes,
    rebuild,
    retrain,
    up,
)
from infra.cli.session import Session

MENDABLE = (
    ("infra.platform.settings", "SettingsError"),
    ("infra.platform.guarded_process", "ServiceError"),
    ("infra.platform.kafka_access", "KafkaRefused"),
    ("infra.platform.third_parties.patching", "UncheckedVersion"),
    ("infra.operate.sending", "SendError"),
    ("infra.operate.capacity_plan", "PlanError"),
    ("infra.operate.retrain.rounds", "OutOfTime"),
    ("infra.operate.experiments.policy", "PolicyRefused"),
    ("models.release.bundle", "BundleError"),
    ("streams.bundles.objects", "StoreError"),
    ("models.logs.log", "LogError"),
    ("models.device", "DeviceMissing"),
    ("models.evaluation.split", "BacktestError"),
    ("models.retrieval.checkpoint", "CheckpointError"),
    ("models.retrieval.candidate_learning", "WarmStartError"),
    ("models.release.distributed", "HelperFailed"),
    ("streams.ingest.worker", "NotTaken"),
    ("streams.kafka.follow", "TopicMissing"),
    ("streams.kafka.requirements", "TopicUnfit"),
    ("streams.kafka.topic_ids", "TopicReplaced"),
    ("streams.erased_users", "ForgetSecretWrong"),
    ("streams.experiments", "ExperimentUnfit"),
    ("streams.history.rebuild_histories", "RebuildRefused"),
    ("indexer.errors", "IndexFailure"),
    ("nextwatch_client", "RequestFailed"),
    ("nextwatch_client", "TopicMissing"),
)

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="nextwatch: a streaming, real-time video recommender. Watch events in Kafka, recommendations that follow.",
)
COMMANDS: tuple[Callable[..., None], ...] = (
    *(up.up, up.demo, load.load, processes.worker, processes.indexer, processes.serve, processes.gateway),
    processes.ingest,
    *(learn.train, retrain.retrain, learn.replay, experiment.evaluate_policy),
    *(backtest.backtest, ask.recommend, ask.watch, ask.history, forget.forget),
    *(cluster.topics, cluster.config, cluster.status, cluster.releases, cluster.doctor),
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(rebuild.app, name="rebuild")
app.add_typer(experiment.app, name="experiment")


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
        app(prog_name="nextwatch")
    except _mendable() as error:
        _say(str(error))
    except KafkaError as error:
        _say(f"Kafka: {error}. Is kafka.bootstrap (NEXTWATCH_KAFKA__BOOTSTRAP) right, and the broker up?")
    except Exception as error:
        if not isinstance(error, OSError) or not error.filename:  # a bug of ours: the trace is what its report needs
            traceback.print_exc()
            sys.exit(os.EX_SOFTWARE)
        _say(f"{error.filename}: {error.strerror}. Is --data-dir (or the named file) right, and may you use it?")
    sys.exit(2)


def _mendable() -> tuple[type[Exception], ...]:
    """Errors whose text already names the setting or file and the way out.

    One whose module is not loaded has not been raised; loading torch to find that out would take seconds, at the end of
    every command.
    """
    return tuple(getattr(sys.modules[module], name) for module, name in MENDABLE if module in sys.modules)


def _say(text: str) -> None:
    Console(stderr=True).print(f"[bold red]error[/]: {escape(text)}", highlight=False, soft_wrap=True)
