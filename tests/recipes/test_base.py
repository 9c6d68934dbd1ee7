"""Recipes by name, and with their settings changed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from offramp.criteria.distance import EDR
from offramp.criteria.entropy import Entropy
from offramp.criteria.patience import PatienceDelta
from offramp.errors import KnobError, UnsupportedError
from offramp.recipes import Part, Phase, Recipe, available, load_recipe, part

SINGLE = "single_label_classification"


def test_recipes_are_found_by_their_file() -> None:
    assert {"de3bert", "joint", "plain"} <= set(available())
    assert "base" not in available()
    assert available() == sorted(available())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("de3brt", "no recipe is called 'de3brt': did you mean de3bert"),
        ("base", "no recipe is called 'base'"),
        ("xyzzy", "there are .*de3bert, .*joint"),
        ("../joint", "no recipe is called"),
    ],
)
def test_a_name_that_is_none(name: str, message: str) -> None:
    with pytest.raises(KnobError, match=message):
        load_recipe(name)


def test_settings_are_changed_in_a_copy() -> None:
    before = load_recipe("de3bert")
    after = before.changed({"head.width": 7, "objective.alpha": 2.0, "criterion.lam": 5.0})
    assert (after.head.settings["width"], before.head.settings["width"]) == (7, 128)
    assert after.head.settings["network"] == before.head.settings["network"]
    assert after.training[0].objective.settings["alpha"] == 2.0
    assert after.criteria[SINGLE] == EDR(lam=5.0)
    assert before == load_recipe("de3bert")
    assert before.changed({}) == before


def test_every_phase_and_every_criterion_is_changed() -> None:
    multi: Any = "multi_label_classification"
    recipe = Recipe(
        summary="", source="", head=part("linear"),
        training=(Phase(part("weighted_sum")), Phase(part("weighted_sum"), train="heads")),
        criteria={SINGLE: EDR(lam=1.0), multi: EDR(lam=2.0)},
    )  # fmt: skip
    changed = recipe.changed({"objective.by": "depth", "criterion.fusion": "min"})
    assert [phase.objective.settings for phase in changed.training] == [{"by": "depth"}] * 2
    assert [phase.train for phase in changed.training] == ["all", "heads"]
    assert changed.criteria == {SINGLE: EDR(lam=1.0, fusion="min"), multi: EDR(lam=2.0, fusion="min")}


def test_a_setting_goes_to_the_phases_that_name_it() -> None:
    phases = (Phase(part("weighted_sum", by="depth")), Phase(part("distance_aware", by="equal", alpha=1.0)))
    recipe = replace(load_recipe("joint"), training=phases)
    changed = recipe.changed({"objective.alpha": 2.0, "objective.by": "last"})
    assert [dict(phase.objective.settings) for phase in changed.training] == [
        {"by": "last"},
        {"by": "last", "alpha": 2.0},
    ]
    # None names it, so all get it, and who does not know it complains when it is made.
    assert all(p.objective.settings["beta"] == 1 for p in recipe.changed({"objective.beta": 1}).training)


def test_a_setting_goes_to_the_criteria_that_have_it() -> None:
    regression: Any = "regression"
    recipe = replace(load_recipe("joint"), criteria={SINGLE: EDR(), regression: PatienceDelta()})
    assert recipe.changed({"criterion.lam": 4.0}).criteria == {SINGLE: EDR(lam=4.0), regression: PatienceDelta()}
    with pytest.raises(KnobError, match="none at all"):
        load_recipe("plain").changed({"criterion.lam": 4.0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 3}, "'width' must begin with head., objective. or criterion."),
        ({"heads.width": 3}, "must begin with"),
        ({"criterion.lambda": 3}, "criterion has no setting 'lambda', only fusion, lam, others, own"),
        ({"criterion.lam": -1}, "lambda must be 0 or more"),
        ({"criterion.lam": "much"}, "lambda must be 0 or more .* not 'much'"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        load_recipe("de3bert").changed(settings)


def test_a_problem_it_does_not_serve() -> None:
    recipe = load_recipe("de3bert")
    assert isinstance(load_recipe("joint").criterion("single_label_classification"), Entropy)
    with pytest.raises(UnsupportedError, match=r"serves single_label_classification and the data is regression.*joint"):
        recipe.criterion("regression")


def test_a_part_goes_through_json() -> None:
    one = part("linear", dropout=0.1)
    assert one == Part("linear", {"dropout": 0.1})
    assert Part.from_json(json.loads(json.dumps(one.to_json()))) == one
