"""Smaller complete models in front of a model: made of its first layers, saved with it, out of everyone's way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from offramp.errors import KnobError
from offramp.model.exits import ExitSettings, make_stages
from offramp.model.modeling import add_exits, load_early_exit, parameters_of
from offramp.types import Stage

FAMILIES = ("bert", "roberta", "distilbert", "albert", "electra", "mpnet", "deberta-v2", "modernbert")
CASCADE = ExitSettings(head="own", members=(2,), pooling="backbone")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
Make = Callable[..., Any]


def say(model: Any, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_from_end_to_end(family: str, plain_model: Make, rows: Make, tmp_path: Path) -> None:
    inputs, untouched = rows(), plain_model(family)
    model = add_exits(plain_model(family), CASCADE).eval()
    said = say(model, inputs)
    assert said.exit_logits.shape == (6, 2, 3)
    torch.testing.assert_close(said.logits, say(untouched, inputs).logits, atol=1e-5, rtol=1e-5)
    # The member is a whole model in the eyes of transformers too, made of the first layers.
    (member,) = model.offramp.members
    assert type(member) is type(untouched)
    torch.testing.assert_close(said.exit_logits[:, 0], say(member, inputs).logits, atol=1e-5, rtol=1e-5)
    theirs = untouched.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in member.state_dict().items())

    model.train()
    model(**inputs, labels=LABELS).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.eval()

    model.save_pretrained(tmp_path)
    section = json.loads((tmp_path / "config.json").read_text())
    assert section["offramp"]["members"] == [2]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(plain) is type(untouched)
    torch.testing.assert_close(say(plain, inputs).logits, said.logits, atol=1e-5, rtol=1e-5)
    again = load_early_exit(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(say(again, inputs).exit_logits, said.exit_logits)
    assert again.settings == model.settings
    assert again.stages == model.stages


def test_stages() -> None:
    assert make_stages(12, None, (2, 4)) == (
        Stage(0, 0, 2, 2),
        Stage(1, 0, 4, 6, starts_from="inputs"),
        Stage(2, 0, 12, 18, is_last=True, starts_from="inputs"),
    )


@pytest.mark.parametrize("members", [(0,), (3,), (4,), (2, 1), (2, 2)])
def test_members_that_cannot_be(members: tuple[int, ...], plain_model: Make) -> None:
    model = plain_model("bert")
    with pytest.raises(KnobError, match="smaller models must have rising numbers of layers below 3"):
        add_exits(model, ExitSettings(members=members))
    assert not hasattr(model, "stages")


def test_exits_or_members() -> None:
    with pytest.raises(KnobError, match="not both"):
        ExitSettings(members=(2,), layers=(1,))


def test_layers_that_come_in_groups(plain_model: Make, rows: Make) -> None:
    """ALBERT may call two layers at a time, and counts both."""
    pairs = {"inner_group_num": 2, "num_hidden_layers": 2}
    model = add_exits(plain_model("albert", **pairs), CASCADE)
    assert [stage.layers for stage in model.stages] == [2, 6]
    assert say(model, rows()).exit_logits.shape == (6, 2, 3)
    with pytest.raises(KnobError, match="groups of 2: a smaller one cannot have 3"):
        add_exits(plain_model("albert", **pairs), ExitSettings(members=(3,)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_member_reads_what_is_pooled(pooling: Any, plain_model: Make, rows: Make) -> None:
    """As if that vector stood in the place of the first token."""
    inputs = rows()
    model = add_exits(plain_model("bert"), ExitSettings(head="own", members=(2,), pooling=pooling)).eval()
    (member,) = model.offramp.members
    with torch.no_grad():
        hidden = member.bert(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        vector = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        expected = member.classifier(member.bert.pooler(vector[:, None]))
    torch.testing.assert_close(say(model, inputs).exit_logits[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_a_member_with_another_head(plain_model: Make, rows: Make) -> None:
    settings = ExitSettings(head="prototypical", head_settings={"width": 4}, members=(1, 2), pooling="mean")
    model = add_exits(plain_model("bert"), settings)
    assert len(model.offramp.early) == 2
    assert model.offramp.extras() == {"distances": 3}
    assert say(model, rows()).exit_logits.shape == (6, 3, 3)


def test_token_types_reach_every_model(plain_model: Make, rows: Make) -> None:
    model, inputs = add_exits(plain_model("bert"), CASCADE).eval(), rows()
    types = torch.ones_like(inputs["input_ids"])
    changed = say(model, inputs | {"token_type_ids": types}).exit_logits - say(model, inputs).exit_logits
    assert (changed.abs().amax(dim=(0, 2)) > 1e-3).all()


def test_members_belong_to_the_exits_and_learn_by_themselves(plain_model: Make, rows: Make) -> None:
    model = add_exits(plain_model("bert"), CASCADE)
    names = {name for name, _ in parameters_of(model, "heads")}
    assert all(name.startswith("offramp.members.0.") for name in names)
    assert len(names) == len(list(model.offramp.members[0].parameters()))
    model.minimise("weighted_sum", {"by": "last"})
    model(**rows(), labels=LABELS).loss.backward()
    assert all(p.grad is None for p in model.offramp.members.parameters())  # nothing is shared
