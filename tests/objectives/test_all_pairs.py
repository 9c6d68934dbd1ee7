"""LeeBERT's objective against slow loops: the terms, the weights, and the gradient of the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from offramp.errors import KnobError, UnsupportedError
from offramp.model.heads import HeadOutput
from offramp.objectives import Moment, make_objective
from offramp.objectives.all_pairs import AllPairs, pair_terms
from offramp.objectives.weighted_sum import WeightedSum

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
EXITS, ROWS, CLASSES, WIDTH = 4, 6, 3, 5
LAYERS = [1, 2, 4, 6]


def said(exits: int = EXITS) -> tuple[list[HeadOutput], Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [HeadOutput(torch.randn(ROWS, CLASSES, generator=generator)) for _ in range(exits)]
    return made, torch.arange(ROWS) % CLASSES


class Heads:
    """Linear heads on vectors that nothing else depends on; the last exit is none of theirs."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.modules = [nn.Linear(WIDTH, CLASSES) for _ in range(EXITS)]
        self.vectors = torch.randn(EXITS, ROWS, WIDTH)
        self.labels = torch.arange(ROWS) % CLASSES
        self.parameters = [p for module in self.modules[:-1] for p in module.parameters()]
        self.moment = Moment(training=True, step=20, progress=0.5, heads=self.parameters)

    def outputs(self) -> list[HeadOutput]:
        return [HeadOutput(head(x)) for head, x in zip(self.modules, self.vectors, strict=True)]


def term(outputs: list[HeadOutput], labels: Tensor, m: int, t: int, temperature: float) -> Tensor:
    """One term straight from its definition."""
    if m == t:
        return nn.functional.cross_entropy(outputs[m].logits, labels)
    teacher = (outputs[t].logits.detach() / temperature).softmax(-1)
    student = (outputs[m].logits / temperature).softmax(-1)
    return temperature**2 * (teacher * (teacher.log() - student.log())).sum(-1).mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_terms_in_a_slow_loop(temperature: float) -> None:
    outputs, labels = said()
    found = pair_terms(torch.stack([out.logits for out in outputs]), labels, temperature)
    for m in range(EXITS):
        for t in range(EXITS):
            assert found[m, t].item() == pytest.approx(term(outputs, labels, m, t, temperature).item(), abs=1e-6)


def test_a_teacher_is_not_taught_by_its_pupil() -> None:
    logits = torch.randn(3, 4, 2, requires_grad=True)
    pair_terms(logits, torch.tensor([0, 1, 0, 1]), 2.0)[0, 2].backward()
    assert [bool(gradient.any()) for gradient in logits.grad] == [True, False, False]


@pytest.mark.parametrize("teachers", ["all", "later"])
@pytest.mark.parametrize("by", ["equal", "depth"])
@pytest.mark.parametrize("distil", [0.0, 0.7])
def test_the_fixed_loss_in_a_few_lines(teachers: Any, by: Any, distil: float) -> None:
    outputs, labels = said()
    objective = AllPairs(EXITS, weights="fixed", teachers=teachers, by=by, distil=distil)
    counts = [1.0] * EXITS if by == "equal" else [float(layer) for layer in LAYERS]
    expected = 0.0
    for m in range(EXITS):
        for t in range(EXITS):
            share = 1.0 if m == t else distil / (EXITS - 1) * (teachers == "all" or t > m)
            expected += counts[m] / sum(counts) * share * term(outputs, labels, m, t, 2.0).item()
    assert objective(outputs, LAYERS, labels, SINGLE).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("exits", [1, 2, 4])
def test_without_distillation_and_by_depth_it_is_pabee(exits: int) -> None:
    outputs, labels = said(exits)
    found = AllPairs(exits, weights="fixed", distil=0, by="depth")(outputs, LAYERS[:exits], labels, SINGLE)
    expected = WeightedSum(by="depth")(outputs, LAYERS[:exits], labels, SINGLE)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_pairs_change_the_loss() -> None:
    outputs, labels = said()
    with_pairs, without = (AllPairs(EXITS, distil=d)(outputs, LAYERS, labels, SINGLE).item() for d in (1.0, 0.0))
    assert with_pairs > without + 0.01


# Learned weights


def test_they_begin_as_the_fixed_ones() -> None:
    outputs, labels = said()
    losses = [AllPairs(EXITS, weights=how)(outputs, LAYERS, labels, SINGLE).item() for how in ("fixed", "learned")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert not list(AllPairs(EXITS, weights="fixed").parameters())
    assert AllPairs(EXITS, weights="fixed").learning_rate is None


@given(
    st.lists(st.floats(-40, 40, width=32), min_size=EXITS * (EXITS - 1), max_size=EXITS * (EXITS - 1)),
    st.sampled_from(["all", "later"]),
    st.sampled_from(["equal", "depth"]),
)
@settings(deadline=None, max_examples=60)
def test_they_stay_positive_and_finite_and_their_sum_stays(levels: list[float], teachers: Any, by: Any) -> None:
    objective = AllPairs(EXITS, teachers=teachers, by=by)
    objective.levels.data = torch.tensor(levels).view(EXITS - 1, EXITS)
    like = torch.zeros(1)
    fixed, learned = objective.fixed(LAYERS, like), objective.weights(LAYERS, like)
    assert torch.isfinite(learned).all()
    assert torch.equal(learned > 0, fixed > 0)
    assert learned.sum().item() == pytest.approx(fixed.sum().item(), rel=1e-4)
    assert torch.equal(learned[-1], fixed[-1])


@pytest.mark.parametrize("step", [20, 30])
@pytest.mark.parametrize("clo", [0.0, 1.0, 2.5])
def test_the_hyper_gradient_in_a_slow_loop(step: int, clo: float) -> None:
    """One backward pass for each term, over every head's parameters; the halves change roles."""
    heads = Heads()
    objective = AllPairs(EXITS, clo=clo)
    halves = [slice(0, None, 2), slice(1, None, 2)]
    inner, outer = halves if step == 20 else halves[::-1]

    def gradient(loss: Tensor) -> Tensor:
        parts = torch.autograd.grad(loss, heads.parameters, allow_unused=True, retain_graph=True)
        filled = [
            torch.zeros_like(p) if part is None else part for p, part in zip(heads.parameters, parts, strict=True)
        ]
        return torch.cat([part.flatten() for part in filled])

    def half(rows: slice) -> list[HeadOutput]:
        return [HeadOutput(out.logits[rows]) for out in heads.outputs()]

    here, there = half(inner), half(outer)
    judged = sum(term(there, heads.labels[outer], m, m, 2.0) for m in range(EXITS)) / EXITS
    judged = judged + clo * sum(term(here, heads.labels[inner], m, m, 2.0) for m in range(EXITS)) / EXITS
    direction = gradient(judged)
    expected = torch.tensor(
        [
            [-(gradient(term(here, heads.labels[inner], m, t, 2.0)) @ direction).item() for t in range(EXITS)]
            for m in range(EXITS - 1)
        ]
    )
    logits = torch.stack([out.logits for out in heads.outputs()])
    found = objective.hyper_gradient(logits, heads.labels, replace(heads.moment, step=step))
    torch.testing.assert_close(found / found.norm(), expected / expected.norm(), atol=1e-5, rtol=1e-4)


def test_a_term_that_helps_on_other_rows_gains_weight() -> None:
    """Both halves hold the same texts: with the same labels one's lesson serves the other, with others it harms."""
    heads = Heads()
    heads.vectors[:, 1::2] = heads.vectors[:, 0::2]
    labels = heads.labels.clone()
    labels[1::2] = labels[0::2]
    logits = torch.stack([out.logits for out in heads.outputs()])
    alike = AllPairs(EXITS, clo=0).hyper_gradient(logits, labels, heads.moment)
    assert (alike.diagonal() < 0).all()  # the weight of a lesson that repeats itself rises
    labels[1::2] = (labels[1::2] + 1) % CLASSES
    with torch.no_grad():
        for head in heads.modules:  # says nothing yet, so that a row pulls towards its own label alone
            head.weight.mul_(0.0)
            head.bias.mul_(0.0)
    logits = torch.stack([out.logits for out in heads.outputs()])
    apart = AllPairs(EXITS, clo=0).hyper_gradient(logits, labels, heads.moment)
    assert (apart.diagonal() > 0).all()


def test_the_weights_get_the_hyper_gradient_and_the_model_its_own() -> None:
    heads = Heads()
    objective = AllPairs(EXITS)
    loss = objective(heads.outputs(), LAYERS, heads.labels, SINGLE, heads.moment)
    fixed = AllPairs(EXITS, weights="fixed")(heads.outputs(), LAYERS, heads.labels, SINGLE, heads.moment)
    assert loss.item() == pytest.approx(fixed.item(), rel=1e-6)
    expected = torch.autograd.grad(fixed, heads.parameters)
    loss.backward()
    for parameter, gradient in zip(heads.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)
    logits = torch.stack([out.logits for out in heads.outputs()])
    hyper = objective.hyper_gradient(logits, heads.labels, heads.moment)
    again = AllPairs(EXITS)
    (again.weights(LAYERS, logits)[:-1] * hyper).sum().backward()
    assert objective.levels.grad.abs().sum() > 0
    torch.testing.assert_close(objective.levels.grad, again.levels.grad)


@pytest.mark.parametrize("teachers", ["all", "later"])
def test_learned_weights_are_what_terms_count(teachers: Any) -> None:
    """The loss and the heads' gradients are those of the weighed terms, wherever learning has brought the weights."""
    heads = Heads()
    objective = AllPairs(EXITS, teachers=teachers)
    objective.levels.data = torch.linspace(-3, 3, EXITS * (EXITS - 1)).view(EXITS - 1, EXITS)
    weights = objective.weights(LAYERS, torch.zeros(1)).detach()
    assert not torch.allclose(weights[:-1], objective.fixed(LAYERS, torch.zeros(1))[:-1], atol=0.01)
    outputs = heads.outputs()
    expected = sum(weights[m, t] * term(outputs, heads.labels, m, t, 2.0) for m in range(EXITS) for t in range(EXITS))
    found = objective(outputs, LAYERS, heads.labels, SINGLE, heads.moment)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, slow = (torch.autograd.grad(loss, heads.parameters, retain_graph=True) for loss in (found, expected))
    for gradient, other in zip(ours, slow, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-5)


def test_the_hyper_gradient_has_no_part_in_clipping() -> None:
    """Trainer clips all gradients by their common norm: that of the weights must not shorten the model's."""
    heads = Heads()
    objective = AllPairs(EXITS)
    objective(heads.outputs(), LAYERS, heads.labels, SINGLE, heads.moment).backward()
    model = torch.stack([p.grad.norm() for p in heads.parameters]).norm()
    both = torch.stack([model, objective.levels.grad.norm()]).norm()
    assert objective.levels.grad.any()
    assert both.item() == pytest.approx(model.item(), rel=1e-6)


QUIET = {
    "on dev": {"training": False},
    "between two updates": {"step": 21},
    "while fixed weights warm up": {"progress": 0.1},
    "no head learns": {"heads": ()},
}


@pytest.mark.parametrize("changes", QUIET.values(), ids=QUIET)
def test_when_the_weights_rest(changes: dict[str, Any]) -> None:
    heads = Heads()
    objective = AllPairs(EXITS)
    objective(heads.outputs(), LAYERS, heads.labels, SINGLE, replace(heads.moment, **changes)).backward()
    assert objective.levels.grad is None


def test_a_batch_of_one_row_has_no_halves() -> None:
    heads = Heads()
    objective = AllPairs(EXITS)
    outputs = [HeadOutput(out.logits[:1]) for out in heads.outputs()]
    objective(outputs, LAYERS, heads.labels[:1], SINGLE, heads.moment).backward()
    assert objective.levels.grad is None


def test_without_gradients_nothing_is_asked() -> None:
    heads = Heads()
    with torch.no_grad():
        assert torch.isfinite(AllPairs(EXITS)(heads.outputs(), LAYERS, heads.labels, SINGLE, heads.moment))


def test_heads_that_the_loss_does_not_reach() -> None:
    heads = Heads()
    objective = AllPairs(EXITS)
    elsewhere = replace(heads.moment, heads=[nn.Parameter(torch.ones(2))])
    objective(heads.outputs(), LAYERS, heads.labels, SINGLE, elsewhere).backward()
    assert not objective.levels.grad.any()


def test_a_model_without_early_exits() -> None:
    outputs, labels = said(1)
    objective = AllPairs(1)
    assert not list(objective.parameters())
    expected = nn.functional.cross_entropy(outputs[0].logits, labels)
    assert objective(outputs, [6], labels, SINGLE).item() == pytest.approx(expected.item())


def test_other_problem_types_are_refused() -> None:
    outputs, _ = said()
    with pytest.raises(UnsupportedError, match=f"the data is {MULTI}"):
        AllPairs(EXITS)(outputs, LAYERS, torch.zeros(ROWS, CLASSES), MULTI)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "some"}, "objective.weights must be one of fixed, learned"),
        ({"teachers": "none"}, "objective.teachers must be one of all, later"),
        ({"by": "last"}, "objective.by must be one of equal, depth"),
        ({"distil": -1}, r"objective\.distil must be a number, 0 or more"),
        ({"temperature": 0}, r"objective\.temperature must be a number, 0.01 or more"),
        ({"warmup": 2}, r"objective\.warmup must be a number, from 0 to 1"),
        ({"every": 0}, r"objective\.every must be a whole number, 1 or more"),
        ({"clo": -1}, r"objective\.clo must be a number, 0 or more"),
        ({"learning_rate": "fast"}, r"objective\.learning_rate must be a number, 0 or more"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        make_objective("all_pairs", settings, num_exits=3)
