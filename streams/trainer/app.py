"""The trainer worker: training examples in, touched item rows out.

`training-examples` has one partition, so whoever owns it is the trainer and every other worker a standby. A trainer
adopts the newest release: it claims `item-vectors` for itself (streams/trainer/writer_epoch.py), loads the bundle,
takes back the rows of that release from the topic, and, when the release is new, first learns what came into
`training-examples` after the bundle's own data ended. A rebalance that leaves the partition where it is changes
nothing, and does not wait for a step or an adoption, which may take minutes. Who finds that another has claimed drops
all that it has learnt and stands by. While an experiment serves another release beside the live one, the trainer learns
that one too (streams/trainer/rival.py).

What is done with a batch, and in which order: streams/trainer/worker.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import faust

from infra.platform.health import Health
from infra.platform.settings import Settings
from infra.platform.tracing import tracer_of
from streams import topics
from streams.kafka.faust_app import create_app, follow_readiness, handle_batches, look_beside, raw_topic, to_the_end
from streams.kafka.outbox import Outbox, create_producer
from streams.kafka.recovery import finished
from streams.kafka.topic_ids import SOURCES, TRAINER
from streams.trainer.control_state import ControlState
from streams.trainer.rival import Rival
from streams.trainer.worker import TrainerWorker

TICK_S = 0.1  # how often it is looked whether something has waited long enough while no batch comes
FINISH_S = 5.0  # longest wait for the brokers at a stop; what they have not got then is learnt again


def create_trainer_app(settings: Settings, health: Health) -> faust.App:
    app = create_app(settings, "trainer", has_standby=True, fetch_every_s=settings.trainer.wait_s)
    prefix = settings.kafka.topic_prefix
    control = ControlState(settings)
    worker = TrainerWorker(settings, control, tracer=tracer_of(settings.tracing, "trainer"))
    rival = Rival(settings, control, worker)
    follow_readiness(app, health, recovered=lambda: worker.is_current or not app.consumer.assignment())

    @app.on_partitions_assigned.connect  # type: ignore[untyped-decorator]
    async def hear(_: Any, assigned: Any, **__: Any) -> None:
        worker.hear_assignment(bool(assigned))
        rival.hear_assignment(bool(assigned))

    @app.task  # type: ignore[untyped-decorator]
    async def tell_role() -> None:
        while not app.should_stop:
            health.detail |= {"role": worker.role, "epoch": worker.writer.epoch, "release_refused": worker.refusal}
            health.detail |= {"rival": rival.version, "rival_refused": rival.refusal}
            await asyncio.sleep(0.1)

    look_beside(app, settings, SOURCES[TRAINER])  # another `watch-events` is taken up at the next start

    @app.task  # type: ignore[untyped-decorator]
    async def go_on_while_idle() -> None:
        while not app.should_stop:
            await asyncio.sleep(TICK_S)
            if app.consumer.assignment() and worker.writer.outbox is not None:
                await worker.adopt_newest()
                await worker.look()
                await to_the_end(worker.tick())

    @app.agent(raw_topic(app, settings, topics.TRAINING_EXAMPLES), name="trainer")  # type: ignore[untyped-decorator]
    async def trainer(stream: Any) -> None:
        control.start()
        producer = create_producer(settings.kafka, "nextwatch-trainer")
        await producer.start()
        worker.writer.outbox = Outbox(producer, prefix)
        rival.start()
        try:
            await handle_batches(
                app,
                stream,
                worker.handle,
                settings=settings,
                stage="trainer",
                max_=settings.trainer.batch,
                within=settings.trainer.wait_s,
            )
        finally:
            control.stop()
            await finished(leave(producer))  # Faust cancels an agent more than once

    async def leave(producer: Any) -> None:
        leaving = asyncio.create_task(rival.stop(FINISH_S))  # at the same time: neither waits for the other
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(worker.finish(), FINISH_S)
        worker.hear_assignment(False)  # who looks while idle finds nothing to do any more
        await worker.writer.close()
        await producer.stop()
        await leaving

    return app
