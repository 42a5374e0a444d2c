"""What linear part and skips earn on the validation days of a log: whether validation would leave them out.

A training as `nextwatch train` makes it, up to where its validation days have spoken: epochs and weights are chosen,
and the best is asked once more without its linear part and without skips.
"""

from __future__ import annotations

from collections.abc import Iterator

from infra.backtest.recommenders import validated_gains
from infra.platform.settings import Model
from infra.simulation.world import NOTICE, World
from models.evaluation.split import split
from models.retrieval.candidate_learning import Training, choose
from models.retrieval.popularity import choose_half_life
from models.threads import limit_threads
from tests.benchmarks.quality.judged import Ground, ground_of, kuairand_ground
from tests.benchmarks.report import Report, say
from tests.harness import kuairand

NOW_MS, DAY_MS = 1_700_000_000_000, 24 * 3_600_000


def measure(report: Report, quick: bool) -> None:
    limit_threads(1)
    report.title = "parts: what validation says that they earn, in doublings of the rank of what was watched"
    report.note(
        "± two standard errors over users; the weights are the best of these same days, so it is rather too much"
    )
    for name, ground in grounds(report, quick):
        row = {"log": name, **earned(ground, Model(epochs=1) if quick else Model())}
        report.add(**row)
        report.bar(f"{name}: users asked", float(row["users"]), at_least=1)
        say(f"{row}")


def grounds(report: Report, quick: bool) -> Iterator[tuple[str, Ground]]:
    world = World(seed=1, start_ms=NOW_MS, catalogue_days=20)
    log = world.past_log(NOW_MS - 10 * DAY_MS, NOW_MS, 10_000 if quick else 100_000)
    report.note(NOTICE)
    yield "simulated world", ground_of(log, world.items_frame(NOW_MS), skips=Model().skips)
    if quick:
        return
    if kuairand.is_there():
        yield "KuaiRand", kuairand_ground()
    else:
        report.note(f"left out: the KuaiRand data is not at {kuairand.DIRECTORY}")


def earned(ground: Ground, settings: Model) -> dict[str, str | int | float]:
    """The figures of one log, frozen at the last tenth of its stamped positives."""
    parts = split(ground.history, ground.row_at(0.9), live=False)
    items = ground.source.known_at(parts.cut)
    half_life = choose_half_life(ground.source.dataset.items[: parts.cut], items, since=parts.validation)
    training = Training(ground.source, settings, half_life_events=half_life, until=parts.validation, items=items)
    chosen = choose(training, until=parts.cut, checkpoints=None, progress=lambda stage, done, total: None)
    of = {"users": int(chosen.metrics["cases"]), "epochs": chosen.epochs, "towers x": chosen.weight}
    return of | {"linear x": chosen.linear} | validated_gains(chosen)
