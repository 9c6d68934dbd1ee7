"""What every runtime must pass. To put a runtime to it, add a row to ``RUNTIMES``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace, device, to_device

from offramp.calibration.points import OperatingPoint, write_points
from offramp.criteria import Scored
from offramp.criteria.base import score_name
from offramp.criteria.confidence import Confidence
from offramp.criteria.depth import Depth
from offramp.criteria.distance import EDR, DistanceRatio
from offramp.criteria.entropy import Entropy
from offramp.criteria.patience import Patience, PatienceDelta
from offramp.engine.alone import Alone
from offramp.engine.engine import Engine
from offramp.engine.record import record
from offramp.engine.reference import reference
from offramp.engine.units import Unit
from offramp.inputs.batching import pad
from offramp.inputs.packing import keep, merge, trim
from offramp.inputs.tokens import Encoded
from offramp.runtimes import open_runtime
from offramp.runtimes.base import Runtime
from offramp.runtimes.cpu import cores
from offramp.runtimes.fake import FakeRuntime
from offramp.traces.replay import replay, scores


@dataclass(frozen=True)
class Case:
    """A runtime, and how near its numbers must be whatever a row's neighbours (0: to the last bit)."""

    make: Callable[[], Runtime] | None = None
    atol: float = 0.0
    token_types: bool = False
    family: str = ""
    """Without ``make``: TorchRuntime over a tiny model of this family (``tests/conftest.py``) ..."""
    exits: Mapping[str, Any] = field(default_factory=dict)
    """... with these ``ExitSettings`` ..."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """... and these changes to its config."""
    export: str | None = None
    """With ``family``: not torch, but its export: ``float32``, or how int8 is made."""
    served_by: str = "onnx"
    """What serves the export."""
    compile: bool = False
    """TorchRuntime: by ``torch.compile``."""

    @property
    def dtype(self) -> str:
        """Of the export."""
        return "float32" if self.export == "float32" else "int8"


MULTI, REGRESSION = "multi_label_classification", "regression"
DISTANT = {"head": "prototypical", "head_settings": {"width": 8}}
WEIGHED = DISTANT | {"pooling": "attention"}
ATTENTIVE = {"head": "prototypical", "head_settings": {"width": 8, "network": "attention", "distance": "cosine"}}
NEAR = 2e-5
"""float32 through a few layers: kernels round by shape."""
# A runtime must read any token id from 0 (padding) to 40, and texts of 1 to 17 tokens.
RUNTIMES: Mapping[str, Case] = {
    "fake": Case(FakeRuntime),
    "fake-memory": Case(lambda: FakeRuntime(memory=True)),
    "fake-chosen-exits": Case(lambda: FakeRuntime(exits=[2, 3])),
    "fake-chosen-exits-memory": Case(lambda: FakeRuntime(exits=[1, 4], memory=True), token_types=True),
    "fake-one-exit": Case(lambda: FakeRuntime(3, exits=[3])),
    "fake-plain-last": Case(lambda: FakeRuntime(plain_last=True)),
    "fake-float64": Case(lambda: FakeRuntime(dtype="float64")),
    "fake-no-distances": Case(lambda: FakeRuntime(num_outputs=5, distances=False)),
    "fake-multi-label": Case(lambda: FakeRuntime(problem_type=MULTI, memory=True)),
    "fake-regression": Case(lambda: FakeRuntime(problem_type=REGRESSION)),
    "torch-bert": Case(atol=NEAR, family="bert", exits=WEIGHED, token_types=True),
    "torch-modernbert": Case(atol=NEAR, family="modernbert", exits=DISTANT | {"pooling": "mean"}),
    "torch-deberta-v2": Case(atol=NEAR, family="deberta-v2", exits=ATTENTIVE),
    "torch-mpnet": Case(atol=NEAR, family="mpnet", exits={"pooling": "backbone", "layers": (1, 2), "shared": True}),
    "torch-albert-last-head": Case(atol=NEAR, family="albert", exits=DISTANT | {"layers": (2,), "last_exit": "head"}),
    "torch-multi-label": Case(atol=NEAR, family="bert", config={"problem_type": MULTI}),
    "torch-regression": Case(atol=NEAR, family="distilbert", config={"problem_type": REGRESSION, "num_labels": 1}),
    "torch-compile": Case(atol=NEAR, family="bert", exits=DISTANT | {"layers": (1,)}, token_types=True, compile=True),
    "onnx-bert": Case(atol=NEAR, family="bert", exits=DISTANT, token_types=True, export="float32"),
    "onnx-modernbert": Case(atol=NEAR, family="modernbert", exits=DISTANT | {"pooling": "mean"}, export="float32"),
    "onnx-deberta-v2": Case(atol=NEAR, family="deberta-v2", exits=ATTENTIVE, export="float32"),
    "onnx-mpnet-memory": Case(atol=NEAR, family="mpnet", exits={"head": "mixing"}, export="float32"),
    "onnx-chosen-exits": Case(atol=NEAR, family="albert", exits={"layers": (2,)}, export="float32"),
    "onnx-multi-label": Case(atol=NEAR, family="roberta", config={"problem_type": MULTI}, export="float32"),
    "onnx-regression": Case(
        atol=NEAR, family="distilbert", config={"problem_type": REGRESSION, "num_labels": 1}, export="float32"
    ),
    "onnx-int8-rows": Case(atol=NEAR, family="bert", exits=WEIGHED, token_types=True, export="rows"),
    "onnx-int8-static": Case(atol=NEAR, family="electra", exits=DISTANT | {"pooling": "mean"}, export="static"),
    "onnx-int8-dynamic": Case(atol=NEAR, family="bert", exits=DISTANT, export="dynamic"),
    "openvino-bert": Case(family="bert", exits=WEIGHED, token_types=True, export="float32", served_by="openvino"),
    "openvino-modernbert": Case(
        family="modernbert", exits=DISTANT | {"pooling": "mean"}, export="float32", served_by="openvino"
    ),
    "openvino-deberta-v2": Case(family="deberta-v2", exits=ATTENTIVE, export="float32", served_by="openvino"),
    "openvino-mpnet-memory": Case(family="mpnet", exits={"head": "mixing"}, export="float32", served_by="openvino"),
    "openvino-chosen-exits": Case(family="albert", exits={"layers": (2,)}, export="float32", served_by="openvino"),
    "openvino-multi-label": Case(
        family="roberta", config={"problem_type": MULTI}, export="float32", served_by="openvino"
    ),
    "openvino-regression": Case(
        family="distilbert",
        config={"problem_type": REGRESSION, "num_labels": 1},
        export="float32",
        served_by="openvino",
    ),
    "openvino-int8-rows": Case(family="bert", exits=WEIGHED, token_types=True, export="rows", served_by="openvino"),
    "openvino-int8": Case(family="bert", exits=WEIGHED, token_types=True, export="static", served_by="openvino"),
    "openvino-int8-mean": Case(
        family="electra", exits=DISTANT | {"pooling": "mean"}, export="static", served_by="openvino"
    ),
    "openvino-int8-mpnet": Case(family="mpnet", exits=DISTANT, export="static", served_by="openvino"),
}


SHARED = ("chosen-exits", "multi-label", "regression")
"""What exported runtimes share with torch's: looked at there every time, and in them when there is time.

Every time, tests/contracts/test_backbones.py looks at what torch makes of each family, and
tests/runtimes/test_openvino.py at the company and the trace of static int8's answers.
"""
LONG = {
    *(f"{name}-{kind}" for name in ("onnx", "openvino") for kind in SHARED),
    "torch-deberta-v2",
    "torch-mpnet",
    "torch-albert-last-head",
    "torch-compile",
    "onnx-modernbert",
    "onnx-deberta-v2",
    "openvino-mpnet-memory",
    "openvino-modernbert",
    "openvino-deberta-v2",
    "openvino-int8",
    "openvino-int8-mean",
    "openvino-int8-mpnet",
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in RUNTIMES],
)
def case(request) -> Case:
    return RUNTIMES[request.param]


@pytest.fixture(scope="module")
def model(case, request) -> Any:
    """Of a family, tiny; None: the runtime makes its own."""
    if case.make is not None:
        return None
    from offramp.model.exits import ExitSettings

    return request.getfixturevalue("tiny_model")(case.family, ExitSettings(**case.exits), **case.config)


@pytest.fixture(scope="module")
def exported(case, model, request) -> Path | None:
    """A run folder with the export; None: nothing is exported."""
    if case.export is None:
        return None
    from offramp.runtimes.export.onnx import export_onnx
    from offramp.runtimes.export.openvino import export_openvino

    folder = request.getfixturevalue("as_run")(model)
    rule = single_rule(case, model.problem_type)
    if rule is not None:
        point = OperatingPoint(name="default", criterion=rule.name, settings=asdict(rule), knobs={"threshold": 0.9})
        write_points(folder, [point])
    export = {"onnx": export_onnx, "openvino": export_openvino}[case.served_by]
    texts = ["a lovely gem", "the dull, broken film of a town", "weird", "music and people, that is the story"]
    int8 = None if case.export == "float32" else case.export
    made = export(folder, int8=int8, exits="all", texts=texts if int8 == "static" else None, threads=1)
    assert made.batch_invariant == (case.export != "dynamic")
    return folder


@pytest.fixture(scope="module")
def runtime(case, model, exported) -> Runtime:
    if case.make is not None:
        return case.make()
    if exported is not None:
        return open_runtime(exported, case.served_by, dtype=case.dtype, threads=1)
    from offramp.runtimes.torch import TorchRuntime

    return TorchRuntime(model, compile=case.compile)


def single_rule(case: Case, problem_type: Any) -> Scored | None:
    """The criterion of the operating point that a run is exported with."""
    if problem_type == REGRESSION:
        return None
    return EDR(lam=0.5) if "head_settings" in case.exits else Entropy(problem_type=problem_type)


@pytest.fixture(scope="module")
def texts(case) -> list[Encoded]:
    rng = np.random.default_rng(7)
    found = []
    for length in [*range(1, 18), *rng.integers(1, 18, 17)]:
        types = (np.arange(length) > length // 2).astype(np.int32) if case.token_types else None
        found.append(Encoded(rng.integers(1, 41, length).astype(np.int32), types, False))
    return found


@pytest.fixture(scope="module")
def alone(runtime, texts) -> list[list[dict[str, np.ndarray]]]:
    """[text][stage] name -> [...]: what every exit says of every text by itself."""
    return [
        [{name: values[0] for name, values in said.items()} for said in walk(runtime, [text], [0])] for text in texts
    ]


def to_numpy(array) -> np.ndarray:
    return np.asarray(to_device(array, "cpu"))


def start(runtime, texts, ids):
    chosen = [texts[i] for i in ids]
    return runtime.embed(pad(chosen, ids, pad_token=0, token_types=chosen[0].token_types is not None))


def advance(runtime, stage, hidden, batch, memory):
    """One stage -> hidden, memory, and name -> [B, ...] of what its exit said."""
    hidden = runtime.run(stage, hidden, batch)
    output, memory = runtime.exit(stage, hidden, batch, memory)
    return hidden, memory, {name: to_numpy(v) for name, v in {"logits": output.logits, **output.extras}.items()}


def walk(runtime, texts, ids):
    hidden, batch = start(runtime, texts, ids)
    memory, said = {}, []
    for stage in runtime.info.stages:
        hidden, memory, output = advance(runtime, stage, hidden, batch, memory)
        said.append(output)
    return said


def select(mask, rows):
    """keep, then trim."""
    hidden, batch, memory = rows
    there = array_namespace(batch.lengths).asarray(mask, device=device(batch.lengths))
    hidden, batch, memory = keep(there, rows)
    return (*trim(hidden, batch), memory)


# What a runtime says of itself


def test_stages_cover_all_layers_once(runtime):
    stages = runtime.info.stages
    assert [stage.index for stage in stages] == list(range(len(stages)))
    assert [stage.is_last for stage in stages] == [False] * (len(stages) - 1) + [True]
    begin = 0
    for stage in stages:
        assert stage.first_layer == (begin if stage.starts_from == "hidden" else 0)
        assert stage.last_layer > stage.first_layer
        assert stage.layers >= stage.last_layer
        begin = stage.last_layer
    assert runtime.info.num_layers == stages[-1].layers


def test_exits_give_what_is_declared(runtime, texts):
    info = runtime.info
    for stage, said in zip(info.stages, walk(runtime, texts, range(5)), strict=True):
        assert said["logits"].shape == (5, info.num_outputs)
        assert np.isfinite(said["logits"]).all()
        for name, width in info.extras.items():
            if name in said or not stage.is_last:
                assert said[name].shape == ((5, width) if width else (5,))
                assert not np.isnan(said[name]).any()


def test_embed_hands_the_batch_on(runtime, texts):
    ids = [3, 16, 8]
    hidden, batch = start(runtime, texts, ids)
    assert hidden.shape[:2] == (3, 17)
    assert to_numpy(batch.ids).tolist() == ids
    assert to_numpy(batch.lengths).tolist() == [len(texts[i]) for i in ids]
    assert to_numpy(batch.tokens)[0, :4].tolist() == texts[3].tokens.tolist()


# Neighbours


def check_rows(case, said, ids, index, alone):
    for row, unit in enumerate(ids):
        assert said.keys() == alone[unit][index].keys()
        for name, values in said.items():
            np.testing.assert_allclose(values[row], alone[unit][index][name], atol=case.atol, rtol=0, err_msg=name)


def test_rows_alone_equal_rows_in_a_batch(case, runtime, texts, alone):
    if not runtime.info.batch_invariant:
        pytest.skip("declares that neighbours matter")
    ids = list(range(len(texts)))
    for index, said in enumerate(walk(runtime, texts, ids)):
        check_rows(case, said, ids, index, alone)


def test_who_says_that_neighbours_matter_is_right(case, runtime, texts, alone):
    """It would be recalibrated for every batch size for nothing."""
    if runtime.info.batch_invariant:
        pytest.skip("declares that they do not")
    said = walk(runtime, texts, list(range(len(texts))))[-1]["logits"]
    assert np.abs(said - np.stack([each[-1]["logits"] for each in alone])).max() > 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_rows_alone_equal_rows_after_keep_merge_and_trim(case, runtime, texts, alone, seed):
    """Two batches lose rows at every exit, swap some, and go on: memory must have travelled with its rows."""
    if not runtime.info.batch_invariant:
        pytest.skip("declares that neighbours matter")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(texts)).tolist()
    groups = [(*start(runtime, texts, half), {}) for half in (order[:15], order[15:])]
    for stage in runtime.info.stages:
        parts = []
        for hidden, batch, memory in groups:
            hidden, memory, said = advance(runtime, stage, hidden, batch, memory)
            check_rows(case, said, to_numpy(batch.ids).tolist(), stage.index, alone)
            fate = rng.integers(0, 6, batch.lengths.shape[0])
            fate[0] = 1  # somebody stays
            parts += [select(fate == 1, (hidden, batch, memory)), select(fate > 1, (hidden, batch, memory))]
        hidden, batch, memory = merge([parts[0], parts[3]])
        groups = [group for group in [(*trim(hidden, batch), memory), merge([parts[1], parts[2]])] if len(group[1].ids)]


# Engine, reference and replay


def middle(values: np.ndarray, quantile: float) -> float:
    """A threshold near a quantile: the middle of the widest gap there, since equal to a value anything may happen."""
    ordered = np.unique(values[np.isfinite(values)].astype(np.float64))
    assert len(ordered) > 20
    centre = int(quantile * (len(ordered) - 2))
    near = np.arange(max(0, centre - 3), min(len(ordered) - 1, centre + 4))
    at = near[np.argmax(ordered[near + 1] - ordered[near])]
    return float((ordered[at] + ordered[at + 1]) / 2)


def points(trace):
    """Criteria with knobs, at thresholds where some leave at each exit."""
    kind = trace.problem_type
    found = [(Depth(problem_type=kind), {}), (Depth(problem_type=kind), {"layers": 2})]
    if kind == REGRESSION:
        moved = np.abs(np.diff(trace.logits[..., 0], axis=0))
        return [
            *found,
            *((PatienceDelta(), {"delta": middle(moved, q), "patience": n}) for q in (0.3, 0.7) for n in (1, 2)),
        ]
    found += [(Patience(problem_type=kind), {"patience": n}) for n in (1, 2, 3)]
    scored: list[Scored] = [Entropy(problem_type=kind), Confidence(problem_type=kind)]
    if "distances" in trace.extras:
        scored += [DistanceRatio(), EDR(lam=0.5), EDR(lam=2.0, own="nearest", others="mean", fusion="geometric")]
    for criterion in scored if trace.num_exits > 1 else []:
        values = scores(trace, criterion)[:-1]
        found += [(criterion, {"threshold": middle(values, q)}) for q in (0.02, 0.1, 0.4)]
    return found


@pytest.fixture(scope="module")
def trace(runtime, texts):
    return record(
        runtime, texts, pad_token=0, batch_size=7, id2label=dict(enumerate("abcde"[: runtime.info.num_outputs]))
    )


def labels(answers: np.ndarray, kind: str) -> np.ndarray:
    if kind == MULTI:
        return answers > 0
    return answers[:, 0] if kind == REGRESSION else answers.argmax(axis=-1)


@pytest.fixture(scope="module")
def expected(case, runtime, texts, trace):
    """[(criterion, knobs, reference's exit layers, reference's answers)], shown to agree with the replay."""
    found = []
    chosen = points(trace)
    if len(chosen) > 8 and case is not RUNTIMES["fake"]:  # which goes through them all
        chosen = chosen[2::4] if case.family else chosen[1::2]  # a real model takes its time
    for criterion, knobs in chosen:
        slow = reference(runtime, criterion, texts, knobs)
        found.append((criterion, knobs, np.array([f.exit_layer for f in slow]), np.stack([f.answer for f in slow])))
    return found


def test_texts_leave_all_over_the_place(runtime, expected):
    """Otherwise the tests below prove little."""
    layers = {layer for criterion, _, exits, _ in expected if criterion.name != "depth" for layer in exits.tolist()}
    assert len(layers) >= 0.6 * len(runtime.info.stages) or len(runtime.info.stages) == 1


def test_replay_of_its_own_trace_equals_the_reference(case, runtime, trace, expected):
    if not runtime.info.batch_invariant:
        pytest.skip("declares that neighbours matter")
    for criterion, knobs, exits, answers in expected:
        again = replay(trace, criterion, knobs)
        assert trace.layers[again.exits].tolist() == exits.tolist(), (criterion, knobs)
        if trace.problem_type != REGRESSION:
            assert np.array_equal(labels(again.answers, trace.problem_type), labels(answers, trace.problem_type))
        np.testing.assert_allclose(again.answers, answers.astype(np.float32), atol=case.atol, rtol=0)


class Counting:
    """Counts what enters each layer of any runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.info = runtime, replace(runtime.info, single="")
        self.embed, self.exit = runtime.embed, runtime.exit
        self.rows, self.tokens, self.positions = np.zeros((3, runtime.info.num_layers), dtype=np.int64)

    def run(self, stage, hidden, batch, active=None):
        layers = slice(stage.first_layer, stage.last_layer)
        self.rows[layers] += batch.lengths.shape[0]
        self.tokens[layers] += int(batch.lengths.sum())
        self.positions[layers] += hidden.shape[0] * hidden.shape[1]
        return self.runtime.run(stage, hidden, batch, active)


@pytest.mark.parametrize(("max_rows", "first"), [(1, 0), (2, 1), (7, 0), (32, 1)])
def test_the_engine_equals_the_reference_at_any_batch_size(case, runtime, texts, expected, max_rows, first):
    """Each point at a small size and at a larger one; where there are few, at all."""
    if not runtime.info.batch_invariant and max_rows > 1:
        pytest.skip("declares that neighbours matter")
    kind = runtime.info.problem_type
    lengths = np.array([len(text) for text in texts])
    for criterion, knobs, exits, answers in expected[first::2] if len(expected) > 3 else expected:
        counting = Counting(runtime)
        engine = Engine(counting, criterion, pad_token=0, max_rows=max_rows)
        engine.add([Unit(i, text) for i, text in enumerate(texts)], knobs)
        finished = {}
        while engine.busy:
            finished.update((f.id, f) for f in engine.step())
        fast = [finished[i] for i in range(len(texts))]
        assert [f.exit_layer for f in fast] == [f.layers_executed for f in fast] == exits.tolist(), (criterion, knobs)
        ours = np.stack([f.answer for f in fast])
        if kind != REGRESSION:
            assert np.array_equal(labels(ours, kind), labels(answers, kind))
        np.testing.assert_allclose(ours, answers, atol=case.atol, rtol=0)

        # Texts really stop being computed.
        for layer in range(runtime.info.num_layers):
            here = exits > layer
            assert counting.rows[layer] == here.sum()
            assert counting.tokens[layer] == lengths[here].sum()
        assert (counting.positions <= 1.5 * counting.tokens).all()
        first = [stage.first_layer for stage in runtime.info.stages]
        assert engine.counts.rows.tolist() == counting.rows[first].tolist()
        assert engine.counts.tokens.tolist() == counting.tokens[first].tolist()
        assert engine.counts.padded_tokens.tolist() == counting.positions[first].tolist()


def test_texts_that_come_one_at_a_time_are_answered_as_by_the_reference(case, runtime, texts, expected):
    for criterion, knobs, exits, answers in expected[::2] if len(expected) > 3 else expected:
        counting = Counting(runtime)
        alone = Alone(counting, criterion, knobs)
        found = [alone.answer(Unit(i, text)) for i, text in enumerate(texts)]
        assert [f.id for f in found] == list(range(len(texts)))
        assert [f.exit_layer for f in found] == [f.layers_executed for f in found] == exits.tolist()
        np.testing.assert_allclose(np.stack([f.answer for f in found]), answers, atol=case.atol, rtol=0)
        for layer in range(runtime.info.num_layers):
            assert counting.rows[layer] == (exits > layer).sum()


@pytest.mark.skipif(cores() < 2, reason="needs two cores")
def test_lanes_change_no_answer(case, exported, runtime, texts, expected):
    if exported is None or not runtime.info.batch_invariant:
        pytest.skip("is not exported, or declares that neighbours matter")
    lanes = open_runtime(exported, case.served_by, dtype=case.dtype, threads=2, lanes=2)
    assert lanes.threads == 1
    for criterion, knobs, exits, answers in expected[-2:]:
        engine = Engine(lanes, criterion, pad_token=0, max_rows=4, lanes=2)
        found = list(engine.run_in_order([Unit(i, text) for i, text in enumerate(texts)], knobs))
        assert [f.id for f in found] == list(range(len(texts)))
        assert [f.exit_layer for f in found] == exits.tolist()
        np.testing.assert_allclose(np.stack([f.answer for f in found]), answers, atol=case.atol, rtol=0)


# A text alone, in one call


def test_who_can_answer_a_text_alone_in_one_call(case, runtime):
    """ONNX Runtime, wherever an operating point holds one number of each exit against a threshold."""
    rule = None if case.export is None else single_rule(case, runtime.info.problem_type)
    can = case.served_by == "onnx" and rule is not None and not runtime.info.remembers
    assert runtime.info.single == (score_name(rule) if can else "")


def test_a_text_alone_in_one_call_is_answered_as_by_the_stages(case, runtime, texts, trace):
    if not runtime.info.single:
        pytest.skip("answers texts stage by stage")
    rule = single_rule(case, runtime.info.problem_type)
    values = scores(trace, rule)[:-1]
    stages = Counting(runtime)
    left = set()
    asked = [{"threshold": middle(values, quantile)} for quantile in (0.05, 0.3, 0.6)]
    asked += [{"threshold": threshold} for threshold in (0.0, 1.0)]
    asked += [{"threshold": 0.0, "max_layers": float(stage.layers)} for stage in runtime.info.stages]
    asked += [{"threshold": middle(values, 0.1), "max_layers": float(runtime.info.stages[-2].layers)}]
    for knobs in asked:
        engine = Engine(runtime, rule, pad_token=0, max_rows=1)
        fast = list(engine.run_in_order([Unit(i, text) for i, text in enumerate(texts)], knobs))
        slow = reference(stages, rule, texts, knobs)
        assert [(f.exit_layer, f.layers_executed, f.exit_index) for f in fast] == [
            (f.exit_layer, f.layers_executed, f.exit_index) for f in slow
        ]
        assert all(np.array_equal(f.answer, s.answer) for f, s in zip(fast, slow, strict=True))
        left |= {f.exit_index for f in fast}
        exits = np.array([f.exit_index for f in fast])
        assert engine.counts.rows.tolist() == [int((exits >= n).sum()) for n in range(len(runtime.info.stages))]
    assert len(left) == len(runtime.info.stages)
