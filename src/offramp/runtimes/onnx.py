"""ONNX Runtime: exported stages on a CPU, without torch.

Hidden states between stages are numpy arrays. Before the first stage they are the tokens themselves: the embedding
is part of its graph. A text alone can go through all stages in one call, where the export has a graph for that.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from offramp.errors import RunError
from offramp.runtimes.base import Memory, RuntimeInfo
from offramp.runtimes.cpu import check_lanes, check_threads, warn_of_slow_int8
from offramp.runtimes.exported import Said, check_names, feeds, output_of, tokens_of, variant
from offramp.runtimes.manifest import EXIT, LAST, THRESHOLD, Graph, Manifest, check_files, read_manifest
from offramp.types import Array, Batch, ExitOutput, Stage

__all__ = ["OnnxRuntime", "open_session"]


class OnnxRuntime:
    """Runs one exported variant. Every graph is opened when it is first needed.

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
        stages, single = self.manifest.stages, self.manifest.single
        self._layers = [_Opened(folder, stage.layers_graph, self.threads) for stage in stages]
        self._exits = [
            None if stage.exit_graph is None else _Opened(folder, stage.exit_graph, self.threads) for stage in stages
        ]
        self._single = None if single is None else _Opened(folder, single.graph, self.threads, rests=False)
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
        opened = self._layers[stage.index]
        said = self._call(opened, hidden, batch, {})
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
        opened = self._exits[stage.index]
        if opened is None:
            return output_of(self._said.of(hidden))[0], memory
        return output_of(self._call(opened, hidden, batch, memory))

    def run_single(self, inputs: Mapping[str, Array], threshold: float, last: int) -> tuple[Array, int]:
        """One text through the stages in one call; see ``runtimes.base.RunsSingle``."""
        assert self._single is not None
        hidden, batch = tokens_of(inputs)
        more = {THRESHOLD: _at_least(threshold), LAST: np.asarray(last, dtype=np.int64)}
        said = self._call(self._single, hidden, batch, {}, more=more)
        return said["logits"], int(said[EXIT][0])

    def _call(
        self, opened: _Opened, hidden: Array, batch: Batch, memory: Memory, *, more: Mapping[str, Array] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        session = opened.session  # first: opening it makes sure of the names, by which arrays are given
        given = feeds(opened.graph, hidden, batch, memory, more=more)
        return dict(zip(opened.graph.outputs, session.run(None, given), strict=True))


def _at_least(threshold: float) -> npt.NDArray[np.float32]:
    """The least float32 that is no smaller: a score, being one itself, is below both or below neither."""
    near = np.float32(threshold)
    return np.asarray(near if float(near) >= threshold else np.nextafter(near, np.float32(np.inf)))


class _Opened:
    """A graph's session, from when it is first asked for.

    Args:
        folder: of the export.
        graph: its file is read now: what was cut short or damaged is said before the first text.
        threads: of each operator.
        rests: its threads stop at the end of a call, since other graphs' threads are about to work.

    Raises:
        RunError: the file is absent, or not the one that was exported.
    """

    def __init__(self, folder: Path, graph: Graph, threads: int, *, rests: bool = True) -> None:
        self.graph, self._threads, self._rests = graph, threads, rests
        self._path = check_files(folder, graph)
        self._lock = threading.Lock()
        self._session: Any = None

    @property
    def session(self) -> Any:
        """The session.

        Raises:
            RunError: ONNX Runtime cannot load the graph, or it is not what the manifest says.
        """
        with self._lock:
            if self._session is None:
                self._session = self._open()
        return self._session

    def _open(self) -> Any:
        try:
            session = open_session(self._path.read_bytes(), threads=self._threads, rests=self._rests)
        except Exception as error:  # onnxruntime's errors share no class but this one
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(
                f"onnxruntime {onnxruntime.__version__} cannot load {self._path} ({reason}): "
                "run `offramp export` again with this version"
            ) from error
        names = [[each.name for each in ports] for ports in (session.get_inputs(), session.get_outputs())]
        check_names(self._path, self.graph, *names)
        return session


def open_session(graph: bytes, *, threads: int, rests: bool = True) -> Any:
    """A session that runs a graph as it is: what pays was fused when it was exported, what does not was left alone.

    ``rests``: its threads stop at the end of a call.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that sleep between the operators of a text take as long to wake as the operators to compute; those that
    # went on spinning after it would stand in the way of the next stage's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    if rests:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
