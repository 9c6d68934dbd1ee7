"""ONNX Runtime: exported stages on a CPU, without torch.

Hidden states between stages are numpy arrays. Before the first stage they are the tokens themselves: the embedding
is part of its graph. A stage's graph gives the exit's outputs with its hidden states in one call; they are kept with
that very array of hidden states until ``exit`` asks for them, or until nobody holds the array any more.
"""

from __future__ import annotations

import logging
import os
import platform
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from offramp.errors import KnobError, RunError
from offramp.runtimes.base import Memory, RuntimeInfo
from offramp.runtimes.manifest import Graph, Manifest, read_bytes, read_manifest
from offramp.types import Array, Batch, ExitOutput, Stage

__all__ = ["OnnxRuntime", "check_threads", "cores", "has_int8_instructions"]

logger = logging.getLogger(__name__)

_FAST = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""CPU features for products of eight-bit numbers, as Linux names them."""


class OnnxRuntime:
    """Runs one exported variant.

    Args:
        folder: with manifest.json and graphs.
        threads: of each operator; None: as many as there are cores. Threads sleep when they have nothing to do: every
            stage has some of its own, and many that spin stand in each other's way.

    Raises:
        RunError: the folder is no export, is damaged, or was written by a newer offramp.
        KnobError: more threads than cores.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        folder = Path(folder)
        self.threads = check_threads(threads)
        self.manifest: Manifest = read_manifest(folder)
        self._info = self.manifest.info
        self._layers = [self._load(folder, stage.layers_graph) for stage in self.manifest.stages]
        self._exits = [
            None if stage.exit_graph is None else self._load(folder, stage.exit_graph) for stage in self.manifest.stages
        ]
        self._said: dict[int, tuple[weakref.ref[Any], dict[str, Array]]] = {}
        if self._info.dtype == "int8" and has_int8_instructions() is False:
            logger.warning("this CPU has no instructions for int8 products: int8 will be slow here, try float32")

    @classmethod
    def from_folder(cls, folder: str | Path, *, weights: str, dtype: str, threads: int | None = None) -> OnnxRuntime:
        """Load one variant of a run folder.

        Args:
            folder: a run folder.
            weights: hash of the run's weights (``run.weights_hash``): the export must have been made of them.
            dtype: ``float32`` or ``int8``.
            threads: see above.

        Raises:
            RunError: there is no such variant, it is damaged, or it was made of other weights.
            KnobError: more threads than cores.
        """
        variant = Path(folder) / "onnx" / dtype
        if not variant.is_dir():
            flag = " --int8" if dtype == "int8" else ""
            raise RunError(f"{folder} has no {dtype} export: run `offramp export {folder} --runtime onnx{flag}`")
        check_threads(threads)
        if read_manifest(variant).weights != weights:
            raise RunError(f"{variant} was made of other weights than {folder} holds now: run `offramp export` again")
        return cls(variant, threads=threads)

    @property
    def info(self) -> RuntimeInfo:
        """What this runtime declares."""
        return self._info

    def embed(self, inputs: Mapping[str, Array]) -> tuple[Array, Batch]:
        """The tokens, [B, L]: the first stage embeds them; see ``runtimes.base.Runtime``."""
        tokens = np.ascontiguousarray(inputs["tokens"])
        return tokens, Batch(inputs["ids"], tokens, inputs["lengths"], inputs.get("token_types"))

    def run(self, stage: Stage, hidden: Array, batch: Batch, active: Array | None = None) -> Array:
        """The layers of one stage, and its exit with them; after the last, hidden states of width 0."""
        graph = self.manifest.stages[stage.index].layers_graph
        said = self._call(self._layers[stage.index], graph, hidden, batch, {})
        after = said.pop("hidden", None)
        if after is None:
            after = np.zeros((*batch.tokens.shape, 0), dtype=np.float32)
        if said:
            self._keep(after, said)
        return after

    def exit(self, stage: Stage, hidden: Array, batch: Batch, memory: Memory) -> tuple[ExitOutput, Memory]:
        """What the exit at the end of a stage said of the hidden states that ``run`` returned.

        Raises:
            ValueError: ``run`` did not return this array: a copy of it, or a part, was never asked about.
        """
        session, entry = self._exits[stage.index], self.manifest.stages[stage.index]
        if session is not None:
            assert entry.exit_graph is not None
            said = self._call(session, entry.exit_graph, hidden, batch, memory)
        else:
            reference, said = self._said.get(id(hidden), (None, {}))
            if reference is None or reference() is not hidden:
                raise ValueError("exit must be asked about the very array that run returned, not a copy or a part")
        extras = {name.removeprefix("extras."): value for name, value in said.items() if name.startswith("extras.")}
        left = {name.removeprefix("memory."): value for name, value in said.items() if name.startswith("memory.")}
        return ExitOutput(said["logits"], extras), left if session is not None else memory

    def _keep(self, hidden: Array, said: dict[str, Array]) -> None:
        """Remember what was said with an array for as long as the array lives."""
        key = id(hidden)
        kept = self._said
        self._said[key] = (weakref.ref(hidden, lambda _: kept.pop(key, None)), said)

    def _call(
        self, session: Any, graph: Graph, hidden: Array, batch: Batch, memory: Memory
    ) -> dict[str, npt.NDArray[Any]]:
        feeds: dict[str, Array] = {}
        for name in graph.inputs:
            if name == "hidden":
                feeds[name] = hidden
            elif name == "tokens":
                feeds[name] = batch.tokens
            elif name == "lengths":
                feeds[name] = batch.lengths
            elif name == "token_types":
                feeds[name] = np.zeros_like(batch.tokens) if batch.token_types is None else batch.token_types
            else:
                feeds[name] = memory[name.removeprefix("memory.")]
        return dict(zip(graph.outputs, session.run(None, feeds), strict=True))

    def _load(self, folder: Path, graph: Graph) -> Any:
        data = read_bytes(folder, graph)
        try:
            return open_session(data, threads=self.threads)
        except Exception as error:  # onnxruntime's errors share no class but this one
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(
                f"onnxruntime {onnxruntime.__version__} cannot load {folder / graph.file} ({reason}): "
                "run `offramp export` again with this version"
            ) from error


def open_session(graph: bytes, *, threads: int) -> Any:
    """A session that runs a graph as it is: what pays was fused when it was exported, what does not was left alone."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def check_threads(threads: int | None) -> int:
    """The number of threads to use; None: one for every core.

    Raises:
        KnobError: fewer than one, or more than there are cores.
    """
    most = cores()
    if threads is None:
        return most
    if not 1 <= threads <= most:
        raise KnobError(f"threads must be from 1 to the {most} cores there are, not {threads}: more would only wait")
    return threads


def has_int8_instructions() -> bool | None:
    """Whether the CPU multiplies eight-bit numbers by instructions of their own; None: this system does not say."""
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True if platform.machine() in ("arm64", "aarch64") else None
    return any(name in said.split() for name in _FAST)
