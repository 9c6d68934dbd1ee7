"""Who runs next: each rule by itself, then all promises at once under random traffic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.engine.scheduler import Scheduler, Work
from offramp.errors import KnobError


def scheduler(stages=3, *, max_rows=2, max_tokens=None, patience_steps=100, waste=math.inf, hold=1, go_on=math.inf):
    return Scheduler(
        stages,
        max_rows=max_rows,
        max_tokens=max_tokens,
        patience_steps=patience_steps,
        waste=waste,
        hold=hold,
        go_on=go_on,
    )


def put(queues, stage, *ids, length=5):
    queues.put(stage, ids, [length] * len(ids))


# The five rules


def test_nothing_to_do():
    assert scheduler().next() is None


def test_starving_rows_go_before_a_full_stage():
    queues = scheduler(patience_steps=1, max_rows=2)
    put(queues, 1, 1)
    put(queues, 2, 2, 3)
    put(queues, 0, 4)
    assert queues.next() == Work(2, [2, 3])  # row 1 is passed over once
    put(queues, 2, 5, 6)
    assert queues.next() == Work(1, [1])
    assert queues.next() == Work(2, [5, 6])
    assert queues.next() == Work(0, [4])


def test_no_patience_is_depth_first():
    queues = scheduler(4, patience_steps=0, max_rows=2)
    put(queues, 0, 1, 2)
    put(queues, 0, 3, 4)
    seen = []
    while (work := queues.next()) is not None:
        seen.append(work)
        if work.stage < 3:
            queues.put(work.stage + 1, work.ids, [5] * len(work.ids))
    assert [work.stage for work in seen] == [0, 1, 2, 3] * 2


def test_survivors_with_tokens_enough_go_on_and_the_others_wait():
    queues = scheduler(4, max_rows=4, go_on=10)
    put(queues, 0, 1, 2, 3, 4)
    put(queues, 0, 5, 6, 7, 8)
    assert queues.next() == Work(0, [1, 2, 3, 4])
    put(queues, 1, 1, 4)
    assert queues.next() == Work(1, [1, 4])
    put(queues, 2, 4)  # 5 tokens
    assert queues.next() == Work(0, [5, 6, 7, 8])


def test_survivors_of_unlike_length_wait_for_company():
    queues = scheduler(max_rows=4, go_on=10, waste=1.2)
    queues.put(0, [1, 2, 3, 4], [12, 11, 11, 4])
    put(queues, 0, 5)
    queues.put(1, [1, 4], [12, 4])
    assert queues.next() != Work(1, [1, 4])


def test_starving_rows_go_before_survivors():
    queues = scheduler(4, go_on=5, patience_steps=1)
    put(queues, 2, 9, length=1)
    put(queues, 0, 1, 2)
    assert queues.next() == Work(0, [1, 2])
    put(queues, 1, 1, 2)
    assert queues.next() == Work(2, [9])
    assert queues.next() == Work(1, [1, 2])


def test_survivors_of_two_lanes_go_on_unless_they_were_taken_along():
    queues = scheduler(3, max_rows=2, go_on=5, hold=3)
    put(queues, 1, 1, 2)
    put(queues, 1, 3, 4)
    put(queues, 0, 5)
    assert [queues.next() for _ in range(3)] == [Work(1, [3, 4]), Work(1, [1, 2]), Work(0, [5])]
    put(queues, 1, 1, 2)
    queues.drop([9])  # nobody goes on any more
    put(queues, 1, 3)
    put(queues, 0, 6)
    assert [queues.next() for _ in range(3)] == [Work(1, [3]), Work(0, [6]), Work(1, [1, 2])]


def test_survivors_that_were_dropped_do_not_go_on():
    queues = scheduler(go_on=0)
    put(queues, 1, 1, 2)
    queues.drop([1])
    assert queues.next() == Work(1, [2])


def test_the_deepest_full_stage_goes_before_inputs():
    queues = scheduler(4)
    put(queues, 0, 1, 2)
    put(queues, 1, 3, 4)
    put(queues, 2, 5, 6)
    put(queues, 3, 7)
    assert [queues.next() for _ in range(3)] == [Work(2, [5, 6]), Work(1, [3, 4]), Work(0, [1, 2])]


def test_a_stage_is_full_of_tokens_too():
    queues = scheduler(max_rows=10, max_tokens=10)
    put(queues, 0, 1)
    put(queues, 1, 2, 3)
    assert queues.next() == Work(1, [2, 3])


def test_without_inputs_the_shallowest_stage_goes_first():
    queues = scheduler(4, max_rows=5)
    put(queues, 3, 1)
    put(queues, 1, 2)
    put(queues, 2, 3)
    assert queues.next() == Work(1, [2])
    put(queues, 2, 2)
    assert queues.next() == Work(2, [3, 2])
    put(queues, 3, 3)
    assert queues.next() == Work(3, [1, 3])


def test_a_full_stage_runs_its_fullest_batch_and_the_odd_row_waits_for_company():
    queues = scheduler(max_rows=3, waste=1.5)
    put(queues, 1, 1, length=50)
    put(queues, 1, 2, 3, length=5)
    put(queues, 0, 4)
    assert queues.next() == Work(1, [2, 3])
    assert queues.next() == Work(0, [4])
    assert queues.next() == Work(1, [1])


def test_the_oldest_input_goes_in_the_company_of_its_like():
    queues = scheduler(max_rows=2)
    queues.put(0, [1, 2, 3, 4, 5], [9, 3, 8, 4, 1])
    assert [queues.next().ids for _ in range(3)] == [[1, 3], [4, 2], [5]]
    assert queues.next() is None


def test_inputs_that_come_later_join_a_batch_that_has_room():
    queues = scheduler(max_rows=2)
    queues.put(0, [1, 2, 3], [9, 9, 4])
    assert queues.next().ids == [1, 2]
    queues.put(0, [4], [4])
    assert queues.next().ids == [3, 4]


def test_a_long_backlog_is_planned_in_part_but_runs_whole():
    queues = scheduler(max_rows=1)
    queues.put(0, range(200), [1 + i % 7 for i in range(200)])
    assert sorted(queues.next().ids[0] for _ in range(200)) == list(range(200))


def test_drop():
    queues = scheduler(max_rows=2)
    put(queues, 0, 1, 2)
    put(queues, 1, 3)
    assert queues.drop([2, 3, 9, 2]) == {2: 0, 3: 1}
    assert len(queues) == queues.waiting == 1
    assert 1 in queues
    assert 2 not in queues
    assert queues.next() == Work(0, [1])
    assert queues.next() is None


@pytest.mark.parametrize(
    "wrong", [{"max_rows": 0}, {"max_tokens": 0}, {"patience_steps": -1}, {"waste": 0.9}, {"go_on": -1}]
)
def test_settings_outside_what_they_may_be(wrong):
    with pytest.raises(KnobError):
        scheduler(**wrong)


# All promises under random traffic


@given(st.data())
def test_promises_under_random_traffic(data):
    stages, max_rows = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    max_tokens, patience = data.draw(st.sampled_from([None, 8, 30])), data.draw(st.integers(0, 6))
    hold, go_on = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([0, 10, math.inf]))
    queues = scheduler(
        stages, max_rows=max_rows, max_tokens=max_tokens, patience_steps=patience, waste=1.5, hold=hold, go_on=go_on
    )
    lengths: dict[int, int] = {}
    arrivals: list[int] = []  # inputs that wait, oldest first
    parked: dict[int, list[int]] = {}  # row -> [stage, how often passed over, allowed]
    ran: dict[int, int] = {}
    for _ in range(data.draw(st.integers(1, 60))):
        new = [len(lengths) + i for i in range(data.draw(st.integers(0, 3)))]
        lengths.update((row, data.draw(st.integers(1, 12))) for row in new)
        arrivals += new
        queues.put(0, new, [lengths[row] for row in new])
        work = queues.next()
        if work is None:
            assert not arrivals
            assert not parked
            continue
        check_batch(work, [lengths[row] for row in work.ids], max_rows, max_tokens)
        if work.stage == 0:
            assert arrivals[0] in work.ids
            arrivals = [row for row in arrivals if row not in work.ids]
        for row in work.ids:
            assert ran.get(row, -1) == work.stage - 1
            ran[row] = work.stage
            if work.stage:
                assert parked.pop(row)[0] == work.stage
        for place in parked.values():
            place[1] += 1
            assert place[1] <= place[2]
        stay = [row for row in work.ids if work.stage + 1 < stages and data.draw(st.booleans())]
        queues.put(work.stage + 1, stay, [lengths[row] for row in stay])
        before = len(parked)
        # Passed over `patience` times, and once for each row parked earlier (those parked now are of one stage).
        parked.update((row, [work.stage + 1, 0, patience + before + len(stay)]) for row in stay)
        assert len(parked) <= (stages - 1) * (hold * max_rows - 1) + max_rows
        assert queues.waiting == len(arrivals)
        assert len(queues) == len(arrivals) + len(parked)


def check_batch(work, lengths, max_rows, max_tokens):
    assert 1 <= len(lengths) <= max_rows
    if len(lengths) > 1:
        positions = max(lengths) * len(lengths)
        assert positions <= 1.5 * sum(lengths)
        assert max_tokens is None or positions <= max_tokens
