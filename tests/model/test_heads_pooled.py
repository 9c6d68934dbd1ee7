"""The head with a pooler of its own: what it computes, and that it starts as the pretrained pooler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from offramp.errors import KnobError
from offramp.model.exits import ExitSettings
from offramp.model.heads import Reader, Surroundings, make_head
from offramp.model.modeling import add_exits
from offramp.model.pooling import pool_tokens

AROUND = Surroundings(
    hidden_size=16, pooled_size=24, num_outputs=3, problem_type="single_label_classification", dropout=0.5
)
LENGTHS = torch.tensor([9, 1, 5])


def test_it_is_dense_tanh_and_one_layer() -> None:
    torch.manual_seed(3)
    head, states = make_head("pooled", AROUND, {}).eval(), torch.randn(3, 9, 16)
    reader = Reader(lambda hidden, lengths: pool_tokens(hidden, lengths, "cls"))
    said, memory = head(states, LENGTHS, reader, {"kept": LENGTHS})
    for row in range(3):
        expected = head.classifier(torch.tanh(head.pooler.weight @ states[row, 0] + head.pooler.bias))
        torch.testing.assert_close(said.logits[row], expected, atol=1e-6, rtol=1e-5)
    assert memory == {"kept": LENGTHS}
    assert not said.extras
    assert not torch.equal(head.train()(states, LENGTHS, reader, {})[0].logits, said.logits)  # dropout is .5


def test_it_copies_a_pooler_that_fits() -> None:
    head = make_head("pooled", AROUND, {})
    pretrained = nn.Linear(16, 16)
    head.inherit(pretrained)
    assert torch.equal(head.pooler.weight, pretrained.weight)
    assert torch.equal(head.pooler.bias, pretrained.bias)
    assert head.pooler.weight.data_ptr() != pretrained.weight.data_ptr()  # a copy: they part when trained
    head.inherit(nn.Linear(16, 16, bias=False))
    assert torch.equal(head.pooler.bias, pretrained.bias)


@pytest.mark.parametrize("pooler", [None, nn.Linear(16, 8)])
def test_without_a_pooler_that_fits_the_fresh_weights_stay(pooler: nn.Linear | None) -> None:
    head = make_head("pooled", AROUND, {})
    before = head.pooler.weight.clone()
    head.inherit(pooler)
    assert torch.equal(head.pooler.weight, before)


@pytest.mark.parametrize("family", ["bert", "albert", "roberta", "electra", "mpnet", "distilbert", "deberta-v2"])
@pytest.mark.parametrize("pooling", ["backbone", "mean"])
def test_in_every_family_each_exit_starts_as_the_pretrained_pooler(
    plain_model: Callable[..., Any], rows: Callable[..., dict[str, Any]], family: str, pooling: Any
) -> None:
    from offramp.model.backbone import cut

    model = add_exits(plain_model(family), ExitSettings(head="pooled", pooling=pooling)).eval()
    pretrained = cut(model).pooler()
    heads = model.offramp.early
    assert len(heads) == 2
    for head in heads:
        assert torch.equal(head.pooler.weight, pretrained.weight)
        assert torch.equal(head.pooler.bias, pretrained.bias)
    assert model(**rows()).exit_logits.shape == (6, 3, 3)


def test_it_reads_the_first_token_or_the_mean_and_never_the_backbones_pooler(
    plain_model: Callable[..., Any], rows: Callable[..., dict[str, Any]]
) -> None:
    model = add_exits(plain_model("bert"), ExitSettings(head="pooled", pooling="backbone")).eval()
    with torch.no_grad():
        before = model(**rows()).exit_logits
        for parameter in model.bert.pooler.parameters():
            parameter.zero_()
        after = model(**rows()).exit_logits
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


def test_a_dropout_that_is_none_is_refused() -> None:
    with pytest.raises(KnobError, match=r"head\.dropout must be"):
        make_head("pooled", AROUND, {"dropout": 2})
