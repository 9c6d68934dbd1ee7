"""Exits for a classifier that somebody has trained already: ``offramp attach``.

The model is frozen: it goes through the data once, what its exits would read is kept on disk, and heads and prototypes
learn from that. At full depth the result answers as the model did, bit for bit. Without labels the heads learn from the
model's own answers (as in FastBERT, Liu et al., ACL 2020), so texts from a log are enough.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, set_seed

from offramp.errors import DataError, KnobError, RunError, UnsupportedError, require
from offramp.inputs.tokens import Tokenizer
from offramp.model.exits import ExitSettings
from offramp.model.modeling import SECTION, add_exits, load_finetuned, load_unfinished, parameters_of
from offramp.recipes import Phase, Recipe, load_recipe, part
from offramp.run import Run, check_replaceable
from offramp.tasks import Task, make_task, unrelated
from offramp.training.arguments import FROZEN, ExitTrainingArguments, make_arguments, of_tokens
from offramp.training.data import Examples, TrainingData, load_known
from offramp.training.lock import only_training
from offramp.training.rows import Rows
from offramp.training.train import (
    Plan,
    Ready,
    check_phases,
    file_of,
    fit,
    kept_rows,
    limited,
    make_tokenizer,
    phase_arguments,
    places,
    prepare,
    trained_on,
)
from offramp.types import ProblemType

__all__ = ["RECIPES", "AttachPlan", "attach"]

logger = logging.getLogger(__name__)

Answers = Callable[[Examples, str], NDArray[Any]]
"""Full-depth logits [N, C] of the rows of a part, and the part's name."""

RECIPES = ("de3bert", "deebert", "fastbert", "shallow_deep", "joint", "pabee")
"""Recipes whose exits can learn from a frozen encoder; the last two are for numbers, which the others do not serve."""

DEFAULT_RECIPES: Mapping[ProblemType, str] = {
    "single_label_classification": "de3bert",
    "multi_label_classification": "deebert",
    "regression": "joint",
}

ENOUGH = 200
"""Labelled dev rows that say by themselves whether labels mean the model's classes; of fewer, training rows help."""

FINETUNE: Mapping[str, Any] = {"num_train_epochs": 3.0, "learning_rate": 2e-5, "head_learning_rate": 2e-4}
"""Of the joint training after it: the encoder is fine-tuned already."""


@dataclass(frozen=True, kw_only=True)
class AttachPlan(Plan):
    """What to attach exits to, on what, and where to put it."""

    recipe: str = ""
    """Empty: ``DEFAULT_RECIPES``."""
    use_labels: bool = True
    """Learn from the labels of the data, where every row has one; else from the model's own answers."""
    finetune: bool = False
    """Go on to train everything together."""


def attach(plan: AttachPlan) -> Run:
    """Give a fine-tuned classifier exits, choose a default operating point on dev, and write the run folder.

    Raises:
        OfframpError: bad data, settings or folders, or a model that is no fine-tuned encoder; see ``offramp.errors``.
    """
    started = time.monotonic()
    check_replaceable(plan.out)
    work = plan.out.with_name(plan.out.name + ".training")
    if plan.resume and not (work / "plan.json").is_file():
        raise RunError(f"there is nothing to resume in {work}: attach without --resume")
    if plan.last_exit != "model":
        raise KnobError("attach leaves the model's own head as it is: the last exit is the model's")
    if plan.recipe:
        _check_recipe(plan.recipe)
    source = _load(plan.model)
    config = source.model.config
    if plan.max_length is None:
        plan = replace(plan, max_length=source.max_length)
    data = load_known(
        plan.data,
        {int(number): str(name) for number, name in config.id2label.items()},
        problem_type=plan.problem_type or config.problem_type,
        dev=plan.dev,
        text_columns=plan.text_columns,
        label_column=plan.label_column,
        use_labels=plan.use_labels,
        seed=make_arguments(str(work), plan.arguments).seed,
    )
    config.problem_type = data.problem_type
    plan = replace(plan, recipe=plan.recipe or DEFAULT_RECIPES[data.problem_type])
    recipe = _phases(load_recipe(plan.recipe).changed(plan.settings), plan, labelled=data.train.labels is not None)
    recipe.criterion(data.problem_type)
    arguments = phase_arguments(plan, work, recipe, recipe.training[0])
    main = arguments.process_index == 0
    with only_training(work) if main else nullcontext():
        data = limited(data, plan.max_train_samples, arguments.seed)
        return fit(_ready(plan, recipe, data, source, arguments, work, started))


def _check_recipe(name: str) -> None:
    load_recipe(name)  # names the nearest where there is none of that name
    if name not in RECIPES:
        raise KnobError(
            f"recipe {name} needs the encoder to learn with its exits: attach one of {', '.join(RECIPES)}, "
            "or use `offramp train`"
        )


def _phases(recipe: Recipe, plan: AttachPlan, *, labelled: bool) -> Recipe:
    """The recipe with phases that train heads on the frozen model, and with ``finetune`` one that trains all."""
    of_heads = [replace(phase, train="heads") for phase in recipe.training if phase.train in ("all", "heads")]
    joint = next((phase for phase in recipe.training if phase.train == "all"), None)
    if joint is None:  # two stages: no objective of theirs holds the last exit where it is
        joint = Phase(part("weighted_sum", by="equal"))
    if not labelled:
        given = [name for name in plan.settings if name.startswith("objective.")]
        if given and not plan.finetune:
            raise KnobError(f"--set {given[0]} says how to learn from labels, and none are used: leave it out")
        of_heads = [Phase(part("self_distillation"), train="heads", arguments={"metric_for_best_model": "loss"})]
    phases = [replace(phase, arguments={**FROZEN, **phase.arguments}) for phase in of_heads]
    if plan.finetune:
        phases.append(replace(joint, arguments={**joint.arguments, **FINETUNE}))
    return replace(recipe, training=tuple(phases))


def _with_arguments(recipe: Recipe, more: Mapping[str, Any]) -> Recipe:
    """The recipe, its phases of heads alone with some arguments set."""
    changed = [
        replace(phase, arguments={**phase.arguments, **more}) if phase.train == "heads" else phase
        for phase in recipe.training
    ]
    return replace(recipe, training=tuple(changed))


def _ready(
    plan: AttachPlan,
    recipe: Recipe,
    data: TrainingData,
    source: _Source,
    arguments: ExitTrainingArguments,
    work: Path,
    started: float,
) -> Ready:
    """Everything prepared, the labels that nobody gave included."""
    set_seed(arguments.seed)
    main = arguments.process_index == 0
    with arguments.main_process_first(desc="preparing the work folder"):
        if main:
            prepare(work, plan, data, arguments)
    tokenizer, max_length = make_tokenizer(plan, work if main else None, source.tokenizer, source.model.config)
    model = _with_exits(plan, recipe, source.model)
    if more := of_tokens(model.offramp):
        recipe = _with_arguments(recipe, more)
        arguments = phase_arguments(plan, work, recipe, recipe.training[0])
    own_answers = data.train.labels is None
    answers = partial(_answers_of, model, tokenizer, arguments, work)
    if own_answers:
        data = _answered(data, answers)
    else:
        try:
            _check_labels(data, answers, refuse=not plan.finetune)
        except DataError:
            if main:  # --resume would be refused again
                shutil.rmtree(work, ignore_errors=True)
            raise
    return Ready(
        plan, recipe, data, model, tokenizer, max_length, arguments, work, started, own_answers, source.trained_on
    )


def _with_exits(plan: AttachPlan, recipe: Recipe, model: PreTrainedModel) -> PreTrainedModel:
    objective = recipe.training[0].objective
    layers, _ = places(plan, recipe, int(model.config.num_hidden_layers))
    settings = ExitSettings(
        head=recipe.head.name,
        head_settings=recipe.head.settings,
        layers=layers,
        pooling=plan.pooling or "attention",
        shared=plan.shared or recipe.shared,
        objective=objective.name,
        objective_settings=objective.settings,
    )
    model = add_exits(model, settings)
    check_phases(model, recipe, plan.recipe)
    model.requires_grad_(False)
    for _, parameter in parameters_of(model, "heads"):
        parameter.requires_grad_(True)
    return model


def _answered(data: TrainingData, answers: Answers) -> TrainingData:
    """The data with the model's own answers for labels."""
    task = make_task(data.problem_type, data.id2label)

    def answered(examples: Examples, name: str) -> Examples:
        return replace(examples, labels=_as_labels(task, answers(examples, name)))

    return replace(data, train=answered(data.train, "train"), dev=answered(data.dev, "dev"))


def _answers_of(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    arguments: ExitTrainingArguments,
    work: Path,
    examples: Examples,
    name: str,
) -> NDArray[Any]:
    """[N, C] full-depth logits of a part; the features that come with them are kept for training."""
    encoded = tokenizer.encode(examples.texts, examples.where)
    rows = Rows(encoded, np.zeros(len(encoded)))
    store = kept_rows(model, arguments, tokenizer.pad_token, work / f"features-{name}", rows).store
    assert store is not None
    return np.asarray(store.last_logits)


def _check_labels(data: TrainingData, answers: Answers, *, refuse: bool) -> None:
    """Refuse labels that have little to do with the model's answers: a class's number may mean another class.

    Exits would learn them, and a point chosen by them would answer unlike the model. Numbers and sets of labels have no
    such plain measure, and are not held to one.

    Args:
        data: with labels.
        answers: gives the full-depth logits of a part.
        refuse: or else warn, as where dev has few rows and training rows clear the model: it is to learn the labels.

    Raises:
        DataError: labels hardly mean the model's classes (``tasks.unrelated``).
    """
    if data.problem_type != "single_label_classification":
        return
    said, labels = _against_labels(data.dev, answers(data.dev, "dev"))
    if not unrelated(said, labels, len(data.id2label)):
        return
    on_dev = 100 * float((said == labels).mean())
    if refuse and len(labels) < ENOUGH:
        more, others = _against_labels(data.train, answers(data.train, "train"))
        said, labels = np.concatenate([said, more]), np.concatenate([labels, others])
    if refuse and unrelated(said, labels, len(data.id2label)):
        counts = np.bincount(labels)
        raise DataError(
            f"the full model is right on {100 * (said == labels).mean():.1f} % of {len(labels)} labelled rows, and to "
            f"say always {data.id2label[int(counts.argmax())]!r} would be on {100 * counts.max() / len(labels):.1f} %, "
            "so labels hardly mean its own classes: check the label column, or give --no-labels to learn from its "
            "answers"
        )
    logger.warning(
        "the full model answers %.1f %% of the dev texts as they are labelled, fewer than always the same answer "
        "would: do labels mean the model's own classes? --no-labels learns from its answers instead", on_dev
    )  # fmt: skip


def _against_labels(examples: Examples, logits: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of N rows: the answers that [N, C] logits give, and the labels."""
    return logits.argmax(axis=-1), np.asarray(examples.labels, dtype=np.int64)


def _as_labels(task: Task, logits: NDArray[Any]) -> NDArray[Any]:
    """[N, C] logits to labels as training takes them."""
    answers = task.answers(logits)
    return answers.astype(np.float32) if task.problem_type == "regression" else answers


# The model


@dataclass(frozen=True)
class _Source:
    """A fine-tuned classifier, where its tokenizer is, and what is known of its training."""

    model: PreTrainedModel
    tokenizer: str
    trained_on: NDArray[np.uint64]
    """Hashes of rows; of a run of ours alone they are known."""
    max_length: int | None = None
    """Tokens that it reads of a text; None: it does not say."""


def _load(name: str) -> _Source:
    """A classifier by name: whole, or a PEFT adapter, which is merged into its base."""
    path = file_of(name, "adapter_config.json")
    if path is not None:
        return _merged(name, path.parent)
    model = load_finetuned(name)
    section = getattr(model.config, SECTION, None) or {}
    return _Source(model, name, trained_on(name, model.config), section.get("max_length"))


def _merged(name: str, folder: Path) -> _Source:
    """The base model of an adapter with the adapter in its weights.

    Raises:
        MissingExtraError: PEFT is not installed.
        RunError: the adapter is damaged, no safetensors, or lacks weights that its base lacks too.
        UnsupportedError: it was not trained to classify texts.
    """
    peft = require("peft", extra="attach")
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = str(settings["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{name} is damaged: its adapter_config.json names no base model ({error})") from error
    if settings.get("task_type") not in ("SEQ_CLS", None):
        raise UnsupportedError(
            f"{name} is an adapter for {settings['task_type']} and not for classifying texts (SEQ_CLS): "
            "use `offramp train`"
        )
    weights = _weights_of(name)
    outputs = _outputs_in(weights)
    if outputs is None:  # it has no head, so the base model's must be trained
        model = load_finetuned(base)
    else:
        names = _class_names(name, outputs)
        model, made_up = load_unfinished(base, num_labels=outputs, ignore_mismatched_sizes=True, **names)
        _check_brought(name, base, made_up, weights)
    try:
        merged = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise RunError(f"cannot merge {name} into {base}: {str(error).strip().splitlines()[0]}") from error
    logger.warning("%s is a PEFT adapter of %s: it was merged into the weights", name, base)
    own = file_of(name, "tokenizer.json") is not None
    return _Source(merged.eval(), name if own else base, trained_on(base, merged.config))


def _weights_of(name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's weights, by the names that they have, or what they change has, in the model."""
    path = file_of(name, "adapter_model.safetensors")
    if path is None:
        raise RunError(f"{name} has no adapter_model.safetensors: save the adapter with save_pretrained")
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    return {key.removeprefix("base_model.model."): shape for key, shape in shapes.items()}


def _outputs_in(weights: Mapping[str, tuple[int, ...]]) -> int | None:
    """Outputs of the head among an adapter's weights; None: there is none."""
    heads = ("classifier.weight", "classifier.out_proj.weight")
    return next((weights[head][0] for head in heads if head in weights), None)


def _class_names(name: str, outputs: int) -> dict[str, Any]:
    """What names the classes of an adapter, where a config lies beside it and fits; else its base's are kept."""
    path = file_of(name, "config.json")
    try:
        found = {} if path is None else json.loads(path.read_text(encoding="utf-8")).get("id2label") or {}
        names = {int(number): str(label) for number, label in found.items()}
    except (ValueError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if sorted(names) != list(range(outputs)):
        return {}
    return {"id2label": names, "label2id": {label: number for number, label in names.items()}}


def _check_brought(name: str, base: str, made_up: set[str], weights: Iterable[str]) -> None:
    """Complain of weights that stand neither in an adapter nor in its base: they would be other ones each time."""
    lacking = sorted({weight.rpartition(".")[0] for weight in made_up.difference(weights)})
    if lacking:
        others = f" and {len(lacking) - 3} more modules" if len(lacking) > 3 else ""
        raise RunError(
            f"neither {name} nor its base {base} has the weights of {', '.join(lacking[:3])}{others}: they would be "
            "drawn by chance; train the adapter again with them among its modules_to_save"
        )
