"""Exit heads: distances against slow loops, every network, and what must not depend on the neighbours."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.errors import KnobError
from offramp.model.heads import Head, Reader, Surroundings, make_head
from offramp.model.heads.prototypical import distances_to
from offramp.model.pooling import AttentionPool, pool_tokens

NETWORKS = ("linear", "mlp", "identity", "attention")
DISTANCES = ("euclidean", "squared", "cosine")
LENGTHS = torch.tensor([9, 1, 5, 12, 3])


def surroundings(classes: int = 3) -> Surroundings:
    return Surroundings(
        hidden_size=16, pooled_size=16, num_outputs=classes, problem_type="single_label_classification", dropout=0.5
    )


def mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    return pool_tokens(hidden, lengths, "mean")


def prototypical(classes: int = 3, **settings: Any) -> Head:
    torch.manual_seed(3)
    head = make_head("prototypical", surroundings(classes), {"width": 8, **settings})
    head.prototypes.means.normal_()
    head.prototypes.seen.fill_(True)
    return head.eval()


def hidden(lengths: Tensor = LENGTHS) -> Tensor:
    return torch.randn(len(lengths), int(lengths.max()), 16, generator=torch.Generator().manual_seed(4))


def slowly(a: list[float], b: list[float], distance: str) -> float:
    if distance == "cosine":
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return 1 - dot / (math.hypot(*a) * math.hypot(*b))
    squared = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    return squared if distance == "squared" else math.sqrt(squared)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_equal_a_slow_loop(distance: Any) -> None:
    embedded, means = torch.randn(7, 5), torch.randn(4, 5)
    seen = torch.tensor([True, True, False, True])
    found = distances_to(embedded, means, seen, distance=distance)
    for row, distances in zip(embedded.tolist(), found.tolist(), strict=True):
        for k, (mean, value) in enumerate(zip(means.tolist(), distances, strict=True)):
            assert value == (pytest.approx(slowly(row, mean, distance), abs=1e-5) if seen[k] else math.inf)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("width", [1, 8, 128])
def test_distances_do_not_depend_on_the_neighbours(distance: Any, width: int) -> None:
    """To the last bit, as the docstring says; so a matrix product over the batch would be seen."""
    embedded, means = torch.randn(33, width) + 100, torch.randn(3, width) + 100
    seen = torch.ones(3, dtype=torch.bool)
    together = distances_to(embedded, means, seen, distance=distance)
    for i in range(33):
        assert torch.equal(distances_to(embedded[i : i + 1], means, seen, distance=distance)[0], together[i])
        assert torch.equal(distances_to(embedded[i : i + 5], means, seen, distance=distance)[0], together[i])


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_gradient_at_distance_0_is_finite(distance: Any) -> None:
    means = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    embedded = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    distances = distances_to(embedded, means, torch.tensor([True, True]), distance=distance)
    assert torch.isfinite(distances).all()
    assert distances[0, 0].item() == pytest.approx(0, abs=1e-6)
    distances.sum().backward()
    assert torch.isfinite(embedded.grad).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_class_without_prototype_gives_no_gradient(distance: Any) -> None:
    embedded = torch.randn(4, 3, requires_grad=True)
    distances = distances_to(embedded, torch.zeros(2, 3), torch.tensor([False, False]), distance=distance)
    assert distances.isinf().all()
    distances.masked_fill(distances.isinf(), 0).sum().backward()
    assert torch.equal(embedded.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_text_says_the_same_alone_and_whatever_stands_in_the_padding(network: str, distance: str) -> None:
    head, states = prototypical(network=network, distance=distance), hidden()
    together, _ = head(states, LENGTHS, Reader(mean), {})
    assert together.extras["distances"].shape == (5, 3)
    dirty = states.clone()
    for row, length in enumerate(LENGTHS.tolist()):
        dirty[row, length:] = 1e30
        alone, _ = head(states[row : row + 1, :length], LENGTHS[row : row + 1], Reader(mean), {})
        torch.testing.assert_close(alone.logits[0], together.logits[row], atol=1e-5, rtol=1e-5)
        for name, values in together.extras.items():
            torch.testing.assert_close(alone.extras[name][0], values[row], atol=1e-5, rtol=1e-5)
    assert torch.equal(head(dirty, LENGTHS, Reader(mean), {})[0].extras["distances"], together.extras["distances"])


@pytest.mark.parametrize("network", NETWORKS)
def test_the_network_learns_and_reads_without_dropout(network: str) -> None:
    head, states = prototypical(network=network).train(), hidden().requires_grad_()
    first, second = (head(states, LENGTHS, Reader(mean), {})[0] for _ in range(2))
    assert torch.equal(first.embedded, second.embedded)
    assert first.embedded.shape == (5, 16 if network == "identity" else 8)
    assert not torch.equal(first.logits, second.logits)  # the classifier's dropout is .5
    first.extras["distances"].sum().backward()
    assert states.grad.abs().sum() > 0
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in head.network.parameters())


@pytest.mark.parametrize("network", NETWORKS)
def test_distances_that_nobody_reads_are_not_computed(network: str) -> None:
    head, states, asked = prototypical(network=network), hidden(), []
    head.network.register_forward_hook(lambda *_: asked.append(1))
    with torch.no_grad():
        output, _ = head(states, LENGTHS, Reader(mean), {})
        assert (set(output.extras), len(output.extras), asked) == ({"distances"}, 1, [])
        again = output.extras["distances"]
    assert output.extras["distances"] is again
    assert asked == [1]
    head.train()
    assert torch.equal(head(states, LENGTHS, Reader(mean), {})[0].extras["distances"], again)


def test_attention_is_a_weighted_mean_of_the_tokens() -> None:
    head, states = prototypical(network="attention"), hidden()
    embedded = head.train()(states, LENGTHS, Reader(mean), {})[0].embedded
    score, project = head.network.score, head.network.project
    for row, length in enumerate(LENGTHS.tolist()):
        weights = [math.exp(score(states[row, t]).item()) for t in range(length)]
        mixed = sum(w * states[row, t] for t, w in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(embedded[row], project(mixed), atol=1e-5, rtol=1e-5)


def test_distances_are_float32_under_autocast() -> None:
    head = prototypical().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said, _ = head(hidden(), LENGTHS, Reader(mean), {})
    assert said.embedded.dtype == torch.bfloat16
    assert said.extras["distances"].dtype == torch.float32
    expected = distances_to(said.embedded.float(), head.prototypes.means, head.prototypes.seen)
    assert torch.equal(said.extras["distances"], expected)


def test_linear_is_pool_and_one_layer() -> None:
    head = make_head("linear", surroundings(), {"dropout": 0.0}).train()
    said, memory = head(hidden(), LENGTHS, Reader(mean), {"kept": LENGTHS})
    torch.testing.assert_close(said.logits, head.classifier(mean(hidden(), LENGTHS)))
    assert memory == {"kept": LENGTHS}
    assert not said.extras
    assert not head.extras()


@pytest.mark.parametrize("classes", [2, 77, 150])
def test_any_number_of_classes(classes: int) -> None:
    head = prototypical(classes).train()
    assert head.extras() == {"distances": classes}
    said, _ = head(hidden(), LENGTHS, Reader(mean), {})
    head.learn(said, torch.arange(5) % classes)
    head.advance()
    assert said.logits.shape == said.extras["distances"].shape == (5, classes)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lineer", {}, "no exit head is called 'lineer': there is linear"),
        ("linear", {"width": 4}, "has no setting 'width': it has dropout"),
        ("prototypical", {"network": "deep"}, "head.network must be one of linear, mlp, identity, attention"),
        ("prototypical", {"distance": "far"}, "head.distance must be one of euclidean, squared, cosine"),
        ("prototypical", {"rate": 2}, "rate"),
    ],
)
def test_settings_that_make_no_sense(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        make_head(name, surroundings(), settings)


@pytest.mark.parametrize("width", ["8", 0, -1, 2.5])
def test_a_width_that_is_none_is_refused(width: Any) -> None:
    with pytest.raises(KnobError, match=r"head\.width must be a whole number, 1 or more"):
        make_head("prototypical", surroundings(), {"width": width})


@pytest.mark.parametrize("dropout", ["much", 1.5, -0.1])
@pytest.mark.parametrize("name", ["linear", "prototypical"])
def test_a_dropout_that_is_none_is_refused(name: str, dropout: Any) -> None:
    with pytest.raises(KnobError, match=r"head\.dropout must be"):
        make_head(name, surroundings(), {"dropout": dropout})


@pytest.mark.parametrize("padding", [0.0, 7.0, math.inf, math.nan])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_attention_pooling_reads_no_padding_whatever_it_holds(mode: Any, padding: float) -> None:
    pool = AttentionPool(16)
    torch.nn.init.normal_(pool.query)
    with mode():
        states = hidden()
        there = torch.arange(states.shape[1])[None] < LENGTHS[:, None]
        found = pool(torch.where(there[..., None], states, padding), LENGTHS)
        for row, length in enumerate(LENGTHS.tolist()):
            tokens = states[row, :length]
            expected = (tokens @ pool.query).softmax(dim=0) @ tokens
            torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=1e-5)


def test_a_traced_attention_pooling_looks_at_no_number() -> None:
    pool = AttentionPool(16)
    with torch.no_grad():
        traced = torch.jit.trace(pool, (hidden(), LENGTHS), check_trace=False)
        states = hidden()
        states[0, int(LENGTHS[0]) :] = math.inf
        torch.testing.assert_close(traced(states, LENGTHS), pool(states, LENGTHS))


def test_pooling() -> None:
    states = hidden()
    assert torch.equal(pool_tokens(states, LENGTHS, "cls"), states[:, 0])
    found = pool_tokens(states, LENGTHS, "mean")
    for row, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(found[row], states[row, :length].mean(dim=0), atol=1e-6, rtol=1e-5)
