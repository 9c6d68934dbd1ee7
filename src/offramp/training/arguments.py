"""Training arguments: transformers' own, by their own names, with our defaults.

The defaults were chosen by measurement: docs/training.md holds the numbers and the command.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

import torch
from transformers import HfArgumentParser, TrainingArguments

from offramp.errors import KnobError
from offramp.model.exits import Exits

__all__ = ["FROZEN", "ExitTrainingArguments", "in_one_line", "make_arguments", "of_tokens"]

DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 5.0,
    "learning_rate": 5e-5,
    "head_learning_rate": None,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "weight_decay": 0.01,
    "warmup_steps": 0.06,
    "lr_scheduler_type": "linear",
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "load_best_model_at_end": True,
    "metric_for_best_model": "exits_loss",
    "greater_is_better": False,
    "save_total_limit": 2,
    "logging_steps": 50,
    "report_to": "none",
    "seed": 42,
    "remove_unused_columns": False,
}


FROZEN: Mapping[str, Any] = {
    "bf16": False,
    "num_train_epochs": 20.0,
    "head_learning_rate": 5e-3,
}
"""Where exits learn alone, on what a frozen encoder gives.

Of 1e-3, 3e-3 and 1e-2 for 5 to 60 epochs, linear heads agreed with the full model best at 3e-3 to 1e-2 after 20, on
sst2 (6 layers, 4,000 texts) and on reactions (12 layers, 50 classes, 2,250 texts); 60 gained nothing. The layers run in
float32, as the model will be served: in bfloat16 exits would learn from slightly other vectors.
"""

_TOKENS: Mapping[str, Any] = {"feature_dtype": "float16"}
"""Likewise, where every token's vector is kept: that takes room."""
_NETWORKS: Mapping[str, Any] = {"head_learning_rate": 5e-4}
"""Likewise, of heads that are networks over tokens: at 2e-3 they stayed at the commonest answer."""


def of_tokens(exits: Exits) -> dict[str, Any]:
    """What goes over ``FROZEN`` for exits that read more of a text than one vector."""
    networks = any(head.reads_tokens for head in exits.early)
    return {**(_TOKENS if exits.reads_tokens else {}), **(_NETWORKS if networks else {})}


@dataclass
class ExitTrainingArguments(TrainingArguments):  # type: ignore[misc]
    """``transformers.TrainingArguments`` and two of ours."""

    head_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the exits and the model's own head; None: twenty times the encoder's."},
    )
    feature_dtype: str | None = field(
        default=None,
        metadata={
            "help": "float32 or float16: how what a frozen encoder gives is kept on disk. None: float32, but float16 "
            "for heads that read every token where they compute in half precision."
        },
    )


def has_bfloat16() -> bool:
    """Whether the GPU, or failing one the CPU, computes in bfloat16 rather than emulating it."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def make_arguments(
    output_dir: str, given: Mapping[str, Any], *, recipe: Mapping[str, Any] | None = None
) -> ExitTrainingArguments:
    """Our defaults, over them the recipe's, over them what was given. Values may be strings, as on a command line.

    Raises:
        KnobError: a name transformers does not know (the nearest are offered), or a value it does not take.
    """
    names = {f.name for f in fields(ExitTrainingArguments) if f.init}
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, n=3)
            hint = f"did you mean {' or '.join('--' + n for n in near)}?" if near else "see `offramp train --help`"
            raise KnobError(f"no training argument is called --{name}: {hint}")
    _refuse_unfit(given)
    # transformers takes bf16 without a GPU only where it was told that the CPU is meant.
    hardware = {"bf16": has_bfloat16(), "use_cpu": not torch.accelerator.is_available()}
    values = {**hardware, **DEFAULTS, **(recipe or {}), "output_dir": output_dir}
    values.update({name: _parse(name, value) for name, value in given.items()})
    _check_numbers(values)
    _check_strategies(values)
    try:
        return ExitTrainingArguments(**values)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise KnobError(f"training arguments: {in_one_line(error)}") from None


def in_one_line(error: Exception) -> str:
    """What transformers complains of: the first paragraph, of which the last lines may be a list."""
    return " ".join(str(error).strip().split("\n\n")[0].split())


UNFIT: Mapping[str, str] = {
    "label_smoothing_factor": "Trainer would compute the loss of the last exit alone and leave the others untrained",
    "prediction_loss_only": "the best checkpoint is chosen by what every exit answers",
    "label_names": "labels are found by --label_column",
    "output_dir": "the run folder is --out, and checkpoints stand beside it until it is whole",
    "resume_from_checkpoint": "--resume goes on from the last one in the folder beside --out",
    "push_to_hub": "push the finished run folder with `hf upload`",
    "remove_unused_columns": "the data is already what the model takes",
}
"""Arguments of transformers that cannot mean here what they say, and why."""

NEEDED: Mapping[str, str] = {"eval_do_concat_batches": "every exit is measured on all answers together"}
"""Arguments that cannot be switched off."""


def _refuse_unfit(given: Mapping[str, Any]) -> None:
    for name, reason in UNFIT.items():
        if str(given.get(name, "false")).lower() not in ("false", "none", "0", "0.0"):
            raise KnobError(f"--{name} does not go with early exits: {reason}")
    for name, reason in NEEDED.items():
        if str(given.get(name, "true")).lower() not in ("true", "1", "yes", "y", "t"):
            raise KnobError(f"--{name} {given[name]} does not go with early exits: {reason}")


def _check_strategies(values: Mapping[str, Any]) -> None:
    """Complain where the best checkpoint could not be told: evaluated at other times than it is saved."""
    save, evaluate = (getattr(each, "value", each) for each in (values["save_strategy"], values["eval_strategy"]))
    if values.get("load_best_model_at_end") and save not in ("best", evaluate):
        raise KnobError(
            f"--save_strategy {save} does not go with --eval_strategy {evaluate}: give both alike, or leave the best "
            "checkpoint with --load_best_model_at_end no"
        )


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Complain of numbers that transformers would fail on in the middle, if at all."""
    at_least = {
        "seed": 0,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0,
        "head_learning_rate": 0,
        "num_train_epochs": 0,
        "weight_decay": 0,
    }
    for name, low in at_least.items():
        value = values.get(name)
        if value is not None and not (math.isfinite(value) and value >= low):
            raise KnobError(f"--{name} must be {low} or more, not {value}")
    for name in ("seed", "data_seed"):
        if (values.get(name) or 0) >= 2**32:
            raise KnobError(f"--{name} must be below {2**32}, not {values[name]}")
    if values.get("feature_dtype") not in (None, "float32", "float16"):
        raise KnobError(f"--feature_dtype must be float32 or float16, not {values['feature_dtype']!r}")
    if values["num_train_epochs"] == 0 and not (values.get("max_steps") or 0) > 0:
        raise KnobError("--num_train_epochs 0 trains nothing: give a number above 0")


def _parse(name: str, value: Any) -> Any:
    """A command line's string as the type transformers declares for it."""
    if not isinstance(value, str):
        return value
    parser = HfArgumentParser(ExitTrainingArguments, exit_on_error=False)
    action = next(action for action in parser._actions if action.dest == name)
    if value.lower() in ("none", "null"):
        return "none" if name == "report_to" else None  # there it is a word of transformers' own: report to nobody
    try:
        return action.type(value) if callable(action.type) else value
    except Exception as error:
        raise KnobError(f"--{name} does not take {value!r}: {error}") from None
