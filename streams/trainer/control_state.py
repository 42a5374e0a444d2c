"""The state that the trainer follows beside its examples, kept by a thread: the newest bundle, the release that an
experiment serves beside it, the catalogue, erased users."""

from __future__ import annotations

import threading
from typing import Any

import structlog
from kafka.errors import KafkaError

from infra.platform.settings import Settings
from streams import topics
from streams.erased_users import ErasedUsers
from streams.experiments import Experiments, problem_of
from streams.kafka.follow import TopicFollower
from streams.messages import BundlePublished, Item, Refused, Release, decode
from streams.trainer.item_contents import ItemContents

log = structlog.get_logger(__name__)

RETRY_S = 1.0


class ControlState:
    """`newest`, `beside` (empty for none, also of an experiment that no server serves), `items` and `erased` are as
    they are told, and whole once `caught_up` is set."""

    def __init__(self, settings: Settings) -> None:
        self.newest: BundlePublished | None = None
        self.beside = ""
        self.items = ItemContents(reads_content=settings.model.content)
        self.erased = ErasedUsers(settings.forget.secret.get_secret_value())
        self.caught_up = threading.Event()
        self._experiments = Experiments()
        self._kafka = settings.kafka
        self._failure: Exception | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control state", daemon=True)

    def start(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def check(self) -> None:
        """Raises what has ended the reading, ForgetSecretWrong for one: from then on nothing new would be known."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        """A broker that is away just when reading begins is waited for: nobody would start this thread again."""
        while not self._stopping.is_set():
            try:
                self._follow()
            except KafkaError as error:
                log.warning("broker unavailable, trying again", error=str(error), wait_s=RETRY_S)
                self._stopping.wait(RETRY_S)
            except Exception as error:
                self._failure = error
                self.caught_up.set()  # who waits for it shall hear of this
                return

    def _follow(self) -> None:
        with TopicFollower(self._kafka, topics.RELEASES, topics.ITEMS, topics.FORGOTTEN) as follower:
            while not self._stopping.is_set():
                for record in follower.poll(0.2):
                    self._take(record)
                if follower.caught_up:
                    running = self._experiments.running
                    self.beside = "" if running is None or problem_of(running) else running.beside
                    self.caught_up.set()

    def _take(self, record: Any) -> None:
        try:
            if record.topic.endswith(topics.FORGOTTEN):
                self.erased.hear(record.key, record.value, record.offset)
            elif record.topic.endswith(topics.RELEASES) and self._experiments.hear(record.key, record.value):
                pass  # once all is read: what one record says, the next may end
            elif record.value is not None:
                kind: Any = Item if record.topic.endswith(topics.ITEMS) else Release
                message = decode(kind, record.value, max_bytes=self._kafka.max_message_bytes)
                if isinstance(message, Item):
                    self.items.hear(message)
                elif isinstance(message, BundlePublished):
                    self.newest = message
            elif record.topic.endswith(topics.ITEMS):
                self.items.forget((record.key or b"").decode(errors="replace"))
        except Refused:
            pass  # the indexer follows the same topics and reports
