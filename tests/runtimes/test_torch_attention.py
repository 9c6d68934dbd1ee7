"""TorchRuntime with ``attention=``: transformers' implementations by name, those without padding among them.

No flash kernel runs here. One of our own stands for them: transformers hands it what it hands those (the mask [B, L],
or None where nothing is padded), and it computes each text by itself, from its own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

import offramp
from offramp.criteria.distance import EDR
from offramp.engine.engine import Engine
from offramp.engine.record import record
from offramp.engine.units import Unit
from offramp.errors import KnobError, UnsupportedError
from offramp.inputs.tokens import Encoded
from offramp.model.exits import ExitSettings
from offramp.runtimes.torch import TorchRuntime
from offramp.traces.replay import replay, scores
from offramp.traces.trace import Trace

Make = Callable[..., Any]
DISTANT = ExitSettings(head="prototypical", head_settings={"width": 8}, pooling="mean")
FAMILIES = ("albert", "bert", "distilbert", "electra", "modernbert", "roberta")
OWN = ("deberta-v2", "mpnet")
"""Families whose attention transformers computes in one way only."""
UNPADDED = "offramp_test_unpadded"


class Unpadded:
    """Attention over the tokens of each text alone; counts them."""

    def __init__(self) -> None:
        self.tokens, self.padded_calls, self.other_calls = 0, 0, 0

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        scaling: float,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        rows, _, width, _ = query.shape
        if mask is None:
            lengths, self.other_calls = [width] * rows, self.other_calls + 1
        else:
            assert mask.shape == (rows, width)
            lengths, self.padded_calls = mask.sum(dim=1).tolist(), self.padded_calls + 1
        self.tokens += sum(lengths)
        mixed = torch.full_like(query, 5.0)  # what stands at padding must not matter
        for row, length in enumerate(lengths):
            q, k, v = (each[row, :, :length] for each in (query, key, value))
            weights = q @ k.transpose(1, 2) * scaling
            if sliding_window is not None:  # as transformers tells flash attention: so many tokens, one's own included
                places = torch.arange(length)
                weights = weights.masked_fill((places[:, None] - places).abs() >= sliding_window, -torch.inf)
            mixed[row, :, :length] = weights.softmax(dim=-1) @ v
        return mixed.transpose(1, 2), None


@pytest.fixture
def unpadded() -> Iterator[Unpadded]:
    attend = Unpadded()
    AttentionInterface.register(UNPADDED, attend)
    AttentionMaskInterface.register(UNPADDED, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    yield attend
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(UNPADDED, None)


@pytest.fixture(scope="module")
def texts() -> list[Encoded]:
    rng = np.random.default_rng(3)
    lengths = [*range(1, 18), *rng.integers(1, 18, 7)]
    return [Encoded(rng.integers(1, 41, length).astype(np.int32), None, False) for length in lengths]


def traced(model: Any, attention: str | None, texts: list[Encoded]) -> Trace:
    runtime = TorchRuntime(model, attention=attention)
    return record(runtime, texts, pad_token=0, batch_size=5, id2label=dict(enumerate("abc")))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_implementation_says_the_same(
    family: str, tiny_model: Make, texts: list[Encoded], unpadded: Unpadded
) -> None:
    model = tiny_model(family, DISTANT)
    expected = traced(model, "sdpa", texts)
    for attention in ("eager", UNPADDED):
        found = traced(model, attention, texts)
        assert model.config._attn_implementation == attention
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5, rtol=0)
        np.testing.assert_allclose(found.extras["distances"], expected.extras["distances"], atol=1e-5, rtol=0)
    assert unpadded.padded_calls > 0
    assert unpadded.tokens == sum(map(len, texts)) * expected.layers[-1]  # no layer computed padding


def test_texts_leave_as_they_would(tiny_model: Make, texts: list[Encoded], unpadded: Unpadded) -> None:
    """Through the engine: rows leave, are cut and merged, and the mask is made anew for those that stay."""
    model = tiny_model("bert", DISTANT)
    trace = traced(model, "sdpa", texts)
    values = np.sort(scores(trace, EDR())[:-1], axis=None)
    middle = len(values) // 3
    at = middle + int(np.argmax(np.diff(values[middle : middle + 8])))
    knobs = {"threshold": float(values[at : at + 2].mean())}
    expected = replay(trace, EDR(), knobs)
    runtime = TorchRuntime(model, attention=UNPADDED)
    for max_rows, go_on in ((1, None), (5, 0.0), (7, np.inf)):
        unpadded.tokens = 0
        engine = Engine(runtime, EDR(), pad_token=0, max_rows=max_rows, go_on=go_on)
        done = list(engine.run_in_order((Unit(i, text) for i, text in enumerate(texts)), knobs))
        assert [one.exit_layer for one in done] == trace.layers[expected.exits].tolist()
        assert [int(one.answer.argmax()) for one in done] == expected.answers.argmax(-1).tolist()
        assert len({one.exit_layer for one in done}) > 1
        assert unpadded.tokens == engine.counts.tokens.sum()
    assert unpadded.other_calls > 0  # batches without padding come without a mask
    assert unpadded.padded_calls > 0


def test_smaller_models_compute_it_too(tiny_model: Make) -> None:
    runtime = TorchRuntime(tiny_model("bert", ExitSettings(members=(1,))), attention="eager")
    [member] = runtime.model.offramp.members
    assert member.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", OWN)
def test_families_with_one_implementation(family: str, tiny_model: Make, unpadded: Unpadded) -> None:
    model = tiny_model(family)
    for attention in ("sdpa", "flash_attention_2", UNPADDED):
        with pytest.raises(UnsupportedError, match=f"{family} models have one implementation of attention, eager"):
            TorchRuntime(model, attention=attention)
    TorchRuntime(model, attention="eager")


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("abacus", r"attention 'abacus' cannot be used here \(.*not supported\): install what it needs, or take sdpa"),
        ("flash_attention_2", r"attention 'flash_attention_2' cannot be used here \(.+\): install what it needs"),
        ("kernels-community/flash-attn2", r"'kernels-community/flash-attn2' cannot be used here \(.+\): install"),
    ],
)
def test_what_is_not_there(tiny_model: Make, attention: str, message: str) -> None:
    model = tiny_model("bert")
    with pytest.raises(KnobError, match=message):
        TorchRuntime(model, attention=attention)
    assert model.config._attn_implementation == "sdpa"


def test_without_a_mask_it_cannot_serve(tiny_model: Make, unpadded: Unpadded) -> None:
    model = tiny_model("bert")
    del AttentionMaskInterface._global_mapping[UNPADDED]
    with pytest.raises(KnobError, match=f"attention '{UNPADDED}' takes no mask, so that texts would read padding"):
        TorchRuntime(model, attention=UNPADDED)
    assert model.config._attn_implementation == "sdpa"


def test_flash_attention_knows_no_float32(
    tiny_model: Make, unpadded: Unpadded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.model.attention.is_flash_attention_requested", lambda **_: True)
    model = tiny_model("bert")
    with pytest.raises(KnobError, match=f"attention '{UNPADDED}' computes in bfloat16 and float16 only: give one"):
        TorchRuntime(model, attention=UNPADDED)
    assert model.config._attn_implementation == "sdpa"
    TorchRuntime(model.bfloat16(), attention=UNPADDED)
    assert model.config._attn_implementation == UNPADDED


def test_the_way_in(trained: Path) -> None:
    texts = ["a lovely gem", "the dull film of a town", "weird"]
    runs = [offramp.load(trained, device="cpu", attention=attention) for attention in (None, "eager")]
    kinds = [each.runtime.model.config._attn_implementation for each in runs]  # type: ignore[attr-defined]
    assert kinds == ["sdpa", "eager"]
    first, second = ([(one.label, one.exit_layer) for one in each(texts)] for each in runs)
    assert first == second
