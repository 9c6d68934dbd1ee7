"""What an answer can cost: losses per text in [0, 1], of which a risk is the mean.

Jazbec et al., "Fast yet Safe", NeurIPS 2024: consistency with the full model needs no labels; the performance gap does.
An error increase lies in -1, 0, 1 (a text may be lost, and another won). It is counted as max(0, .): a text that the
full model had right and early exit has wrong. So it is 0 or 1 and has exact p-values, and a promise of it holds for the
net increase too, which can only be less. (Shifted into [0, 1] instead, most texts would have a loss of one half, and a
risk of 1 % would take 60,000 texts.)
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import DataError, KnobError, OfframpError, UnsupportedError
from offramp.tasks import Task, make_task
from offramp.traces.trace import Trace

__all__ = ["RISKS", "Loss", "Risk", "answer_loss", "check_risk", "import_loss", "make_risk"]

Floats = NDArray[np.float64]

Loss = Callable[[NDArray[Any], NDArray[Any], NDArray[Any] | None], NDArray[Any]]
"""(answers [U, C], the full model's [U, C], labels or None) -> [U] in [0, 1].

One that returns bools says that nothing lies between: its promises are exact."""

RISKS = ("disagreement", "error")
"""Risks that have a name."""


@dataclass(frozen=True)
class Risk:
    """A loss with a name, for one trace's kind of answers."""

    name: str
    loss: Loss
    binary: bool
    """Losses are 0 or 1."""
    needs_labels: bool
    """Whether it is about labels. Of a function of one's own: whether it raises, or answers otherwise, without them."""

    def of(self, trace: Trace, answers: NDArray[Any]) -> Floats:
        """[U]: the losses of answers [U, C] to the units of a trace.

        Raises:
            DataError: they are not one number from 0 to 1 for each unit, or there are none: the function raises.
        """
        found = _called(self.loss, self.name, answers, trace.logits[-1], trace.labels)
        if found.shape != (trace.num_units,):
            raise DataError(
                f"risk {self.name!r} gave {list(found.shape)} numbers for {trace.num_units} texts: it must return one "
                "loss for each"
            )
        if self.binary and found.dtype != np.bool_:
            raise DataError(f"risk {self.name!r} gave bools once and {found.dtype} now: it must keep to one of them")
        values = _numbers(found, self.name)
        if not ((values >= 0) & (values <= 1)).all():
            raise DataError(f"risk {self.name!r} gave a loss that is not from 0 to 1: scale it, or clip it")
        return values

    def by_exit(self, trace: Trace) -> Floats:
        """[E, U]: the losses of every exit's own answers."""
        return np.stack([self.of(trace, logits) for logits in trace.logits])


def make_risk(risk: str | Loss, trace: Trace) -> Risk:
    """A risk by name, or of a function.

    Args:
        risk: ``disagreement``, ``error``, or a function (``Loss``).
        trace: whose answers it is about.

    Raises:
        KnobError: no such risk.
        DataError: it needs labels, and the trace has none; or a function returns no losses, or raises.
        UnsupportedError: regression, where no answer is simply right; or units that are no texts.
    """
    if trace.num_units != len(trace.lengths):
        raise UnsupportedError("a promise is made for texts, and in this trace a text has several answers")
    if callable(risk):
        name = f"{risk.__module__}:{risk.__qualname__}"
        found = _called(risk, name, trace.logits[-1], trace.logits[-1], trace.labels)
        made = Risk(name, risk, bool(found.dtype == np.bool_), needs_labels=False)
        made.of(trace, trace.logits[-1])
        return replace(made, needs_labels=_reads_labels(made, trace))
    check_risk(risk, trace.problem_type)
    task = make_task(trace.problem_type, trace.id2label)
    if risk == "disagreement":
        return Risk(risk, _disagreement(task), binary=True, needs_labels=False)
    if trace.labels is None:
        raise DataError("risk 'error' needs labels, and there are none: give labelled data, or promise disagreement")
    return Risk(risk, _error(task), binary=True, needs_labels=True)


def check_risk(name: str, problem_type: str) -> None:
    """Raise where a risk that has a name is none, or none for a problem type.

    Raises:
        KnobError: no such risk.
        UnsupportedError: regression, where no answer is simply right.
    """
    if name not in RISKS:
        raise KnobError(f"no risk is called {name!r}: there are {', '.join(RISKS)}, and your own as module:function")
    if problem_type == "regression":
        raise UnsupportedError(
            "what is promised is how often answers change, and numbers always do, if only by a little; this is "
            "regression: give a loss of your own as module:function (--risk)"
        )


def answer_loss(name: str, task: Task) -> Loss:
    """A loss that needs no labels, by the name that a promise has: ``disagreement``, or ``module:function``.

    Raises:
        KnobError: no such loss.
        UnsupportedError: regression, where no answer is simply the same.
    """
    if ":" in name:
        own = import_loss(name)
        return lambda *given: _called(own, name, *given)
    if name != "disagreement":
        raise KnobError(f"no loss without labels is called {name!r}: there are disagreement and module:function")
    if task.problem_type == "regression":
        raise UnsupportedError(
            "disagreement needs answers that are the same or not, and this is regression: promise a loss of your own "
            "(--risk module:function), and shadow runs watch that"
        )
    return _disagreement(task)


def import_loss(name: str) -> Loss:
    """The function ``module:function``; modules in the current folder are found.

    Raises:
        KnobError: there is no such module or function, or the module cannot be read.
    """
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise KnobError(f"--risk {name} cannot be imported ({_line(error)}): name it module:function") from error
    except (Exception, SystemExit) as error:  # a slip in it, or whatever it does by itself
        raise KnobError(f"--risk {name} cannot be imported ({_said(error)}): mend {module}") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise KnobError(f"--risk {name} is no function but {type(found).__name__}: name one as module:function")
    return found  # type: ignore[no-any-return]


def _called(loss: Loss, name: str, *given: Any) -> NDArray[Any]:
    """What a loss says.

    Raises:
        DataError: it is of one's own, and raises.
    """
    try:
        return np.asarray(loss(*given))
    except OfframpError:
        raise
    except Exception as error:
        raise DataError(f"risk {name!r} raised {_said(error)}: mend that function") from error


def _numbers(found: NDArray[Any], name: str) -> Floats:
    try:
        return found.astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"risk {name!r} gave {found.dtype} and no numbers: it must return one loss for each") from None


def _reads_labels(risk: Risk, trace: Trace) -> bool:
    """Whether a loss raises, or answers otherwise, where there are no labels: then nobody can watch it live."""
    bare = replace(trace, labels=None)
    if trace.labels is None:
        return False  # it has just done without
    try:
        return not np.array_equal(risk.by_exit(trace), risk.by_exit(bare))
    except DataError:
        risk.by_exit(trace)  # with labels it must do
        return True


def _said(error: BaseException) -> str:
    """``ValueError: the first line``."""
    return f"{type(error).__name__}: {_line(error)}".removesuffix(": ")


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _disagreement(task: Task) -> Loss:
    def loss(answers: NDArray[Any], full: NDArray[Any], labels: NDArray[Any] | None) -> NDArray[np.bool_]:
        return _differ(task.answers(answers), task.answers(full))

    return loss


def _error(task: Task) -> Loss:
    def loss(answers: NDArray[Any], full: NDArray[Any], labels: NDArray[Any] | None) -> NDArray[np.bool_]:
        assert labels is not None
        return _differ(task.answers(answers), labels) & ~_differ(task.answers(full), labels)

    return loss


def _differ(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """[U]: two classes, or two sets of labels, are not the same."""
    result: NDArray[np.bool_] = (a != b) if a.ndim == 1 else (a != b).any(axis=-1)
    return result
