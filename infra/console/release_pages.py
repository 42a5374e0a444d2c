"""The pages of releases: what there is, and a roll-back, as `nextwatch releases --rollback` does it.

What a roll-back would do is asked before it is done. It names the release that it goes to: a page that is sent again,
or that is older than the last release, is refused, where a second roll-back would go forward again.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
from kafka.errors import KafkaError
from litestar import Response

from indexer.errors import IndexFailure
from infra.console.rendering import Console, read_form
from infra.gateway.bodies import BadRequest
from infra.gateway.routes import Asked, services_of
from infra.local.processes import PROGRAM, process_environ
from infra.platform.guarded_process import ServiceError
from infra.platform.settings import Settings
from streams.kafka.follow import TopicMissing

if TYPE_CHECKING:
    from infra.operate.releases import ReleaseReport
    from infra.operate.roll_back import RollBackPlan, RolledBack

SERVED_S = 10.0  # until all living servers answer from it
COMMAND_S = 60.0


class NotDoneInTime(ServiceError):
    """It may have been announced: servers follow later."""


async def show_releases(console: Console, request: Asked) -> Response[str]:
    """Releases, collections and servers."""
    async with console.reading:
        report = await asyncio.to_thread(read_report, services_of(request).settings)
    return console.page("releases", request, {"report": report})


async def ask_roll_back(console: Console, request: Asked, version: str) -> Response[str]:
    """What a roll-back to this release would do, and whether it is wanted."""
    shown: dict[str, Any] = nothing_done(version)
    try:
        async with console.reading:
            plan = await asyncio.to_thread(plan_roll_back, services_of(request).settings, version)
    except (ServiceError, IndexFailure, KafkaError, TopicMissing) as error:
        return console.page("roll_back", request, shown | {"problem": str(error)}, status_of(error))
    return console.page("roll_back", request, shown | {"plan": plan})


async def roll_back_and_tell(console: Console, request: Asked) -> Response[str]:
    """Roll back to the release that the form names, and say what became of it."""
    version, settings = (await read_form(request)).get("version", ""), services_of(request).settings
    shown: dict[str, Any] = nothing_done(version)
    try:
        async with console.reading:
            await asyncio.to_thread(plan_roll_back, settings, version)
            done = await asyncio.to_thread(run_roll_back, settings, version)
    except (ServiceError, IndexFailure, KafkaError, TopicMissing) as error:
        shown |= {"problem": str(error), "is_known": not isinstance(error, NotDoneInTime)}
        return console.page("roll_back", request, shown, status_of(error))
    return console.page("roll_back", request, shown | {"done": done})


def nothing_done(version: str) -> dict[str, Any]:
    """All that the page of a roll-back names, empty."""
    return {"version": version, "plan": None, "done": None, "problem": "", "is_known": True}


def status_of(error: Exception) -> int:
    """409 for what is refused, 503 for who does not answer."""
    return 409 if isinstance(error, ServiceError) else 503


def read_report(settings: Settings) -> ReleaseReport:
    from infra.operate.releases import read_releases  # with pymilvus, which takes a second to load

    return read_releases(settings)


def plan_roll_back(settings: Settings, version: str) -> RollBackPlan:
    """What a roll-back to this release would do. Raises BadRequest, and what `roll_back` does."""
    from infra.operate.roll_back import read_plan

    if not version:
        raise BadRequest("no release is named; the page of releases offers the one that can be gone back to")
    return read_plan(settings, version)


def run_roll_back(settings: Settings, version: str) -> RolledBack:
    """Run the command in a process of its own: it loads torch to check the bundle, and the gateway does without.

    Raises ServiceError with what the command says.
    """
    from infra.operate.roll_back import RolledBack

    asked = ["releases", "--rollback", f"--to={version}", f"--wait-s={SERVED_S}", "--json"]
    try:
        done = subprocess.run(
            [*PROGRAM, *asked],
            env=process_environ(settings, os.environ),
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        return msgspec.json.decode(done.stdout, type=RolledBack)
    except subprocess.TimeoutExpired:
        raise NotDoneInTime(
            f"it was not done within {COMMAND_S:.0f} s: the page of releases says which is live"
        ) from None
    except msgspec.DecodeError:
        raise ServiceError(done.stderr.rpartition("error: ")[2].strip() or f"exit code {done.returncode}") from None
