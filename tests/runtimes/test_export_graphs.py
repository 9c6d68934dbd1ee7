"""Every family and every head as ONNX graphs: stage by stage what torch says, in any company."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from offramp.criteria.base import score_name
from offramp.criteria.confidence import Confidence
from offramp.criteria.distance import EDR, DistanceRatio
from offramp.criteria.entropy import Entropy
from offramp.criteria.learned_stopping import LearnedStopping
from offramp.errors import UnsupportedError
from offramp.model.exits import ExitSettings
from offramp.model.modeling import add_exits
from offramp.runtimes.export.fuse import fuse
from offramp.runtimes.export.graph import Form, attention_as, can_mark, to_graph
from offramp.runtimes.export.stages import Part, Plan, plan_stages, sample, scorable
from offramp.runtimes.manifest import OUT
from offramp.runtimes.onnx import open_session
from offramp.types import ExitOutput

Make = Callable[..., Any]

DISTANT: dict[str, Any] = {"head": "prototypical", "head_settings": {"width": 8}, "pooling": "mean"}
FAMILIES = ("bert", "roberta", "distilbert", "albert", "electra", "mpnet", "deberta-v2", "modernbert")
FUSED = {"bert", "roberta", "distilbert", "albert", "electra"}
"""Whose attention knows nothing but lengths."""
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"head_settings": {"null_space": True}},
    "attention": {"head_settings": {"width": 8}},
    "gated": {},
    "mixing": {},
    "mixing, one layer": {"head": "mixing", "head_settings": {"reads": "this_layer"}},
    "own": {},
    "policy": {},
    "pooled": {},
    "prototypical, mlp": {"head": "prototypical", "head_settings": {"network": "mlp", "distance": "squared"}},
    "prototypical, identity": {"head": "prototypical", "head_settings": {"network": "identity"}},
    "prototypical, attention": {
        "head": "prototypical",
        "head_settings": {"network": "attention", "distance": "cosine"},
    },
    "linear, shared": {"head": "linear", "shared": True, "layers": (1, 2)},
    "linear, last too": {"head": "linear", "last_exit": "head"},
}
"""The case -> settings; the head is the case's name, unless they say otherwise."""


def inputs() -> dict[str, torch.Tensor]:
    """Other numbers of rows and tokens than the graphs were traced with, short texts beside long ones."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([13, 1, 7, 3, 13])
    tokens = torch.randint(1, 41, (5, 13), generator=generator)
    tokens[torch.arange(13) >= lengths[:, None]] = 0
    types = (torch.arange(13) > lengths[:, None] // 2).long()
    return {"tokens": tokens, "token_types": types, "lengths": lengths}


def graph_of(model: Any, part: Part, before: list[Plan], form: Form) -> onnx.ModelProto:
    with attention_as(model, form):
        return to_graph(part, sample(part, model, before))


def check(model: Any, *, form: Form | None = None, live: list[int] | None = None, scores: Any = ()) -> list[Any]:
    """Compare every graph of a model with torch. Returns the graphs."""
    form = form or ("marked" if can_mark(model) else "plain")
    types = (getattr(model.config, "type_vocab_size", 0) or 0) > 1
    plans = plan_stages(model, live or list(range(len(model.stages))), token_types=types, scores=scores)
    given, graphs = inputs(), []
    real = np.arange(13) < given["lengths"].numpy()[:, None]
    for place, plan in enumerate(plans):
        for part in (plan.layers, plan.exit):
            if part is None:
                continue
            with torch.no_grad():
                arrays = part(*(given[name] for name in part.reads))
            expected = dict(zip(part.gives, arrays, strict=True))
            graphs.append(fuse(graph_of(model, part, plans[:place], form)))
            session = open_session(graphs[-1].SerializeToString(), threads=1)
            feeds = {each.name: given[each.name].numpy() for each in session.get_inputs()}
            found = dict(zip([each.name for each in session.get_outputs()], session.run(None, feeds), strict=True))
            assert list(found) == [OUT + name for name in expected]
            for name, value in expected.items():
                pair = (found[OUT + name], value.numpy())
                pair = tuple(x[real] for x in pair) if name == "hidden" else pair
                np.testing.assert_allclose(*pair, atol=1e-4, rtol=1e-4, err_msg=name)
            given |= expected
    return graphs


def operators(graphs: list[Any]) -> list[str]:
    return [node.op_type for graph in graphs for node in graph.graph.node]


# Those that differ in what a graph must hold: positions by offset, by distance, by rotation; the others are like bert.
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in ("bert", "mpnet", "deberta-v2", "modernbert") else pytest.mark.long)
        for family in FAMILIES
    ],
)
def test_a_family(family: str, tiny_model: Make) -> None:
    model = tiny_model(family, ExitSettings(**DISTANT))
    assert can_mark(model) == (family in FUSED)
    found = operators(check(model, scores=[Entropy(), EDR()]))
    layers = model.stages[-1].last_layer
    assert found.count("MultiHeadAttention") == (layers if family in FUSED else 0)
    assert "Attention" not in found
    assert "AnyRows" not in found


@pytest.mark.parametrize("name", HEADS)
def test_a_head(name: str, tiny_model: Make) -> None:
    settings = {"head": name, "pooling": "backbone"} | HEADS[name]
    check(tiny_model("bert", ExitSettings(**settings)), scores=[Confidence()])


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("bert", "backbone"),
        *(pytest.param(*each, marks=pytest.mark.long) for each in [("mpnet", "mean"), ("modernbert", "cls")]),
    ],
)
def test_smaller_complete_models(family: str, pooling: Any, plain_model: Make) -> None:
    model = add_exits(plain_model(family), ExitSettings(head="own", members=(1, 2), pooling=pooling)).eval()
    graphs = check(model)
    assert [graph.graph.input[0].name for graph in graphs] == ["tokens"] * 3
    assert all(graph.graph.output[0].name == OUT + "logits" for graph in graphs)


def test_fewer_exits(tiny_model: Make) -> None:
    model = tiny_model("bert", ExitSettings(**DISTANT))
    plans = plan_stages(model, [1, 2], token_types=False, scores=[])
    assert [(p.stage.index, p.stage.first_layer, p.stage.last_layer, p.stage.layers) for p in plans] == [
        (0, 0, 2, 2),
        (1, 2, 3, 3),
    ]
    assert operators(check(model, live=[1, 2])[:1]).count("MultiHeadAttention") == 2


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_other_problems(kind: str, tiny_model: Make) -> None:
    outputs = 1 if kind == "regression" else 3
    scores = [] if kind == "regression" else [Entropy(problem_type=kind), Confidence(problem_type=kind)]  # type: ignore[arg-type]
    check(tiny_model("bert", problem_type=kind, num_labels=outputs), scores=scores)


@pytest.mark.parametrize("form", ["blocks", "plain"])
def test_without_marks_there_are_standard_operators_only(form: Form, tiny_model: Make) -> None:
    """For other runtimes than ONNX Runtime."""
    model = tiny_model("bert", ExitSettings(**DISTANT))
    graphs = check(model, form=form)
    assert {node.domain for graph in graphs for node in graph.graph.node} <= {"", "ai.onnx"}
    raw = graph_of(model, plan_stages(model, [2], token_types=False, scores=[])[0].layers, [], form)
    assert [entry.domain for entry in raw.opset_import] in ([""], ["ai.onnx"])


def test_a_class_that_was_never_seen_is_infinitely_far(tiny_model: Make) -> None:
    model = tiny_model("bert", ExitSettings(**DISTANT))
    model.offramp.heads[0].prototypes.seen[1] = False
    try:
        check(model, scores=[EDR(), DistanceRatio()])
    finally:
        model.offramp.heads[0].prototypes.seen[1] = True


def test_scores_are_those_of_the_criteria(tiny_model: Make) -> None:
    """Computed in the graph, and by numpy from the graph's own logits and distances."""
    rules = [Entropy(), Entropy(scale=(1.0, 2.0, 1.0)), Confidence(), DistanceRatio(), EDR(lam=3.0, fusion="geometric")]
    model = tiny_model("bert", ExitSettings(**DISTANT))
    plan = plan_stages(model, [0, 1, 2], token_types=False, scores=rules)[0]
    session = open_session(fuse(graph_of(model, plan.layers, [], "marked")).SerializeToString(), threads=1)
    given = inputs()
    names = [each.name.removeprefix(OUT) for each in session.get_outputs()]
    said = dict(
        zip(names, session.run(None, {name: given[name].numpy() for name in ("tokens", "lengths")}), strict=True)
    )
    output = ExitOutput(said["logits"], {"distances": said["extras.distances"]})
    for rule in rules:
        expected = rule.score(model.stages[0], output)
        np.testing.assert_allclose(said[f"extras.{score_name(rule)}"], expected, atol=1e-6)
    assert not any(name.startswith("extras") for name in last_outputs(model))


def last_outputs(model: Any) -> tuple[str, ...]:
    plan = plan_stages(model, [0, 1, 2], token_types=False, scores=[Entropy()])[-1]
    with torch.no_grad():
        plan.layers(*sample(plan.layers, model, []))
    return plan.layers.gives


def test_which_scores_can_be_in_a_graph() -> None:
    assert scorable(Entropy(), {})
    assert scorable(EDR(), {"distances": 3})
    assert not scorable(EDR(), {})
    assert not scorable(LearnedStopping(), {"distances": 3})  # it follows the exits before


def test_the_model_is_left_as_it_was(tiny_model: Make) -> None:
    model = tiny_model("bert", ExitSettings(**DISTANT))
    before = model.config._attn_implementation
    check(model)
    assert model.config._attn_implementation == before
    assert not any(module.training for module in model.modules())


def test_what_onnx_does_not_know_is_named(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert")
    part = Part(model, model.stages[0], 0, ("hidden", "lengths"))
    monkeypatch.setattr(part, "forward", lambda hidden, lengths: (torch.linalg.svd(hidden)[1],))
    part.gives = ("logits",)
    with pytest.raises(UnsupportedError, match=r"bert models with these exits cannot be exported .*svd"):
        to_graph(part, (torch.randn(2, 9, 32), torch.tensor([9, 5])))
