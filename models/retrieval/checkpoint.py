"""A training that was interrupted goes on where it was, to the same result bit for bit.

What a step depends on is written: tables with their accumulators, the tower and its optimiser, the epoch and the step.
Random choices are not, since they are drawn from (seed, epoch, step). A checkpoint is written beside the last one and
then takes its place, so that a crash while writing costs nothing but the time since the last.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import safetensors.torch
import torch

from models.logs.array_file import mapped
from models.logs.stored_log import StoredLog
from models.retrieval.candidate_training import Fit
from models.retrieval.table import write_table

STATE = "state.json"
WEIGHTS = "tower.safetensors"
EVERY_S = 120.0


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the text names the directory and the way out."""


def identity_of(log: StoredLog, settings: Mapping[str, object], warm_start: str | None) -> str:
    """Name a training by its data, its settings (plain values by name) and what it begins from."""
    ends = (len(log), len(log.user_ids), len(log.item_ids), int(log.event_ms[0]), int(log.event_ms[-1]))
    content = repr((ends, log.completed_s, settings, warm_start)).encode()
    return hashlib.sha256(content).hexdigest()[:16]


class ModelSelection(msgspec.Struct, frozen=True):
    """The verdict of the validation days: epochs to train, weights of the towers and of the linear part beside
    popularity, how good that is, and its figures: `recall@k`, `popular_recall@k`, `cases`; `linear_gain` and
    `skips_gain`, what these parts earn, in doublings of the rank."""

    epochs: int
    weight: float = 1.0
    linear: float = 12.0
    quality: float = -1.0
    metrics: dict[str, float] = {}


class State(msgspec.Struct, frozen=True):
    """The place at which a training is. `identity` says which one: a checkpoint of another is refused. `held_from_ms`:
    the time from which its twin is judged, -1 where it has none."""

    identity: str
    places: tuple[tuple[int, int], ...]  # epoch and step of each member
    selection: ModelSelection = msgspec.field(name="choice")
    held_from_ms: int = -1


class Checkpoints:
    """The checkpoints of one training under `directory`, one for each of its stages, written every `every_s` s."""

    def __init__(
        self,
        directory: Path,
        identity: str,
        *,
        every_s: float = EVERY_S,
        writes: bool = True,
        clock: Callable[[], float],
    ) -> None:
        """Without `writes` they are only read: of several processes the first writes for all."""
        self.directory, self.identity = directory, identity
        self._every_s, self._writes, self._clock = every_s, writes, clock
        self._written_s, self._held_from_ms = clock(), -1

    def held_from(self, event_ms: int) -> int:
        """Return the time from which the training that is there holds watches out, else `event_ms`: what goes live
        meanwhile makes no other training of it. What is saved from now on keeps it. Raises CheckpointError."""
        states = [self._read_state(path) for path in sorted(self.directory.glob(f"*/{STATE}"))]
        kept = [state.held_from_ms for state in states if state is not None]
        self._held_from_ms = kept[0] if kept else event_ms
        return self._held_from_ms

    def restore(self, fits: Sequence[Fit], stage: str) -> ModelSelection | None:
        """Put fresh fits back to where their stage was and return what was chosen until then; None when there is no
        checkpoint. Raises CheckpointError when it is damaged or of another training."""
        directory = self.directory / stage
        found = self._read_state(directory / STATE)
        if found is None:
            return None
        for number, (fit, place) in enumerate(zip(fits, found.places, strict=True)):
            _read_fit(fit, directory / f"{number}")
            fit.epoch, fit.step = place
        return found.selection

    def saver(self, fits: Sequence[Fit], stage: str, selection: ModelSelection) -> Callable[[], None]:
        """Return what is to be called after each step."""

        def save() -> None:
            if self._clock() - self._written_s >= self._every_s:
                self.save(fits, stage, selection)

        return save

    def save(self, fits: Sequence[Fit], stage: str, selection: ModelSelection) -> None:
        if not self._writes:
            return
        place = self.directory / stage
        staging, old = place.with_name(f"{stage}.writing"), place.with_name(f"{stage}.old")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for number, fit in enumerate(fits):
            _write_fit(fit, staging / f"{number}")
        state = State(self.identity, tuple((fit.epoch, fit.step) for fit in fits), selection, self._held_from_ms)
        (staging / STATE).write_bytes(msgspec.json.encode(state))
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            place.rename(old)
        staging.rename(place)
        shutil.rmtree(old, ignore_errors=True)
        self._written_s = self._clock()

    def clear(self) -> None:
        """The training is over."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _read_state(self, path: Path) -> State | None:
        if not path.exists():
            return None
        try:
            state = msgspec.json.decode(path.read_bytes(), type=State)
        except (OSError, msgspec.DecodeError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); remove {self.directory} to start anew") from None
        if state.identity != self.identity:
            raise CheckpointError(
                f"{self.directory}: is of another training (other log, settings or version, or --no-announce); "
                "remove it to start anew, or name another directory"
            )
        return state


def _write_fit(fit: Fit, directory: Path) -> None:
    directory.mkdir(parents=True)
    for name, table in fit.net.tables():
        write_table(directory / f"{name}.npy", table.values.numpy())
        write_table(directory / f"{name}.squares.npy", table.squares.numpy())
    weights = {f"tower.{name}": tensor for name, tensor in fit.net.tower.state_dict().items()}
    for number, state in fit.optimizer.state_dict()["state"].items():
        weights |= {f"adam.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    safetensors.torch.save_file(weights, directory / WEIGHTS)


def _read_fit(fit: Fit, directory: Path) -> None:
    tower: dict[str, torch.Tensor] = {}
    adam: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in safetensors.torch.load_file(directory / WEIGHTS).items():
        part, rest = name.split(".", 1)
        if part == "tower":
            tower[rest] = value
        else:
            number, key = rest.split(".")
            adam.setdefault(int(number), {})[key] = value
    fit.net.tower.load_state_dict(tower)
    fit.optimizer.load_state_dict(fit.optimizer.state_dict() | {"state": adam})  # the groups: those of the fresh one
    for name, table in fit.net.tables():
        table.values.numpy()[...] = mapped(directory / f"{name}.npy")
        table.squares.numpy()[...] = mapped(directory / f"{name}.squares.npy")
