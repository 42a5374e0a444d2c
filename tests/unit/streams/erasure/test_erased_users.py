"""Who is forgotten: by a hash, as of a moment, and under one secret."""

import asyncio
from typing import Any

import pytest

from infra.platform.settings import Settings
from streams import topics
from streams.erased_users import DONE, USER, ErasedUsers, ForgetSecretWrong, fingerprint, hash_of
from streams.erasure.erasure_worker import ErasureWorker
from streams.erasure.retention_report import FOR_EVER_MS, until_ms
from streams.history.app import apply
from streams.messages import (
    ErasureDone,
    JoinState,
    SearchEvent,
    UserErased,
    UserHistory,
    Watch,
    WatchEvent,
    decode,
    encode,
)
from tests.unit.streams.history.test_app import raw

AT_MS = 1_700_000_000_000
SETTINGS = Settings()
HOME = topics.partition_of("u", SETTINGS.kafka.partitions)


def record_of(user_id: str, at_ms: int = AT_MS, secret: str = "") -> tuple[bytes, bytes]:
    key = USER + hash_of(user_id, secret.encode()).hex()
    return key.encode(), encode(UserErased(at_ms, fingerprint(secret.encode())))


def erased_of(*users: str) -> ErasedUsers:
    erased = ErasedUsers("")
    for offset, user in enumerate(users):
        erased.hear(*record_of(user), offset)
    return erased


def test_an_event_is_from_before_by_either_of_its_times_and_only_of_that_user():
    erased = erased_of("u")
    assert erased.is_from_before("u", AT_MS, AT_MS + 9) and erased.is_from_before("u", AT_MS + 9, AT_MS - 9)
    assert not erased.is_from_before("u", AT_MS + 1, AT_MS + 1) and not erased.is_from_before("v", 0)


def test_the_newest_forgetting_holds_and_what_is_no_record_of_ours_is_passed_over():
    erased = erased_of("u")
    erased.hear(*record_of("u", AT_MS + 5), 7)
    erased.hear(*record_of("u", AT_MS - 5), 8)
    erased.hear(b"user/xy", b"junk", 9)
    erased.hear(b"user/no hash", record_of("u")[1], 9)
    erased.hear(None, None, 10)
    assert erased.at_ms("u") == AT_MS + 5 and len(erased) == 1 and erased.newest == 9


def test_a_confirmation_that_was_copied_from_another_cluster_confirms_nothing_here():
    erased = erased_of("u")
    erased.hear(f"{DONE}history/0".encode(), encode(ErasureDone(500, AT_MS)), 12)
    assert erased.done == {}
    erased.hear(f"{DONE}history/0".encode(), encode(ErasureDone(1, AT_MS)), 13)
    assert erased.done == {"history/0": 1}


def test_no_id_stands_in_a_record_and_another_secret_is_another_hash():
    key, value = record_of("alice")
    assert b"alice" not in key + value
    assert hash_of("alice", b"") != hash_of("alice", b"s") and fingerprint(b"") != fingerprint(b"s")


def test_records_of_another_secret_are_refused_with_the_way_out():
    with pytest.raises(ForgetSecretWrong, match="NEXTWATCH_FORGET__SECRET"):
        ErasedUsers("mine").hear(*record_of("u", secret="theirs"), 0)


@pytest.mark.parametrize("kind", [UserHistory, JoinState])
def test_a_state_from_before_is_not_built_on_and_one_begun_since_is(kind: Any):
    erased = erased_of("u")
    assert erased.begin(kind("u", watch_offset=3)) == kind("u", since_ms=AT_MS)
    since = kind("u", watch_offset=3, since_ms=AT_MS)
    assert erased.begin(since) is since
    other = kind("v", watch_offset=3)
    assert erased.begin(other) is other


class Outbox(list[Any]):
    """What a worker sends; a flush is an order of it."""

    def add(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = ()) -> None:
        self.append((topic, key, value))

    async def flush(self) -> None:
        self.append("flush")


def test_the_history_worker_passes_over_what_is_from_before_and_begins_anew_with_what_is_not():
    old = WatchEvent("e0", "u", "a", AT_MS - 1, 30.0, 60.0)
    new = WatchEvent("e1", "u", "b", AT_MS + 1, 30.0, 60.0)
    batch = [
        raw(topics.WATCH_EVENTS, old, 5, produced_ms=AT_MS + 1),
        raw(topics.WATCH_EVENTS, b"junk", 6, produced_ms=AT_MS - 1),
        raw(topics.SEARCH_EVENTS, SearchEvent("s", "u", "cats", AT_MS), 1, produced_ms=AT_MS + 1),
        raw(topics.WATCH_EVENTS, new, 7, produced_ms=AT_MS + 1),
    ]
    table = {"u": encode(UserHistory("u", (Watch("z", 1, 1.0, None, True, "e", 0),), seen=b"123456", watch_offset=4))}
    outbox: Any = Outbox()
    changed, _, bug = apply(batch, table, outbox, SETTINGS, now_ms=AT_MS + 5, erased=erased_of("u"))
    history = changed["u"]
    assert bug is None and [watch.item_id for watch in history.watches] == ["b"]
    assert (history.since_ms, history.seen, history.searches) == (AT_MS, b"", ())
    assert [topic for topic, *_ in outbox] == [topics.TRAINING_EXAMPLES], "and no dead letter"


def let_hear(erasure: ErasureWorker, *records: tuple[bytes, bytes, int]) -> None:
    """What a worker finds in `forgotten` when it looks there."""
    left = list(records)

    async def hear() -> None:
        while left:
            erasure.users.hear(*left.pop())

    erasure._hear = hear  # type: ignore[method-assign]


def test_a_state_is_deleted_before_it_is_said_to_be_and_only_on_partitions_that_are_ours():
    users = [f"user-{number}" for number in range(40)]
    table = {user: encode(UserHistory(user)) for user in users}
    back = users[0]
    table[back] = encode(UserHistory(back, since_ms=AT_MS))

    def drop(user_id: str, outbox: Any) -> None:
        del table[user_id]
        outbox.add(topics.USER_HISTORIES, 0, user_id.encode(), None)

    erasure = ErasureWorker(SETTINGS, "history", table, UserHistory, drop)
    let_hear(erasure, *((*record_of(user), offset) for offset, user in enumerate(users[:20])))
    ours = [user for user in users[1:20] if topics.partition_of(user, SETTINGS.kafka.partitions) in (0, 1)]
    outbox: Any = Outbox()

    async def forget() -> None:
        await erasure.take_over({0, 1}, outbox)
        await erasure.look(asyncio.Lock())
        await erasure.advance({0, 1}, outbox)

    asyncio.run(forget())
    first, second = outbox.index("flush"), len(outbox) - 1 - outbox[::-1].index("flush")
    assert sorted(key for _, key, _ in outbox[:first]) == sorted(user.encode() for user in ours)
    done = {key: decode(ErasureDone, value).offset for _, key, value in outbox[first + 1 : second]}
    assert done == {f"{DONE}history/{number}".encode(): 20 for number in (0, 1)}
    assert table.keys() == set(users) - set(ours) and back in table, "who came back stays"


def test_others_get_their_turns_while_those_to_be_forgotten_are_looked_for():
    """One user in a hundred thousand is forgotten while events come."""
    table = {f"user-{number}": encode(UserHistory(f"user-{number}")) for number in range(20_000)}
    erasure = ErasureWorker(SETTINGS, "history", table, UserHistory, lambda user_id, _: table.pop(user_id))
    home = topics.partition_of("user-7", SETTINGS.kafka.partitions)
    let_hear(erasure, (*record_of("user-7"), 0))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def look_beside_others() -> None:
        erasure._taken[home] = 0
        others = asyncio.ensure_future(count_turns())
        await erasure.look(asyncio.Lock())
        others.cancel()
        outbox: Any = Outbox()
        await erasure.advance({home}, outbox)
        assert outbox[1][0] == topics.FORGOTTEN

    asyncio.run(look_beside_others())
    assert turns >= 10 and "user-7" not in table and len(table) == 19_999


def test_who_is_put_into_the_table_by_a_batch_that_was_under_way_is_found():
    table: dict[str, bytes] = {}
    erasure = ErasureWorker(SETTINGS, "history", table, UserHistory, lambda user_id, _: table.pop(user_id))
    erasure._taken[HOME] = 0
    let_hear(erasure, (*record_of("u"), 0))

    async def look_beside_a_batch() -> None:
        lock = asyncio.Lock()
        async with lock:
            looking = asyncio.ensure_future(erasure.look(lock))
            await asyncio.sleep(0.01)
            table["u"] = encode(UserHistory("u"))
        await looking
        await erasure.advance({HOME}, Outbox())  # type: ignore[arg-type]

    asyncio.run(look_beside_a_batch())
    assert not table


def test_who_is_recovered_after_the_look_is_forgotten_too():
    """A partition that came to us since: its users were not there to be looked at."""
    table = {"u": encode(UserHistory("u"))}
    erasure = ErasureWorker(SETTINGS, "history", table, UserHistory, lambda user_id, _: table.pop(user_id))
    erasure._looked, erasure._found = 1, []
    erasure.users.hear(*record_of("u"), 0)
    asyncio.run(erasure.advance({HOME}, Outbox()))  # type: ignore[arg-type]
    assert not table


def test_until_when_a_topic_holds_a_record():
    by_name = {topic.name: topic for topic in topics.TOPICS}
    by_age, by_key = by_name[topics.WATCH_EVENTS], by_name[topics.USER_HISTORIES]
    assert until_ms(by_age, {"retention.ms": "100", "segment.ms": "10"}, 1000) == 1110
    assert until_ms(by_age, {"retention.ms": "-1", "segment.ms": "10"}, 1000) is None
    assert until_ms(by_key, {"max.compaction.lag.ms": "5", "delete.retention.ms": "7"}, 1000) == 1012
    assert until_ms(by_key, {"max.compaction.lag.ms": str(2 * FOR_EVER_MS), "delete.retention.ms": "7"}, 1000) is None
