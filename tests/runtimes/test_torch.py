"""TorchRuntime besides the contract: what really enters each layer of a model, dtypes, and runs from a folder.

``tests/contracts/test_runtimes.py`` puts it through what every runtime must pass.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.criteria import Criterion
from offramp.criteria.distance import EDR
from offramp.criteria.entropy import Entropy
from offramp.criteria.patience import Patience
from offramp.engine.engine import Engine
from offramp.engine.record import record
from offramp.engine.units import Unit
from offramp.errors import KnobError, RunError
from offramp.inputs.batching import pad
from offramp.inputs.tokens import Encoded, Tokenizer
from offramp.model.backbone import SUPPORTED
from offramp.model.exits import ExitSettings
from offramp.runtimes.torch import TorchRuntime
from offramp.traces.replay import replay, scores
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace

DISTANT = ExitSettings(head="prototypical", head_settings={"width": 8}, pooling="mean")
FAMILIES = ("bert", "modernbert", "deberta-v2", "mpnet")
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def texts() -> list[Encoded]:
    rng = np.random.default_rng(3)
    lengths = [*range(1, 18), *rng.integers(1, 18, 15)]
    return [Encoded(rng.integers(1, 41, length).astype(np.int32), None, False) for length in lengths]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_model: Make) -> Any:
    return tiny_model(request.param, DISTANT)


@pytest.fixture(scope="module")
def trace(model: Any, texts: list[Encoded]) -> Trace:
    return record(TorchRuntime(model), texts, pad_token=0, batch_size=5, id2label=dict(enumerate("abc")))


def layers_of(model: Any) -> Sequence[torch.nn.Module]:
    """The layers themselves, as transformers names them in each family."""
    encoder = model.base_model
    return encoder.layers if model.config.model_type == "modernbert" else encoder.encoder.layer


class Watch:
    """Counts the rows and the padded tokens that enter every layer, at the layers themselves."""

    def __init__(self, model: Any) -> None:
        layers = layers_of(model)
        self.rows, self.positions = np.zeros((2, len(layers)), dtype=np.int64)
        self._hooks = [layer.register_forward_pre_hook(self._count(i)) for i, layer in enumerate(layers)]

    def _count(self, index: int) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            self.rows[index] += inputs[0].shape[0]
            self.positions[index] += inputs[0].shape[0] * inputs[0].shape[1]

        return hook

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()


def at_a_gap(trace: Trace, criterion: Any, share: float) -> dict[str, float]:
    """A threshold in the middle of the widest gap near a quantile of the scores."""
    values = np.unique(scores(trace, criterion)[:-1])
    centre = int(share * (len(values) - 8))
    at = centre + np.argmax(np.diff(values[centre : centre + 8]))
    return {"threshold": float((values[at] + values[at + 1]) / 2)}


def serve(
    runtime: TorchRuntime, criterion: Criterion, knobs: dict[str, float], texts: list[Encoded], max_rows: int
) -> tuple[list[int], list[int], Engine]:
    """Exit layers and labels, in the order of the texts."""
    engine = Engine(runtime, criterion, pad_token=0, max_rows=max_rows)
    engine.add([Unit(i, text) for i, text in enumerate(texts)], knobs)
    finished = {}
    while engine.busy:
        finished.update((unit.id, unit) for unit in engine.step())
    done = [finished[i] for i in range(len(texts))]
    return [unit.exit_layer for unit in done], [int(unit.answer.argmax()) for unit in done], engine


@pytest.mark.parametrize("max_rows", [1, 7, 32])
@pytest.mark.parametrize("share", [0.15, 0.5])
def test_only_texts_that_stay_are_computed(
    model: Any, trace: Trace, texts: list[Encoded], max_rows: int, share: float
) -> None:
    criterion = EDR(lam=1.0)
    knobs = at_a_gap(trace, criterion, share)
    expected = replay(trace, criterion, knobs)
    with Watch(model) as watch:
        exits, labels, engine = serve(TorchRuntime(model), criterion, knobs, texts, max_rows)
    assert exits == trace.layers[expected.exits].tolist()
    assert labels == expected.answers.argmax(-1).tolist()
    assert len(set(exits)) > 1
    lengths = np.array([len(text) for text in texts])
    for layer, (rows, positions) in enumerate(zip(watch.rows, watch.positions, strict=True)):
        here = np.array(exits) > layer
        assert rows == here.sum()
        assert lengths[here].sum() <= positions <= 1.5 * lengths[here].sum()
        if max_rows == 1:
            assert positions == lengths[here].sum()
    assert engine.counts.rows.tolist() == watch.rows.tolist()
    assert engine.counts.padded_tokens.tolist() == watch.positions.tolist()


def test_no_batch_size_changes_an_answer(model: Any, trace: Trace, texts: list[Encoded]) -> None:
    runtime = TorchRuntime(model)
    for criterion, knobs in (
        (Entropy(), at_a_gap(trace, Entropy(), 0.3)),
        (Patience(), {"patience": 1.0}),
    ):
        expected = replay(trace, criterion, knobs)
        for max_rows in (1, 7, 32):
            exits, labels, _ = serve(runtime, criterion, knobs, texts, max_rows)
            assert exits == trace.layers[expected.exits].tolist()
            assert labels == expected.answers.argmax(-1).tolist()


def test_a_trace_is_what_forward_says(model: Any, trace: Trace, texts: list[Encoded]) -> None:
    for i, text in enumerate(texts[:20]):
        with torch.no_grad():
            said = model(input_ids=torch.from_numpy(text.tokens[None].astype(np.int64)))
        np.testing.assert_allclose(said.exit_logits[0].numpy(), trace.logits[:, i], atol=2e-5)


def test_albert_calls_its_one_layer_again_and_again(tiny_model: Make, texts: list[Encoded]) -> None:
    model = tiny_model("albert", DISTANT)
    calls: list[int] = []
    layer = model.albert.encoder.albert_layer_groups[0].albert_layers[0]
    layer.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[0]))
    exits, _, _ = serve(TorchRuntime(model), Patience(), {"patience": 1.0}, texts, 32)
    assert sum(calls) == sum(exits)


# What it declares, and dtypes


def test_what_it_declares(tiny_model: Make) -> None:
    info = TorchRuntime(tiny_model("bert", DISTANT)).info
    assert (info.name, info.dtype, info.batch_invariant, info.num_outputs) == ("torch", "float32", True, 3)
    assert dict(info.extras) == {"distances": 3}
    assert info.num_layers == 3
    assert dict(TorchRuntime(tiny_model("bert")).info.extras) == {}


def test_a_model_is_put_into_eval_mode(tiny_model: Make) -> None:
    model = tiny_model("bert").train()
    TorchRuntime(model)
    assert not model.training


def test_bfloat16_says_float32_and_that_neighbours_matter(trained: Path) -> None:
    runtime = TorchRuntime.from_folder(trained, device="cpu", dtype="bfloat16")
    assert runtime.info.dtype == "bfloat16"
    assert not runtime.info.batch_invariant
    texts = [Encoded(np.array([2, 7, 9, 3], dtype=np.int32), None, False)]
    hidden, batch = runtime.embed(pad(texts, [0], pad_token=0, token_types=False))
    assert hidden.dtype == torch.bfloat16
    stage = runtime.info.stages[0]
    output, _ = runtime.exit(stage, runtime.run(stage, hidden, batch), batch, {})
    assert output.logits.dtype == output.extras["distances"].dtype == torch.float32


def test_bfloat16_keeps_the_prototypes_float32(trained: Path) -> None:
    runtime = TorchRuntime.from_folder(trained, device="cpu", dtype="bfloat16")
    exact = TorchRuntime.from_folder(trained, device="cpu")
    for ours, theirs in zip(runtime.model.offramp.early, exact.model.offramp.early, strict=True):
        assert ours.prototypes.means.dtype == torch.float32
        assert torch.equal(ours.prototypes.means, theirs.prototypes.means)


def test_nothing_is_kept_for_a_backward_pass(tiny_model: Make, texts: list[Encoded]) -> None:
    runtime = TorchRuntime(tiny_model("bert", DISTANT))
    hidden, batch = runtime.embed(pad(texts, list(range(len(texts))), pad_token=0, token_types=False))
    assert not runtime.run(runtime.info.stages[0], hidden, batch).requires_grad


# Lanes


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_lanes_answer_as_one_does(model: Any, texts: list[Encoded], trace: Trace) -> None:
    runtime = TorchRuntime(model, lanes=2)
    engine = Engine(runtime, Entropy(), pad_token=0, max_rows=4, lanes=2)
    threshold = float(np.median(scores(trace, Entropy())[0]))
    expected = replay(trace, Entropy(), {"threshold": threshold})
    found = list(engine.run_in_order([Unit(i, text) for i, text in enumerate(texts)], {"threshold": threshold}))
    assert [one.exit_index for one in found] == expected.exits.tolist()
    assert len(set(expected.exits.tolist())) > 1


@pytest.mark.usefixtures("two_threads")
def test_each_lane_takes_its_share_and_the_process_gets_it_back(
    model: Any, texts: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, seen = TorchRuntime(model, lanes=2), set()
    run = runtime.run

    def spy(*given: Any) -> Any:
        seen.add((threading.current_thread().name[:12], torch.get_num_threads()))
        return run(*given)

    monkeypatch.setattr(runtime, "run", spy)
    units = [Unit(i, text) for i, text in enumerate(texts)]
    engine = Engine(runtime, Entropy(), pad_token=0, max_rows=4, lanes=2)
    stream = engine.run_in_order(units, {"threshold": 0.0})
    next(stream)
    assert torch.get_num_threads() == 2  # of whoever reads the stream
    list(stream)
    assert seen == {("offramp-lane", 1)}
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), later) == (2, [2])
    list(Engine(runtime, Entropy(), pad_token=0).run_in_order(units))
    assert ("MainThread"[:12], 2) in seen


@pytest.mark.usefixtures("two_threads")
def test_lanes_there_cannot_be(model: Any) -> None:
    with pytest.raises(KnobError, match="lanes must be from 1 to the 2 threads there are, not 3"):
        TorchRuntime(model, lanes=3)
    with pytest.raises(KnobError, match="leave lanes out, or compile"):
        TorchRuntime(model, lanes=2, compile=True)


@pytest.mark.parametrize("dtype", ["float64", "int8", ""])
def test_a_dtype_it_does_not_have(trained: Path, dtype: str) -> None:
    with pytest.raises(KnobError, match="dtype must be one of float32, bfloat16, float16"):
        TorchRuntime.from_folder(trained, dtype=dtype)


def test_a_folder_that_is_no_run(tiny_encoder: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no 'offramp' section"):
        TorchRuntime.from_folder(tiny_encoder)
    with pytest.raises(RunError):
        TorchRuntime.from_folder(tmp_path)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_there_is_not(trained: Path, device: str) -> None:
    with pytest.raises(KnobError, match=f"device.*{device}"):
        TorchRuntime.from_folder(trained, device=device)


# A trained run


@pytest.mark.parametrize("max_rows", [1, 7, 32])
def test_a_trained_run_answers_as_its_trace(trained: Path, toy_data: Callable[[str], str], max_rows: int) -> None:
    trace = load_trace(trained / "traces" / "dev.safetensors")
    lines = (Path(toy_data("single_label_classification")) / "dev.jsonl").read_text().splitlines()
    texts = Tokenizer.from_folder(trained, max_length=48).encode([json.loads(line)["text"] for line in lines])
    knobs = at_a_gap(trace, EDR(), 0.4)
    expected = replay(trace, EDR(), knobs)
    exits, labels, _ = serve(TorchRuntime.from_folder(trained, device="cpu"), EDR(), knobs, texts, max_rows)
    assert exits == trace.layers[expected.exits].tolist()
    assert labels == expected.answers.argmax(-1).tolist()


@pytest.mark.parametrize("family", sorted(set(SUPPORTED) - {"xlm-roberta"}))  # that one is roberta
def test_no_family_has_the_host_wait(family: str, tiny_model: Make, nowhere: Make, texts: list[Encoded]) -> None:
    """From tokens to who leaves: masks, layers, exits and criterion look at no number."""
    engine = Engine(nowhere(tiny_model(family, DISTANT)), EDR(), pad_token=0, max_rows=8)
    finished = list(engine.run_in_order(Unit(i, text) for i, text in enumerate(texts)))
    assert [one.id for one in finished] == list(range(len(texts)))
    assert len({one.exit_index for one in finished}) > 1
