"""TorchRuntime with ``compile=True``: one graph a stage, few of them whatever the shapes, and the same answers.

torch's own compiler is not asked (tests/contracts/test_runtimes.py does, when there is time): a backend that runs each
graph as it is counts them, and a graph that breaks, which on a GPU could make the host wait, is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import offramp
from offramp.criteria.distance import EDR
from offramp.engine.engine import Engine
from offramp.engine.record import record
from offramp.engine.units import Unit
from offramp.errors import KnobError
from offramp.inputs.batching import pad
from offramp.inputs.tokens import Encoded
from offramp.model.backbone import SUPPORTED
from offramp.model.exits import ExitSettings
from offramp.runtimes import open_runtime
from offramp.runtimes.torch import TorchRuntime

Make = Callable[..., Any]
DISTANT = ExitSettings(head="prototypical", head_settings={"width": 8}, pooling="mean")
HEADS: tuple[dict[str, Any], ...] = (
    {"head": "prototypical", "head_settings": {"width": 8, "network": "attention", "distance": "cosine"}},
    *({"head": name, "pooling": "backbone"} for name in ("linear", "attention", "gated", "own", "policy", "pooled")),
    {"head": "mixing"},
)


class Counting:
    """A backend that runs graphs as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, examples: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    backend = Counting()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True, backend=backend))
    yield backend
    torch._dynamo.reset()


def texts_of(lengths: Any) -> list[Encoded]:
    rng = np.random.default_rng(3)
    return [Encoded(rng.integers(1, 41, length).astype(np.int32), None, False) for length in lengths]


def said(runtime: TorchRuntime, texts: list[Encoded]) -> list[torch.Tensor]:
    """Logits, and what else the exits give, of every exit."""
    hidden, batch = runtime.embed(pad(texts, list(range(len(texts))), pad_token=0, token_types=False))
    memory: Any = {}
    found = []
    for stage in runtime.info.stages:
        hidden = runtime.run(stage, hidden, batch)
        output, memory = runtime.exit(stage, hidden, batch, memory)
        found += [output.logits, *output.extras.values()]
    return found


@pytest.mark.parametrize("family", sorted(set(SUPPORTED) - {"xlm-roberta"}))  # that one is roberta
def test_the_layers_of_every_family_are_one_graph(family: str, tiny_model: Make, counting: Counting) -> None:
    model, texts = tiny_model(family, ExitSettings(layers=()), num_hidden_layers=2), texts_of([5, 9, 3])
    torch.testing.assert_close(
        said(TorchRuntime(model, compile=True), texts), said(TorchRuntime(model), texts), atol=1e-5, rtol=0
    )
    assert counting.graphs == 2  # and the model's own head


@pytest.mark.parametrize("settings", HEADS, ids=lambda settings: settings["head"])
def test_every_exit_is_one_graph(settings: dict[str, Any], tiny_model: Make, counting: Counting) -> None:
    model = tiny_model("bert", ExitSettings(**settings))
    compiled, plain = TorchRuntime(model, compile=True), TorchRuntime(model)
    texts = texts_of([5, 9, 3])
    hidden, batch = plain.embed(pad(texts, [0, 1, 2], pad_token=0, token_types=False))
    memories: list[Any] = [{}, {}]
    for stage in plain.info.stages[:2]:
        outputs, memories = zip(  # type: ignore[assignment]
            *(
                each.exit(stage, hidden, batch, memory)
                for each, memory in zip((compiled, plain), memories, strict=True)
            ),
            strict=True,
        )
        torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(dict(outputs[0].extras), dict(outputs[1].extras), atol=1e-5, rtol=0)
    assert counting.graphs == 2


@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(name, marks=pytest.mark.long) for name in ("deberta-v2", "modernbert"))]
)
def test_rows_and_lengths_cost_few_graphs(family: str, tiny_model: Make, counting: Counting) -> None:
    """Texts leave and are merged, in batches of many shapes."""
    model = tiny_model(family, ExitSettings(**{**vars(DISTANT), "layers": (1,)}), num_hidden_layers=2)
    compiled, plain = TorchRuntime(model, compile=True), TorchRuntime(model)
    texts = texts_of([*range(2, 18), *np.random.default_rng(4).integers(2, 18, 24)])
    scores = np.sort(EDR().score(*first_exit(plain, texts)))
    threshold = float(scores[len(scores) // 2 : len(scores) // 2 + 2].mean())
    functions = 2 * len(plain.info.stages)
    # A batch and a row alone. Of a first batch with as many rows as tokens torch would make a graph for such batches.
    for lengths in ([3, 5, 11, 7, 9, 6], [7]):
        said(compiled, texts_of(lengths))
    assert counting.graphs == 2 * functions
    shapes = watch_shapes(compiled)
    for max_rows, go_on in ((1, None), (5, 0.0), (7, np.inf), (16, 0.0)):
        answers = [serve(each, texts, threshold, max_rows, go_on) for each in (compiled, plain)]
        assert answers[0] == answers[1]
        assert {layer for layer, _ in answers[0]} == {1, plain.info.num_layers}
    assert len(shapes) > 20
    more = int(family == "deberta-v2")  # of its layers torch makes one for up to so many rows, and one for all
    assert counting.graphs <= 2 * functions + more
    for lengths in ([1], [1, 1, 1]):
        said(compiled, texts_of(lengths))
    assert counting.graphs <= 4 * functions + more


def first_exit(runtime: TorchRuntime, texts: list[Encoded]) -> tuple[Any, Any]:
    trace = record(runtime, texts, pad_token=0, batch_size=8, id2label=dict(enumerate("abc")))
    return trace.stages[0], trace.output(0)


def watch_shapes(runtime: TorchRuntime) -> set[tuple[int, int]]:
    """Rows and tokens of what enters the stages from now on."""
    seen: set[tuple[int, int]] = set()
    run = runtime.run

    def watched(stage: Any, hidden: torch.Tensor, batch: Any, active: Any = None) -> torch.Tensor:
        seen.add((hidden.shape[0], hidden.shape[1]))
        return run(stage, hidden, batch, active)

    runtime.run = watched  # type: ignore[method-assign]
    return seen


def serve(
    runtime: TorchRuntime, texts: list[Encoded], threshold: float, max_rows: int, go_on: float | None
) -> list[tuple[int, int]]:
    """Exit layers and labels, in the order of the texts."""
    engine = Engine(runtime, EDR(), pad_token=0, max_rows=max_rows, go_on=go_on)
    done = engine.run_in_order((Unit(i, text) for i, text in enumerate(texts)), {"threshold": threshold})
    return [(one.exit_layer, int(one.answer.argmax())) for one in done]


def test_exits_share_no_count_of_graphs(tiny_model: Make, counting: Counting) -> None:
    """torch gives up on a function after eight graphs."""
    runtime = TorchRuntime(tiny_model("bert", num_hidden_layers=10), compile=True)
    hidden, batch = runtime.embed(pad(texts_of([4, 6]), [0, 1], pad_token=0, token_types=False))
    for stage in runtime.info.stages[:-1]:
        runtime.exit(stage, hidden, batch, {})
    assert counting.graphs == 9


def test_a_head_that_looks_at_numbers_still_answers(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the null-space share first sees whether weights changed: torch breaks the graph there, and goes on."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=False))
    model = tiny_model("bert", ExitSettings(head="linear", head_settings={"null_space": True}))
    plain = TorchRuntime(model)
    hidden, batch = plain.embed(pad(texts_of([5, 9, 3]), [0, 1, 2], pad_token=0, token_types=False))
    stage = plain.info.stages[0]
    found, expected = (each.exit(stage, hidden, batch, {})[0] for each in (TorchRuntime(model, compile=True), plain))
    torch.testing.assert_close(dict(found.extras), dict(expected.extras), atol=1e-5, rtol=0)


def test_where_there_is_no_compiler(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, examples: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    classifier = offramp.load(trained, device="cpu", compile=True)
    sentence = r"torch.compile cannot make code here \(No working C\+\+ compiler found\): install a C\+\+ compiler"
    with pytest.raises(KnobError, match=sentence):
        classifier("a lovely gem")


def test_the_way_in(trained: Path, counting: Counting) -> None:
    texts = ["a lovely gem", "the dull film of a town", "weird"]
    expected = offramp.load(trained, device="cpu")(texts)
    assert counting.graphs == 0
    found = offramp.load(trained, runtime="torch", device="cpu", compile=True)(texts)
    assert counting.graphs > 0
    assert [(one.label, one.exit_layer) for one in found] == [(one.label, one.exit_layer) for one in expected]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_other_runtimes_are_compiled_already(trained: Path, name: str) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    for options in ({"compile": True}, {"attention": "eager"}):
        with pytest.raises(KnobError, match=f"compile and attention are of runtime torch, not of {name}"):
            open_runtime(trained, name, **options)  # type: ignore[arg-type]
