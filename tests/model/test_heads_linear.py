"""The linear head's null-space share against its definition, its cache, and exits that do not bend the encoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp.errors import KnobError
from offramp.model.exits import ExitSettings
from offramp.model.heads import Head, HeadOutput, Reader, Surroundings, make_head
from offramp.model.heads.linear import null_space_share
from offramp.model.modeling import parameters_of

WIDTH = 6


def make(classes: int = 3, *, spread: float = 0.5, seed: int = 3, **options: Any) -> Any:
    around = Surroundings(WIDTH, WIDTH, classes, problem_type="single_label_classification", dropout=0.5)
    head = make_head("linear", around, {"null_space": True, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.classifier.weight.normal_(0, spread, generator=generator)
        head.classifier.bias.normal_(0, spread, generator=generator)
    return head.eval()


def first(hidden: Tensor, lengths: Tensor) -> Tensor:
    return hidden[:, 0]


def share(head: Head, vectors: Tensor) -> Tensor:
    said, _ = head(vectors[:, None], torch.ones(len(vectors), dtype=torch.long), Reader(first), {})
    return said.extras["null_space"]


def vectors(count: int = 7) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(4))


def slowly(weight: np.ndarray, bias: np.ndarray, x: np.ndarray) -> float:
    """As the formula is printed, in float64: x' = x + pinv(W) b, P = pinv(W) W, s = sqrt(1 - |P x'|^2 / |x'|^2)."""
    inverse = np.linalg.pinv(weight, rcond=1e-6)
    moved = x + inverse @ bias
    inside = inverse @ weight @ moved
    return math.sqrt(max(0.0, 1 - (inside @ inside) / (moved @ moved)))


@given(
    classes=st.integers(1, 8),
    seed=st.integers(0, 50),
    damage=st.sampled_from(["none", "a class twice", "a class of zeros"]),
)
@settings(deadline=None, max_examples=60)
def test_it_equals_the_printed_formula(classes: int, seed: int, damage: str) -> None:
    head, x = make(classes, seed=seed), vectors()
    with torch.no_grad():
        if damage == "a class twice" and classes > 1:
            head.classifier.weight[1] = head.classifier.weight[0]
        if damage == "a class of zeros":
            head.classifier.weight[-1] = 0
    weight, bias = (p.detach().double().numpy() for p in (head.classifier.weight, head.classifier.bias))
    expected = [slowly(weight, bias, row) for row in x.double().numpy()]
    # Near 0 the printed square root has half the digits.
    np.testing.assert_allclose(share(head, x).numpy(), expected, atol=2e-5 if classes < WIDTH else 1e-3)


def test_by_hand() -> None:
    basis, nothing = torch.tensor([[1.0], [0.0], [0.0]]), torch.zeros(3)
    x = torch.tensor([[2.0, 0, 0], [0, 3, 0], [3, 4, 0], [0, 0, 0], [-1, 0, 0]])
    assert null_space_share(x, basis, nothing).tolist() == pytest.approx([0, 1, 0.8, 1, 0])
    # With weight (2, 0, 0) and bias 4 the vector moves by 2 along the first axis.
    moved = null_space_share(x, basis, torch.tensor([2.0, 0, 0]))
    assert moved.tolist() == pytest.approx([0, 3 / math.sqrt(13), 4 / math.sqrt(41), 0, 0])


def test_weights_of_0_and_vectors_of_0_are_safe() -> None:
    head = make()
    torch.nn.init.zeros_(head.classifier.weight)
    x = torch.cat([vectors(), torch.zeros(1, WIDTH)])
    assert torch.equal(share(head, x), torch.ones(8))  # it sees nothing at all
    head = make()
    torch.nn.init.zeros_(head.classifier.bias)
    found = share(head, x)
    assert found[-1] == 1
    assert ((found >= 0) & (found <= 1)).all()
    small = share(head, 1e-15 * x[:-1])
    torch.testing.assert_close(small, found[:-1], atol=1e-5, rtol=1e-5)


def test_the_whole_space_has_nothing_out_of_sight() -> None:
    assert (share(make(classes=WIDTH + 2), vectors()) < 1e-5).all()


def test_a_row_says_the_same_alone() -> None:
    head, x = make(), vectors(33)
    together = share(head, x)
    for row in range(33):
        torch.testing.assert_close(share(head, x[row : row + 1])[0], together[row], atol=1e-6, rtol=1e-6)


def test_it_follows_the_weights_however_they_change() -> None:
    """Fused optimisers do not count their changes, so neither does the head: it compares."""
    head, x, other = make(), vectors(), make(seed=9)
    before = share(head, x)
    with torch.no_grad():
        head.classifier.weight.data.view(-1)[:] = other.classifier.weight.view(-1)  # no version is bumped by .data
    assert not torch.allclose(share(head, x), before)
    head.load_state_dict(other.state_dict())
    torch.testing.assert_close(share(head, x), share(other, x))
    with torch.no_grad():
        head.classifier.bias.add_(1.0)
    assert not torch.allclose(share(head, x), share(other, x))


def test_it_decomposes_once_while_the_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    head, calls, svd = make(), [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: (calls.append(1), svd(*a, **k))[1])
    with torch.inference_mode():
        first_time = share(head, vectors())
    assert torch.equal(share(head, vectors()), first_time)  # outside of inference mode too
    assert len(calls) == 1
    head.double().float()
    share(copy.deepcopy(head), vectors())
    assert len(calls) == 1


def test_it_is_given_when_asked_for_and_not_while_training() -> None:
    def say(head: Head) -> HeadOutput:
        return head(vectors()[:, None], torch.ones(7, dtype=torch.long), Reader(first), {})[0]

    head, plain = make(), make(null_space=False)
    assert head.extras() == {"null_space": 0}
    assert say(head).extras["null_space"].shape == (7,)
    assert plain.extras() == {}
    assert not say(plain).extras
    assert torch.equal(say(plain).logits, say(head).logits)
    assert plain.state_dict().keys() == head.state_dict().keys()
    assert not say(head.train()).extras


def test_it_is_float32_under_autocast() -> None:
    head, x = make(), vectors()
    expected = share(head, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = share(head, x)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("pooling", ["backbone", "mean"])
def test_a_detached_exit_learns_and_leaves_the_encoder_alone(
    tiny_model: Callable[..., Any], rows: Callable[..., dict[str, Any]], pooling: Any
) -> None:
    for detach in (False, True):
        made = ExitSettings(head="linear", head_settings={"detach": detach}, pooling=pooling)
        model = tiny_model("bert", made).train()
        model(**rows()).exit_logits[:, :-1].square().sum().backward()
        moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for _, p in parameters_of(model, "backbone")]
        assert any(moved) == (not detach)
        assert all(p.grad.abs().sum() > 0 for _, p in parameters_of(model, "heads"))


@pytest.mark.parametrize("name", ["null_space", "detach"])
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_switch_is_true_or_false(name: str, value: Any) -> None:
    with pytest.raises(KnobError, match=f"head.{name} must be true or false"):
        make(**{name: value})
