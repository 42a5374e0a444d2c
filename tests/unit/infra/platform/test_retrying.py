"""A dependency that is away is tried again, ever less often; what is no absence is raised."""

import asyncio
from itertools import islice

import pytest

from infra.platform.retrying import BackOff, retry


def test_waits_double_up_to_the_longest_and_begin_anew_after_a_reset():
    waits = BackOff(0.1, 0.5)
    assert list(islice(iter(waits.next, None), 4)) == [0.1, 0.2, 0.4, 0.5]
    waits.reset()
    assert waits.next() == 0.1


def test_an_absence_is_waited_for_and_told_and_another_error_is_raised():
    answers = iter([OSError("away"), OSError("away"), "here", ValueError("ours")])
    told: list[tuple[str, float]] = []

    async def call() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask() -> str:
        return await retry(
            call,
            is_absence=lambda error: isinstance(error, OSError),
            report=lambda error, wait_s: told.append((str(error), wait_s)),
            waits=BackOff(0.01, 0.02),
        )

    assert asyncio.run(ask()) == "here" and told == [("away", 0.01), ("away", 0.02)]
    with pytest.raises(ValueError, match="ours"):
        asyncio.run(ask())
