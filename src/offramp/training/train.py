"""From data and an encoder to a run folder: ``offramp train``."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, set_seed
from transformers.utils import cached_file

from offramp import __version__
from offramp.errors import KnobError, RunError, UnsupportedError
from offramp.inputs.tokens import Encoded, Tokenizer
from offramp.model.backbone import cut
from offramp.model.exits import ExitSettings
from offramp.model.modeling import SECTION, add_exits, load_early_exit, load_plain, parameters_of
from offramp.objectives import make_objective
from offramp.recipes import Phase, Recipe, load_recipe
from offramp.run import FORMAT, TRAINING_ROWS, Run, check_replaceable, read_hashes, replace_folder
from offramp.tasks import Task, make_task
from offramp.training.arguments import FROZEN, ExitTrainingArguments, in_one_line, make_arguments, of_tokens
from offramp.training.data import Examples, TrainingData, load_data, row_hashes
from offramp.training.features import CollateFeatures, Dtype, FeatureRows, can_keep, keep_features, size_on_disk
from offramp.training.finish import AGREEMENT, OWN_ANSWERS, write_measured
from offramp.training.hardness import measure_hardness
from offramp.training.lock import only_training, what_to_go_on_from
from offramp.training.rows import Collate, Rows
from offramp.training.trainer import ExitProgress, ExitTrainer, exit_metrics, progress_bar
from offramp.types import Pooling, ProblemType

__all__ = ["Plan", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train, on what, and where to put it."""

    model: str
    """Folder or hub name of an encoder."""
    data: str
    """Folder, file or hub name: see ``training.data.load_data``."""
    out: Path
    recipe: str = "de3bert"
    dev: str | None = None
    text_columns: Sequence[str] | None = None
    label_column: str | None = None
    problem_type: ProblemType | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the recipe: ``{"head.width": 64}``."""
    exits: tuple[int, ...] | None = None
    """Layers after which exits stand, or layers of each smaller complete model where the recipe has such; None: as the
    recipe says."""
    pooling: Pooling | None = None
    """None: as the recipe says, or else what the encoder was pretrained with."""
    shared: bool = False
    last_exit: Literal["model", "head"] = "model"
    max_length: int | None = None
    """None: the model's limit, at most 512."""
    max_train_samples: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of transformers' Trainer by their own names, and ``head_learning_rate``."""
    exit_epochs: float | None = None
    """Epochs that the exits learn alone afterwards, on the frozen encoder; None: as the recipe says."""
    first_phase: Path | None = None
    """A folder with the weights that the recipe's first phase would come to, which is then not trained."""
    resume: bool = False
    max_drop: float = 0.5
    """Points of the main metric that the default operating point may lose on dev."""

    def fingerprint(self) -> dict[str, Any]:
        """What must not change between an interrupted training and its ``--resume``."""
        others = ("first_phase", "resume", "max_drop")
        kept = {key: getattr(self, key) for key in self.__dataclass_fields__ if key not in others}
        return json.loads(json.dumps(kept, default=str))  # type: ignore[no-any-return]


_EXIT_STEPS = 2000
"""Most steps that exits learn alone where only the recipe wishes it: of many rows they have seen enough by then."""


def train(plan: Plan) -> Run:
    """Train, choose a default operating point on dev, and write the run folder.

    Checkpoints live in ``<out>.training`` until the run folder is complete; ``plan.resume`` goes on from the last one.

    Raises:
        OfframpError: bad data, settings or folders; see ``offramp.errors``.
    """
    started = time.monotonic()
    check_replaceable(plan.out)
    recipe = load_recipe(plan.recipe).changed(plan.settings)
    _check_exit_epochs(recipe, plan)
    work = plan.out.with_name(plan.out.name + ".training")
    arguments = phase_arguments(plan, work, recipe, recipe.training[0])
    main = arguments.process_index == 0
    with only_training(work) if main else nullcontext():  # the processes of one training share its folder
        return _train(plan, recipe, arguments, work, main, started)


def _check_exit_epochs(recipe: Recipe, plan: Plan) -> None:
    if plan.exit_epochs is None:
        return
    if not 0 <= plan.exit_epochs < math.inf:
        raise KnobError(f"--exit-epochs must be 0 or more, not {plan.exit_epochs}")
    last = recipe.training[-1].train
    if plan.exit_epochs and last != "all":
        raise KnobError(f"recipe {plan.recipe} ends with its {last} trained alone: leave --exit-epochs out")


def _with_exits_alone(recipe: Recipe, plan: Plan, model: Any, rows: int, batch: int) -> Recipe:
    """The recipe with one more phase, in which the exits learn on the frozen encoder, where that is wished for.

    Args:
        recipe: what is trained before.
        plan: whose wish it is; where it says nothing, the recipe's.
        model: with exits.
        rows: to learn from.
        batch: rows of a step.

    Raises:
        KnobError: it was asked for, and there are no early exits.
    """
    epochs = plan.exit_epochs
    if epochs is None:
        epochs = 0.0 if len(model.stages) == 1 else min(recipe.exit_epochs, _EXIT_STEPS * batch / rows)
    if not epochs:
        return recipe
    last = recipe.training[-1]
    own = {**last.arguments, **FROZEN, **of_tokens(model.offramp), "num_train_epochs": epochs, "max_steps": -1}
    longer = replace(recipe, training=(*recipe.training, replace(last, train="heads", arguments=own, firm=True)))
    check_phases(model, longer, plan.recipe)
    return longer


def _train(plan: Plan, recipe: Recipe, arguments: ExitTrainingArguments, work: Path, main: bool, started: float) -> Run:
    """``train`` once nobody else does in the same place."""
    set_seed(arguments.seed)
    data = load_data(
        plan.data,
        dev=plan.dev,
        text_columns=plan.text_columns,
        label_column=plan.label_column,
        problem_type=plan.problem_type,
        seed=arguments.seed,
    )
    data = limited(data, plan.max_train_samples, arguments.seed)
    recipe.criterion(data.problem_type)  # says so now, not after hours of training, where it does not fit
    with arguments.main_process_first(desc="preparing the work folder"):
        if main:
            prepare(work, plan, data, arguments)
    tokenizer, max_length = make_tokenizer(plan, work if main else None)
    before = trained_on(plan.model, AutoConfig.from_pretrained(plan.model))
    model = _model(plan, recipe, data)
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    recipe = _with_exits_alone(recipe, plan, model, len(data.train), per_step)
    return fit(Ready(plan, recipe, data, model, tokenizer, max_length, arguments, work, started, trained_on=before))


@dataclass(frozen=True)
class Ready:
    """All that a training needs."""

    plan: Plan
    recipe: Recipe
    data: TrainingData
    """Its labels may be the answers of the model itself: see ``own_answers``."""
    model: PreTrainedModel
    """With exits."""
    tokenizer: Tokenizer
    max_length: int
    arguments: ExitTrainingArguments
    """Those of the first phase."""
    work: Path
    """Prepared folder of checkpoints."""
    started: float
    """By the monotonic clock."""
    own_answers: bool = False
    """Nobody gave labels: they are the answers of the model before this training."""
    trained_on: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    """Hashes of the rows that the model has learned from before."""


def fit(ready: Ready) -> Run:
    """Run the phases of the recipe, choose a default operating point on dev, and write the run folder."""
    plan, recipe, data, model = ready.plan, ready.recipe, ready.data, ready.model
    tokenizer, max_length, work = ready.tokenizer, ready.max_length, ready.work
    main = ready.arguments.process_index == 0
    task = make_task(data.problem_type, data.id2label)
    told = AGREEMENT if ready.own_answers else task.main_metric
    train_rows, dev_rows = (tokenizer.encode(part.texts, part.where) for part in (data.train, data.dev))
    if main:
        _say_what_was_cut(train_rows, "training", max_length)
        _say_what_was_cut(dev_rows, "dev", max_length)
    assert data.train.labels is not None
    assert data.dev.labels is not None
    history: list[dict[str, Any]] = []
    used: list[dict[str, Any]] = []
    for number, phase in enumerate(recipe.training, start=1):
        arguments = phase_arguments(plan, work, recipe, phase)
        used.append({"trains": phase.train, "arguments": _kept(arguments)})
        if number == 1 and plan.first_phase is not None:
            take_over(model, plan.first_phase, phase.train)
            used[-1]["taken from"] = plan.first_phase.name
            continue
        model, log = _run_phase(
            phase, number, model, arguments, work, plan, task, told,
            _heading(recipe, number), tokenizer,
            Rows(train_rows, data.train.labels), Rows(dev_rows, data.dev.labels),
        )  # fmt: skip
        history += log
        if main and number < len(recipe.training):
            _keep_finished(work / f"phase-{number}", model, log)
    if not main:
        return Run(plan.out, {})
    section = {
        "format": FORMAT,
        "offramp_version": __version__,
        "recipe": plan.recipe,
        "recipe_settings": dict(plan.settings),
        "max_length": max_length,
        "token_types": tokenizer.token_types,
        "text_columns": list(data.columns.text),
        "label_column": data.columns.label,
        **model.settings.to_json(),
    }
    setattr(model.config, SECTION, section)
    with replace_folder(plan.out) as folder:
        model.save_pretrained(folder)
        shutil.copytree(work / "tokenizer", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.json"))
        # No row that the model has learned from, now or before, may be calibrated on.
        hashes = np.concatenate([row_hashes(data.train.texts), ready.trained_on])
        save_file({"hashes": hashes}, folder / TRAINING_ROWS)
        record = _record_of(plan, ready.arguments, used, data, history, time.monotonic() - ready.started)
        (folder / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        chosen_on = OWN_ANSWERS if ready.own_answers else "dev"
        write_measured(folder, model, tokenizer, dev_rows, data, recipe, plan.max_drop, chosen_on)
    shutil.rmtree(work, ignore_errors=True)
    return Run.open(plan.out)


def take_over(model: PreTrainedModel, folder: Path, which: str) -> None:
    """Give a model with exits the weights of another one.

    Args:
        model: its own weights go.
        folder: with the other's.
        which: ``all`` of them, or those of the ``backbone``: see ``parameters_of``.

    Raises:
        RunError: the folder lacks some of them, or has others in their place.
    """
    found, own = load_early_exit(folder).state_dict(), model.state_dict()
    wanted = [name for name, _ in parameters_of(model, which)]
    buffers = [name for name, _ in model.named_buffers() if name in own]
    wanted += [name for name in buffers if which == "all" or not name.startswith(f"{SECTION}.")]
    for name in wanted:
        if name not in found or found[name].shape != own[name].shape:
            raise RunError(f"{folder} has no {name} as this model has it: it is of another training")
    model.load_state_dict({name: found[name] for name in wanted}, strict=False)


def _heading(recipe: Recipe, number: int) -> str:
    """Which phase begins; of one alone, nothing."""
    phases = recipe.training
    return "" if len(phases) == 1 else f"phase {number} of {len(phases)}: {phases[number - 1].moves}"


def phase_arguments(plan: Plan, work: Path, recipe: Recipe, phase: Phase) -> ExitTrainingArguments:
    """What was given, over the phase's own, over the recipe's, over our defaults; a firm phase's own over all."""
    firm = phase.arguments if phase.firm else {}
    given = {name: value for name, value in plan.arguments.items() if name not in firm}
    return make_arguments(str(work), given, recipe={**recipe.arguments, **phase.arguments})


def limited(data: TrainingData, most: int | None, seed: int) -> TrainingData:
    """At most so many training rows, drawn by seed; dev stays whole."""
    if most is None or most >= len(data.train):
        return data
    rows = np.random.default_rng(seed).permutation(len(data.train))[:most]
    return replace(data, train=data.train.select(np.sort(rows)))


_ORDER = (
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
)
"""Arguments that decide which rows a step sees: a checkpoint's place in the data means nothing with others."""


def prepare(work: Path, plan: Plan, data: TrainingData, arguments: ExitTrainingArguments) -> None:
    """The folder of checkpoints: fresh, or the interrupted one where ``--resume`` was asked for."""
    path = work / "plan.json"
    rows = np.concatenate([row_hashes(data.train.texts), row_hashes(data.dev.texts)])
    now = {
        **plan.fingerprint(),
        **{name: _plain(getattr(arguments, name)) for name in _ORDER},
        "rows of the data": hashlib.sha256(rows.tobytes()).hexdigest(),
    }
    now.pop("arguments")  # others may change, such as the learning rate after a loss went wrong
    if not plan.resume:
        if work.exists() and not path.is_file() and (not work.is_dir() or any(work.iterdir())):
            raise RunError(f"{work} exists and holds something else: checkpoints go there, so give another --out")
        if (begun := what_to_go_on_from(work)) is not None:
            logger.warning("an interrupted training in %s is removed: --resume would have gone on from %s", work, begun)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        path.write_text(json.dumps(now, indent=1), encoding="utf-8")
        return
    if not path.is_file() or not _is_json(path):  # it is written first: killed in it, a training has begun nothing
        raise RunError(f"there is nothing to resume in {work}: train without --resume")
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        raise KnobError(
            f"--resume goes on with what was begun, and {changed[0]} was {before.get(changed[0])!r}, "
            f"not {now[changed[0]]!r}: give the same options and data, or leave --resume out"
        )


def make_tokenizer(
    plan: Plan, work: Path | None, source: str | None = None, config: PretrainedConfig | None = None
) -> tuple[Tokenizer, int]:
    """The encoder's tokenizer as a served model will use it, and the length texts are cut at.

    Args:
        plan: the training's.
        work: where to leave it; None: nowhere.
        source: where it is; None: where the model is.
        config: the model's; None: what stands there.

    Raises:
        RunError: there is no tokenizer, or it cannot be read.
        UnsupportedError: it is none that a served model can use.
        KnobError: texts longer than the model reads were asked for.
    """
    pretrained = _pretrained_tokenizer(source or plan.model)
    try:
        config = AutoConfig.from_pretrained(plan.model) if config is None else config
    except (OSError, ValueError) as error:
        raise RunError(f"cannot load a model from {plan.model}: {str(error).splitlines()[0]}") from error
    if not pretrained.is_fast:
        raise UnsupportedError(f"{plan.model} has no fast tokenizer, which a served model needs (tokenizer.json)")
    limit = _length_limit(pretrained, config)
    if plan.max_length is not None and plan.max_length > limit:
        raise KnobError(f"--max_length {plan.max_length} is more than {plan.model} reads: at most {limit}")
    max_length = min(limit, 512) if plan.max_length is None else plan.max_length
    folder = (work or plan.out.with_name(f"{plan.out.name}.rank-{os.getpid()}")) / "tokenizer"
    pretrained.save_pretrained(folder)
    config.save_pretrained(folder)
    tokenizer = Tokenizer.from_folder(folder, max_length=max_length)
    if work is None:
        shutil.rmtree(folder.parent)
    return tokenizer, max_length


_WORDLESS = (
    "{} has no tokenizer, without which every word is unknown: save the model's own there, "
    "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
)


def _pretrained_tokenizer(name: str) -> Any:
    """What AutoTokenizer finds, which must know words.

    Of a folder without a tokenizer's files transformers makes one that knows the special tokens alone.
    """
    try:
        found = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # tokenizers raises plain Exception for whatever it cannot read
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if reason.endswith(":"):  # a list follows of what it could have been made from, and nothing of that is there
            raise RunError(_WORDLESS.format(name)) from error
        raise RunError(f"cannot load a tokenizer from {name}: {reason}") from error
    if not found.get_vocab().keys() - {*found.all_special_tokens, *found.get_added_vocab()}:
        raise RunError(_WORDLESS.format(name))
    return found


def _length_limit(tokenizer: Any, config: Any) -> int:
    """Tokens the model can read. RoBERTa's kin lose the positions up to the padding id to padding."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 10**9)
    if config.model_type in ("roberta", "xlm-roberta", "mpnet"):
        positions -= int(config.pad_token_id) + 1
    return min(int(min(tokenizer.model_max_length, 10**9)), positions)


def _model(plan: Plan, recipe: Recipe, data: TrainingData) -> PreTrainedModel:
    model = load_plain(
        plan.model,
        num_labels=len(data.id2label) or 1,
        id2label=data.id2label or {0: "value"},
        label2id={name: i for i, name in (data.id2label or {0: "value"}).items()},
        problem_type=data.problem_type,
        ignore_mismatched_sizes=True,
    )
    objective = recipe.training[0].objective
    layers, members = places(plan, recipe, cut(model).num_layers)
    settings = ExitSettings(
        head=recipe.head.name,
        head_settings=recipe.head.settings,
        layers=layers,
        pooling=plan.pooling or recipe.pooling or pretrained_pooling(plan.model),
        shared=plan.shared or recipe.shared,
        last_exit=plan.last_exit,
        members=members,
        objective=objective.name,
        objective_settings=objective.settings,
    )
    model = add_exits(model, settings)
    check_phases(model, recipe, plan.recipe)
    if plan.last_exit == "head":
        logger.warning(
            "with --last-exit head the last answer is of a head that only offramp knows: plain transformers would load "
            "this run with a head that nobody trained"
        )
    return model


def check_phases(model: PreTrainedModel, recipe: Recipe, name: str) -> None:
    """Complain now, and not when the phase is reached, of an objective's setting or of nothing to train."""
    for phase in recipe.training:
        make_objective(phase.objective.name, phase.objective.settings, num_exits=len(model.stages))
        if not parameters_of(model, phase.train):
            raise KnobError(f"recipe {name} trains its early exits by themselves, and there are none: give it --exits")


def places(plan: Plan, recipe: Recipe, num_layers: int) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """Layers after which exits stand (None: every layer), and layers of each smaller complete model."""
    if recipe.members:
        if plan.exits == ():
            raise KnobError("this recipe runs smaller complete models first: --exits says how many layers each has")
        return None, plan.exits or tuple(max(1, round(share * num_layers)) for share in recipe.members)
    return plan.exits if plan.exits is not None else None if recipe.exits == "all" else (), ()


def file_of(name: str, file: str) -> Path | None:
    """A file of a checkpoint, in its folder or fetched from the hub; None: it has none."""
    path = cached_file(
        name, file, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False, _raise_exceptions_for_gated_repo=False,
    )  # fmt: skip
    return None if path is None else Path(path)


def trained_on(name: str, config: PretrainedConfig) -> NDArray[np.uint64]:
    """Hashes of the rows that a checkpoint has learned from, where it is a run of ours.

    Raises:
        RunError: its file of them is damaged, or a newer offramp wrote it.
    """
    section = getattr(config, SECTION, None)
    made_as = section.get("format") if isinstance(section, Mapping) else None
    if isinstance(made_as, int) and made_as > FORMAT:
        raise RunError(
            f"{name} has run format {made_as} and this offramp reads up to {FORMAT}: "
            "upgrade with pip install -U offramp"
        )
    path = None if section is None else file_of(name, TRAINING_ROWS)
    return np.zeros(0, dtype=np.uint64) if path is None else read_hashes(path)


def pretrained_pooling(name: str) -> Pooling:
    """How an encoder was pooled so far: runs of ours and sentence encoders say so; others have a pooler or head.

    A sentence-transformers checkpoint carries ``1_Pooling/config.json``. On such encoders early exits over [CLS] stay
    at chance while the mean over tokens works (docs/training.md).
    """
    own = file_of(name, "config.json")
    section = None if own is None else json.loads(own.read_text(encoding="utf-8")).get(SECTION)
    if isinstance(section, dict) and section.get("pooling") in get_args(Pooling):
        return cast("Pooling", section["pooling"])
    path = file_of(name, "1_Pooling/config.json")
    if path is None:
        return "backbone"
    config = json.loads(path.read_text(encoding="utf-8"))
    mean = config.get("pooling_mode_mean_tokens") or config.get("pooling_mode") == "mean"
    return "mean" if mean else "cls"


def _say_what_was_cut(rows: Sequence[Encoded], part: str, max_length: int) -> None:
    cut = sum(row.truncated for row in rows)
    if cut:
        logger.warning("%d of %d %s texts are longer than %d tokens and were cut", cut, len(rows), part, max_length)


def _is_worth_keeping(
    model: PreTrainedModel, arguments: ExitTrainingArguments, work: Path, parts: Sequence[Rows]
) -> bool:
    """Whether the encoder's work is kept on disk while exits train: it is frozen, asked often, and there is room."""
    if not can_keep(model):
        return False
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    asked = arguments.max_steps * per_step if arguments.max_steps > 0 else arguments.num_train_epochs * len(parts[0])
    if asked < len(parts[0]):
        return False
    needed = sum(size_on_disk(model, part.rows, dtype=_kept_dtype(model, arguments)) for part in parts)
    free = shutil.disk_usage(work).free
    if needed > free / 2:
        logger.info("what the frozen encoder gives would take %.1f GB of disk: it runs in every epoch", needed / 1e9)
    return needed <= free / 2


def _kept_dtype(model: PreTrainedModel, arguments: ExitTrainingArguments) -> Dtype:
    """As was asked for; or else float32, but for every token's vector no finer than the heads compute."""
    if arguments.feature_dtype is not None:
        return arguments.feature_dtype  # type: ignore[return-value]  # make_arguments refuses what is none
    return "float16" if model.offramp.reads_tokens and (arguments.bf16 or arguments.fp16) else "float32"


def kept_rows(
    model: PreTrainedModel, arguments: ExitTrainingArguments, pad_token: int, folder: Path, rows: Rows
) -> FeatureRows:
    """The rows with what the frozen encoder gives for them, computed now or found on disk."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    with progress_bar(len(rows), "encoding") as bar:
        store = keep_features(
            model.to(arguments.device),
            rows.rows,
            folder,
            pad_token=pad_token,
            dtype=_kept_dtype(model, arguments),
            autocast=torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None,
            batch_size=arguments.per_device_eval_batch_size,
            share=(arguments.process_index, arguments.world_size),
            meet=torch.distributed.barrier if distributed else lambda: None,
            progress=lambda done: (bar.update(done), None)[1],
        )
    logger.info(
        "the encoder is frozen: %d rows went through it once, and exits train on what it gave (%.1f MB in %s)",
        len(rows), store.features.nbytes / 1e6, folder,
    )  # fmt: skip
    return FeatureRows.of(rows, store)


def _with_hardness(rows: Rows, model: Any, collate: Collate, arguments: ExitTrainingArguments) -> Rows:
    """The rows and how hard each of them is, where the objective asks for it."""
    needs = getattr(model.objective, "needs", None)
    if needs is None:
        return rows
    found = measure_hardness(needs, model, rows, collate, seed=arguments.seed, learning_rate=arguments.learning_rate)
    return replace(rows, hardness=found)


def _run_phase(
    phase: Phase,
    number: int,
    model: PreTrainedModel,
    arguments: ExitTrainingArguments,
    work: Path,
    plan: Plan,
    task: Task,
    told: str,
    heading: str,
    tokenizer: Tokenizer,
    train_rows: Rows,
    dev_rows: Rows,
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """One run of the optimiser, or its result where an interrupted training had finished it.

    ``told`` is what the task's metric is called in what people read, ``heading`` what stands above it.
    """
    folder = work / f"phase-{number}"
    if (finished := folder / "finished").is_dir():
        return load_early_exit(finished), json.loads((folder / "history.json").read_text(encoding="utf-8"))
    model.minimise(phase.objective.name, phase.objective.settings)
    model.requires_grad_(False)
    for _, parameter in parameters_of(model, phase.train):
        parameter.requires_grad_(True)
    model.train()
    collate = Collate(tokenizer.pad_token)
    if _is_worth_keeping(model, arguments, work, (train_rows, dev_rows)):
        keep = partial(kept_rows, model, arguments, tokenizer.pad_token)
        train_rows, dev_rows = keep(work / "features-train", train_rows), keep(work / "features-dev", dev_rows)
        collate = CollateFeatures(tokenizer.pad_token)
    _check_batches(arguments, len(train_rows))
    train_rows = _with_hardness(train_rows, model, collate, arguments)
    layers = [stage.layers for stage in model.stages]
    _check_metric(arguments.metric_for_best_model, task, layers, dev_rows)
    try:
        trainer = ExitTrainer(
            moves=phase.train,
            model=model,
            args=_phase_arguments(arguments, folder, len(train_rows), plan.arguments),
            train_dataset=train_rows,
            eval_dataset=dev_rows,
            data_collator=collate,
            compute_metrics=exit_metrics(task, layers),
        )
    except (ValueError, ImportError, RuntimeError) as error:  # a reporter that is not installed, options that clash
        raise KnobError(f"training arguments: {in_one_line(error)}") from error
    # Whichever transformers chose: a bar, a notebook's bar, or dictionaries printed (where its logging is quiet).
    trainer.callback_handler.callbacks = [
        callback
        for callback in trainer.callback_handler.callbacks
        if not type(callback).__name__.endswith(("ProgressCallback", "PrinterCallback"))
    ]
    trainer.add_callback(ExitProgress(task.main_metric, told, heading))
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder) if plan.resume else None)
    model.requires_grad_(True)
    return model, [{"phase": number, **entry} for entry in trainer.state.log_history]


def _keep_finished(folder: Path, model: PreTrainedModel, history: list[dict[str, Any]]) -> None:
    """What a phase came to, for a training that is broken off in a later one."""
    if (folder / "finished").is_dir():
        return
    (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")
    with replace_folder(folder / "finished") as staging:
        model.save_pretrained(staging)


def _check_batches(arguments: ExitTrainingArguments, rows: int) -> None:
    """Complain where no batch is whole and only whole ones were wished for: Trainer would stop at step 0, and be done.

    Args:
        arguments: of a phase.
        rows: to train on.
    """
    whole = arguments.train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < whole:
        raise KnobError(
            f"--dataloader_drop_last leaves nothing of {rows} rows in batches of {whole}: leave it out, or give a "
            "smaller --per_device_train_batch_size"
        )


def _check_metric(name: str | None, task: Task, layers: Sequence[int], dev_rows: Rows) -> None:
    """Complain now, and not after the first epoch, of a metric that no evaluation gives."""
    known = ["exits_loss", "loss", *task.metrics(dev_rows.labels, dev_rows.labels)]
    known += [f"exit_{layer}_{task.main_metric}" for layer in layers]
    if name is not None and name.removeprefix("eval_") not in known:
        raise KnobError(f"--metric_for_best_model must be one of {', '.join(known)}, not {name!r}")


def _phase_arguments(
    arguments: ExitTrainingArguments, folder: Path, rows: int, given: Mapping[str, Any]
) -> ExitTrainingArguments:
    """Evaluate and save every epoch, or every 500 steps where an epoch is longer, unless it was set."""
    changes: dict[str, Any] = {"output_dir": str(folder)}
    if "eval_steps" not in given and arguments.eval_strategy == "steps":
        per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        steps = min(500, max(1, math.ceil(rows / per_step)))
        changes |= {"eval_steps": steps, "save_steps": steps}
    return replace(arguments, **changes)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint: trainer_state.json is what transformers writes last."""
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    newest = max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return None if newest is None else str(newest)


def _is_json(path: Path) -> bool:
    """Whether the file was written to its end."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


_KEPT = (
    "seed", "num_train_epochs", "max_steps", "learning_rate", "head_learning_rate", "per_device_train_batch_size",
    "bf16", "weight_decay", "warmup_steps", "lr_scheduler_type", "gradient_accumulation_steps", "world_size",
    "train_sampling_strategy", "metric_for_best_model",
)  # fmt: skip
"""Arguments that a run folder keeps."""


def _kept(arguments: ExitTrainingArguments) -> dict[str, Any]:
    return {name: _plain(getattr(arguments, name)) for name in _KEPT}


def _record_of(
    plan: Plan,
    arguments: ExitTrainingArguments,
    phases: list[dict[str, Any]],
    data: TrainingData,
    history: list[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """training.json: enough to train it again. ``arguments``: of the first phase; every phase has its own besides."""
    return {
        "plan": plan.fingerprint(),
        "arguments": _kept(arguments),
        "phases": phases,
        "rows": {"train": len(data.train.texts), "dev": len(data.dev.texts)},
        "sources": {"train": _name(data.train), "dev": _name(data.dev)},
        "versions": {
            "offramp": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
        },
        "seconds": round(seconds, 1),
        "resumed": plan.resume,  # then the seconds are those of the last part alone
        "history": history,
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(getattr(value, "value", value))


def _name(examples: Examples) -> str:
    return Path(examples.source).name
