"""Durations and the clock."""

from __future__ import annotations

import math

import pytest

from edgevqa.calibration.search.clock import Clock, parse_duration, readable_duration
from edgevqa.runtime.errors import InputError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("45", 45), (" 10M ", 600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-5m", "ten", "5 minutes", "1d", "m", "30m!", "1.2.3s", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InputError, match="expected for example 90s, 30m, 2h or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (40.4, "40 s"), (99, "99 s"), (150, "2 min"), (7500, "2 h 5 min")]
)
def test_readable(seconds: float, text: str) -> None:
    assert readable_duration(seconds) == text


def test_a_clock_counts_down() -> None:
    times = iter([100.0, 130.0, 130.0, 150.0, 150.0, 170.0])
    clock = Clock(60.0, now=lambda: next(times))
    assert clock.left_s == 30
    assert clock.allows(30)
    assert not clock.allows(30)
    assert not clock.allows(0, share=0.5)
    assert clock.left_s == -10


def test_a_clock_without_a_limit() -> None:
    clock = Clock(None)
    assert clock.left_s == math.inf
    assert clock.allows(1e9)
    assert clock.tell() == ""
