"""The mixing head: a slow twin, what it remembers, and what moves its weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.errors import KnobError
from offramp.inputs.packing import keep, merge
from offramp.model.exits import ExitSettings
from offramp.model.heads import Head, Reader, Surroundings, make_head
from offramp.model.pooling import pool_tokens

LENGTHS = torch.tensor([5, 2, 7, 4])


def first_token(hidden: Tensor, lengths: Tensor) -> Tensor:
    return pool_tokens(hidden, lengths, "cls")


READER = Reader(first_token)


def mixing(place: int, **settings: Any) -> Head:
    around = Surroundings(
        hidden_size=6,
        pooled_size=6,
        num_outputs=3,
        problem_type="single_label_classification",
        dropout=0.0,
        place=place,
    )
    torch.manual_seed(place)
    return make_head("mixing", around, settings)


def states(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(4, 7, 6, generator=generator) for _ in range(count)]


def test_it_equals_a_slow_loop() -> None:
    weights = torch.tensor([0.004, -0.011, 0.002])
    heads = [mixing(place) for place in range(3)]
    heads[2].mixing.data = weights
    memory: Any = {"kept": LENGTHS}
    for head, hidden in zip(heads, states(3), strict=True):
        said, memory = head(hidden, LENGTHS, READER, memory)
    shares = [math.exp(100 * w) for w in weights.tolist()]
    shares = [share / sum(shares) for share in shares]
    torch.testing.assert_close(heads[2].weights(), torch.tensor(shares))
    for row in range(4):
        mixed = sum(share * hidden[row, 0] for share, hidden in zip(shares, states(3), strict=True))
        torch.testing.assert_close(said.logits[row], heads[2].classifier(mixed))
    assert memory["kept"] is LENGTHS
    assert memory["pooled"].shape == (4, 3, 6)
    assert heads[2].remembers
    assert not heads[2].extras()


@pytest.mark.parametrize("place", [0, 1, 4])
def test_the_mix_begins_equal(place: int) -> None:
    assert mixing(place).weights().tolist() == pytest.approx([1 / (place + 1)] * (place + 1))


def test_the_first_exit_has_nothing_to_learn_about_its_mix() -> None:
    assert {name for name, _ in mixing(0).named_parameters()} == {"classifier.weight", "classifier.bias"}


def test_memory_goes_through_keep_and_merge() -> None:
    """Rows that met other rows on the way say what they say alone."""
    first, second = mixing(0), mixing(1)
    second.mixing.data = torch.tensor([0.01, -0.01])
    one, two = states(2)
    memory = first(one, LENGTHS, READER, {})[1]
    whole = second(two, LENGTHS, READER, memory)[0].logits
    stay = torch.tensor([True, False, True, True])
    order = [2, 3, 0]
    parts = [{"m": {name: value[i : i + 1] for name, value in keep(stay, memory).items()}} for i in (1, 2, 0)]
    merged = merge(parts)["m"]
    found = second(two[order], LENGTHS[order], READER, merged)[0].logits
    torch.testing.assert_close(found, whole[order])


def test_this_layer_alone() -> None:
    head = mixing(1, reads="this_layer")
    one, two = states(2)
    said, memory = head(two, LENGTHS, READER, {})
    torch.testing.assert_close(said.logits, head.classifier(two[:, 0]))
    assert not memory
    assert head.mixing is None
    mixed = mixing(1)
    memory = mixing(0)(one, LENGTHS, READER, {})[1]
    assert not torch.allclose(mixed(two, LENGTHS, READER, memory)[0].logits, mixed.classifier(two[:, 0]))


def test_earlier_layers_are_read_and_reached_by_the_gradient() -> None:
    first, second = mixing(0), mixing(1)
    one, two = (hidden.requires_grad_() for hidden in states(2))
    memory = first(one, LENGTHS, READER, {})[1]
    second(two, LENGTHS, READER, memory)[0].logits.sum().backward()
    assert one.grad.abs().sum() > 0
    assert second.mixing.grad.abs().sum() > 0


def test_a_shared_head_is_refused(tiny_model: Any, rows: Any) -> None:
    model = tiny_model("bert", ExitSettings(head="mixing", shared=True))
    with pytest.raises(KnobError, match="cannot be shared by all exits"):
        model(**rows())
    model = tiny_model("bert", ExitSettings(head="mixing", head_settings={"reads": "this_layer"}, shared=True))
    assert model(**rows()).exit_logits.shape == (6, 3, 3)


@pytest.mark.parametrize("pooling", ["cls", "backbone", "mean"])
def test_no_pooler_and_no_tanh_come_in_between(pooling: Any, tiny_model: Any, rows: Any) -> None:
    model, inputs = tiny_model("bert", ExitSettings(head="mixing", pooling=pooling)), rows()
    with torch.no_grad():
        hidden = model.bert(**inputs, output_hidden_states=True).hidden_states[1:3]
        lengths = inputs["attention_mask"].sum(dim=1)
        pooled = [pool_tokens(h, lengths, "mean" if pooling == "mean" else "cls") for h in hidden]
        head = model.offramp.heads[1]
        expected = head.classifier(sum(w * x for w, x in zip(head.weights(), pooled, strict=True)))
        torch.testing.assert_close(model(**inputs).exit_logits[:, 1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reads": "all"}, "head.reads must be one of layers_so_far, this_layer"),
        ({"pace": -1}, r"head\.pace must be a number, 0 or more"),
        ({"dropout": 2}, r"head\.dropout must be"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        mixing(1, **settings)
