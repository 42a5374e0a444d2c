"""Everything that is measured, on one page. Base units (seconds, messages), bounded labels, never a user or item id.

Every process serves these on its own port (infra.platform.health). Names follow https://prometheus.io/docs/practices/naming/.

Every process serves all of them, whatever its work is. A count of nothing is 0; a gauge of which 0 would say something
(a recall, a ratio, a time, an age) is NaN until it is measured, and no comparison in a rule holds for NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

from prometheus_client import Counter, Gauge, Histogram

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_DELAY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60, 300)


def _measured(name: str, documentation: str) -> Gauge:
    """A gauge that is NaN until it is set."""
    gauge = Gauge(name, documentation)
    gauge.set(nan)
    return gauge


# every process
RECEIVED = Counter("nextwatch_messages_received_total", "Messages read", ["topic"])
SENT = Counter("nextwatch_messages_sent_total", "Messages written and acknowledged", ["topic"])
SEND_RETRIES = Counter("nextwatch_send_retries_total", "Batches that the brokers did not take: sent again", ["topic"])
REJECTED = Counter("nextwatch_messages_rejected_total", "Messages refused, by reason code", ["topic", "code"])
FORWARDED = Counter("nextwatch_messages_forwarded_total", "Messages moved to their user's partition", ["topic"])
DUPLICATES = Counter("nextwatch_messages_duplicate_total", "Messages seen before and passed over", ["topic"])
FORGOTTEN = Counter(
    "nextwatch_messages_forgotten_total", "Messages from before their user was forgotten, passed over", ["topic"]
)
USERS_FORGOTTEN = Counter("nextwatch_users_forgotten_total", "Users deleted from a worker's table", ["worker"])
LAG = Gauge("nextwatch_consumer_lag_messages", "Messages not yet handled", ["topic", "partition"])
REBALANCES = Counter("nextwatch_rebalances_total", "Assignments of partitions that this worker was given by its group")
BATCH_TIME = Histogram("nextwatch_batch_seconds", "Time to handle a batch of messages", ["stage"], buckets=_FAST)
BATCH_SIZE = Histogram(
    "nextwatch_batch_messages", "Messages handled together", ["stage"], buckets=(1, 3, 10, 30, 100, 300, 1000)
)
MODEL_INFO = Gauge("nextwatch_model_info", "1 for the version in use", ["version"])
MODEL_CREATED = _measured("nextwatch_model_created_timestamp_seconds", "When the version in use was trained")
MODEL_AGE = _measured("nextwatch_model_age_seconds", "Age of the version in use")
READY = Gauge("nextwatch_ready", "1 while this process says on /health that it is ready")
STANDBY = Gauge("nextwatch_standby", "1 while this process is not ready since another one has its work")
LONGEST_COLLECTION = Gauge(
    "nextwatch_gc_longest_seconds", "Longest full garbage collection since ready, those of everything apart"
)
DISK_FREE = Gauge("nextwatch_disk_free_bytes", "Left on the volume of a directory of this process", ["directory"])
DISK_SIZE = Gauge("nextwatch_disk_size_bytes", "Size of the volume of a directory of this process", ["directory"])

# history
EVENT_TO_HISTORY = Histogram(
    "nextwatch_event_to_history_seconds", "Watch sent to Kafka until its history is acknowledged", buckets=_DELAY
)
WATCHES = Counter("nextwatch_watches_total", "Watches by what became of them", ["outcome"])

# join
JOINED = Counter("nextwatch_join_watches_total", "Watches by what became of them in the join", ["outcome"])
CLOSED = Counter("nextwatch_impressions_closed_total", "Impressions whose first example was made", ["how"])
OPEN_IMPRESSIONS = Gauge("nextwatch_open_impressions", "Impressions that wait for their watches", ["partition"])
WATERMARK_LAG = Gauge("nextwatch_watermark_lag_seconds", "How far event time is behind the clock", ["partition"])
STATISTICS_ROWS = Gauge("nextwatch_item_statistics_rows", "Rows of item statistics", ["partition"])
RANKING_PAIRS = Counter(
    "nextwatch_ranking_pair_seconds_total", "Watched seconds over pairs of a watched and an unwatched item", ["what"]
)
RANKING_EXPECTED = Counter("nextwatch_ranking_expected_seconds_total", "Watch time expected of ranked items, as served")
RANKING_WATCHED = Counter("nextwatch_ranking_watched_seconds_total", "Watch time of ranked items")
RANKING_LOSS = _measured("nextwatch_ranking_weighted_loss", "Share of recent pair seconds in the wrong order")
RANKING_CALIBRATION = _measured("nextwatch_ranking_calibration", "Expected over watched seconds, of recent impressions")

# trainer
STEPS = Counter("nextwatch_training_steps_total", "Incremental training steps")
STEPS_DROPPED = Counter(
    "nextwatch_training_steps_dropped_total", "Steps whose loss was not finite or had exploded, not applied"
)
NOT_ADMITTED = Counter("nextwatch_training_not_admitted_total", "Examples of new items that have no row yet")
UNFIT_VECTORS = Counter(
    "nextwatch_training_unfit_vectors_total",
    "New items whose vector has another length than the release has learnt: placed without it",
)
PASSED_OVER = Counter(
    "nextwatch_training_passed_over_total", "Examples not learnt, one in so many, since the trainer cannot keep up"
)
EXPIRED = Counter("nextwatch_trainer_expired_total", "Items that left the trainer's table, idle for too long")
LOSS = _measured("nextwatch_training_loss", "Sampled-softmax loss of the last step")
TRAINER_ROWS = Gauge("nextwatch_trainer_rows", "Items in the trainer's table")
TRAINER_EPOCH = Gauge("nextwatch_trainer_epoch", "Epoch of item vectors that this trainer has claimed, 0: a standby")
STALE_ROWS = Counter(
    "nextwatch_stale_rows_total", "Rows of a trainer that had been replaced, found in item-vectors and not counted"
)
ROW_TURN = _measured(
    "nextwatch_item_row_turn", "1 - cosine between an item's row and the release's, mean of rows that moved lately"
)
ROW_GROWTH = _measured("nextwatch_item_row_growth", "Norm of an item's row over the release's, mean of the same rows")
RIVAL_WANTED = Gauge(
    "nextwatch_rival_wanted_info",
    "1 for the release that an experiment wants learnt beside the live one by this trainer, whether it is or not",
    ["version"],
)
RIVAL_LEARNING = Gauge(
    "nextwatch_rival_learning_info",
    "1 for the release that this trainer learns beside the live one, for an experiment",
    ["version"],
)
RIVAL_LAG = _measured(
    "nextwatch_rival_lag_examples",
    "Examples that the release beside the live one has yet to learn, while one is wanted; at least, while it rests",
)
PREQUENTIAL_EXAMPLES = Counter(
    "nextwatch_prequential_examples_total", "Examples ranked before they were learnt, of a sample of the steps"
)
PREQUENTIAL_HITS = Counter(
    "nextwatch_prequential_hits_total", "Examples ranked whose item was in the top k before learning it", ["model", "k"]
)
PREQUENTIAL_RECALL = Gauge(
    "nextwatch_prequential_recall",
    "Share of examples whose item was in the top k, of the newest 2,000 of the sample",
    ["model", "k"],
)
PREQUENTIAL_SAMPLE = Gauge(
    "nextwatch_prequential_sample", "Examples that nextwatch_prequential_recall stands on, none that the release knew"
)

# indexer
EVENT_TO_VECTOR = Histogram(
    "nextwatch_event_to_vector_seconds", "Watch sent to Kafka until the item's new vector is searchable", buckets=_DELAY
)
UPSERTED = Counter("nextwatch_index_rows_upserted_total", "Rows written to the index")
DELETED = Counter("nextwatch_index_rows_deleted_total", "Rows deleted from the index")
INDEX_ROWS = Gauge("nextwatch_index_rows", "Rows in the live collection")
INDEX_LAG = Histogram(
    "nextwatch_index_lag_seconds", "Vector written to Kafka until it is searchable, the oldest of a row", buckets=_DELAY
)
INDEX_REWRITTEN = Counter("nextwatch_index_rows_rewritten_total", "Rows written again since the catalogue changed")
INDEX_WAITING = Gauge("nextwatch_index_changes_waiting", "Changes read and not yet written to the index")
INDEX_WAITED = Counter(
    "nextwatch_index_standstill_seconds_total",
    "Time in which nothing was read since a call was not answered yet, waits between tries included",
    ["dependency"],
)
INDEX_RECALL = _measured("nextwatch_index_probe_recall", "Recall against an exact search, of the newest collection")
INDEX_RETRIES = Counter(
    "nextwatch_index_retries_total", "Calls of the indexer that failed and are tried again", ["dependency"]
)
UNDER_REPLICATED = Gauge(
    "nextwatch_topic_under_replicated_partitions",
    "Partitions with fewer copies in sync than there should be",
    ["topic"],
)

# serving
REQUESTS = Counter("nextwatch_requests_total", "Requests by outcome", ["outcome"])
EXPERIMENT_REQUESTS = Counter(
    "nextwatch_experiment_requests_total",
    "Requests of the experiment that runs, by the variant of their viewers; empty: interleaved",
    ["variant", "outcome"],
)
EXPERIMENT_UNSERVED = Gauge(
    "nextwatch_experiment_unserved",
    "1 while this server serves everybody by its own settings although an experiment runs: it cannot, or not yet",
)
RIVAL_INFO = Gauge(
    "nextwatch_rival_ranker_info",
    "1 for each release whose ranker an experiment has this server hold beside the live one's",
    ["version"],
)
REQUEST_TIME = Histogram("nextwatch_request_seconds", "Request read until its reply is sent", buckets=_FAST)
STAGE_TIME = Histogram("nextwatch_request_stage_seconds", "Time of one stage of a batch", ["stage"], buckets=_FAST)
FALLBACKS = Counter("nextwatch_fallbacks_total", "Answers that went down the ladder", ["step"])
CANDIDATES = Histogram(
    "nextwatch_candidates", "Candidates per request after filtering", buckets=(1, 10, 50, 100, 250, 500, 1000)
)
SHED = Counter(
    "nextwatch_requests_shed_total", "Requests read after their deadline: from the ladder's bottom, or left out"
)
REPEATED = Counter(
    "nextwatch_requests_repeated_total", "Requests that repeat an id: their reply is sent again, or is on its way"
)
QUEUED = Gauge("nextwatch_requests_queued", "Requests read and not yet answered")
UNWRITTEN = Gauge("nextwatch_serving_unwritten_bytes", "Impressions and replies that no broker has acknowledged yet")
NOMINATED = Counter("nextwatch_source_candidates_total", "Candidates by a source that nominated them", ["source"])
SOURCE_TIME = Histogram("nextwatch_source_seconds", "Time of a source for a batch", ["source"], buckets=_FAST)
SOURCE_LEFT_OUT = Counter("nextwatch_source_left_out_total", "Requests that a source was too late for", ["source"])
SEARCHED_AGAIN = Counter("nextwatch_searches_repeated_total", "Requests searched again since filters left too few")
AUDITED = Counter("nextwatch_audited_answers_total", "Answers of the index compared with an exact search")
AUDIT_RECALL = _measured("nextwatch_audit_recall", "Share of the exact answer in the index's, recent answers")
AUDIT_SCORE_GAP = _measured("nextwatch_audit_score_gap", "Mean score that the index's answers miss, recent answers")
INDEX_IN_USE = _measured("nextwatch_index_in_use", "1 while the index is trusted, 0 while it is left alone")
MIRROR_FIRST = Gauge("nextwatch_mirror_first", "1 while the mirror is asked before the index, for it is quicker")
PRERANKED_KEPT = _measured("nextwatch_preranked_kept", "Share of the best that the pre-ranker keeps, recent audits")
PRERANKER_IN_USE = _measured("nextwatch_preranker_in_use", "1 while the pre-ranker chooses, 0 while all are ranked")
SCORE_PSI = Gauge(
    "nextwatch_score_drift_psi",
    "Population stability index of recent candidates' scores against the first ones of the release",
    ["score"],
)
SCORE_SHIFT = Gauge(
    "nextwatch_score_shift_deviations",
    "Mean of recent candidates' scores less that of the release's first ones, in their standard deviations",
    ["score"],
)
TAKEDOWN = Histogram(
    "nextwatch_takedown_seconds", "Item taken down in Kafka until this server shows it no more", buckets=_DELAY
)
TURN_AGE = _measured("nextwatch_serving_turn_age_seconds", "Since the answering thread began its last round")
MIRROR_ITEMS = Gauge("nextwatch_mirror_items", "Items whose vectors this server holds in memory")
HISTORIES = Gauge("nextwatch_histories", "Users in this server's view")
CATALOGUE = Gauge("nextwatch_catalogue_items", "Items in this server's view")
RELEASES_REFUSED = Counter("nextwatch_releases_refused_total", "Announced releases that cannot be served", ["reason"])

# gateway
GATEWAY_REQUESTS = Counter("nextwatch_gateway_requests_total", "HTTP requests by their status", ["route", "status"])
GATEWAY_TIME = Histogram("nextwatch_gateway_request_seconds", "HTTP request until its reply", ["route"], buckets=_FAST)
GATEWAY_IN_FLIGHT = Gauge("nextwatch_gateway_requests_in_flight", "HTTP requests that are not answered yet")

# ingest
INGEST_PASSED_OVER = Counter(
    "nextwatch_ingest_passed_over_total",
    "Records of topics to ingest that their mapping is not about",
    ["topic"],
)

# retrain
RETRAIN_EVERY = _measured("nextwatch_retrain_interval_seconds", "Time between the beginnings of two rounds")
RETRAIN_ROUNDS = Counter("nextwatch_retrain_rounds_total", "Rounds of retraining by what became of them", ["outcome"])
RETRAIN_OUTCOME = Gauge("nextwatch_retrain_last_outcome", "1 for what became of the last round", ["outcome"])
RETRAIN_TIME = _measured("nextwatch_retrain_duration_seconds", "Time that the last round took")
RETRAIN_SUCCESS = _measured(
    "nextwatch_retrain_last_success_timestamp_seconds", "When the newest release was made, by this process or another"
)
RETRAIN_DIFFERENCE = Gauge(
    "nextwatch_retrain_better_by",
    "By how much the last release was better on watches that it had not seen, in the metric's own units",
    ["metric", "against"],
)


class _Unshown:
    """In place of this page and of every metric on it: takes what is told and shows it nowhere."""

    def __getattr__(self, _: str) -> _Unshown:
        return self

    def __call__(self, *_: object) -> _Unshown:
        return self


UNSHOWN = _Unshown()


class Lags:
    """The lag of what one reader follows, on the page; what it follows no more is another's to tell."""

    def __init__(self) -> None:
        self._told: set[tuple[str, int]] = set()

    def show(self, lags: Mapping[tuple[str, int], int]) -> None:
        """Messages not yet handled, by topic and partition."""
        for topic, partition in self._told - lags.keys():
            LAG.remove(topic, str(partition))
        for (topic, partition), lag in lags.items():
            LAG.labels(topic, str(partition)).set(lag)
        self._told = set(lags)
