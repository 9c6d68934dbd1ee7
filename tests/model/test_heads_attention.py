"""FastBERT's head against full self-attention, and what must not depend on padding and neighbours."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.errors import KnobError
from offramp.model.heads import Head, HeadOutput, Reader, Surroundings, make_head

LENGTHS = torch.tensor([9, 1, 5, 12, 3])


def unused(hidden: Tensor, lengths: Tensor) -> Tensor:
    raise AssertionError("it reads the tokens, not a pooled vector")


def make(**settings: Any) -> Head:
    torch.manual_seed(3)
    around = Surroundings(
        hidden_size=16, pooled_size=24, num_outputs=3, problem_type="single_label_classification", dropout=0.5
    )
    head = make_head("attention", around, {"width": 8, **settings})
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 0.5)
    return head.eval()


def say(head: Head, hidden: Tensor, lengths: Tensor = LENGTHS) -> Tensor:
    said: HeadOutput = head(hidden, lengths, Reader(unused), {})[0]
    return said.logits


def states(lengths: Tensor = LENGTHS) -> Tensor:
    return torch.randn(len(lengths), int(lengths.max()), 16, generator=torch.Generator().manual_seed(4))


def slowly(head: Any, tokens: Tensor) -> Tensor:
    """One text [L, H]: self-attention of every token, head by head, of which the first token is kept."""
    x = torch.tanh(head.narrow(tokens))
    query, key, value = head.query(x), head.key(x), head.value(x)
    each, found = x.shape[1] // head.heads, []
    for h in range(head.heads):
        part = slice(h * each, (h + 1) * each)
        weights = (query[:, part] @ key[:, part].T / math.sqrt(each)).softmax(dim=-1)
        found.append(weights @ value[:, part])
    attended = head.mix(torch.cat(found, dim=-1))
    result: Tensor = head.classifier(torch.tanh(head.dense(attended[0])))
    return result


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_it_equals_full_self_attention_text_by_text(heads: int) -> None:
    head, hidden = make(heads=heads), states()
    found = say(head, hidden)
    for row, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(found[row], slowly(head, hidden[row, :length]), atol=1e-5, rtol=1e-5)


def test_the_number_of_heads_matters() -> None:
    one, two = make(heads=1), make(heads=2)
    two.load_state_dict(one.state_dict())
    assert not torch.allclose(say(one, states()), say(two, states()), atol=1e-4)


def test_every_token_has_a_say_and_padding_has_none() -> None:
    head, hidden = make(), states()
    found = say(head, hidden)
    for row, length in enumerate(LENGTHS.tolist()):
        for token in range(hidden.shape[1]):
            other = hidden.clone()
            other[row, token] += 1.0
            same = torch.allclose(say(head, other)[row], found[row], atol=1e-6)
            assert same == (token >= length), (row, token)
    dirty = hidden.clone()
    for row, length in enumerate(LENGTHS.tolist()):
        dirty[row, length:] = math.nan
    assert torch.equal(say(head, dirty), found)


def test_a_text_says_the_same_alone() -> None:
    head, hidden = make(), states()
    found = say(head, hidden)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = say(head, hidden[row : row + 1, :length], LENGTHS[row : row + 1])[0]
        torch.testing.assert_close(alone, found[row], atol=1e-5, rtol=1e-5)


def test_it_learns_and_drops_out() -> None:
    head, hidden = make().train(), states().requires_grad_()
    assert not torch.equal(say(head, hidden), say(head, hidden))
    assert torch.equal(say(make(dropout=0.0).train(), hidden), say(make(), hidden))
    say(head, hidden).square().sum().backward()
    assert torch.isfinite(hidden.grad).all()
    for name, parameter in head.named_parameters():
        if name != "key.bias":  # moves all scores of a query alike
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, r"head\.width must be a whole number, 1 or more"),
        ({"heads": 0}, r"head\.heads must be a whole number, 1 or more"),
        ({"heads": 3}, r"head\.width must be a multiple of head\.heads \(3\), not 8"),
        ({"dropout": 1.5}, r"head\.dropout must be"),
        ({"depth": 2}, "has no setting 'depth': it has width, heads, dropout"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        make(**settings)


def test_what_it_begins_from_lets_texts_differ() -> None:
    """Drawn as the encoder's layers are, four narrow layers on end leave next to nothing of a text."""
    around = Surroundings(384, 384, 77, "single_label_classification", 0.0)
    head: Any = make_head("attention", around, {}).eval()
    hidden = torch.randn(64, 12, 384, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    head.classifier.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    torch.manual_seed(0)
    for linear in [module for module in head.modules() if isinstance(module, torch.nn.Linear)]:
        torch.nn.init.normal_(linear.weight, 0.0, 0.02)
        torch.nn.init.zeros_(linear.bias)
    with torch.no_grad():
        say(head, hidden, torch.full((64,), 12))
        head.inherit(None)
        say(head, hidden, torch.full((64,), 12))
    drawn, begun = (vectors.std(dim=0).mean().item() for vectors in seen)
    assert drawn < 0.02
    assert begun > 0.1
