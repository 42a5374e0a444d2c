"""The hyper-parameters of the ranker, as structure only: the section `ranker` of the settings fits as it is."""

from __future__ import annotations

from typing import Literal, Protocol

from models.device import DeviceName

Objective = Literal["unbiased", "paper", "equal"]  # of section 4.2: the weights of watched and unwatched impressions


class RankerParameters(Protocol):
    """Sections are the paper's."""

    @property
    def hidden(self) -> tuple[int, ...] | None: ...  # Table 1; None: by the number of examples
    @property
    def objective(self) -> Objective: ...
    @property
    def target(self) -> Literal["seconds", "d2q"]: ...
    @property
    def isotonic(self) -> bool: ...
    @property
    def cap_s(self) -> float | None: ...  # None: chosen by the data
    @property
    def position(self) -> bool: ...
    @property
    def completion(self) -> bool: ...
    @property
    def powers(self) -> bool: ...  # section 4.1, "Normalizing Continuous Features"
    @property
    def without(self) -> tuple[str, ...]: ...
    @property
    def members(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def ids(self) -> int: ...  # section 4.1, "Embedding Categorical Features": the most clicked ids
    @property
    def least_count(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def device(self) -> DeviceName: ...
