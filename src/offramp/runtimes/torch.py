"""torch: the model as trained, stage by stage. The reference every other runtime is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.errors import KnobError
from offramp.model.attention import attend_by
from offramp.model.backbone import Cut
from offramp.model.modeling import load_early_exit
from offramp.runtimes.base import Memory, RuntimeInfo
from offramp.runtimes.cpu import check_lanes
from offramp.types import Array, Batch, ExitOutput, Lazily, Stage

__all__ = ["TorchRuntime"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_Layers = Callable[[Tensor, Tensor], Tensor]
_Exit = Callable[[Tensor, Tensor, Memory], tuple[ExitOutput, Memory]]


class TorchRuntime:
    """Runs an early-exit model of ``offramp.model``.

    Args:
        model: as ``add_exits`` or ``load_early_exit`` returned it; put into eval mode.
        device: ``cpu``, ``cuda``, ``cuda:1``; None: where the model is.
        compile: let ``torch.compile`` make code of each stage's layers and of each exit, at their first calls: once for
            a row alone and once for several, whatever their number and length.
        attention: what computes it, as ``attn_implementation`` of transformers (the model is changed); None: as it is.
        lanes: batches that will be computed side by side, sharing torch's threads out among them; on a CPU.

    Raises:
        UnsupportedError: attention by another implementation than the one that the family has.
        KnobError: attention that is not installed, or cannot serve this model; more lanes than threads, or lanes on a
            GPU or with ``compile``.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        device: str | torch.device | None = None,
        compile: bool = False,
        attention: str | None = None,
        lanes: int = 1,
    ) -> None:
        self.model = model.eval() if device is None else model.eval().to(device)
        if attention is not None:
            attend_by(self.model, attention)
        self._cuts = self.model.cuts()  # type: ignore[operator]
        stages: tuple[Stage, ...] = self.model.stages  # type: ignore[assignment]
        parts = list(zip(self._cuts, stages, strict=True))
        layers = [partial(_run_layers, self.model, *each) for each in parts]
        exits = [partial(_ask_exit, self.model, *each) for each in parts]
        self._layers: list[_Layers] = [_compiled(each) if compile else each for each in layers]
        self._exits: list[_Exit] = [_compiled(each) if compile else each for each in exits]
        parameter = next(self.model.parameters())
        self.device = parameter.device
        self.lanes = lanes
        if lanes != 1:
            _check_lanes(lanes, self.device, compile=compile)
        dtype = str(parameter.dtype).removeprefix("torch.")
        self._info = RuntimeInfo(
            name="torch",
            stages=stages,
            problem_type=self.model.problem_type,  # type: ignore[arg-type]
            num_outputs=self.model.config.num_labels,  # type: ignore[arg-type, union-attr]
            dtype=dtype,
            # bfloat16 and float16 round differently in kernels of different shapes; float32 stays within 1e-6.
            batch_invariant=dtype == "float32",
            extras=self.model.offramp.extras(),  # type: ignore[operator, union-attr]
            remembers=any(head.remembers for head in self.model.offramp.early),  # type: ignore[union-attr]
            full_layers=self._cuts[-1].num_layers if self.model.offramp.members else None,  # type: ignore[union-attr]
            device=str(self.device),
            deferred=self.device.type == "cuda",
        )

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        device: str | None = None,
        dtype: str = "float32",
        compile: bool = False,
        attention: str | None = None,
        lanes: int = 1,
    ) -> TorchRuntime:
        """Load a run folder. ``device`` None: a GPU where there is one.

        Raises:
            RunError: the folder is no run, or damaged.
            UnsupportedError: attention by another implementation than the one that the family has.
            KnobError: a dtype this runtime does not have, or a device, attention or number of lanes that this machine
                does not.
        """
        if dtype not in _DTYPES:
            raise KnobError(f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            if torch.device(device).type == "meta":
                raise RuntimeError("it holds shapes and no numbers")
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
            reason = str(error).splitlines()[0].partition(". ")[0]  # torch goes on to list all that it was built for
            raise KnobError(f"device {device!r} cannot be used here ({reason}): leave it out, or give cpu") from None
        model = load_early_exit(folder, dtype=_DTYPES[dtype])
        return cls(model, device=device, compile=compile, attention=attention, lanes=lanes)

    @property
    def info(self) -> RuntimeInfo:
        """What this runtime declares."""
        return self._info

    @torch.inference_mode()
    def embed(self, inputs: Mapping[str, Array]) -> tuple[Tensor, Batch]:
        """Token and position embeddings; see ``runtimes.base.Runtime``."""
        batch = Batch(
            ids=self.send(inputs["ids"]),
            tokens=self.send(inputs["tokens"]),
            lengths=self.send(inputs["lengths"]),
            token_types=self.send(inputs["token_types"]) if "token_types" in inputs else None,
        )
        return self._cuts[0].embed(batch.tokens, batch.lengths, batch.token_types), batch

    @torch.inference_mode()
    def run(self, stage: Stage, hidden: Tensor, batch: Batch, active: Array | None = None) -> Tensor:
        """The layers of one stage.

        Raises:
            KnobError: it was to be compiled, and cannot be on this machine.
        """
        if stage.starts_from == "inputs":
            hidden = self._cuts[stage.index].embed(batch.tokens, batch.lengths, batch.token_types)
        return self._layers[stage.index](hidden, batch.lengths)

    @torch.inference_mode()
    def exit(self, stage: Stage, hidden: Tensor, batch: Batch, memory: Memory) -> tuple[ExitOutput, Memory]:
        """What the exit after a stage says, in float32.

        Raises:
            KnobError: it was to be compiled, and cannot be on this machine.
        """
        return self._exits[stage.index](hidden, batch.lengths, memory)

    @contextmanager
    def shared_out(self) -> Iterator[Callable[[], None]]:
        """Share torch's threads out among lanes; see ``runtimes.base.SharesThreads``."""
        threads = torch.get_num_threads()
        try:
            yield partial(torch.set_num_threads, max(1, threads // self.lanes))
        finally:
            # What a thread sets is its own, but also what threads begin with that come after it.
            torch.set_num_threads(threads)

    def send(self, array: Array) -> Tensor:
        """An array of the host on this device; see ``runtimes.base.Defers``."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        # From memory that may be paged out, a GPU cannot copy while the host goes on.
        return tensor.pin_memory().to(self.device, non_blocking=True) if self._info.deferred else tensor.to(self.device)

    def fetch(self, array: Tensor) -> Callable[[], npt.NDArray[Any]]:
        """Begin to bring an array to the host; see ``runtimes.base.Defers``."""
        host = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
        host.copy_(array, non_blocking=True)
        there: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        there.record(torch.cuda.current_stream(self.device))

        def wait() -> npt.NDArray[Any]:
            there.synchronize()
            return host.numpy()

        return wait


def _check_lanes(lanes: int, device: torch.device, *, compile: bool) -> None:
    """Refuse lanes that would only wait for each other, or that nobody has tried."""
    if device.type != "cpu":
        raise KnobError(f"lanes are for the CPU: on {device} one batch is computed after the other")
    if compile:
        raise KnobError("torch compiles for one batch after the other: leave lanes out, or compile")
    check_lanes(lanes, torch.get_num_threads())


def _run_layers(model: Any, parts: Cut, stage: Stage, hidden: Tensor, lengths: Tensor) -> Tensor:
    """The layers of one stage."""
    after: Tensor = model.run_stage(parts, stage, hidden, lengths)
    return after


def _ask_exit(
    model: Any, parts: Cut, stage: Stage, hidden: Tensor, lengths: Tensor, memory: Memory
) -> tuple[ExitOutput, Memory]:
    """What the exit after one stage says."""
    output, memory = model.run_exit(parts, stage, hidden, lengths, memory)
    if torch.compiler.is_compiling():
        extras: Mapping[str, Tensor] = {name: value.float() for name, value in output.extras.items()}
    else:
        extras = Lazily({name: partial(_float, output.extras, name) for name in output.extras})
    return ExitOutput(output.logits.float(), extras), memory


@torch.inference_mode()  # whoever asks does so later, outside of ``exit``
def _float(extras: Mapping[str, Tensor], name: str) -> Tensor:
    return extras[name].float()


def _compiled(call: partial[Any]) -> Callable[..., Any]:
    """A stage's layers or its exit, compiled when first called.

    There is one graph for all batches, and one each for those of one row, of one token or of both: torch takes a size
    of 1 for a constant. Where a first batch has as many rows as tokens there is one more, and of DeBERTa's layers too.
    """
    # torch counts by code object what it compiled, and gives up after eight: stages must not share one.
    own = FunctionType(call.func.__code__.replace(), globals())
    # Not fullgraph: what torch cannot compile (flash attention, a head that looks at numbers) runs between two graphs.
    made = torch.compile(own, dynamic=True)

    def run(hidden: Tensor, lengths: Tensor, *memory: Memory) -> Any:
        remembered = [{name: _copied(value) for name, value in each.items()} for each in memory]
        try:
            return made(*call.args, _copied(hidden), _copied(lengths), *remembered)
        except torch._dynamo.exc.ShortenTraceback as error:  # what went wrong in making code
            inner = getattr(error, "inner_exception", error)
            reason = (str(inner).strip() or type(inner).__name__).splitlines()[0]
            raise KnobError(
                f"torch.compile cannot make code here ({reason}): install a C++ compiler (g++), for a GPU Triton, or "
                "leave compile out"
            ) from error

    return run


def _copied(array: Tensor) -> Tensor:
    """Always of one kind: torch would compile anew for views, and for tensors not born in inference mode."""
    return array.clone(memory_format=torch.contiguous_format)
