"""Objectives against values worked out by hand and slow loops over rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp.errors import KnobError, UnsupportedError
from offramp.model.heads import HeadOutput
from offramp.objectives import base, make_objective
from offramp.objectives.base import exit_loss, exit_weights
from offramp.objectives.distance_aware import DistanceAware, distance_regularisation
from offramp.objectives.weighted_sum import WeightedSum

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
FORMS = ("ratio", "hinge", "softmax")


def slowly(distances: list[float], label: int, form: str, margin: float) -> float:
    """DAR of one row."""
    known = [(k, d) for k, d in enumerate(distances) if d != math.inf]
    own = [d for k, d in known if k == label]
    others = [d for k, d in known if k != label]
    if not own or not others:
        return 0.0
    d_own, d_other = own[0], min(others)
    if form == "hinge":
        return max(0.0, d_own - d_other + margin)
    if form == "softmax":
        lowest = min(d * d for _, d in known)
        total = sum(math.exp(lowest - d * d) for _, d in known)
        return d_own * d_own - lowest + math.log(total)
    larger = max(d_own, d_other)
    return 0.5 if larger == 0 else 0.5 * (1 + (d_own - d_other) / larger)


DISTANCES = st.floats(0, 8, width=32, allow_subnormal=False)


@given(
    st.lists(
        st.tuples(st.lists(DISTANCES | st.just(math.inf), min_size=4, max_size=4), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(FORMS),
    st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(deadline=None, max_examples=150)
def test_dar_equals_a_slow_loop(rows: list[tuple[list[float], int]], form: Any, margin: float) -> None:
    distances = torch.tensor([row for row, _ in rows], requires_grad=True)
    labels = torch.tensor([label for _, label in rows])
    found = distance_regularisation(distances, labels, form=form, margin=margin)
    expected = sum(slowly(row, label, form, margin) for row, label in rows) / len(rows)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    if found.requires_grad:
        found.backward()
        assert torch.isfinite(distances.grad[~distances.isinf()]).all()


@pytest.mark.parametrize(
    ("distances", "label", "ratio", "hinge"),
    [
        ([1.0, 4.0, 2.0], 0, 0.25, 0.0),  # well inside its class: (1 + (1 - 2) / 2) / 2
        ([1.0, 4.0, 2.0], 2, 0.75, 1.3),  # nearer to another: (1 + (2 - 1) / 2) / 2, 2 - 1 + .3
        ([2.0, 2.0, 9.0], 0, 0.5, 0.3),  # between two
        ([0.0, 3.0, 9.0], 0, 0.0, 0.0),  # at its prototype
        ([3.0, 0.0, 9.0], 0, 1.0, 3.3),  # at another's
        ([0.0, 0.0, 9.0], 0, 0.5, 0.3),  # both prototypes are in one place, and so is the text
        ([2.0, 2.1, math.inf], 0, 0.5 * (1 - 0.1 / 2.1), 0.2),  # a class that was never seen
    ],
)
def test_dar_by_hand(distances: list[float], label: int, ratio: float, hinge: float) -> None:
    given = torch.tensor([distances]), torch.tensor([label])
    assert distance_regularisation(*given).item() == pytest.approx(ratio, abs=1e-6)
    assert distance_regularisation(*given, form="hinge", margin=0.3).item() == pytest.approx(hinge, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_first_step_and_unseen_classes_have_no_say(form: Any) -> None:
    nothing = torch.full((2, 3), math.inf)
    assert distance_regularisation(nothing, torch.tensor([0, 1]), form=form).item() == 0
    one = torch.tensor([[1.0, math.inf, math.inf]])
    assert distance_regularisation(one, torch.tensor([0]), form=form).item() == 0  # no other
    assert distance_regularisation(one, torch.tensor([1]), form=form).item() == 0  # not its own
    with_say = torch.tensor([[1.0, 2.0, math.inf]])
    alone = distance_regularisation(with_say, torch.tensor([0]), form=form)
    both = distance_regularisation(torch.cat([with_say, one]), torch.tensor([0, 0]), form=form)
    assert both.item() == pytest.approx(alone.item() / 2)  # counted, so that micro-batches add up


def outputs(exits: int = 3, rows: int = 5, classes: int = 4) -> tuple[list[HeadOutput], Tensor]:
    """The last exit has no distances, as the model's own head has none."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for e in range(exits):
        extras = {"distances": torch.rand(rows, classes, generator=generator)} if e < exits - 1 else {}
        made.append(HeadOutput(torch.randn(rows, classes, generator=generator), extras))
    return made, torch.arange(rows) % classes


@pytest.mark.parametrize("by", ["equal", "depth"])
def test_weights_sum_to_1(by: Any) -> None:
    weights = exit_weights([2, 4, 6], by)
    assert weights.sum().item() == pytest.approx(1)
    assert weights.tolist() == pytest.approx([1 / 3] * 3 if by == "equal" else [1 / 6, 2 / 6, 3 / 6])


def test_pabee_weights_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """CE_i = 1 / i at each of six exits: sum i * 1/i / sum i = 6 / 21."""
    exits = [HeadOutput(torch.tensor(1 / i)) for i in range(1, 7)]
    monkeypatch.setattr("offramp.objectives.weighted_sum.exit_loss", lambda logits, labels, kind: logits)
    args = exits, range(1, 7), torch.zeros(1), SINGLE
    assert WeightedSum(by="depth")(*args).item() == pytest.approx(6 / 21)
    assert WeightedSum()(*args).item() == pytest.approx(sum(1 / i for i in range(1, 7)) / 6)


@pytest.mark.parametrize("by", ["equal", "depth"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_loss_of_de3bert_in_a_few_lines(by: Any, form: Any, alpha: float) -> None:
    said, labels = outputs()
    layers = [1, 2, 4]
    found = DistanceAware(form=form, alpha=alpha, by=by)(said, layers, labels, SINGLE)
    weight = {"equal": lambda m: 1.0, "depth": float}[by]
    losses = [-out.logits.log_softmax(-1)[torch.arange(5), labels].mean().item() for out in said]
    expected = sum(weight(m) * loss for m, loss in zip(layers, losses, strict=True)) / sum(map(weight, layers))
    dars = [
        sum(slowly(row, label, form, 0.3) for row, label in zip(distances, labels.tolist(), strict=True)) / 5
        for distances in (out.extras["distances"].tolist() for out in said[:-1])
    ]
    early = layers[:-1]
    expected += alpha * sum(weight(m) * dar for m, dar in zip(early, dars, strict=True)) / sum(map(weight, early))
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [77, 150])
@pytest.mark.parametrize("form", FORMS)
def test_many_classes(classes: int, form: Any) -> None:
    said, labels = outputs(rows=9, classes=classes)
    for out in said:
        out.logits.requires_grad_()
    loss = DistanceAware(form=form)(said, [1, 2, 3], labels, SINGLE)
    loss.backward()
    assert all(torch.isfinite(out.logits.grad).all() for out in said)


@pytest.mark.parametrize("kind", [MULTI, REGRESSION])
def test_distances_need_one_class_a_text(kind: Any) -> None:
    said, _ = outputs()
    with pytest.raises(UnsupportedError, match=f"one class a text; the data is {kind}"):
        DistanceAware()(said, [1, 2, 3], torch.zeros(5, 4), kind)


def test_exit_loss_by_problem_type() -> None:
    logits, half = torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([[2.0, -1.0], [0.5, 0.0]]).bfloat16()
    single = [math.log(1 + math.exp(-3)), math.log(1 + math.exp(0.5))]
    assert exit_loss(logits, torch.tensor([0, 1]), SINGLE).item() == pytest.approx(sum(single) / 2, rel=1e-5)
    multi = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(0.5)), math.log(2)]
    labels = torch.tensor([[True, False], [False, True]])
    assert exit_loss(logits, labels, MULTI).item() == pytest.approx(sum(multi) / 4, rel=1e-5)
    assert exit_loss(logits[:, :1], torch.tensor([1.0, 1.0]), REGRESSION).item() == pytest.approx((1 + 0.25) / 2)
    assert exit_loss(half, torch.tensor([0, 1]), SINGLE).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("weighted", {}, "no objective is called 'weighted': there is weighted_sum"),
        ("weighted_sum", {"alpha": 1}, "has no setting 'alpha': it has by"),
        ("distance_aware", {"form": "cube"}, "objective.form must be one of ratio, hinge, softmax"),
        ("distance_aware", {"by": "chance"}, "objective.by must be one of equal, depth"),
        ("weighted_sum", {"by": "chance"}, "objective.by must be one of equal, depth"),
        ("distance_aware", {"alpha": "much"}, "objective.alpha must be a number, 0 or more"),
        ("distance_aware", {"alpha": -1}, "objective.alpha must be a number, 0 or more"),
        ("distance_aware", {"margin": None}, "objective.margin must be a number, 0 or more"),
    ],
)
def test_settings_that_make_no_sense(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        make_objective(name, given)


def test_every_objective_is_made_by_its_name() -> None:
    assert isinstance(make_objective("weighted_sum", {"by": "depth"}), WeightedSum)
    assert make_objective("distance_aware", {"alpha": 1}) == DistanceAware(alpha=1)
    assert base.__name__.endswith("base")
