"""How many rows of prompts a step takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pocketlm.generate.pace import ALONE_SECONDS, FIRST_ROWS, LEAST_ROWS, SHARED_SECONDS, Pace

SPEEDS = st.floats(1e-3, 1e9)  # rows a second


def learned(speed: float, most: int = 1 << 16) -> Pace:
    """A pace on a machine that does so many rows a second."""
    pace = Pace()
    for _ in range(2):
        rows = pace.rows(most, shared=False)
        pace.note(rows, rows / speed)
    return pace


@given(SPEEDS, st.integers(1, 1 << 16), st.booleans())
def test_a_step_takes_its_time_and_no_more_rows_than_fit(speed: float, most: int, shared: bool) -> None:
    rows = learned(speed).rows(most, shared)
    seconds = SHARED_SECONDS if shared else ALONE_SECONDS
    assert rows <= most
    if LEAST_ROWS < rows < most:
        assert rows <= speed * seconds * (1 + 1e-9) < rows + 1 + 1e-6 * rows
    else:
        assert rows == most or speed * seconds < LEAST_ROWS + 1 + 1e-6


def test_others_wait_for_less() -> None:
    pace = learned(400.0)
    assert (pace.rows(1 << 16, shared=False), pace.rows(1 << 16, shared=True)) == (800, 100)


def test_the_first_step_is_no_guess() -> None:
    assert Pace().rows(1 << 16, shared=False) == FIRST_ROWS
    assert Pace().rows(7, shared=True) == 7


@given(SPEEDS, st.integers(1, 49))
def test_a_step_of_few_rows_says_nothing(speed: float, rows: int) -> None:
    pace = learned(50.0)
    assert pace.rows(1 << 16, shared=False) == 100
    pace.note(rows, rows / speed)
    assert pace.rows(1 << 16, shared=False) == 100
    pace.note(100, 0.0)  # a clock that stood still
    assert pace.rows(1 << 16, shared=False) == 100


@given(st.integers(LEAST_ROWS, 1 << 10), SPEEDS)
def test_full_steps_say_what_the_machine_does(most: int, speed: float) -> None:
    # Whatever limits a step: it never plans more rows than it may take, so that every full step counts.
    pace = learned(1e6, most)
    rows = pace.rows(most, shared=False)
    assert rows == most
    pace.note(rows, rows / speed)
    now = pace.rows(most, shared=False)
    assert abs(now - max(min(speed * ALONE_SECONDS, most), LEAST_ROWS)) <= 1
