"""The model's own head after every layer: nothing of its own, and in every family what the last exit would say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from offramp.model.backbone import cut
from offramp.model.exits import ExitSettings

FAMILIES = ("bert", "roberta", "distilbert", "albert", "electra", "mpnet", "deberta-v2", "modernbert")


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_models_head_on_earlier_layers(family: str, tiny_model: Any, rows: Any) -> None:
    model, inputs = tiny_model(family, ExitSettings(head="own")), rows()
    lengths = inputs["attention_mask"].sum(dim=1)
    parts = cut(model)
    assert not list(model.offramp.heads.parameters())
    with torch.no_grad():
        said = model(**inputs).exit_logits
        hidden = parts.embed(inputs["input_ids"], lengths)
        context = parts.context(hidden, lengths)
        for index in range(parts.num_layers):
            hidden = parts.layer(index, hidden, context)
            last = index == parts.num_layers - 1
            expected = parts.head(hidden if last else model.offramp.normalise(index, hidden), lengths)
            torch.testing.assert_close(said[:, index], expected, atol=1e-5, rtol=1e-5)


def test_it_gives_and_remembers_nothing(tiny_model: Any) -> None:
    head = tiny_model("bert", ExitSettings(head="own")).offramp.heads[0]
    assert head.extras() == {}
    assert not head.remembers
