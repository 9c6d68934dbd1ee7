"""ONNX Runtime: exported stages on a CPU, without torch.

Hidden states between stages are numpy arrays. Before the first stage they are the tokens themselves: the embedding
is part of its graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from offramp.errors import RunError
from offramp.runtimes.base import Memory, RuntimeInfo
from offramp.runtimes.cpu import check_lanes, check_threads, warn_of_slow_int8
from offramp.runtimes.exported import Said, feeds, output_of, tokens_of, variant
from offramp.runtimes.manifest import Graph, Manifest, read_bytes, read_manifest
from offramp.types import Array, Batch, ExitOutput, Stage

__all__ = ["OnnxRuntime", "open_session"]


class OnnxRuntime:
    """Runs one exported variant.

    Args:
        folder: with manifest.json and graphs.
        threads: in all; None: as many as there are cores. Every stage has some of its own, which sleep while others
            run.
        lanes: batches that are computed side by side: each operator gets ``threads // lanes`` threads.

    Raises:
        RunError: the folder is no export, is damaged, or was written by a newer offramp.
        KnobError: more threads than cores, or more lanes than threads.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None, lanes: int = 1) -> None:
        folder = Path(folder)
        threads = check_threads(threads)
        self.threads = threads // check_lanes(lanes, threads)
        self.manifest: Manifest = read_manifest(folder)
        self._info = self.manifest.info
        self._layers = [self._load(folder, stage.layers_graph) for stage in self.manifest.stages]
        self._exits = [
            None if stage.exit_graph is None else self._load(folder, stage.exit_graph) for stage in self.manifest.stages
        ]
        self._said = Said()
        warn_of_slow_int8(self._info.dtype)

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, weights: str, dtype: str, threads: int | None = None, lanes: int = 1
    ) -> OnnxRuntime:
        """Load one variant of a run folder.

        Args:
            folder: a run folder.
            weights: hash of the run's weights (``run.weights_hash``): the export must have been made of them.
            dtype: ``float32`` or ``int8``.
            threads: see above.
            lanes: see above.

        Raises:
            RunError: there is no such variant, it is damaged, or it was made of other weights.
            KnobError: more threads than cores, or more lanes than threads.
        """
        check_threads(threads)
        flags = "--int8" if dtype == "int8" else ""
        found = variant(folder, "onnx", dtype, weights=weights, flags=flags)
        return cls(found, threads=threads, lanes=lanes)

    @property
    def info(self) -> RuntimeInfo:
        """What this runtime declares."""
        return self._info

    def embed(self, inputs: Mapping[str, Array]) -> tuple[Array, Batch]:
        """The tokens, [B, L]: the first stage embeds them; see ``runtimes.base.Runtime``."""
        return tokens_of(inputs)

    def run(self, stage: Stage, hidden: Array, batch: Batch, active: Array | None = None) -> Array:
        """The layers of one stage, and its exit with them; after the last, hidden states of width 0."""
        graph = self.manifest.stages[stage.index].layers_graph
        said = self._call(self._layers[stage.index], graph, hidden, batch, {})
        after = said.pop("hidden", None)
        if after is None:
            after = np.zeros((*batch.tokens.shape, 0), dtype=np.float32)
        if said:
            self._said.keep(after, said)
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
            said = self._said.of(hidden)
        output, left = output_of(said)
        return output, left if session is not None else memory

    def _call(
        self, session: Any, graph: Graph, hidden: Array, batch: Batch, memory: Memory
    ) -> dict[str, npt.NDArray[Any]]:
        given = feeds(graph, hidden, batch, memory)
        return dict(zip(graph.outputs, session.run(None, given), strict=True))

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
    # Threads that sleep between the operators of a text take as long to wake as the operators to compute; those that
    # went on spinning after it would stand in the way of the next stage's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
