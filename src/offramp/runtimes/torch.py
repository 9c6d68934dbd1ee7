"""torch: the model as trained, stage by stage. The reference every other runtime is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.errors import KnobError
from offramp.model.modeling import load_early_exit
from offramp.runtimes.base import Memory, RuntimeInfo
from offramp.types import Array, Batch, ExitOutput, Stage

__all__ = ["TorchRuntime"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchRuntime:
    """Runs an early-exit model of ``offramp.model``.

    Args:
        model: as ``add_exits`` or ``load_early_exit`` returned it; put into eval mode.
        device: ``cpu``, ``cuda``, ``cuda:1``; None: where the model is.
    """

    def __init__(self, model: torch.nn.Module, *, device: str | torch.device | None = None) -> None:
        self.model = model.eval() if device is None else model.eval().to(device)
        self._cuts = self.model.cuts()  # type: ignore[operator]
        parameter = next(self.model.parameters())
        self.device = parameter.device
        dtype = str(parameter.dtype).removeprefix("torch.")
        self._info = RuntimeInfo(
            name="torch",
            stages=self.model.stages,  # type: ignore[arg-type]
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
    def from_folder(cls, folder: str | Path, *, device: str | None = None, dtype: str = "float32") -> TorchRuntime:
        """Load a run folder. ``device`` None: a GPU where there is one.

        Raises:
            RunError: the folder is no run, or damaged.
            KnobError: a dtype this runtime does not have, or a device this machine does not.
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
        return cls(load_early_exit(folder, dtype=_DTYPES[dtype]), device=device)

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
        """The layers of one stage."""
        parts = self._cuts[stage.index]
        if stage.starts_from == "inputs":
            hidden = parts.embed(batch.tokens, batch.lengths, batch.token_types)
        return self.model.run_stage(parts, stage, hidden, batch.lengths)  # type: ignore[operator, no-any-return]

    @torch.inference_mode()
    def exit(self, stage: Stage, hidden: Tensor, batch: Batch, memory: Memory) -> tuple[ExitOutput, Memory]:
        """What the exit after a stage says, in float32."""
        parts = self._cuts[stage.index]
        output, memory = self.model.run_exit(parts, stage, hidden, batch.lengths, memory)  # type: ignore[operator]
        extras = {name: value.float() for name, value in output.extras.items()}
        return ExitOutput(output.logits.float(), extras), memory

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
