"""An export held against torch, on real texts, before anybody may use it.

float32: every stage's hidden states, logits and extras, to 1e-4. Int8: how many labels and exits are the same. Both:
whether a text's answer depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.criteria.base import Criterion
from offramp.engine.record import record
from offramp.engine.reference import reference
from offramp.errors import UnsupportedError
from offramp.inputs.batching import pad
from offramp.inputs.tokens import Encoded
from offramp.runtimes.base import Runtime
from offramp.runtimes.export.stages import Plan
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

__all__ = ["TOLERANCE", "Reading", "agreement", "stage_errors"]

TOLERANCE = 1e-4
"""Largest difference that float32 stages may show, where numbers are about 1; relative, where they are larger.

Stages are read one after the other, so that differences of layers add up: after more than ``_LAYERS`` of them a stage
may show in proportion more (an OpenVINO graph of twelve showed 1.4e-4).
"""
_LAYERS = 6

_BATCH = 8

Named = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Reading:
    """What an export is read with: texts, and the operating point they are left at."""

    texts: Sequence[Encoded]
    pad_token: int
    id2label: Mapping[int, str]
    criterion: Criterion | None = None
    knobs: Mapping[str, float] | None = None

    def trace(self, runtime: Runtime, batch_size: int) -> Trace:
        """What every exit says of every text."""
        return record(
            runtime, self.texts, pad_token=self.pad_token, id2label=dict(self.id2label), batch_size=batch_size
        )

    def exits(self, trace: Trace) -> npt.NDArray[np.int64] | None:
        """Where every text leaves; None where there is no operating point."""
        if self.criterion is None:
            return None
        return replay(trace, self.criterion, self.knobs or {}).exits


def stage_errors(plans: Sequence[Plan], runtime: Runtime, reading: Reading) -> list[float]:
    """Largest difference of each stage from torch, both going on from their own hidden states.

    Raises:
        UnsupportedError: a stage differs by more than ``TOLERANCE`` allows so deep.
    """
    worst = np.zeros(len(plans))
    order = np.argsort([len(text) for text in reading.texts])
    # Not sorted by length: short texts beside long ones, where a wrong mask shows.
    mixed = np.concatenate([order[start::_BATCH] for start in range(_BATCH)])
    batches = [mixed[start : start + _BATCH] for start in range(0, len(mixed), _BATCH)]
    for rows in [*batches, order[:1], order[-1:]]:
        worst = np.maximum(worst, _errors(plans, runtime, [reading.texts[row] for row in rows], reading.pad_token))
    for plan, error in zip(plans, worst, strict=True):
        allowed = TOLERANCE * max(1.0, plan.stage.layers / _LAYERS)
        if not error <= allowed:
            raise UnsupportedError(
                f"the graph of layers {plan.stage.first_layer + 1} to {plan.stage.last_layer} differs from torch by "
                f"{error:.2g}, more than {allowed:g}: nothing was written; serve this run with torch"
            )
    return [float(error) for error in worst]


def _errors(plans: Sequence[Plan], runtime: Runtime, texts: Sequence[Encoded], pad_token: int) -> list[float]:
    types = texts[0].token_types is not None
    inputs = pad(texts, list(range(len(texts))), pad_token=pad_token, token_types=types)
    real = np.arange(inputs["tokens"].shape[1]) < inputs["lengths"][:, None]
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    hidden, batch = runtime.embed(inputs)
    memory: Mapping[str, Any] = {}
    found = []
    for plan, stage in zip(plans, runtime.info.stages, strict=True):
        expected = _expected(plan, given)
        hidden = runtime.run(stage, hidden, batch)
        output, memory = runtime.exit(stage, hidden, batch, memory)
        said: Named = {"logits": output.logits} | {f"extras.{name}": x for name, x in output.extras.items()}
        pairs = [(expected[name], value) for name, value in said.items()]
        if "hidden" in expected:
            pairs.append((expected["hidden"][real], np.asarray(hidden)[real]))
        found.append(max(_difference(*pair) for pair in pairs))
    return found


def _expected(plan: Plan, given: dict[str, Tensor]) -> Named:
    """What torch says; hidden states and memory go into ``given`` for the next stage."""
    said: dict[str, Tensor] = {}
    with torch.no_grad():
        for part in (plan.layers, plan.exit):
            if part is not None:
                arrays = part(*(given[name] for name in part.reads))
                said |= dict(zip(part.gives, arrays, strict=True))
                given |= {name: x for name, x in said.items() if name == "hidden" or name.startswith("memory.")}
    return {name: value.numpy() for name, value in said.items()}


def _difference(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Largest difference, relative where numbers are above 1; infinite where only one of two is finite."""
    if expected.shape != found.shape:
        return float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return float("inf")
    scale = np.maximum(np.abs(expected[finite]), 1.0)
    return float((np.abs(expected[finite] - found[finite]) / scale).max(initial=0.0))


def agreement(reading: Reading, torch_trace: Trace, live: Sequence[int], runtime: Runtime) -> dict[str, Any]:
    """How an export answers beside torch, and beside itself at batch size 1.

    Args:
        reading: texts and the operating point.
        torch_trace: of the same texts, every exit.
        live: indices of the exits that the export has.
        runtime: the export.

    Returns:
        ``labels`` (by exit) and ``exits``: shares of texts alike; ``largest_difference`` of a logit; and the same
        under ``batch_1``: batches of 32 beside texts alone. Where the runtime answers texts alone in one call, under
        ``single`` the ``largest_difference`` of a logit from that of the stages.

    Raises:
        UnsupportedError: a text alone is answered otherwise in one call than by the stages.
    """
    expected = torch_trace.at_exits(live)
    together, alone = reading.trace(runtime, 32), reading.trace(runtime, 1)
    said = _beside(reading, expected, together) | {"batch_1": _beside(reading, together, alone)}
    if runtime.info.single:
        said["single"] = {"largest_difference": _single_error(reading, runtime)}
    return said


def _single_error(reading: Reading, runtime: Any) -> float:
    """Largest difference of a logit between the one graph and the stages: where texts leave, and at the last exit."""
    assert reading.criterion is not None
    knob, worst = reading.criterion.knobs["threshold"], 0.0
    stages = runtime.info.stages
    served = (reading.knobs or {}).get("threshold", knob.default)
    for threshold, last in ((served, stages[-1]), (knob.low, stages[-1]), (knob.low, stages[len(stages) // 2])):
        knobs = {"threshold": threshold, "max_layers": float(last.layers)}
        expected = reference(runtime, reading.criterion, reading.texts, knobs)
        for text, one in zip(reading.texts, expected, strict=True):
            inputs = pad([text], [one.id], pad_token=reading.pad_token, token_types=text.token_types is not None)
            logits, place = runtime.run_single(inputs, threshold, last.index)
            if place != one.exit_index:
                raise UnsupportedError(
                    "texts alone leave elsewhere in the graph of all stages than stage by stage: nothing was written; "
                    "serve this run with torch"
                )
            worst = max(worst, _difference(one.answer, np.asarray(logits)[0]))
    if not worst <= TOLERANCE:
        raise UnsupportedError(
            f"the graph of all stages differs from them by {worst:.2g}, more than {TOLERANCE:g}: nothing was written; "
            "serve this run with torch"
        )
    return worst


def _beside(reading: Reading, one: Trace, other: Trace) -> dict[str, Any]:
    said: dict[str, Any] = {"largest_difference": float(np.abs(one.logits - other.logits).max())}
    if one.problem_type != "regression":
        same = _labels(one) == _labels(other)
        same = same.all(axis=-1) if same.ndim == 3 else same
        said["labels"] = [float(share) for share in same.mean(axis=1)]
    first, second = reading.exits(one), reading.exits(other)
    if first is not None and second is not None:
        said["exits"] = float((first == second).mean())
    return said


def _labels(trace: Trace) -> npt.NDArray[Any]:
    """[E, U] classes, or [E, U, C] labels that apply."""
    if trace.problem_type == "multi_label_classification":
        return trace.logits > 0
    answers: npt.NDArray[Any] = trace.logits.argmax(axis=-1)
    return answers
