"""The hyper-parameters of the candidate generator: what a training and the live trainer are told.

Structure only, so that `models` knows of no settings: the sections `model` and `trainer` of the settings fit as they
are (their defaults and limits stand there), and so does any object with these attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypedDict

from models.device import DeviceName

EncoderName = Literal["average", "recent", "attention"]
Learns = Literal["history", "popularity", "output_rows"]


class CandidateParameters(Protocol):
    """Sections are the paper's."""

    # --- the user tower: section 3.2, Figure 3 ---
    @property
    def dim(self) -> int: ...  # of an embedding
    @property
    def hidden(self) -> tuple[int, ...]: ...  # widths of the ReLU layers: section 3.4, "tower" pattern
    @property
    def encoder(self) -> EncoderName: ...  # the paper averages
    @property
    def residual(self) -> bool: ...
    @property
    def members(self) -> int: ...  # towers trained apart
    @property
    def linear_dim(self) -> int: ...  # models.retrieval.linear
    @property
    def linear_order(self) -> bool: ...
    @property
    def tied(self) -> bool: ...  # one item table for both sides; the paper has two
    @property
    def skips(self) -> int: ...  # newest uncompleted watches that a tower reads
    @property
    def content(self) -> bool: ...  # whether the validation days may place new items by content
    @property
    def dropout(self) -> float: ...
    @property
    def history_dropout(self) -> float: ...

    # --- inputs: section 3.3 ---
    @property
    def sides(self) -> bool: ...  # the catalogue's id columns
    @property
    def searches(self) -> bool: ...
    @property
    def context(self) -> bool: ...
    @property
    def search_tokens(self) -> int: ...
    @property
    def search_dim(self) -> int: ...
    @property
    def example_age(self) -> bool: ...  # "Example age" feature
    @property
    def age_window_h(self) -> float: ...
    @property
    def half_life_events(self) -> float: ...  # of the popularity coordinate; 0: to be chosen

    # --- examples and steps: sections 3.1 and 3.4 ---
    @property
    def negatives(self) -> int: ...  # "several thousand"
    @property
    def in_batch(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def table_rate(self) -> float: ...
    @property
    def tower_rate(self) -> float: ...
    @property
    def examples_per_user(self) -> int: ...  # "a fixed number of training examples per user"
    @property
    def example_window_h(self) -> float: ...
    @property
    def equal_users(self) -> bool: ...
    @property
    def signal_weights(self) -> Mapping[str, float]: ...  # of a watch by what its user has said of it, where not 1
    @property
    def seed(self) -> int: ...
    @property
    def device(self) -> DeviceName: ...


class LiveParameters(Protocol):
    """Between two releases; each of `learns` also learns what stands before it."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def negatives(self) -> int: ...
    @property
    def in_batch(self) -> float: ...
    @property
    def learns(self) -> Learns: ...


class ReadOfLog(TypedDict):
    """Arguments of models.logs.training_set.prepare: what of a log is read beside watches."""

    context: bool
    skips: int
    content: bool
    signals: Mapping[str, float]


def read_of_log(settings: CandidateParameters) -> ReadOfLog:
    """The same for a training and for a backtest."""
    return ReadOfLog(
        context=settings.context, skips=settings.skips, content=settings.content, signals=settings.signal_weights
    )
