"""The gated head: a slow twin, a gate that is there once, a pooler that begins as the pretrained one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from offramp.model.exits import ExitSettings
from offramp.model.heads import Reader, Surroundings, make_head
from offramp.model.modeling import add_exits, load_early_exit
from offramp.model.pooling import pool_tokens

AROUND = Surroundings(
    hidden_size=6, pooled_size=6, num_outputs=3, problem_type="single_label_classification", dropout=0.5
)
LENGTHS = torch.tensor([5, 2, 7, 4])
GATED = ExitSettings(head="gated", pooling="backbone")


def reader(common: Any) -> Reader:
    return Reader(lambda hidden, lengths: pool_tokens(hidden, lengths, "cls"), common=common)


def test_it_equals_a_slow_loop() -> None:
    torch.manual_seed(0)
    head = make_head("gated", AROUND, {}).eval()
    common = type(head).common(AROUND)
    hidden = torch.randn(4, 7, 6)
    said, memory = head(hidden, LENGTHS, reader(common), {"kept": LENGTHS})
    assert head.extras() == {"gate": 0}
    assert said.extras["gate"].shape == (4,)
    assert memory == {"kept": LENGTHS}
    for row in range(4):
        pooled = torch.tanh(head.pooler(hidden[row, 0]))
        torch.testing.assert_close(said.logits[row], head.classifier(pooled))
        level = (common.weight[0] @ pooled + common.bias[0]).item()
        assert said.extras["gate"][row].item() == pytest.approx(1 / (1 + math.exp(-level)), abs=1e-6)


def test_the_gate_reads_the_vector_after_dropout() -> None:
    torch.manual_seed(0)
    head = make_head("gated", AROUND, {"dropout": 1.0}).train()
    common = type(head).common(AROUND)
    gate = head(torch.randn(4, 7, 6), LENGTHS, reader(common), {})[0].extras["gate"]
    torch.testing.assert_close(gate, torch.sigmoid(common.bias).expand(4))


def test_the_gate_is_float32_under_autocast() -> None:
    head = make_head("gated", AROUND, {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said, _ = head(torch.randn(4, 7, 6), LENGTHS, reader(type(head).common(AROUND)), {})
    assert said.extras["gate"].dtype == torch.float32


def test_one_gate_for_all_exits_saved_once(tiny_model: Any, rows: Any, tmp_path: Path) -> None:
    model, inputs = tiny_model("bert", GATED), rows()
    gates = [name for name, module in model.named_modules() if getattr(module, "out_features", 0) == 1]
    assert gates == ["offramp.common"]
    model.save_pretrained(tmp_path)  # which refuses tensors that stand in two places
    saved = load_file(tmp_path / "model.safetensors")
    assert [name for name in saved if "common" in name] == ["offramp.common.bias", "offramp.common.weight"]
    again = load_early_exit(tmp_path)
    assert torch.equal(again(**inputs).exit_logits, model(**inputs).exit_logits)
    assert torch.equal(again.offramp.common.weight, model.offramp.common.weight)


@pytest.mark.parametrize("family", ["bert", "albert", "roberta", "distilbert", "modernbert"])
def test_poolers_begin_as_the_pretrained_one(family: str, plain_model: Any) -> None:
    from offramp.model.backbone import cut

    model = add_exits(plain_model(family), GATED)
    pretrained = cut(model).pooler()
    assert pretrained is not None
    for head in model.offramp.early:
        assert torch.equal(head.pooler.weight, pretrained.weight)
        assert head.pooler.weight is not pretrained.weight
        assert torch.equal(head.pooler.bias, torch.zeros(32) if pretrained.bias is None else pretrained.bias)


def test_a_pooler_of_another_width_is_not_copied() -> None:
    head = make_head("gated", AROUND, {})
    before = head.pooler.weight.clone()
    head.inherit(None)
    head.inherit(torch.nn.Linear(6, 5))
    assert torch.equal(head.pooler.weight, before)
