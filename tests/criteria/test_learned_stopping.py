"""Learned stopping where it runs: against plain loops, in every library, in an engine, and out of a run folder."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest

import offramp
from offramp.calibration.points import OperatingPoint, read_points, write_points
from offramp.calibration.stopping import fit_stopping
from offramp.calibration.sweep import choose
from offramp.criteria import make
from offramp.criteria.learned_stopping import LearnedStopping
from offramp.engine.engine import Engine
from offramp.engine.record import record
from offramp.engine.reference import reference
from offramp.engine.units import Unit
from offramp.errors import KnobError, UnsupportedError
from offramp.inputs.tokens import Encoded
from offramp.runtimes.fake import FakeRuntime
from offramp.traces.replay import replay, scores
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace
from offramp.types import ExitOutput, Stage

RNG = np.random.default_rng(8)
TEXTS = [Encoded(RNG.integers(1, 40, n).astype(np.int32), None, False) for n in RNG.integers(1, 13, 120)]

RUNTIMES: dict[str, Callable[[], FakeRuntime]] = {
    "distances": lambda: FakeRuntime(5),
    "no distances": lambda: FakeRuntime(5, distances=False),
    "last exit without distances": lambda: FakeRuntime(5, plain_last=True),
    "exits at some layers": lambda: FakeRuntime(6, exits=[2, 3]),
    "two models": lambda: FakeRuntime(6, members=[2]),
    "77 classes": lambda: FakeRuntime(4, num_outputs=77),
}


def labelled(runtime: FakeRuntime) -> Trace:
    """What a runtime says of the texts; labels that late exits and short texts are nearer to."""
    trace = record(runtime, TEXTS, pad_token=0, id2label={c: str(c) for c in range(runtime.info.num_outputs)})
    said, rng = trace.logits.argmax(axis=-1), np.random.default_rng(0)
    early = rng.random(trace.num_units) < np.where(trace.lengths < 6, 0.7, 0.2)
    return replace(trace, labels=np.where(early, said[0], said[-1]))


@pytest.fixture(scope="module", params=RUNTIMES)
def fitted(request: pytest.FixtureRequest) -> tuple[FakeRuntime, Trace, LearnedStopping]:
    runtime = RUNTIMES[request.param]()
    trace = labelled(runtime)
    return runtime, trace, fit_stopping(trace, LearnedStopping())


@pytest.fixture(scope="module")
def usual() -> tuple[Trace, LearnedStopping]:
    trace = labelled(RUNTIMES["distances"]())
    return trace, fit_stopping(trace, LearnedStopping())


def thresholds(trace: Trace, rule: LearnedStopping, count: int = 12) -> list[float]:
    """Between neighbouring scores."""
    ordered = np.unique(scores(trace, rule)[:-1].astype(np.float32)).astype(np.float64)
    places = np.linspace(0, len(ordered) - 2, count).astype(int)
    return [0.0, *(float(ordered[place] + ordered[place + 1]) / 2 for place in places), 1.01]


def as_in(array: np.ndarray, xp: Any) -> Any:
    return xp.asarray(array.tolist(), dtype=getattr(xp, array.dtype.name))


def test_something_was_learned(fitted: tuple[FakeRuntime, Trace, LearnedStopping]) -> None:
    """The other tests would say nothing of tables that let all leave at once."""
    _, trace, rule = fitted
    assert rule.ratio == ("distances" in trace.extras)
    assert len(rule.weights) == len(rule.stops) == trace.num_exits - 1
    assert np.abs([row[4] for row in rule.weights]).max() > 1e-3, "length says something here"
    doubt = scores(trace, rule)
    assert (doubt[-1] == 0).all()
    assert ((doubt >= 0) & (doubt <= 1)).all()
    exits = [np.unique(replay(trace, rule, {"threshold": t}).exits).size for t in thresholds(trace, rule)]
    assert max(exits) > 1


def test_engine_reference_and_replay_agree(fitted: tuple[FakeRuntime, Trace, LearnedStopping]) -> None:
    runtime, whole, rule = fitted
    trace, texts = whole.select(np.arange(40)), TEXTS[:40]
    for threshold in thresholds(trace, rule, count=4)[1:-1]:
        outcome = replay(trace, rule, {"threshold": threshold})
        slow = reference(runtime, rule, texts, {"threshold": threshold})
        assert [one.exit_index for one in slow] == outcome.exits.tolist()
        for rows in (1, 32):
            engine = Engine(runtime, rule, pad_token=0, max_rows=rows)
            units = (Unit(i, text) for i, text in enumerate(texts))
            fast = list(engine.run_in_order(units, {"threshold": threshold}))
            assert [one.exit_index for one in fast] == outcome.exits.tolist()
            np.testing.assert_array_equal([one.answer for one in fast], outcome.answers)


def test_the_knob_is_monotone(fitted: tuple[FakeRuntime, Trace, LearnedStopping]) -> None:
    _, trace, rule = fitted
    exits = np.array([replay(trace, rule, {"threshold": t}).exits for t in thresholds(trace, rule)])
    assert (np.diff(exits, axis=0) <= 0).all()
    assert (exits[0] == trace.num_exits - 1).all()
    assert (exits[-1] == 0).all()


def test_same_in_every_array_library(fitted: tuple[FakeRuntime, Trace, LearnedStopping]) -> None:
    torch = pytest.importorskip("torch")
    _, trace, rule = fitted
    trace = trace.select(np.arange(20))
    expected = scores(trace, rule)
    for xp in (torch, array_api_strict):
        state = rule.start(xp.asarray(list(range(20))))
        for stage in trace.stages:
            output = trace.output(stage.index)
            assert output.lengths is not None
            extras = {name: as_in(values, xp) for name, values in output.extras.items()}
            own = ExitOutput(as_in(output.logits, xp), extras, lengths=as_in(output.lengths, xp))
            score, state = rule.follow(stage, own, state)
            assert score.dtype == xp.float32
            found = np.from_dlpack(score) if xp is array_api_strict else score.numpy()
            np.testing.assert_allclose(found, expected[stage.index], rtol=2e-4, atol=2e-6)
            assert state["before"].dtype == xp.float32
            assert state["before"].shape == own.logits.shape


def test_score_alone_is_that_of_a_unit_without_a_past(usual: tuple[Trace, LearnedStopping]) -> None:
    trace, rule = usual
    start = rule.start(np.arange(trace.num_units))
    after = rule.follow(trace.stages[0], trace.output(0), start)[1]
    for stage in trace.stages[:-1]:
        output = trace.output(stage.index)
        alone = rule.score(stage, output)
        np.testing.assert_array_equal(alone, rule.follow(stage, output, start)[0])
        np.testing.assert_array_equal(alone, rule.compared(stage, output, start))
        with_a_past = rule.follow(stage, output, after)[0]
        assert (alone != with_a_past).any() == (stage.index > 0), "at the first exit there is none to learn from"


def by_hand(rule: LearnedStopping, trace: Trace, e: int, unit: int) -> float:
    """The probability of being right, with nothing but plain Python."""

    def log_p(logits: np.ndarray) -> list[float]:
        top = max(map(float, logits))
        total = sum(math.exp(float(z) - top) for z in logits)
        return [float(z) - top - math.log(total) for z in logits]

    def log_odds(p: float) -> float:
        return min(10.0, max(-10.0, p - math.log(max(-math.expm1(p), 1e-12))))

    now = log_p(trace.logits[e, unit])
    said = now.index(max(now))
    signals = [log_odds(now[said]), 0.0, 0.0, math.log(1 + int(trace.lengths[unit]))]
    if e:
        before = log_p(trace.logits[e - 1, unit])
        signals[1:3] = log_odds(before[said]), float(before.index(max(before)) == said)
    if rule.ratio:
        distances = [float(d) for d in trace.extras["distances"][e, unit]]
        own = distances.pop(said)
        nearest = min(distances)
        signals.append((own - nearest) / max(own, nearest))
    constant, *weights = rule.weights[e]
    return 1 / (1 + math.exp(-(constant + sum(w * s for w, s in zip(weights, signals, strict=True)))))


def test_probability_equals_a_plain_loop(fitted: tuple[FakeRuntime, Trace, LearnedStopping]) -> None:
    _, trace, rule = fitted
    state = rule.start(np.arange(trace.num_units))
    for stage in trace.stages[:-1]:
        output = trace.output(stage.index)
        expected = [by_hand(rule, trace, stage.index, unit) for unit in range(trace.num_units)]
        np.testing.assert_allclose(rule.probability(stage, output, state), expected, rtol=1e-4, atol=1e-6)
        state = rule.follow(stage, output, state)[1]


def tables(stops: list[float], prices: list[float]) -> LearnedStopping:
    return LearnedStopping(weights=((0.0,) * 5,), stops=(tuple(stops),), prices=tuple(prices))


STAGE = Stage(0, 0, 1, 1)
RIGHT = np.linspace(0, 1, 401)


@pytest.mark.parametrize("stops", [[0.9, 0.7, 0.2], [1.1, 0.7, 0.2], [1.1, 1.1, 0.6], [0.9, 0.5, 0.0], [1.0, 0.5, 0.1]])
def test_price_is_read_between_the_columns(stops: list[float]) -> None:
    prices = [0.001, 0.01, 0.1]
    found = tables(stops, prices)._price(RIGHT, STAGE)
    distinct = np.unique(stops).size == len(stops)
    if distinct:
        edges = [0.0, *reversed(stops), *([1.0] if stops[0] < 1 else [])]
        dear = [1.0, *reversed(prices), *([0.0] if stops[0] < 1 else [])]
        # Where two edges are at 0, or at 1, the cheaper one counts.
        inside = ((RIGHT > 0) | (stops[-1] > 0)) & ((RIGHT < 1) | (stops[0] != 1))
        np.testing.assert_allclose(found[inside], np.interp(RIGHT, edges, dear)[inside], atol=1e-12)
    assert (np.diff(found) <= 1e-12).all(), "surer is cheaper"
    for stop, price in zip(stops, prices, strict=True):
        leave = found < price
        assert leave[stop + 1e-9 < RIGHT].all(), "at the price of a column those above its stop leave ..."
        assert not leave[stop - 1e-9 > RIGHT].any(), "... and no others"


def test_price_with_equal_stops_and_at_the_ends() -> None:
    rule = tables([0.8, 0.8, 0.8], [0.001, 0.01, 0.1])
    low, at, high, sure = rule._price(np.array([0.7999999, 0.8, 0.9, 1.0]), STAGE)
    assert 0.1 <= low < 0.11
    assert (at, sure) == (0.001, 0.0)
    assert high == pytest.approx(0.0005)
    never, always = tables([1.1], [0.5]), tables([0.0], [0.5])
    assert (never._price(np.array([1.0]), STAGE) > 0).all()
    assert (always._price(np.array([0.0, 1.0]), STAGE) == [0.5, 0.0]).all()
    assert tables([1.0], [0.5])._price(np.array([1.0]), STAGE) == 0, "no 0 / 0"


GOOD: dict[str, Any] = {"weights": [[0.0] * 5] * 2, "stops": [[0.9, 0.5]] * 2, "prices": [0.1, 0.2]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": [[0.0] * 5]}, "weights are for 1 early exits and stops for 2"),
        ({"weights": [[0.0] * 6] * 2}, "weights must hold 5 numbers, without the distance ratio"),
        ({"ratio": True}, "weights must hold 6 numbers, with the distance ratio"),
        ({"ratio": "yes"}, "ratio must be true or false, not 'yes'"),
        ({"stops": [[0.9]] * 2}, "one number for each of the prices"),
        ({"prices": []}, "one number for each of the prices"),
        ({"prices": [], "stops": [[]] * 2}, "one number for each of the prices"),
        ({"weights": [], "stops": []}, "one number for each of the prices"),
        ({"prices": [0.2, 0.1]}, "prices must rise"),
        ({"prices": [0.0, 0.1]}, "between 0 and 1"),
        ({"prices": [0.1, 1.0]}, "between 0 and 1"),
        ({"stops": [[0.5, 0.9]] * 2}, "never rise"),
        ({"stops": [[0.5, None]] * 2}, "stops must hold finite numbers, not None"),
        ({"stops": [["0.9", "0.5"]] * 2}, "finite numbers, not '0.9'"),
        ({"weights": [[math.nan] * 5] * 2}, "finite numbers, not nan"),
        ({"weights": ["00000"] * 2}, "each row of weights must be a list, not '00000'"),
        ({"weights": 3}, "weights must be a list, not 3"),
        ({"prices": {"0.1": 1}}, "prices must be a list"),
        ({"prices": [True, 2]}, "finite numbers, not True"),
    ],
)
def test_wrong_tables_are_refused(changed: dict[str, Any], message: str) -> None:
    assert make("learned_stopping", **GOOD).stops == ((0.9, 0.5), (0.9, 0.5))
    with pytest.raises(KnobError, match=message) as caught:
        make("learned_stopping", **(GOOD | changed))
    assert "`fit_stopping`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_of_another_model(usual: tuple[Trace, LearnedStopping]) -> None:
    """A table with too few or too many exits is not read as if it fitted."""
    _, rule = usual
    more = labelled(FakeRuntime(6))
    with pytest.raises(KnobError, match="fitted on 4 early exits, and this model has 5 or more"):
        replay(more, rule, {"threshold": 0.0})
    fewer = labelled(FakeRuntime(3))
    with pytest.raises(KnobError, match="fitted on 4 early exits, and this model has 2: fit it again"):
        scores(fewer, rule)
    with pytest.raises(KnobError, match="fitted on 0 early exits"):
        LearnedStopping().probability(fewer.stages[0], fewer.output(0), {"before": np.zeros((1, 1))})


def test_what_an_exit_does_not_give_is_named(usual: tuple[Trace, LearnedStopping]) -> None:
    trace, rule = usual
    assert rule.ratio
    plain = replace(trace, extras={})
    with pytest.raises(UnsupportedError, match="needs 'distances' at every exit"):
        replay(plain, rule, {})
    engine = Engine(FakeRuntime(5, distances=False), rule, pad_token=0)
    with pytest.raises(UnsupportedError, match="'distances'"):
        list(engine.run([Unit(0, TEXTS[0])]))
    with pytest.raises(UnsupportedError, match="give ExitOutput its lengths"):
        rule.score(trace.stages[0], replace(trace.output(0), lengths=None))


def test_long_texts_stay_where_length_tells_against_them() -> None:
    rule = replace(tables([0.9, 0.5], [0.01, 0.1]), weights=((3.0, 0.0, 0.0, 0.0, -1.0),))
    logits = np.zeros((3, 2), dtype=np.float32)
    score = rule.score(STAGE, ExitOutput(logits, lengths=np.array([2, 20, 200])))
    assert (np.diff(score) > 0).all()


def test_tokens_have_the_length_of_their_text() -> None:
    trace = Trace(
        logits=np.zeros((1, 5, 2), dtype=np.float32),
        layers=np.array([1]),
        lengths=np.array([7, 9]),
        offsets=np.array([0, 2, 5]),
        problem_type="single_label_classification",
        id2label={0: "a", 1: "b"},
    )
    assert trace.output(0).lengths.tolist() == [7, 7, 9, 9, 9]  # type: ignore[union-attr]


def test_survives_an_operating_point(usual: tuple[Trace, LearnedStopping], tmp_path: Path) -> None:
    trace, rule = usual
    point = choose(trace, rule, speedup=1.5)
    write_points(tmp_path, [point])
    json.loads((tmp_path / "operating_points.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    [again] = read_points(tmp_path)
    made = make(again.criterion, **again.settings)
    assert made == rule
    assert hash(made) == hash(rule)
    np.testing.assert_array_equal(scores(trace, made), scores(trace, rule))
    assert replay(trace, made, again.knobs).exits.tolist() == replay(trace, rule, point.knobs).exits.tolist()


def test_a_run_folder_leaves_by_it(trained: Path, toy_data: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    trace = load_trace(folder / "traces" / "dev.safetensors")
    rule = fit_stopping(trace, LearnedStopping())
    assert rule.ratio
    point = choose(trace, rule, speedup=1.3, name="learned")
    write_points(folder, [point])
    classifier = offramp.load(folder)
    texts = [json.loads(line)["text"] for line in (Path(toy_data()) / "dev.jsonl").read_text().splitlines()]
    expected = replay(trace, rule, point.knobs).exits
    assert len(set(expected.tolist())) > 1
    assert [p.exit_layer for p in classifier(texts)] == trace.layers[expected].tolist()
    assert [p.exit_layer for p in classifier(texts, threshold=0.0)] == [trace.num_layers] * len(texts)
    assert {p.exit_layer for p in classifier(texts, speedup=trace.num_layers)} == {1}


def test_the_page_does_what_it_says(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code in docs/learned-stopping.md, on a run folder where it expects one."""
    page = Path(__file__).parents[2] / "docs" / "learned-stopping.md"
    [code] = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    folder = tmp_path / "runs" / "x"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(tmp_path)
    before = read_points(folder)
    exec(code, {})
    learned, *others = read_points(folder)
    assert others == before
    assert (learned.name, learned.criterion) == ("learned", "learned_stopping")
    assert learned.measured["layer_speedup"] >= 2
    assert offramp.load(folder).default_point == learned


PROGRAM = """
import json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "sklearn", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
import numpy as np
from offramp.calibration.points import read_points
from offramp.calibration.stopping import fit_stopping
from offramp.criteria import make
from offramp.errors import MissingExtraError
from offramp.traces.replay import replay, scores
from offramp.traces.store import load_trace

trace = load_trace(sys.argv[1] + "/trace.safetensors")
[point] = read_points(sys.argv[1])
rule = make(point.criterion, **point.settings)
try:
    fit_stopping(trace, rule)
except MissingExtraError as error:
    said = str(error)
exits = replay(trace, rule, point.knobs).exits.tolist()
print(json.dumps([scores(trace, rule).tolist(), exits, said]))
"""


def test_runs_without_torch_and_scikit_learn(usual: tuple[Trace, LearnedStopping], tmp_path: Path) -> None:
    from offramp.traces.store import save_trace

    trace, rule = usual
    save_trace(trace, tmp_path / "trace")
    point = OperatingPoint(name="a", criterion=rule.name, settings=asdict(rule), knobs={"threshold": 0.02})
    write_points(tmp_path, [point])
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    doubt, exits, said = json.loads(done.stdout)
    np.testing.assert_array_equal(np.array(doubt), scores(trace, rule))
    assert exits == replay(trace, rule, {"threshold": 0.02}).exits.tolist()
    assert said == "this needs sklearn, which is not installed: pip install 'offramp[train]'"


def test_before_anything_was_learned_it_is_confidence(usual: tuple[Trace, LearnedStopping]) -> None:
    trace, _ = usual
    np.testing.assert_array_equal(scores(trace, LearnedStopping()), scores(trace, make("confidence")))
