"""All that is configured: one typed, frozen tree, built once at the entry point and handed down by section.

Sources, later ones win: the defaults here, a TOML file, `NEXTWATCH_*` environment variables (two underscores go one
level down: `NEXTWATCH_KAFKA__BOOTSTRAP`). A name that no setting has is refused wherever it comes from, because a
misspelt setting that is silently ignored is found in production. Secrets come from the environment only and are
never printed.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from infra.platform.topic_mappings import TopicMapping

ENV_PREFIX = "NEXTWATCH_"
CONFIG_VARIABLE = "NEXTWATCH_CONFIG"
DEFAULT_FILE = Path("nextwatch.toml")
LEAST_HEARTBEATS = 3  # of a server within the time after which it counts as dead

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, le=100)]
HalfLife = Annotated[float, Field(gt=0, le=1e9)]  # seconds, as messages may say them
Whole = Annotated[int, Field(ge=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
STORES = ("s3", "gs", "az", "file")  # schemes of object storage for bundles
_NEVER_PAID = "it was worth nothing measurable (docs/candidate-generation.md), leave it out"


def _setting(default: Any, meaning: str) -> Any:
    return Field(default, description=meaning)


class SettingsError(ValueError):
    """A setting is unknown or has a value that cannot be used; the text names the setting and where it came from."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Kafka(Section):
    bootstrap: str = _setting("", "host:port[,host:port]; empty: an embedded broker is started by `up`")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = _setting(
        "PLAINTEXT", "how every client of ours speaks to the brokers"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = _setting(
        "PLAIN", "how it logs in, with a SASL protocol"
    )
    username: str = _setting("", "who logs in, with a SASL protocol")
    password: SecretStr = _setting(SecretStr(""), "only from NEXTWATCH_KAFKA__PASSWORD")
    ssl_ca_file: Path | None = _setting(None, "certificate authority, PEM")
    ssl_cert_file: Path | None = _setting(None, "this client's certificate, PEM")
    ssl_key_file: Path | None = _setting(None, "this client's key, PEM")
    topic_prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="put before every topic and group name")
    partitions: Count = _setting(4, "of topics of users, read together; `nextwatch rebuild partitions` raises them")
    replication: Count | None = _setting(None, "copies of each topic that we make; unset: the cluster's own default")
    max_message_bytes: Count = _setting(1_000_000, "a larger message is refused to the dead letters")
    session_timeout_s: Annotated[float, Field(ge=1)] = _setting(
        10.0, "a killed worker's partitions are taken over after this; brokers allow 6 s, or as they are set"
    )
    max_poll_s: Positive = _setting(
        3600.0, "a worker that lives and asks for no messages for so long is replaced; longer than any step"
    )
    retention_h: Positive = _setting(168.0, "of topics with cleanup policy delete")
    tombstone_h: Positive = _setting(720.0, "how long compacted topics keep tombstones")


_NO_INDEX_TYPES = {
    "IVF_PQ": "Milvus Lite cannot load it after a restart, on a server it was not measured",
    "HNSW_PQ": "it was not measured",
    "HNSW_SQ": "it was not measured",
    "DISKANN": "it was not measured",
    "AUTOINDEX": "what it stands for, and so how a search must ask, depends on the server",
}
_ON_A_SERVER = {  # what Milvus Lite takes as well, and why it is refused there
    "IVF_SQ8": "Milvus Lite finds less than .99 of the best 500 with it, also when all lists are searched",
    "SCANN": "Milvus Lite takes it and searches row by row all the same",
}


class Milvus(Section):
    uri: str = _setting("", "http(s)://host:port; empty: one Milvus Lite server process is started by `up`")
    token: SecretStr = _setting(SecretStr(""), "only from NEXTWATCH_MILVUS__TOKEN")
    ca_file: Path | None = _setting(None, "certificate authority of an https server, PEM")
    database: str = _setting("", "that holds our collections, and must be there; empty: the default one")
    collection_prefix: str = Field(
        "items_",
        pattern=r"^[A-Za-z][A-Za-z0-9]*_$",  # so that none is the beginning of another
        description="put before the names of our collections: letters and digits, then one underscore; deployments "
        "that share a database need different ones",
    )
    index_type: Literal["FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8", "SCANN"] = _setting(
        "FLAT", "of collections made from now on; IVF_SQ8 and SCANN on a server only"
    )
    hnsw_m: Annotated[int, Field(ge=2, le=2048)] = _setting(32, "HNSW: neighbours of a vector in the graph")
    hnsw_ef_construction: Annotated[int, Field(ge=8, le=32768)] = _setting(400, "HNSW: looked at when built")
    hnsw_ef_per_hit: Count = _setting(4, "HNSW: looked at per wanted item; recall@500 is .94 with 1")
    ivf_nlist: Annotated[int, Field(ge=1, le=65536)] = _setting(64, "IVF_* and SCANN: lists (of each segment)")
    ivf_nprobe: Count = _setting(
        56, "IVF_* and SCANN: lists searched where the collection has at least 8 rows per wanted item, else all"
    )
    scann_reorder_per_hit: Count = _setting(2, "SCANN: hits compared by their whole vectors, per wanted item")
    shards: Annotated[int, Field(ge=1, le=16)] = _setting(1, "of collections made from now on; more on a server only")
    replicas: Count = _setting(1, "of a collection when it is loaded; more on a server with so many query nodes only")
    mmap: bool = _setting(
        False, "collections made from now on are mapped from the query nodes' disks; a server of 2.3 or later only"
    )
    consistency: Literal["Strong", "Bounded", "Eventually"] = _setting(
        "Bounded", "of users' searches on a server; Strong waits for its time tick, some 200 ms. Milvus Lite has Strong"
    )
    timeout_s: Positive = _setting(5.0, "longest wait for one call, searches excepted")

    @field_validator("uri")
    @classmethod
    def _holds_no_login(cls, uri: str) -> str:
        if "@" in uri:
            raise ValueError("must be http(s)://host:port, without a login: milvus.token is for that")
        return uri

    @field_validator("index_type", mode="before")
    @classmethod
    def _refuse_with_the_reason(cls, kind: object) -> object:
        if isinstance(kind, str) and kind in _NO_INDEX_TYPES:
            raise ValueError(f"{kind} is refused: {_NO_INDEX_TYPES[kind]}; take FLAT, HNSW or IVF_FLAT")
        return kind

    def why_not_on_lite(self) -> str:
        """Return which of these settings Milvus Lite does not follow, and why; empty when it follows all."""
        if self.index_type in _ON_A_SERVER:
            return f"setting milvus.index_type: {_ON_A_SERVER[self.index_type]}; take FLAT, HNSW or IVF_FLAT"
        beyond = {"shards": self.shards > 1, "replicas": self.replicas > 1, "mmap": self.mmap}
        names = " and ".join(f"milvus.{name}" for name, is_set in beyond.items() if is_set)
        return f"setting {names}: Milvus Lite passes over it; leave it out" if names else ""


class History(Section):
    watches: Count = _setting(
        50, "newest watches kept per user, and newest completed ones beside them (paper section 3.3)"
    )
    searches: Count = _setting(50, "newest searches kept per user (paper section 3.3)")
    completed_s: Positive = _setting(18.0, "a watch is completed (positive) when it lasted min(duration, this)")
    impressions: Count = _setting(
        100, "newest shown items kept per user: what was shown and not watched sinks (paper section 4.1)"
    )
    unwanted: Annotated[int, Field(ge=1, le=1000)] = _setting(
        500, "newest items and channels kept per user that are disliked or of no interest, and so in no reply"
    )
    signals: Annotated[int, Field(ge=1, le=500)] = _setting(
        100, "newest other signals kept per user: likes, shares, what is saved"
    )
    seen: Annotated[int, Field(ge=0, le=10_000)] = _setting(
        500, "items remembered per user beyond the watches that are kept, six bytes each; 0: none"
    )
    seen_days: Count = _setting(90, "a watched item may be recommended again after so many days")
    future_s: Seconds = _setting(300.0, "an event stamped further ahead than this is refused")
    compact: bool = _setting(
        True,
        "write histories and examples in the compact form; off while a process of before 0.2 still reads them",
    )
    batch: Count = _setting(1000, "most events handled together")
    wait_s: Positive = _setting(0.02, "longest wait for a batch to fill")


class Join(Section):
    window_s: Positive = _setting(
        1800.0, "an impression waits so long for its watches, in event time; then the rest is not watched"
    )
    grace_s: Seconds = _setting(1800.0, "a later watch still corrects the example for this long")
    early_s: Seconds = _setting(1800.0, "a watch waits so long for an impression that is not read yet")
    open_impressions: Count = _setting(50, "most impressions of a user that are kept; the oldest goes first")
    half_life_h: Positive = _setting(168.0, "of item statistics, in event time")
    compact: bool = _setting(
        True, "write states in the compact form; off while a worker of before 0.2 still reads them"
    )
    publish_s: Positive = _setting(1.0, "how often changed statistics are published")
    batch: Count = _setting(1000, "most messages handled together")
    wait_s: Positive = _setting(0.1, "longest wait for a batch to fill")


class Trending(Section):
    half_life_s: Positive = _setting(6 * 3600.0, "of a watch's weight, in event time: the fastest of several")
    slower_s: Annotated[tuple[HalfLife, ...], Field(max_length=8)] = _setting(
        (86_400.0, 7 * 86_400.0, 30 * 86_400.0),
        "slower ones, for where there is too little to go by within the faster; behind them stands all time",
    )
    items: Count = _setting(500, "most items published per partition")
    regions: Whole = _setting(50, "context regions counted apart, per partition: the most watched ones; 0: none")
    region_items: Count = _setting(100, "most items published per region and partition")
    publish_s: Positive = _setting(1.0, "how often changed lists are published")


class Model(Section):
    dim: Count = _setting(64, "width of item and user embeddings")
    hidden: tuple[Count, ...] = _setting((256,), "widths of the user tower's ReLU layers; empty: linear")
    encoder: Literal["average", "recent", "attention"] = _setting(
        "average", "how a history becomes a vector; recent: a mean with learnt weights by place"
    )
    residual: bool = _setting(True, "add the encoded history to what the layers make of it")
    members: Count = _setting(1, "towers trained apart that answer together, each with `dim` numbers")
    linear_dim: Whole = _setting(64, "width of the item-to-item part; 0: none")
    linear_order: bool = _setting(False, "that part counts what is watched soon after what, and newest watches most")
    tied: bool = _setting(True, "one item table for both sides while training; a bundle has two all the same")
    skips: Annotated[int, Field(ge=0, le=50)] = _setting(
        20, "newest watches that were not completed that a tower reads beside the completed ones, where a log has them"
    )
    dropout: Share = _setting(0.2, "of the tower's layers, in training")
    history_dropout: Share = _setting(0.3, "of the watches in a history, completed or not, in training")
    content: bool = _setting(
        False,
        "place items that nobody has watched by ids, title, description and vector, where the validation days say so",
    )
    sides: bool = _setting(True, "embed the catalogue's id columns (channel, topics, ...) into the items")
    searches: bool = _setting(True, "learn from searches, where a log has them")
    context: bool = _setting(True, "learn from region, device, ..., where a log has them")
    search_tokens: Count = _setting(65_536, "rows of the hashed words of searches")
    search_dim: Count = _setting(32, "width of their embeddings")
    example_age: bool = _setting(False, "the paper's example age; live popularity does its work better")
    age_window_h: Positive = _setting(24 * 21.0, "training window of example age")
    negatives: Count = _setting(2048, "shared negatives per step")
    in_batch: Share = _setting(0.5, "share of the negatives that comes from the batch, the rest is uniform")
    batch: Count = _setting(2048, "examples per step")
    epochs: Count = _setting(8, "most epochs; fewer when the validation days say so")
    table_rate: Positive = _setting(0.1, "row-wise Adagrad on embedding rows")
    tower_rate: Positive = _setting(2e-3, "Adam on the tower")
    examples_per_user: Whole = _setting(0, "most per user and window; 0: all")
    example_window_h: Positive = _setting(24.0, "window of examples_per_user")
    equal_users: bool = _setting(False, "weigh an example 1/n of its user's n (the paper's equal weight)")
    like_weight: Weight = _setting(1.0, "of a completed watch as an example, where its user likes the item")
    share_weight: Weight = _setting(
        1.0, "of it where its user has shared the item; weights of several signals multiply"
    )
    save_weight: Weight = _setting(1.0, "of it where its user has saved the item")
    unwanted_weight: Weight = _setting(
        1.0, "of it where its user dislikes the item or said that it is of no interest; 0: it is no example"
    )
    half_life_events: Annotated[float, Field(ge=0)] = _setting(
        0.0, "of the popularity coordinate, in watches; 0: what the validation days say"
    )
    threads: Count = _setting(1, "of torch and BLAS in `nextwatch train`; more only help on idle cores")
    seed: int = _setting(1, "of all that is drawn in training")
    device: Literal["cpu", "cuda"] = _setting("cpu", "where training computes; `nextwatch train --device` sets it")

    @property
    def signal_weights(self) -> dict[str, float]:
        """By kind of signal the weight of a watch as an example, where it is not 1."""
        unwanted = dict.fromkeys(("dislike", "not_interested"), self.unwanted_weight)
        weights = {"like": self.like_weight, "share": self.share_weight, "save": self.save_weight, **unwanted}
        return {kind: weight for kind, weight in weights.items() if weight != 1}


class Ranker(Section):
    hidden: tuple[Count, ...] | None = _setting(
        None, "widths of the ReLU layers; unset: 1024-512-256 (the paper's) or less where examples are few"
    )
    objective: Literal["unbiased", "paper", "equal"] = _setting(
        "unbiased", "watch-time weights so that odds are E[T]; as in the paper; or clicks, for comparison"
    )
    target: Literal["seconds", "d2q"] = _setting(
        "seconds", "learnt: watched seconds, or (where all that is shown plays) their quantile by duration"
    )
    cap_s: Annotated[float, Field(ge=1, le=86_400)] | None = _setting(
        None, "most seconds that a watch counts for and that are promised; unset: twice what all but a thousandth reach"
    )
    isotonic: bool = _setting(
        False, "promise the seconds that were watched on the newest tenth, by a rising map; the paper's weights need it"
    )
    position: bool = _setting(False, "learn what a place on the page adds; serving leaves it out")
    completion: bool = _setting(True, "a second head that learns P(completed) beside the seconds")
    powers: bool = _setting(True, "feed x^2 and sqrt(x) beside each quantile x (paper section 4.1)")
    without: tuple[str, ...] = _setting((), "features that are left out, by name")
    members: Count = _setting(3, "networks trained apart whose logits are averaged")
    epochs: Count = _setting(3, "passes over the examples")
    batch: Count = _setting(1024, "examples per step")
    rate: Positive = _setting(1e-3, "AdamW")
    weight_decay: Annotated[float, Field(ge=0)] = _setting(0.01, "of AdamW")
    dropout: Share = _setting(0.3, "of the hidden layers, in training")
    ids: Count = _setting(100_000, "most ids of one space: the most frequent in clicked impressions")
    least_count: Count = _setting(5, "an id in fewer clicked impressions has the zero embedding")
    seed: int = _setting(1, "of all that is drawn in training")
    device: Literal["cpu", "cuda"] = _setting("cpu", "where training computes; `nextwatch train --device` sets it")


class Trainer(Section):
    learning_rate: Positive = _setting(0.02, "row-wise Adagrad on item rows")
    negatives: Count = _setting(2048, "shared negatives of a live step")
    in_batch: Share = _setting(0.1, "most of the negatives that come from the batch, as a share of all")
    learns: Literal["history", "popularity", "output_rows"] = _setting(
        "output_rows", "what moves between releases; each also moves what stands before it"
    )
    admit_after: Count = _setting(1, "a new item gets a row with this many watches")
    expire_h: Annotated[float, Field(ge=0)] = _setting(
        0.0, "an item that was not watched for this long leaves trainer, topic and index; 0: never"
    )
    batch: Count = _setting(256, "most examples per step")
    wait_s: Positive = _setting(0.1, "longest wait for examples to be read together")
    step_s: Seconds = _setting(0.5, "longest wait of an example to be learnt; an item without a row waits for nothing")
    publish_s: Seconds = _setting(30.0, "longest wait of a watched row that has moved little; others go at once")
    sample_after_s: Positive = _setting(
        600.0, "when full batches are older than this, only a share of their examples is learnt: this over their age"
    )
    threads: Count = _setting(1, "of torch and BLAS in the trainer worker")
    evaluate_share: Share = _setting(0.25, "share of the steps whose examples are ranked before they are learnt")
    evaluate_scores: Whole = _setting(500_000, "scores per batch spent on ranking examples before they are learnt")

    @field_validator("learns", mode="before")
    @classmethod
    def _refuse_what_is_gone(cls, level: object) -> object:
        if level == "input_rows":
            raise ValueError(f"{level} is gone since 0.2: {_NEVER_PAID}")
        return level


class Forget(Section):
    secret: SecretStr = _setting(
        SecretStr(""),
        "only from NEXTWATCH_FORGET__SECRET: without it whoever has a user's id can tell from the topics "
        "that the user was forgotten; the same for every process, for good",
    )


class Bundles(Section):
    keep: Count = _setting(
        5, "newest bundles that `train` keeps, and all that are in use; older ones go. Of fetched ones, the last used"
    )
    store: str = _setting(
        "",
        "s3://bucket/prefix, gs://..., az://... or file:///...: every bundle goes there; empty: only data_dir has it",
    )
    endpoint: str = Field(
        "",
        pattern=r"^(https?://[^@?\s]+)?$",
        description="http(s)://host:port of an S3 server; empty: the provider's",
    )
    region: str = _setting("", "of the bucket; empty: AWS_REGION")
    timeout_s: Positive = _setting(30.0, "longest wait for one request to the store: 8 MB at most")

    @field_validator("store")
    @classmethod
    def _is_a_place_without_secrets(cls, store: str) -> str:
        place = urlsplit(store)
        if store and place.scheme not in STORES:
            raise ValueError(f"must begin with one of {', '.join(f'{each}://' for each in STORES)}")
        if place.username or place.password or place.query:
            raise ValueError("must hold no credentials: they come from the environment (AWS_ACCESS_KEY_ID, ...)")
        return store


class Indexer(Section):
    window_s: Positive = _setting(0.5, "touched rows are coalesced this long")
    batch: Count = _setting(1000, "most rows per upsert")
    server_timeout_s: Positive = _setting(
        60.0, "a server silent this long is dead; at least three of serving.heartbeat_s"
    )
    least_recall: Share = _setting(
        0.95, "of a new collection's search against an exact one; with less it is not announced"
    )


class Serving(Section):
    candidates: Annotated[int, Field(ge=1, le=16384)] = _setting(500, "retrieved per request")
    k: Annotated[int, Field(ge=1, le=1000)] = _setting(20, "items in a reply when the request does not say")
    max_k: Count = _setting(200, "a request for more items is refused")
    titles: bool = _setting(True, "replies have the items' titles; off spares the memory that they take in a server")
    first: Literal["auto", "index", "mirror"] = _setting(
        "auto", "who is asked first, the other is the fallback; auto: who has been quicker of late"
    )
    mirror_items: Whole | None = _setting(
        None,
        "most items whose vectors are held in memory as well, 0: no mirror; unset: as many as fit into a fifth of the "
        "memory that is available when the server starts",
    )
    search_s: Positive = _setting(0.5, "longest wait for the index; then the mirror")
    ranked: Whole = _setting(150, "candidates that the ranker is asked about, the best by their own worth; 0: all")
    ranker: bool = _setting(
        True, "candidates are ranked by expected watch time; off: lists are in the order of retrieval"
    )
    audit_share: Share = _setting(0.01, "share of the answers that are audited: searched exactly, or ranked whole")
    audit_recall: Share = _setting(0.9, "with a lower mean recall the index is left out; 0: never")
    audit_kept: Share = _setting(0.98, "when `ranked` keeps a lower mean share of the best, all are ranked; 0: never")
    trending: Whole = _setting(25, "candidates from what is trending; 0: none")
    similar: Whole = _setting(50, "candidates like the last completed watch; 0: none")
    fresh: Whole = _setting(25, "candidates among the newest items; 0: none")
    fresh_h: Positive = _setting(72.0, "an item is fresh so long after its publishing")
    source_s: Positive = _setting(0.1, "a source slower than this in a batch is left out")
    shown_most: Whole = _setting(0, "an item shown so often without a watch since is not a candidate; 0: it stays one")
    queue: Count = _setting(1000, "most requests read and not yet answered")
    backlog: Count = _setting(1000, "with more requests waiting, those past the deadline that they name are left out")
    repeat_s: Seconds = _setting(60.0, "a repeated request id gets the same reply for so long")
    repeats: Count = _setting(5000, "most replies kept for that")
    batch: Count = _setting(16, "most requests answered together")
    deadline_s: Positive = _setting(2.0, "when the request does not say")
    heartbeat_s: Positive = _setting(5.0, "how often a server says what it serves")
    ranker_format: Literal["auto", "float32", "bfloat16"] = _setting(
        "auto", "of the ranker's weights; auto: bfloat16 where the processor computes with it"
    )
    processes: Count = _setting(
        1, "servers of one machine: `up` starts so many; with more than one they hold a release's vectors together"
    )
    threads: Count = _setting(1, "of torch and BLAS in one serving worker; large batches are divided in two beside it")


class Selection(Section):
    channel_cap: Whole = _setting(0, "most items of one channel in a list, as long as there are others; 0: any number")
    explore: Share = _setting(0.0, "share of a list's places that is drawn (docs/selection.md); 0: none")
    explore_by: Literal["little_shown", "uncertainty"] = _setting(
        "little_shown", "who is drawn more: the seldom shown, or those of which the ranker is unsure"
    )
    explore_from: Count = _setting(1, "first place that may be drawn; 1 is the top")
    explore_pool: Count = _setting(100, "drawn from the best so many that are not in the list anyway")
    diversity: Literal["none", "mmr", "dpp"] = _setting(
        "none", "keep alike items apart: greedily by the most alike chosen one, or by all of them"
    )
    diversity_weight: Share = _setting(0.3, "of being unlike what is chosen; the rest is the score's")
    diversity_pool: Count = _setting(100, "chosen among the best so many")
    pinned: tuple[str, ...] = _setting((), "items on top of every list, after those that a request pins")
    seed: int = _setting(1, "of the places that are drawn, beside the request's id")


class Metrics(Section):
    host: str = _setting("127.0.0.1", "where /metrics and /health listen")
    port: Annotated[int, Field(ge=0, le=65535)] = _setting(0, "0: a free one, written to <data_dir>/run")
    token: SecretStr = _setting(
        SecretStr(""), "only from NEXTWATCH_METRICS__TOKEN: without it as bearer token /metrics is 401"
    )
    tls_cert_file: Path | None = _setting(None, "both pages speak TLS with this certificate, PEM")
    tls_key_file: Path | None = _setting(None, "its key, PEM; unset: it is in the same file")


class Tracing(Section):
    endpoint: str = Field(
        "",
        pattern=r"^(https?://[^@?\s]+)?$",
        description="http(s)://host:port of a receiver of OTLP over HTTP, for spans; empty: none are made",
    )
    share: Share = _setting(0.01, "of the requests that come without a traceparent; one that has it says so itself")


class Gateway(Section):
    host: str = _setting("127.0.0.1", "where the HTTP gateway listens; beyond loopback it needs gateway.token")
    port: Annotated[int, Field(ge=0, le=65535)] = _setting(8080, "0: a free one, told on its page /health")
    token: SecretStr = _setting(
        SecretStr(""),
        "only from NEXTWATCH_GATEWAY__TOKEN: who does not show it gets /health and /docs, else 401",
    )
    tls_cert_file: Path | None = _setting(None, "it speaks TLS with this certificate, PEM")
    tls_key_file: Path | None = _setting(None, "its key, PEM; unset: it is in the same file")
    max_body_bytes: Count = _setting(8_000_000, "of a request; a larger one is refused with 413")
    requests: Count = _setting(256, "most requests in flight; a further one is refused with 429")
    deadline_s: Positive = _setting(5.0, "longest wait for the brokers or for a reply; then 503")


class Ingest(Section):
    topics: tuple[TopicMapping, ...] = _setting(
        (), "topics of your own that become ours, as `[[ingest.topics]]` in the file (docs/your-topics.md)"
    )
    start: Literal["earliest", "latest"] = _setting(
        "earliest", "where a topic is begun of which nothing was read yet; earliest: all that is still there"
    )
    batch: Count = _setting(2000, "most records handled together")
    wait_s: Positive = _setting(0.1, "longest wait for a batch to fill")
    registry_url: str = _setting("", "http(s)://host:port of the schema registry; for avro and protobuf")
    registry_username: str = _setting("", "who logs in there, by HTTP basic authentication")
    registry_password: SecretStr = _setting(SecretStr(""), "only from NEXTWATCH_INGEST__REGISTRY_PASSWORD")
    registry_ca_file: Path | None = _setting(None, "certificate authority of an https registry, PEM")

    @field_validator("registry_url")
    @classmethod
    def _is_an_address_without_secrets(cls, url: str) -> str:
        if not re.fullmatch(r"(https?://[^@?\s]+)?", url):
            raise ValueError("must be http(s)://host:port, without a login: ingest.registry_username is for that")
        return url

    @model_validator(mode="after")
    def _topics_have_one_format(self) -> Self:
        """Several mappings of a topic see the same record, which is read once."""
        read: dict[str, tuple[str, ...]] = {}
        for mapping in self.topics:
            how = (mapping.format, mapping.key_format, mapping.envelope)
            if read.setdefault(mapping.topic, how) != how:
                raise ValueError(f"topic {mapping.topic}: its mappings differ in format, key_format or envelope")
        return self


class Embedded(Section):
    kafka_port: Annotated[int, Field(ge=0, le=65534)] = _setting(0, "0: a free one")
    milvus_port: Annotated[int, Field(ge=0, le=65535)] = _setting(0, "0: a free one")
    kafka_heap: str = Field("512m", pattern=r"^\d+[mg]$", description="memory of the embedded Apache Kafka's JVM")
    ready_timeout_s: Positive = _setting(
        60.0, "an embedded service that is not ready by then ends `up`; in `demo` our own processes do too"
    )


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__"
    )

    data_dir: Path = _setting(Path(".nextwatch"), "bundles, embedded services' data, run files")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "least severe lines in the logs")
    log_format: Literal["text", "json"] = _setting("text", "lines for people, or a JSON object each")
    kafka: Kafka = Kafka()
    milvus: Milvus = Milvus()
    history: History = History()
    join: Join = Join()
    trending: Trending = Trending()
    model: Model = Model()
    ranker: Ranker = Ranker()
    trainer: Trainer = Trainer()
    forget: Forget = Forget()
    bundles: Bundles = Bundles()
    indexer: Indexer = Indexer()
    serving: Serving = Serving()
    selection: Selection = Selection()
    metrics: Metrics = Metrics()
    tracing: Tracing = Tracing()
    gateway: Gateway = Gateway()
    ingest: Ingest = Ingest()
    embedded: Embedded = Embedded()

    @model_validator(mode="after")
    def _living_servers_are_heard_in_time(self) -> Self:
        """Two heartbeats in a row may be late, or lost with a broker's leader, before a server counts as dead: its
        collection may be dropped then, and a roll-back does not wait for it."""
        beat_s, timeout_s = self.serving.heartbeat_s, self.indexer.server_timeout_s
        if timeout_s < LEAST_HEARTBEATS * beat_s:
            beat, timeout = "serving.heartbeat_s", "indexer.server_timeout_s"
            least_s, most_s = LEAST_HEARTBEATS * beat_s, timeout_s / LEAST_HEARTBEATS
            raise ValueError(
                f"setting {beat} is {beat_s:g} and {timeout} is {timeout_s:g}: a server that lives may count as dead "
                f"when a heartbeat is late; let {timeout} (or {variable_of(timeout)}) be {least_s:g} or more, "
                f"or {beat} (or {variable_of(beat)}) {most_s:g} or less"
            )
        return self

    @model_validator(mode="after")
    def _an_embedded_milvus_can_do_it(self) -> Self:
        if not self.milvus.uri and (reason := self.milvus.why_not_on_lite()):
            raise ValueError(f"{reason}, or set milvus.uri (or {variable_of('milvus.uri')}) to a Milvus server")
        return self

    @property
    def bundles_dir(self) -> Path:
        return self.data_dir / "bundles"

    @property
    def run_dir(self) -> Path:
        return self.data_dir / "run"

    @property
    def shared_dir(self) -> Path:
        """What several servers of this machine hold in memory together."""
        return self.data_dir / "shared"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


SECRETS = (
    ("kafka", "password"),
    ("milvus", "token"),
    ("metrics", "token"),
    ("gateway", "token"),
    ("ingest", "registry_password"),
    ("forget", "secret"),
)
URLS = (  # which may hold a secret by mistake
    ("bundles", "store"),
    ("bundles", "endpoint"),
    ("ingest", "registry_url"),
    ("milvus", "uri"),
    ("tracing", "endpoint"),
)
GONE = {  # settings that there were: since when not, and what to do
    "trainer.pull": f"gone since 0.2: {_NEVER_PAID}",
    "trainer.query_rate": f"gone since 0.2, with trainer.learns = input_rows: {_NEVER_PAID}",
}


def load_settings(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Build the settings tree from `file` (else $NEXTWATCH_CONFIG, else ./nextwatch.toml when there is one), the
    environment, and `overrides` (from command-line options, dotted names), later ones winning.

    Raises SettingsError naming the setting and its source for an unknown name, a wrong value, a secret in the file.
    """
    file = _which_file(file)
    _check_file(file)
    _check_environ()
    tree: dict[str, Any] = {}
    for name, value in (overrides or {}).items():
        section, _, leaf = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = value

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return Settings.model_construct(**dict(FromFile(**tree)))
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def dump_settings(settings: Settings) -> dict[str, Any]:
    """The effective settings as plain data, secrets masked."""
    tree: dict[str, Any] = json.loads(settings.model_dump_json())
    for section, name in SECRETS:
        tree[section][name] = "********" if getattr(getattr(settings, section), name).get_secret_value() else ""
    return tree


def to_environ(settings: Settings) -> dict[str, str]:
    """The settings as environment variables, for a child process that must see exactly these (secrets included)."""
    tree = json.loads(settings.model_dump_json())
    for section, name in SECRETS:
        tree[section][name] = getattr(getattr(settings, section), name).get_secret_value()
    flat: dict[str, str] = {}
    for name, value in tree.items():
        entries = {f"{name}__{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {
            f"{ENV_PREFIX}{k.upper()}": v if isinstance(v, str) else json.dumps(v)
            for k, v in entries.items()
            if v is not None
        }
    return flat


def variables() -> dict[str, Any]:
    """The environment variable of every setting, with the setting's type."""
    found: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        leaves = getattr(field.annotation, "model_fields", None)
        if leaves is None:
            found[variable_of(name)] = field.annotation
        else:
            found |= {variable_of(f"{name}.{leaf}"): each.annotation for leaf, each in leaves.items()}
    return found


def variable_of(name: str) -> str:
    """The environment variable of a setting (`kafka.password`)."""
    return ENV_PREFIX + name.replace(".", "__").upper()


def _which_file(file: Path | None) -> Path | None:
    if file is None and os.environ.get(CONFIG_VARIABLE):
        file = Path(os.environ[CONFIG_VARIABLE])
    if file is not None and not file.is_file():
        raise SettingsError(f"settings file {file} does not exist")
    return file or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)


def _check_file(file: Path | None) -> None:
    if file is None:
        return
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{file}: not a TOML file: {error}") from None
    for section, name in SECRETS:
        if isinstance(tree.get(section), dict) and name in tree[section]:
            variable = variable_of(f"{section}.{name}")
            raise SettingsError(f"{file}: {section}.{name} is a secret: put it into the variable {variable}")


def _check_environ() -> None:
    """pydantic-settings passes over variables that name no setting, and only tells the section of a list that is no
    JSON; we name each."""
    kinds = variables()
    for variable in sorted(os.environ):
        if not variable.startswith(ENV_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        name = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        if variable.upper() not in kinds:
            raise SettingsError(_unknown(name, f" ({variable})"))
        if get_origin(kinds[variable.upper()]) is tuple:
            try:
                json.loads(os.environ[variable])
            except ValueError:
                example = '["one", "two"], or [1, 2]'
                raise SettingsError(f"setting {name} ({variable}): must be a list as JSON: {example}") from None


def _unknown(name: str, place: str = "") -> str:
    if name in GONE:
        return f"setting {name}{place}: {GONE[name]}"
    return f"unknown setting {name}{place}; `nextwatch config` lists them all"


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(_unknown(name))
        elif not name:  # of several settings: it names them, and its input is the whole tree, secrets and all
            lines.append(str(problem["ctx"]["error"]))
        else:
            # Of a section that is none, the input may be the secret, or hold it.
            hidden = (*SECRETS, *URLS)
            is_secret = any(name == section or name.startswith(f"{section}.{leaf}") for section, leaf in hidden)
            found = "" if is_secret else f", got {problem['input']!r}"
            lines.append(f"setting {name} (or {variable_of(name)}): {problem['msg']}{found}")
    return "\n".join(lines)
