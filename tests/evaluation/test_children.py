"""What is told of a process that ended too early."""

from __future__ import annotations

import io

import pytest

from edgevqa.runtime.processes import last_words


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b"", ""),
        (b" \n\n", ""),
        (b"a trace\nValueError: no such thing\n\n", " It said: ValueError: no such thing"),
        (b"caf\xff", " It said: caf\ufffd"),
        (b"x\n" * 100_000 + b"the end", " It said: the end"),
    ],
)
def test_its_last_words_are_told(written: bytes, told: str) -> None:
    assert last_words(io.BytesIO(written)) == told


def test_no_more_than_the_end_of_a_long_line_is_told() -> None:
    assert len(last_words(io.BytesIO(b"x" * 100_000))) < 3000
