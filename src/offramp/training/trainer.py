"""transformers.Trainer with what exits add: two learning rates, metrics of every exit, a stop at a loss gone wrong.

The loss itself lives in the model, so a plain Trainer trains it as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import EvalPrediction, ProgressCallback, Trainer

from offramp.errors import KnobError, TrainingError
from offramp.model.modeling import parameters_of
from offramp.tasks import Task
from offramp.training.arguments import in_one_line

__all__ = ["ExitProgress", "ExitTrainer", "exit_metrics", "progress_bar"]


HEADS_FASTER = 20.0
"""Learning rate of fresh heads over that of the pretrained encoder, unless it was set (docs/training.md)."""


class ExitTrainer(Trainer):  # type: ignore[misc]
    """Trainer for a model with exits.

    Args:
        moves: whose parameters this phase trains: see ``recipes.Phase.train``.
        **kwargs: Trainer's own.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, *, moves: str = "all", **kwargs: Any) -> None:
        self.moves = moves
        super().__init__(**kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """AdamW over encoder and exits, each with its learning rate; biases and norms without decay."""
        if self.optimizer is None:
            with _as_arguments():
                cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                options.pop("params", None)
                self.optimizer = cls(self._groups(), **options)
        return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; what a schedule lacks is said in a sentence."""
        with _as_arguments():
            return super().create_scheduler(*args, **kwargs)

    def _groups(self) -> list[dict[str, Any]]:
        decayed = set(self.get_decay_parameter_names(self.model))
        # The model's own head is the last exit, and as fresh as the others: what is not the encoder takes their rate.
        # So does the pooler, which is part of that head: sentence encoders have never used theirs.
        encoder = f".{self.model.base_model_prefix}."  # the model's, and those of the smaller models in it
        rates = {True: self.args.learning_rate, False: self.args.head_learning_rate}
        if rates[False] is None:
            rates[False] = HEADS_FASTER * self.args.learning_rate
        named = [(name, p) for name, p in parameters_of(self.model, self.moves) if p.requires_grad]
        groups = self._objective_group()
        taken = {id(p) for group in groups for p in group["params"]}
        named = [(name, p) for name, p in named if id(p) not in taken]
        for in_encoder in (True, False):
            for decay in (True, False):
                params = [
                    p
                    for n, p in named
                    if (encoder in f".{n}" and ".pooler." not in n) == in_encoder and (n in decayed) == decay
                ]
                if params:
                    weight_decay = self.args.weight_decay if decay else 0.0
                    groups.append({"params": params, "lr": rates[in_encoder], "weight_decay": weight_decay})
        return groups

    def _objective_group(self) -> list[dict[str, Any]]:
        """Parameters of the objective itself, where it has a learning rate for them."""
        objective = self.model.offramp.objective
        rate = getattr(objective, "learning_rate", None)
        if rate is None or self.moves not in ("all", "heads"):
            return []
        return [{"params": list(objective.parameters()), "lr": rate, "weight_decay": 0.0}]

    def training_step(self, model: nn.Module, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch; a loss that is no number ends the training before the optimiser sees it."""
        exits = self.model.offramp
        exits.step, exits.progress = self.state.global_step, self.state.global_step / self.state.max_steps
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        _check_number("the loss", loss.item(), f"at step {self.state.global_step + 1}")
        return loss

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on from a checkpoint, with the learning rates asked for now: those that were saved would win."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not isinstance(self.lr_scheduler, torch.optim.lr_scheduler.LambdaLR):
            return
        assert self.optimizer is not None
        rates = [group["lr"] for group in self._groups()]
        self.lr_scheduler.base_lrs = rates
        shares = [share(self.lr_scheduler.last_epoch) for share in self.lr_scheduler.lr_lambdas]
        for group, rate, share in zip(self.optimizer.param_groups, rates, shares, strict=True):
            group.update(initial_lr=rate, lr=rate * share)
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # what logs tell


@contextmanager
def _as_arguments() -> Iterator[None]:
    """Complaints about an optimiser or a schedule are about the arguments that named it."""
    try:
        yield
    except (ImportError, ValueError, TypeError) as error:
        raise KnobError(f"training arguments: {in_one_line(error)}") from error


def _check_number(what: str, value: float, where: str) -> None:
    """Raise TrainingError where a loss is none."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{what} is {value} {where}: training stopped, and the last good checkpoint, if there is one yet, is kept; "
            "go on with --resume and a lower --learning_rate"
        )


def exit_metrics(task: Task, layers: Sequence[int]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Metrics of every exit: ``exit_3_accuracy``, ..., the last exit's, and the mean dev loss over exits."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits = np.asarray(prediction.predictions[1], dtype=np.float64)  # [N, E, C]
        labels = np.asarray(prediction.label_ids)
        result = {"exits_loss": float(np.mean([_loss(task, logits[:, e], labels) for e in range(logits.shape[1])]))}
        # Before anything is saved: a checkpoint that is no number must not become the last one.
        _check_number("the exits' loss", result["exits_loss"], "on dev")
        for e, layer in enumerate(layers):
            metrics = task.metrics(task.answers(logits[:, e]), labels)
            result[f"exit_{layer}_{task.main_metric}"] = metrics[task.main_metric]
        result.update(metrics)
        return result

    return compute


def _loss(task: Task, logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Mean loss of one exit in float64: [N, C] and labels."""
    from offramp.objectives.base import exit_loss

    return float(exit_loss(torch.from_numpy(logits), torch.from_numpy(labels), task.problem_type))


class ExitProgress(ProgressCallback):  # type: ignore[misc]
    """Trainer's bar with time left, and one readable line per evaluation instead of a dictionary."""

    def __init__(self, metric: str, told: str, heading: str = "") -> None:
        """``told``: what the metric is called in the lines; ``heading``: stands above them."""
        super().__init__()
        self.heading = heading
        self.metric = metric
        self.told = told
        self.training_bar: tqdm[Any] | None = None
        self.prediction_bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar = progress_bar(state.max_steps)
            if self.heading:
                self.training_bar.write(self.heading)
        self.current_step = 0

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if self.prediction_bar is None and state.is_world_process_zero:
            self.prediction_bar = progress_bar(len(eval_dataloader))
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")
        if "eval_exits_loss" in logs:
            names = [key for key in logs if key.startswith("eval_exit_") and key.endswith(self.metric)]
            values = " ".join(f"{100 * float(logs[key]):.1f}" for key in names)
            self.training_bar.write(
                f"epoch {logs['epoch']:.2f}  dev {self.told} by exit: {values}  mean loss {logs['eval_exits_loss']:.4f}"
            )


def progress_bar(total: int, what: str | None = None) -> tqdm[Any]:
    """A bar with time left; none where standard error is no terminal, as in a log file."""
    return tqdm(total=total, desc=what, dynamic_ncols=True, leave=False, disable=None)
