"""What every criterion must do. They are discovered: a new file in ``criteria/`` is held to this, named nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import product
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria import Criterion, Scored, available, make
from offramp.errors import UnsupportedError
from offramp.types import PROBLEM_TYPES, ExitOutput, ProblemType, Stage

EXITS, UNITS, CLASSES = 5, 12, 3
STAGES = tuple(Stage(e, e, e + 1, e + 1, is_last=e == EXITS - 1) for e in range(EXITS))

# A criterion may need an extra that nobody has thought of yet: say here how to make one. (rng, [B, C]) -> array
EXTRAS = {
    "distances": lambda rng, shape: rng.gamma(2.0, size=shape),
    "gate": lambda rng, shape: rng.random(shape[0]),
    "null_space": lambda rng, shape: rng.random(shape[0]),
}

CASES = [(name, kind) for name, criterion in available().items() for kind in sorted(criterion.serves)]
every_criterion = pytest.mark.parametrize(("name", "kind"), CASES)


def variants(name: str, kind: ProblemType) -> list[Criterion]:
    """The criterion with every combination of its settings that are a choice among words."""
    hints = get_type_hints(available()[name])
    choices = {n: get_args(h) for n, h in hints.items() if get_origin(h) is Literal and n != "problem_type"}
    return [
        make(name, problem_type=kind, **dict(zip(choices, values, strict=True)))
        for values in product(*choices.values())
    ]


VARIANTS = [pytest.param(c, id=f"{c}") for name, kind in CASES for c in variants(name, kind)]


def outputs_of(criterion: Criterion, seed: int, *, units: int = UNITS, sharpness: float = 1.0) -> list[ExitOutput]:
    """What E exits say, as float32; answers repeat now and then."""
    rng = np.random.default_rng(seed)
    width = 1 if criterion.problem_type == "regression" else CLASSES
    base = rng.normal(size=(units, width))
    result = []
    for e in range(EXITS):
        logits = base * (e + 1) + rng.normal(size=(units, width)) * rng.choice([0.01, 1.0], size=(units, 1))
        extras = {n: EXTRAS[n](rng, (units, width)).astype(np.float32) for n in criterion.needs}
        result.append(ExitOutput((sharpness * logits).astype(np.float32), extras))
    return result


def knobs_of(criterion: Criterion, xp: ModuleType = np, units: int = UNITS, **changed: Any) -> dict[str, Any]:
    values = {}
    for name, knob in criterion.knobs.items():
        kind = xp.int64 if knob.integer else xp.float64
        value = changed.get(name, knob.default)
        plain = np.broadcast_to(np.asarray(value, dtype=np.int64 if knob.integer else np.float64), (units,))
        values[name] = xp.asarray(plain.tolist(), dtype=kind)
    return values


def through(criterion: Criterion, outputs: list[ExitOutput], knobs: dict[str, Any], xp: ModuleType) -> Iterator[Any]:
    """Run all exits over all units (nobody is dropped) in one array library; yields numpy."""
    state = criterion.start(xp.asarray(list(range(len(outputs[0].logits)))))
    for stage, output in zip(STAGES, outputs, strict=True):
        own = ExitOutput(convert(output.logits, xp), {n: convert(v, xp) for n, v in output.extras.items()})
        decision, state = criterion.step(stage, own, state, knobs)
        yield to_numpy(decision.leave), to_numpy(decision.answer), {n: to_numpy(v) for n, v in state.items()}


def convert(array: np.ndarray, xp: ModuleType) -> Any:
    return array if xp is np else xp.asarray(array.tolist(), dtype=getattr(xp, array.dtype.name))


def to_numpy(array: Any) -> np.ndarray:
    return np.asarray(array) if not isinstance(array, array_api_strict._array_object.Array) else np.from_dlpack(array)


def first_exit(criterion: Criterion, outputs: list[ExitOutput], knobs: dict[str, Any]) -> np.ndarray:
    """[U]: exit index, the last where nothing fired before."""
    leaves = np.array([leave for leave, _, _ in through(criterion, outputs, knobs, np)])
    leaves[-1] = True
    return leaves.argmax(axis=0)


def test_something_is_found() -> None:
    assert len(available()) >= 6


def test_imports_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from offramp.criteria import available\n"
        "assert available(), 'no criteria'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@every_criterion
def test_declares_itself(name: str, kind: ProblemType) -> None:
    criterion = make(name, problem_type=kind)
    assert criterion.name == name
    assert criterion.summary
    assert "\n" not in criterion.summary
    assert criterion.knobs
    for knob_name, knob in criterion.knobs.items():
        knob.check(knob_name, knob.default)
    assert criterion.needs <= set(EXTRAS), "tell this test how to make the new extra"
    if isinstance(criterion, Scored):
        assert criterion.knobs["threshold"].faster == "up"
    default = next(f for f in fields(criterion) if f.name == "problem_type").default
    assert default in criterion.serves, "must be made without settings"


@pytest.mark.parametrize("name", available())
def test_refuses_other_problems(name: str) -> None:
    for kind in PROBLEM_TYPES:
        if kind not in available()[name].serves:
            with pytest.raises(UnsupportedError, match=name):
                make(name, problem_type=kind)


@every_criterion
def test_shapes(name: str, kind: ProblemType) -> None:
    criterion = make(name, problem_type=kind)
    outputs = outputs_of(criterion, seed=1)
    start = criterion.start(outputs[0].logits)
    assert all(len(values) == UNITS for values in start.values())
    for (leave, answer, state), output in zip(
        through(criterion, outputs, knobs_of(criterion), np), outputs, strict=True
    ):
        assert leave.shape == (UNITS,)
        assert leave.dtype == bool
        assert answer.shape == output.logits.shape
        assert set(state) == set(start)
        assert all(len(values) == UNITS for values in state.values())


@pytest.mark.parametrize("criterion", VARIANTS)
def test_same_in_every_array_library(criterion: Criterion) -> None:
    torch = pytest.importorskip("torch")
    outputs = outputs_of(criterion, seed=2)
    expected = list(through(criterion, outputs, knobs_of(criterion), np))
    for xp in (torch, array_api_strict):
        found = list(through(criterion, outputs, knobs_of(criterion, xp), xp))
        for (leave, answer, state), (leave_xp, answer_xp, state_xp) in zip(expected, found, strict=True):
            np.testing.assert_array_equal(leave, leave_xp)
            np.testing.assert_allclose(answer, answer_xp, rtol=1e-5, atol=1e-6)
            for key, values in state.items():
                np.testing.assert_allclose(values, state_xp[key], rtol=1e-5, atol=1e-6)
                assert values.dtype == state_xp[key].dtype


@pytest.mark.parametrize("criterion", VARIANTS)
def test_looks_at_no_number(criterion: Criterion) -> None:
    """On a device without numbers whoever looks at one gets an error; on a GPU he would have to wait for it."""
    torch = pytest.importorskip("torch")

    def there(array: np.ndarray) -> Any:
        return torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), device="meta")

    knobs = {name: there(values) for name, values in knobs_of(criterion).items()}
    outputs = outputs_of(criterion, seed=3)
    state = criterion.start(there(outputs[0].logits))
    for stage, output in zip(STAGES, outputs, strict=True):
        given = ExitOutput(there(output.logits), {name: there(values) for name, values in output.extras.items()})
        decision, state = criterion.step(stage, given, state, knobs)
        assert decision.leave.shape == (UNITS,)
        assert {decision.leave.device.type, decision.answer.device.type} == {"meta"}
        assert {values.device.type for values in state.values()} <= {"meta"}


@every_criterion
@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=25, deadline=None)
def test_knobs_are_monotone(name: str, kind: ProblemType, seed: int, data: st.DataObject) -> None:
    """Turned the faster way, no unit leaves later."""
    criterion = make(name, problem_type=kind)
    outputs = outputs_of(criterion, seed)
    for knob_name, knob in criterion.knobs.items():
        high = min(knob.high, 8.0)
        values = st.integers(int(knob.low), int(high)) if knob.integer else st.floats(knob.low, high)
        slow, fast = sorted((data.draw(values), data.draw(values)), reverse=knob.faster == "down")
        exits = [first_exit(criterion, outputs, knobs_of(criterion, **{knob_name: v})) for v in (slow, fast)]
        assert (exits[1] <= exits[0]).all()


@pytest.mark.parametrize("criterion", VARIANTS)
def test_a_fractional_knob_is_held_against_what_is_compared_with_it(criterion: Criterion) -> None:
    """With whole-number knobs at one of their ends, who leaves is those for whom that number is below the knob."""
    outputs = outputs_of(criterion, seed=6, sharpness=4)
    state, found = criterion.start(outputs[0].logits), []
    for stage, output in zip(STAGES, outputs, strict=True):
        found.append(criterion.compared(stage, output, state))
        _, state = criterion.step(stage, output, state, knobs_of(criterion))
    fractional = [name for name, knob in criterion.knobs.items() if not knob.integer]
    assert len(fractional) <= 1, "knob_grid knows one"
    if not fractional:
        assert all(numbers is None for numbers in found)
        return
    numbers = np.array(found)
    assert numbers.shape == (EXITS, UNITS)
    assert not np.isnan(numbers).any()
    value = float(np.median(numbers[np.isfinite(numbers)])) + 1e-7
    whole = {n: knob for n, knob in criterion.knobs.items() if knob.integer}
    ends = ({n: knob.low for n, knob in whole.items()}, {n: knob.high for n, knob in whole.items()})
    leaves = [
        [leave for leave, _, _ in through(criterion, outputs, knobs_of(criterion, **end, **{fractional[0]: value}), np)]
        for end in ends
    ]
    assert any(np.array_equal(leave, numbers < value) for leave in leaves)
    assert 0 < (numbers < value).sum() < numbers.size


@pytest.mark.parametrize("criterion", VARIANTS)
def test_settings_survive_json(criterion: Criterion) -> None:
    again = make(criterion.name, **json.loads(json.dumps(asdict(criterion))))
    assert again == criterion
    assert hash(again) == hash(criterion)


@every_criterion
def test_knobs_have_an_effect(name: str, kind: ProblemType) -> None:
    criterion = make(name, problem_type=kind)
    # Exits that a default threshold lets some leave at, and others not.
    outputs = outputs_of(criterion, seed=3, sharpness=1 if kind == "regression" else 4)
    for knob_name, knob in criterion.knobs.items():
        ends = (knob.low, min(knob.high, 1e6))
        exits = [first_exit(criterion, outputs, knobs_of(criterion, **{knob_name: value})) for value in ends]
        assert exits[0].sum() != exits[1].sum(), knob_name


@every_criterion
def test_each_unit_has_its_own_knobs(name: str, kind: ProblemType) -> None:
    criterion = make(name, problem_type=kind)
    outputs = outputs_of(criterion, seed=4)
    first = {n: np.full(UNITS, knob.low) for n, knob in criterion.knobs.items()}
    second = {n: np.full(UNITS, min(knob.high, 1e6)) for n, knob in criterion.knobs.items()}
    odd = np.arange(UNITS) % 2 == 1
    mixed = {n: np.where(odd, first[n], second[n]) for n in criterion.knobs}
    exits = [first_exit(criterion, outputs, knobs) for knobs in (first, second, mixed)]
    np.testing.assert_array_equal(exits[2], np.where(odd, exits[0], exits[1]))


@every_criterion
@given(seed=st.integers(0, 10_000), kept=st.lists(st.booleans(), min_size=UNITS, max_size=UNITS))
@settings(max_examples=25, deadline=None)
def test_kept_rows_step_as_they_would_among_all(name: str, kind: ProblemType, seed: int, kept: list[bool]) -> None:
    criterion = make(name, problem_type=kind)
    outputs = outputs_of(criterion, seed)
    knobs = knobs_of(criterion)
    mask = np.array(kept)
    state = criterion.start(outputs[0].logits)
    for place, (stage, output) in enumerate(zip(STAGES, outputs, strict=True)):
        everyone, after = criterion.step(stage, output, state, knobs)
        rows = ExitOutput(output.logits[mask], {n: v[mask] for n, v in output.extras.items()})
        some, after_some = criterion.step(
            stage, rows, {n: v[mask] for n, v in state.items()}, {n: v[mask] for n, v in knobs.items()}
        )
        np.testing.assert_array_equal(some.leave, everyone.leave[mask], err_msg=str(place))
        np.testing.assert_array_equal(some.answer, everyone.answer[mask])
        for key, values in after.items():
            np.testing.assert_array_equal(after_some[key], values[mask])
        state = after


EXTREME = {
    "far apart": [[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, -1e4, -1e4]],
    "all equal": [[0.0, 0.0, 0.0], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]],
    "tiny": [[1e-30, 0.0, -1e-30], [1e-7, 0.0, 0.0], [0.0, 0.0, 1e-38]],
}
DISTANCES = {
    "usual": [[1.0, 2.0, 3.0], [0.1, 0.2, 0.3], [5.0, 4.0, 3.0]],
    "zero": [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]],
    "identical prototypes": [[2.0, 2.0, 2.0], [1e-30, 1e-30, 1e-30], [1e30, 1e30, 1e30]],
    "one class absent": [[np.inf, 1.0, 2.0], [1.0, np.inf, 2.0], [1.0, 2.0, np.inf]],
    "one class there": [[1.0, np.inf, np.inf], [np.inf, 1.0, np.inf], [np.inf, np.inf, 0.0]],
    "no class there": [[np.inf, np.inf, np.inf]] * 3,
    "huge": [[3e38, 1.0, 3e38], [3e38, 3e38, 3e38], [0.0, 3e38, 3e38]],
}


@pytest.mark.parametrize("criterion", VARIANTS)
@pytest.mark.parametrize("logits", EXTREME)
@pytest.mark.filterwarnings("error")
def test_extreme_numbers(criterion: Criterion, logits: str) -> None:
    """No NaN, no warning; scores in [0, 1] but for rounding."""
    for distances in DISTANCES if "distances" in criterion.needs else ["usual"]:
        check_extreme(criterion, EXTREME[logits], DISTANCES[distances])


def check_extreme(criterion: Criterion, logits: list[list[float]], distances: list[list[float]]) -> None:
    kind = criterion.problem_type
    values = np.array(logits, dtype=np.float32)
    values = values[:, :1] if kind == "regression" else values
    extremes = {"distances": distances, "gate": [0.0, 1.0, 0.5], "null_space": [1.0, 0.0, 1e-30]}
    extras = {n: np.array(extremes[n], dtype=np.float32) for n in criterion.needs}
    output = ExitOutput(values, extras)
    if isinstance(criterion, Scored):
        score = criterion.score(STAGES[0], output)
        assert score.shape == (3,)
        assert np.isfinite(score).all()
        assert (score >= 0).all()
        assert (score <= 1 + 1e-6).all()
        high = knobs_of(criterion, units=3, threshold=criterion.knobs["threshold"].high)
        assert criterion.step(STAGES[0], output, {}, high)[0].leave.all(), "the high end lets everybody leave"
    state = criterion.start(values)
    for stage in STAGES:
        decision, state = criterion.step(stage, output, state, knobs_of(criterion, units=3))
        assert decision.leave.dtype == bool
        assert not any(np.isnan(v).any() for v in state.values())


@every_criterion
def test_missing_extras_are_named(name: str, kind: ProblemType) -> None:
    criterion = make(name, problem_type=kind)
    output = outputs_of(criterion, seed=5)[0]
    for needed in criterion.needs:
        with pytest.raises(UnsupportedError, match=needed):
            criterion.step(STAGES[0], ExitOutput(output.logits), criterion.start(output.logits), knobs_of(criterion))
