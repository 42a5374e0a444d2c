"""All that travels: every message, checked when it is read.

JSON on the wire; MessagePack where vectors travel, and, behind a byte that tells the form, where histories and the
join's states do: they are read and written with every event, and JSON takes four times as long to write. JSON is read
there for ever, by its first byte (`{`), so what was written before stays good. A reader accepts fields it does not
know, so a change only ever adds a field with a default; anything else is a new topic. `decode` refuses what cannot be
true (a wrong type, a missing field, a negative or non-finite number, an empty id, a time in the far future, a message
over the size limit) with a reason that a person can act on and a short code that a metric can carry.

What a history is made of is not tracked by the garbage collector: it cannot point back at itself, and looking through
its many entries took longer than reading them.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.structs import replace

Id = Annotated[str, Meta(min_length=1, max_length=256)]
Name = Annotated[str, Meta(max_length=256)]
Names = Annotated[tuple[Name, ...], Meta(max_length=1000)]
Text = Annotated[str, Meta(max_length=2000)]
Millis = Annotated[int, Meta(ge=0, le=2**53 - 1)]  # what float64 holds exactly, and nothing overflows on
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
WatchSeconds = Annotated[float, Meta(ge=0, le=86_400)]  # what a ranker may expect
Position = Annotated[int, Meta(ge=0, le=1_000_000)]
ExampleWeight = Annotated[float, Meta(ge=0, le=1e6)]  # 0: counted, not learnt from
Share = Annotated[float, Meta(ge=0, le=1)]
Factor = Annotated[float, Meta(ge=0.25, le=4)]
Offset = Annotated[int, Meta(ge=-1, le=2**63 - 1)]
Revision = Annotated[int, Meta(ge=-1, le=2**63 - 1)]  # grows with what was read of the user's events
Coordinate = Annotated[float, Meta(ge=-1e30, le=1e30)]  # finite, and so is its square
Version = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,128}\Z")]  # it names a directory and a collection
VersionOrNone = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{0,128}\Z")]
VariantName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]  # a label of metrics
SignalKind = Literal["like", "dislike", "not_interested", "undo", "share", "save"]

UNREADABLE = b"nextwatch: unreadable record batch: "  # what stands for one, and why (see streams.kafka.unpacking)


class Refused(ValueError):
    """A message that cannot be used. `code` is one of a fixed few (a metric label), the text says what is wrong."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Source(NamedTuple):
    """The place of a message in its topic, and when it was sent there."""

    partition: int
    offset: int
    produced_ms: int


class Context(Struct, frozen=True, omit_defaults=True, gc=False):
    """The place and the device at which a person watches (paper section 3.3, "priors for new users")."""

    region: Text | None = None
    language: Text | None = None
    device: Text | None = None
    surface: Text | None = None
    signed_in: bool | None = None
    gender: Share | None = None
    age: Share | None = None


# --- what comes in ---------------------------------------------------------------------------------------------------


class WatchEvent(Struct, frozen=True, omit_defaults=True):
    event_id: Id
    user_id: Id
    item_id: Id
    event_ms: Millis
    watch_s: Seconds
    duration_s: Seconds | None = None
    request_id: Id | None = None
    context: Context | None = None


class SearchEvent(Struct, frozen=True, omit_defaults=True):
    event_id: Id
    user_id: Id
    query: Text
    event_ms: Millis
    context: Context | None = None


class SignalEvent(Struct, frozen=True, omit_defaults=True):
    """What a user says of an item or of a channel: one of the two is named, not both. `undo` takes back a like, a
    dislike or a not_interested of the same (see streams.history.signals)."""

    event_id: Id
    user_id: Id
    kind: SignalKind
    event_ms: Millis
    item_id: Id | None = None
    channel: Id | None = None

    def __post_init__(self) -> None:
        if (self.item_id is None) == (self.channel is None):
            raise ValueError("a signal names an item_id or a channel, one of the two")


class Item(Struct, frozen=True, omit_defaults=True):
    """An entry of the catalogue. A tombstone (null value) or `available: false` takes the item down everywhere.

    `ids`: what else groups items, by the name of the grouping, for example {"music": ["77"]}. `vector`: an embedding of
    the team's own, of picture, text or sound; those of all items have one length. Of a `description` the beginning is
    read.
    """

    item_id: Id
    title: Text = ""
    channel: Name | None = None
    topics: Names = ()
    duration_s: Seconds | None = None
    published_ms: Millis | None = None
    available: bool = True
    language: Name | None = None
    ids: Annotated[dict[Name, Annotated[tuple[Id, ...], Meta(max_length=1000)]], Meta(max_length=16)] = {}
    description: str | None = ""
    vector: Annotated[tuple[Coordinate, ...], Meta(max_length=2048)] | None = ()


# --- histories and examples ------------------------------------------------------------------------------------------


class Watch(Struct, frozen=True, array_like=True, gc=False):
    """One entry of a history; an array on the wire, since up to a hundred of them travel with every event."""

    item_id: str
    event_ms: Millis
    watch_s: Seconds
    duration_s: Seconds | None
    completed: bool
    event_id: str
    offset: Offset  # in watch-events, on the user's own partition


class Search(Struct, frozen=True, array_like=True, gc=False):
    query: str
    event_ms: Millis
    event_id: str
    offset: Offset


class ShownList(Struct, frozen=True, array_like=True, gc=False):
    """One impression in a history: which items were shown together."""

    request_id: str
    at_ms: Millis
    item_ids: tuple[str, ...]  # top first


class Signal(Struct, frozen=True, array_like=True, gc=False):
    """The newest signal of its sort (see streams.history.signals) about an item or about a channel."""

    kind: str  # one of SignalKind, or one that is newer than this reader
    item_id: str | None
    channel: str | None
    event_ms: Millis
    event_id: str
    offset: Offset  # in signals, on the user's own partition


class UserHistory(Struct, frozen=True, omit_defaults=True, gc=False):
    """The newest watches of a user (of any length, and completed ones: see streams.history.rules), the newest
    searches, impressions and signals, oldest first by event time, and what the stream has shown us so far.

    `watch_offset`, `search_offset`, `impression_offset` and `signal_offset` are the newest source offsets that are in
    here: an event at or below is a replay. `seen`: the items of older watches, hashed, with their days (see
    streams.history.watched_filter). `since_ms`: when the user was erased, nothing from before is in here.
    """

    user_id: Id
    watches: tuple[Watch, ...] = ()
    searches: tuple[Search, ...] = ()
    context: Context | None = None
    watch_offset: Offset = -1
    search_offset: Offset = -1
    produced_ms: Millis = 0  # when the newest event in here was sent to Kafka
    impressions: tuple[ShownList, ...] = ()
    impression_offset: Offset = -1
    seen: bytes = b""
    since_ms: Millis = 0
    signals: tuple[Signal, ...] = ()
    signal_offset: Offset = -1


class TrainingExample(Struct, frozen=True, omit_defaults=True, gc=False):
    """A completed watch and the history as it was before it: all that a training step needs."""

    user_id: Id
    item_id: Id
    event_ms: Millis
    watch_s: Seconds
    duration_s: Seconds | None
    watches: tuple[Watch, ...]
    searches: tuple[Search, ...]
    context: Context | None
    partition: Offset  # of the watch in watch-events; with `offset` it is the example's identity
    offset: Offset
    produced_ms: Millis
    is_row: bool = False  # of a log that was sent as watches (streams.history.log_rows)
    weight: ExampleWeight = 1.0  # by what the user had said of the item (streams.history.signals)


class LoadedHistory(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a log tells of a user, for the history: the newest watches and searches, oldest first by event time, and of
    the older watches `seen`, as UserHistory has them. `event_ms`: of the newest."""

    user_id: Id
    event_ms: Millis
    watches: tuple[Watch, ...] = ()
    searches: tuple[Search, ...] = ()
    context: Context | None = None
    seen: bytes = b""


class ItemVector(Struct, frozen=True, array_like=True):
    """A touched row, MessagePack. Vectors are little-endian float32: `vector` goes to the index, `query_row` is the
    item's embedding on the user's side (what a history averages)."""

    version: str
    step: Offset
    vector: bytes
    query_row: bytes
    produced_ms: Millis  # of the oldest watch of the step that made this row due; 0: it had only waited
    state: bytes = b""  # trainer's own: popularity count and optimiser state of the row
    epoch: Offset = 0  # of the trainer that wrote it (streams.epochs); 0: from before there were any
    learnt_to: Offset = 0  # of training-examples: below it the row has learnt all of its item's; 0: not known


# --- releases --------------------------------------------------------------------------------------------------------


class BundlePublished(Struct, frozen=True, tag="bundle", tag_field="kind"):
    """Key `bundle`. The bundle lies in `<data_dir>/bundles/<version>`, and in the store where one is set."""

    version: Version
    created_ms: Millis
    dim: int
    items: int
    schema_hash: str


class IndexReady(Struct, frozen=True, tag="index", tag_field="kind"):
    """Key `index`: the collection that serving may swap to. Announcing an older version is a roll-back, and
    `rolled_back_from` then names the version that is not to be announced again."""

    version: Version
    collection: str
    items: int
    at_ms: Millis
    rolled_back_from: str = ""


class ServerState(Struct, frozen=True, tag="server", tag_field="kind"):
    """Key `server/<server_id>`, repeated as a heartbeat: what a living server answers from (empty: no release yet)."""

    server_id: Id
    version: str
    at_ms: Millis


class RebuildAsked(Struct, frozen=True, tag="rebuild", tag_field="kind"):
    """Key `rebuild`: the collection of this version, which is live, is to be made anew (see indexer.rebuilding)."""

    version: Id
    at_ms: Millis


class RebuildDone(Struct, frozen=True, tag="rebuilt", tag_field="kind"):
    """Key `rebuilt`: the answer to the request of `asked_ms`; `problem` is empty when the new collection is in use."""

    version: Id
    asked_ms: Millis
    items: int
    problem: str
    spent_ms: int


class SourceTopics(Struct, frozen=True, tag="sources", tag_field="kind"):
    """Key `sources/<worker>`: Kafka's ids of the topics whose offsets a worker's state remembers, and of the topic that
    holds this state (see streams.kafka.topic_ids)."""

    worker: Id
    topic_ids: dict[str, str]


class PartitionsRaised(Struct, frozen=True, tag="partitions", tag_field="kind"):
    """Key `partitions`: how `nextwatch rebuild partitions` raised `kafka.partitions`, while it is at it and when it is
    done. `ends`: by topic of states, the offset after the last record of each partition of before; empty while nothing
    is moved yet (see streams.partitions.raise_partitions). `event_ends`: the same by topic of events, when partitions
    were raised last, also where another raise has begun since and moved nothing."""

    before: int
    after: int
    at_ms: Millis
    ends: dict[str, tuple[Offset, ...]] = {}
    is_done: bool = False
    event_ends: dict[str, tuple[Offset, ...]] = {}


class Variant(Struct, frozen=True, omit_defaults=True):
    """A variant of an experiment: which share of the viewers it has, and the settings that differ for them, by name as
    `serving.fresh`; under `release` the version of the release whose ranker ranks (see streams.experiments)."""

    name: VariantName
    share: Share
    settings: dict[str, bool | int | float | str] = {}


class Experiment(Struct, frozen=True, omit_defaults=True, tag="experiment", tag_field="kind"):
    """Key `experiment/<name>`. Viewers are split by `salt`; the first variant is the control. `stopped_ms` and `reason`
    say when it was stopped, and why.

    A viewer is judged by the first `hours` after the first list. `viewers`: for how many the intervals are narrowest.
    `interleaved`: each list is drawn up by both of two variants in turns. A variant that is worse for certain, by more
    than `slower_ms` or `more_fallbacks`, fails a guard rail; None: no such rail. `beside`: the release that is served
    beside the live one with candidates (towers, rows) of its own, empty for none; `rival-vectors` has its rows.
    """

    name: VariantName
    salt: Annotated[str, Meta(min_length=1, max_length=64)]
    started_ms: Millis
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1, max_length=8)]
    hours: Annotated[float, Meta(gt=0, le=10_000)] = 24.0
    viewers: Annotated[int, Meta(ge=2, le=2**53)] = 10_000
    interleaved: bool = False
    slower_ms: Annotated[float, Meta(ge=0)] | None = None
    more_fallbacks: Share | None = None
    stopped_ms: Millis = 0
    reason: Text = ""
    beside: VersionOrNone = ""


Release = (
    BundlePublished
    | IndexReady
    | ServerState
    | RebuildAsked
    | RebuildDone
    | SourceTopics
    | PartitionsRaised
    | Experiment
)

# --- requests --------------------------------------------------------------------------------------------------------


class RecommendRequest(Struct, frozen=True, omit_defaults=True):
    request_id: Id
    user_id: Id
    k: Annotated[int, Meta(ge=1, le=1000)] | None = None
    context: Context | None = None
    filter: Annotated[str, Meta(max_length=100_000)] | None = None  # what is too long to be read is told as such
    exclude: Annotated[tuple[Id, ...], Meta(max_length=10_000)] = ()
    deadline_ms: Annotated[int, Meta(ge=1, le=600_000)] | None = None  # how long the client waits, from the send
    record: bool = True  # false: the answer is shown to nobody, so it leaves no impression
    pinned: Annotated[tuple[Id, ...], Meta(max_length=1000)] = ()  # on top, in this order, where they may be shown
    history: bool = False  # true: the reply holds the user's history, as this answer knows it


class Recommended(Struct, frozen=True, omit_defaults=True):
    item_id: str
    rank: int  # 1 is the top of the list
    source: str
    score: float | None = None
    expected_watch_s: float | None = None
    probability: float | None = None  # that this item stands in this place; None: it was not drawn
    title: str = ""  # where the catalogue has one


class RecommendReply(Struct, frozen=True, omit_defaults=True):
    """An answer, or `error` for a request that could not be understood. `degraded` names the ladder's steps taken;
    `retrieved_by` who searched the candidates: index, mirror, empty for neither; `history` is there when it was asked
    for, without its filter of older watches. `ranked_by`: the release whose ranker `expected_watch_s` is of, where an
    experiment had another one's rank than the live one's; `version` is that of the candidates."""

    request_id: str
    items: tuple[Recommended, ...] = ()
    version: str = ""
    served_by: str = ""
    stages_ms: dict[str, float] = {}
    degraded: tuple[str, ...] = ()
    history_watches: int = 0
    history_event_ms: int | None = None  # of the newest watch that this answer knows of
    error: str | None = None
    retrieved_by: str = ""
    history: UserHistory | None = None
    experiment: str = ""
    variant: str = ""
    ranked_by: str = ""


class Assigned(Struct, frozen=True, omit_defaults=True):
    """The experiment and the variant by which a list was made (empty: by both, see Experiment.interleaved). `took_ms`
    from the request's arrival until the list was made; `degraded`: it went down the ladder."""

    experiment: VariantName
    variant: Annotated[str, Meta(max_length=64)] = ""
    took_ms: Annotated[float, Meta(ge=0)] = 0.0
    degraded: bool = False


class Pool(Struct, frozen=True, omit_defaults=True):
    """The candidates that could have been drawn into a list: how many, the chance of each open place to be drawn, and
    of their expected watch seconds the greatest, the sum and the sum of squares."""

    candidates: Annotated[int, Meta(ge=1, le=2**31)]
    chance: Share
    best_s: Seconds
    sum_s: Annotated[float, Meta(ge=0)]
    squares_s: Annotated[float, Meta(ge=0)]


class Shown(Struct, frozen=True, omit_defaults=True):
    """One item of an impression. What the ranker was fed of it, as it was fed: `ids` by feature name, `values` the
    continuous features of scope impression, float32 little-endian (NaN: missing) in the order of the schema; both empty
    where nothing was ranked, and from external reporters. `sources`: all that nominated it, with their scores."""

    item_id: Id
    position: Position  # 1 is the top of the list
    source: str
    score: float | None = None
    expected_watch_s: WatchSeconds | None = None
    retrieval_rank: int | None = None  # 1 is the best of its request's candidates by `score`
    sources: dict[str, float | None] = {}
    ids: Annotated[dict[Name, Names], Meta(max_length=16)] = {}
    values: bytes = b""
    probability: Share | None = None  # that it stood in this place; None: not drawn
    team: Annotated[str, Meta(max_length=64)] = ""  # of an interleaved list, the variant whose pick it was


class Impression(Struct, frozen=True, omit_defaults=True):
    """A list that was shown. `ids` and `values` are the ranker's features of scope query, as those of Shown are of
    scope impression, by the schema `schema_hash`.

    `factor` is the calibration that `expected_watch_s` holds: what the network said times it; `cap_s`: no item was
    promised more, and what was watched of it counts for no more. `best_score` is the best retrieval score of all
    candidates, shown or not. `marks`: by topic the next offset of each partition that serving had not read yet, so that
    the features can be computed again from the topics; `known_ms`: the moment for which what these say of items stands;
    0 in lists of before 0.2.0, where it is `at_ms`. `assigned`: to a variant of an experiment; `pool`: where places
    were drawn and the candidates ranked. `ranked_by`: the release whose ranker all this is of, where it is another one
    than the live one's (see serving.experiments); empty for that, which is on record where both drew up the list.
    """

    request_id: Id
    user_id: Id
    at_ms: Millis
    served_by: str
    version: str
    items: Annotated[tuple[Shown, ...], Meta(max_length=1000)]
    context: Context | None = None
    schema_hash: str = ""
    ids: dict[str, tuple[str, ...]] = {}
    values: bytes = b""
    factor: Factor = 1.0
    cap_s: WatchSeconds = 600.0
    best_score: float | None = None
    marks: dict[str, tuple[int, ...]] = {}
    known_ms: Millis = 0
    assigned: Assigned | None = None
    pool: Pool | None = None
    ranked_by: Name = ""


class GroupIds(Struct, frozen=True, gc=False):
    """Those of the ids of a shown item that item statistics are kept by."""

    channel: Names = ()
    length: Names = ()
    topics: Names = ()


class ShownOutline(Struct, frozen=True, gc=False):
    """What the streams read of Shown: who trains a ranker reads the rest."""

    item_id: Id
    position: Position
    source: str
    score: float | None = None
    expected_watch_s: WatchSeconds | None = None
    retrieval_rank: int | None = None
    ids: GroupIds = GroupIds()
    probability: Share | None = None


class ImpressionOutline(Struct, frozen=True, gc=False):
    """What the streams read of Impression. The rest is most of its bytes: it is passed on as it came, and must be JSON
    in UTF-8, whatever it says."""

    request_id: Id
    user_id: Id
    at_ms: Millis
    served_by: str
    version: str
    items: Annotated[tuple[ShownOutline, ...], Meta(max_length=1000)]
    schema_hash: str = ""
    factor: Factor = 1.0
    cap_s: WatchSeconds = 600.0
    ranked_by: Name = ""


class Outcome(Struct, frozen=True, array_like=True):
    """The end of one shown item: seconds watched, 0 for not at all."""

    item_id: str
    watched_s: float
    completed: bool


class RankingExample(Struct, frozen=True, omit_defaults=True):
    """An impression joined to its outcomes, one per item and in the same order.

    `partition` and `offset` of the impression in `impressions` are its identity. A late watch makes another example of
    the same identity with a higher `revision`. The highest one holds, of equal ones (after a crash) the last.
    """

    impression: Impression
    outcomes: tuple[Outcome, ...]
    partition: int
    offset: Offset
    closed_ms: Millis  # the window's end, event time
    revision: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0  # as Revision


class UnreadExample(Struct, frozen=True, omit_defaults=True):
    """RankingExample as the join writes it: the impression in the bytes in which it came."""

    impression: Raw
    outcomes: tuple[Outcome, ...]
    partition: int
    offset: Offset
    closed_ms: Millis
    revision: Revision = 0


class JoinedWatch(Struct, frozen=True, array_like=True, gc=False):
    """A watch on its way into an example."""

    item_id: str
    event_ms: Millis
    watch_s: Seconds
    completed: bool
    event_id: str
    request_id: str | None
    offset: Offset


class OpenImpression(Struct, frozen=True, array_like=True, gc=False):
    """An impression whose outcome may still change: what pairs it with watches, and the message itself, unread.
    `revision` of the last example made of it, -1: none yet.

    `counted`: of its closing, the items that were watched, as the statistics hold them. `partition`: where it was read,
    -1 where that is its user's present one (see streams.partitions).
    """

    request_id: str
    at_ms: Millis
    item_ids: tuple[str, ...]  # top first
    impression: bytes  # JSON, as it came
    offset: Offset
    closes_ms: Millis
    watches: tuple[JoinedWatch, ...] = ()
    revision: Revision = -1
    counted: tuple[Outcome, ...] = ()
    partition: Offset = -1


class JoinState(Struct, frozen=True, array_like=True, gc=False):
    """All that the join knows of one user. `early` watches wait for an impression that is not read yet; an event at or
    below the offsets is a replay. `since_ms`: when the user was erased, nothing from before is in here. `read_before`:
    how many events it had read of topics that were made anew since.

    In JSON, the older form, an impression stands as the object that it is in.
    """

    user_id: Id
    impressions: tuple[OpenImpression, ...] = ()
    early: tuple[JoinedWatch, ...] = ()
    watch_offset: Offset = -1
    impression_offset: Offset = -1
    since_ms: Millis = 0
    read_before: Offset = 0


class StatisticsRow(Struct, frozen=True, array_like=True):
    """Decayed sums over the closed impressions of one partition, as of `as_of_ms`; readers add the partitions up.

    `scope` and `id`: `item`, `channel`, `topic` or `length` (videos about as long) and its id; `all` and an empty id;
    `calibration` and the version that a ranker is of, where only impressions that it has scored count. `expected_s` is
    what the ranker had said, without the factor.
    """

    scope: Literal["item", "channel", "topic", "length", "all", "calibration"]
    id: str
    partition: Offset
    as_of_ms: Millis
    impressions: float
    watches: float
    seconds: float
    completions: float
    expected_s: float
    mark: tuple[int, int]  # what is counted: the windows closed by this watermark, the offset that last pushed one out


# --- the rest --------------------------------------------------------------------------------------------------------


class Trending(Struct, frozen=True, omit_defaults=True):
    """Decayed counts of completed watches of one partition; readers add the partitions up. Key `<scope>/<partition>`.

    `scope`: `global`, or what streams.trending.rules.region_scope makes of a context's region. `items` best first (see
    streams.trending.back_off), with their counts by `half_life_s`; `slower` has their counts by each of `slower_s` and,
    last, of all time, `totals` those of all items, listed or not, by `half_life_s`, `slower_s` and of all time. In
    messages of before there were several half-lives these three are empty.
    """

    scope: Id
    partition: Offset
    as_of_ms: Millis  # the newest watch: time is the stream's own
    half_life_s: Seconds
    items: tuple[tuple[str, float], ...]
    offset: Offset = -1  # newest watch-events offset counted in this scope
    slower_s: tuple[Seconds, ...] = ()
    slower: tuple[tuple[float, ...], ...] = ()
    totals: tuple[float, ...] = ()


class DeadLetter(Struct, frozen=True, omit_defaults=True):
    """A record that could not be used, or, with `mark`, what became of one: then it holds nothing of the record, and
    the place alone says which is meant. `cut`: of what was too large to be kept whole, how many bytes it had."""

    topic: str
    partition: Offset
    offset: Offset
    reason: str
    code: str
    at_ms: Millis
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    mark: Literal["", "retried", "dropped"] = ""
    cut: dict[str, int] = {}


class UserErased(Struct, frozen=True, tag="user", tag_field="kind"):
    """Key `user/<hash of the id>` (see streams.erased_users). What comes from before `at_ms` is not to be used
    again. `secret`: which secret the hash was made with, without telling it."""

    at_ms: Millis
    secret: str


class ErasureDone(Struct, frozen=True, tag="done", tag_field="kind"):
    """Key `done/<worker>/<partition>`: of all users that `forgotten` names below this offset, the owner of the
    partition holds nothing from before any more."""

    offset: Offset
    at_ms: Millis


Erasure = UserErased | ErasureDone

M = TypeVar("M")
_JSON = msgspec.json.Encoder()
_MSGPACK = msgspec.msgpack.Encoder()
_BINARY: tuple[Any, ...] = (ItemVector,)
_COMPACT: tuple[Any, ...] = (UserHistory, LoadedHistory, TrainingExample, JoinState)
COMPACT = b"\x01"  # MessagePack follows

Form = Literal["json", "msgpack", "compact"]  # compact: MessagePack behind the byte COMPACT


def forms_of(kind: Any) -> tuple[Form, ...]:
    """Return every form in which messages of this kind travel, the one that is written by default first."""
    if kind in _BINARY:
        return ("msgpack",)
    return ("compact", "json") if kind in _COMPACT else ("json",)


def json_shape_of(kind: Any) -> Any:
    """Return the type that says how a message of this kind stands in JSON: itself, but for the join's states."""
    return JoinStateInJson if kind is JoinState else kind


@cache
def _decoder(kind: Any, is_binary: bool) -> Any:
    return msgspec.msgpack.Decoder(kind) if is_binary else msgspec.json.Decoder(kind)


def encode(message: Struct, *, compact: bool = True) -> bytes:
    """Return what travels; `compact=False` writes JSON also where readers take the compact form."""
    if isinstance(message, _BINARY):
        return _MSGPACK.encode(message)
    if compact and isinstance(message, _COMPACT):
        return COMPACT + _MSGPACK.encode(message)
    return _JSON.encode(_state_in_json(message) if isinstance(message, JoinState) else message)


def decode(kind: type[M], raw: bytes | None, *, max_bytes: int = 1_000_000, latest_ms: int | None = None) -> M:
    """Read one message of type `kind`. `latest_ms` is the latest `event_ms` or `at_ms` that can be true (now plus
    clock skew).

    Raises Refused with code `empty`, `unreadable`, `too_large`, `malformed`, `invalid` or `future`.
    """
    if raw is None:
        raise Refused("empty", "message has no value")
    if raw.startswith(UNREADABLE):
        raise Refused("unreadable", raw.decode(errors="replace")[:500])
    if len(raw) > max_bytes:
        raise Refused("too_large", f"message of {len(raw)} bytes is over the limit of {max_bytes} bytes")
    is_compact = kind in _COMPACT and raw.startswith(COMPACT)
    is_binary = is_compact or kind in _BINARY
    try:
        message: M = _read(kind, raw, is_binary, is_compact)
    except msgspec.ValidationError as error:
        raise Refused("invalid", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("malformed", f"not {'MessagePack' if is_binary else 'JSON'}: {error}") from None
    if latest_ms is not None:
        refuse_future(message, latest_ms)
    return message


def _read(kind: Any, raw: bytes, is_binary: bool, is_compact: bool) -> Any:
    if kind is JoinState and not is_compact:
        return _state_from_json(_decoder(JoinStateInJson, False).decode(raw))
    if kind is ImpressionOutline and not raw.isascii():
        raw.decode()  # a decoder does not look at the text that it passes over
    return _decoder(kind, is_binary).decode(memoryview(raw)[len(COMPACT) :] if is_compact else raw)


def open_impression(outline: ImpressionOutline, impression: bytes, offset: int, closes_ms: int) -> OpenImpression:
    """An impression that nobody has watched yet."""
    item_ids = tuple(shown.item_id for shown in outline.items)
    return OpenImpression(outline.request_id, outline.at_ms, item_ids, impression, offset, closes_ms)


class OpenImpressionInJson(Struct, gc=False):
    """OpenImpression in JSON: the impression stands as the object that it is in."""

    impression: Raw
    offset: Offset
    closes_ms: Millis
    watches: tuple[JoinedWatch, ...] = ()
    revision: Revision = -1
    counted: tuple[Outcome, ...] = ()
    partition: Offset | UnsetType = UNSET


class JoinStateInJson(Struct, omit_defaults=True, gc=False):
    """JoinState in JSON, the older form, as `join.compact` off writes it."""

    user_id: Id
    impressions: tuple[OpenImpressionInJson, ...] = ()
    early: tuple[JoinedWatch, ...] = ()
    watch_offset: Offset = -1
    impression_offset: Offset = -1
    since_ms: Millis = 0
    read_before: Offset = 0


def _state_from_json(old: JoinStateInJson) -> JoinState:
    impressions = []
    for each in old.impressions:
        impression = bytes(each.impression)
        outline = _decoder(ImpressionOutline, False).decode(impression)
        opened = open_impression(outline, impression, each.offset, each.closes_ms)
        kept = {"watches": each.watches, "revision": each.revision, "counted": each.counted}
        place = -1 if isinstance(each.partition, UnsetType) else each.partition
        impressions.append(replace(opened, **kept, partition=place))
    offsets = old.watch_offset, old.impression_offset
    return JoinState(old.user_id, tuple(impressions), old.early, *offsets, old.since_ms, old.read_before)


def _state_in_json(state: JoinState) -> JoinStateInJson:
    impressions = tuple(
        OpenImpressionInJson(
            Raw(each.impression),
            each.offset,
            each.closes_ms,
            each.watches,
            each.revision,
            each.counted,
            UNSET if each.partition < 0 else each.partition,
        )
        for each in state.impressions
    )
    offsets = state.watch_offset, state.impression_offset
    return JoinStateInJson(state.user_id, impressions, state.early, *offsets, state.since_ms, state.read_before)


def refuse_future(message: Any, latest_ms: int) -> None:
    """Raises Refused for a message whose `event_ms` or `at_ms` is later than `latest_ms`."""
    name = "event_ms" if hasattr(message, "event_ms") else "at_ms"
    time_ms = getattr(message, name, None)
    if time_ms is not None and time_ms > latest_ms:
        ahead_s = (time_ms - latest_ms) / 1000
        raise Refused("future", f"{name} {time_ms} lies {ahead_s:.0f} s beyond what a clock's skew allows")
