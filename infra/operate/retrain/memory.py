"""The last round of retraining in a file of the data directory, so that who is killed knows it when it starts again.

A round is written down as failed before it begins, and as what became of it when it has ended: one that the kernel
killed for its memory has failed, waits as every other that has, and raises the alarm. Between the two it says which
bundle has passed and waits to be announced; the next round announces that one instead of training anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import structlog

from infra.operate.retrain.rounds import Round
from models.release.manifest_file import sync_path

log = structlog.get_logger(__name__)

FILE = "retrain.json"


def remember(data_dir: Path, found: Round) -> None:
    """Write a round in place of the last one, whole or not at all. Raises OSError."""
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir / FILE
    writing = path.with_suffix(f".{os.getpid()}")
    writing.write_bytes(msgspec.json.encode(found))
    sync_path(writing)
    writing.replace(path)
    sync_path(data_dir)


def recall(data_dir: Path) -> Round | None:
    """Return the last round; None where there was none, or where the file cannot be read, which the log says."""
    path = data_dir / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Round)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.warning("the last round is not known", path=str(path), reason=str(error))
        return None


def forget(data_dir: Path) -> None:
    """No round has been yet."""
    (data_dir / FILE).unlink(missing_ok=True)
