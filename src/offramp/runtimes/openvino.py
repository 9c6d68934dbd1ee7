"""OpenVINO: exported stages on a CPU, without torch.

Hidden states between stages are numpy arrays, and before the first stage the tokens themselves, as in ``onnx.py``.

**Shapes.** OpenVINO makes its kernels for the shapes it is given, at the first sight of each: some milliseconds a
stage. So rows and lengths come in steps (``padded_rows``; the manifest's ``length_step``), padded on the way in and cut
on the way out; a text is then computed at up to a step more tokens than it has, and a batch of more than 8 rows with up
to an eighth more rows. What it makes it keeps, up to ``KERNELS`` of each sort; a batch of a shape other than the last
one's costs it a little (a tenth of a millisecond a stage), which only single texts notice.

**Neighbours.** Sums of a softmax are the only ones whose order depends on the width of a batch. The graphs pad keys and
values to whole vectors (``export/graph.py``, ``blocks``), and what exits weigh tokens by (``model/pooling.py``), or,
for families where that cannot be done, texts are padded to whole vectors here: then a text's answer is the same to the
last bit in any company, in float32 and in int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from queue import LifoQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.errors import KnobError, RunError
from offramp.runtimes.base import Memory, RuntimeInfo
from offramp.runtimes.cpu import check_lanes, check_threads, warn_of_slow_int8
from offramp.runtimes.exported import Said, check_names, feeds, output_of, tokens_of, variant
from offramp.runtimes.manifest import Graph, Manifest, check_files, in_company, read_manifest
from offramp.runtimes.silence import without_telemetry
from offramp.types import Array, Batch, ExitOutput, Stage

with without_telemetry():
    import openvino

__all__ = ["FOLDERS", "GROUP", "OpenvinoRuntime", "core", "has_bfloat16", "padded_rows"]

FOLDERS: Mapping[str, str] = {"int8": "int8", "float32": "float32", "bfloat16": "float32"}
"""dtype -> the exported graphs that it runs: bfloat16 is another way of running float32's."""

GROUP = 128
"""Numbers of a token that share a scale, where each token has scales of its own."""

KERNELS = 128
"""Of each sort, that a compiled graph keeps: by itself the plugin keeps thousands, some for every shape it ever saw."""

_HIDDEN = 3
"""Axes of hidden states."""

_FEW = 8
"""Up to so many rows, a batch has just as many as it has: there a row more would cost more than a new shape."""


def padded_rows(rows: int) -> int:
    """With how many rows a batch of ``rows`` is computed: in eighths of the power of two below it."""
    if rows <= _FEW:
        return rows
    step = max(1, 1 << (rows - 1).bit_length() - 4)
    return -(-rows // step) * step


@dataclass(frozen=True)
class _Loaded:
    """A graph, ready to run."""

    graph: Graph
    requests: LifoQueue[Any]
    """One for each lane, those that are idle: the one used last goes first, as it has made its plans."""
    width: int
    """Of its hidden states; 0: it gives none."""


class OpenvinoRuntime:
    """Runs one exported variant.

    Args:
        folder: with manifest.json and graphs.
        dtype: None: as the graphs are; ``bfloat16``: float32 graphs in bfloat16, where neighbours change answers.
        threads: in all; None: as many as there are cores.
        lanes: batches that are computed side by side: each operator gets ``threads // lanes`` threads.

    Raises:
        RunError: the folder is no export, is damaged, or was written by a newer offramp.
        KnobError: more threads than cores, more lanes than threads, or bfloat16 on a CPU without it.
    """

    def __init__(
        self, folder: str | Path, *, dtype: str | None = None, threads: int | None = None, lanes: int = 1
    ) -> None:
        folder = Path(folder)
        threads = check_threads(threads)
        self.lanes = check_lanes(lanes, threads)
        self.threads = threads // lanes
        self.manifest: Manifest = read_manifest(folder)
        self._info = self.manifest.info
        if dtype == "bfloat16":
            if not has_bfloat16():
                raise KnobError("this CPU has no instructions for bfloat16: take int8 or float32")
            measured = in_company(self.manifest.check.get("bfloat16", {}))
            self._info = replace(self._info, dtype=dtype, batch_invariant=False, in_company=measured)
        self._layers = [self._load(folder, stage.layers_graph) for stage in self.manifest.stages]
        self._exits = [
            None if stage.exit_graph is None else self._load(folder, stage.exit_graph) for stage in self.manifest.stages
        ]
        self._said = Said()
        warn_of_slow_int8(self._info.dtype)

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, weights: str, dtype: str, threads: int | None = None, lanes: int = 1
    ) -> OpenvinoRuntime:
        """Load one variant of a run folder.

        Args:
            folder: a run folder.
            weights: hash of the run's weights (``run.weights_hash``): the export must have been made of them.
            dtype: ``float32``, ``bfloat16`` (of the float32 graphs) or ``int8``.
            threads: see above.
            lanes: see above.

        Raises:
            RunError: there is no such variant, it is damaged, or it was made of other weights.
            KnobError: more threads than cores, more lanes than threads, or bfloat16 on a CPU without it.
        """
        check_threads(threads)
        flags = "--int8" if dtype == "int8" else ""
        found = variant(folder, "openvino", FOLDERS[dtype], weights=weights, flags=flags)
        return cls(found, dtype=dtype, threads=threads, lanes=lanes)

    @property
    def info(self) -> RuntimeInfo:
        """What this runtime declares."""
        return self._info

    def embed(self, inputs: Mapping[str, Array]) -> tuple[Array, Batch]:
        """The tokens, [B, L]: the first stage embeds them; see ``runtimes.base.Runtime``."""
        return tokens_of(inputs)

    def run(self, stage: Stage, hidden: Array, batch: Batch, active: Array | None = None) -> Array:
        """The layers of one stage, and its exit with them; after the last, hidden states of width 0."""
        rows, width = batch.tokens.shape
        shape = self.room(rows, width)
        loaded = self._layers[stage.index]
        given = feeds(loaded.graph, hidden, batch, {})
        said = self._call(loaded, {name: _padded(array, shape) for name, array in given.items()}, shape)
        whole = said.get("hidden")
        after = np.zeros((rows, width, 0), dtype=np.float32) if whole is None else whole[:rows, :width]
        said = {name: value[:rows] for name, value in said.items() if name != "hidden"}
        if said:
            self._said.keep(after, said)
        return after

    def exit(self, stage: Stage, hidden: Array, batch: Batch, memory: Memory) -> tuple[ExitOutput, Memory]:
        """What the exit at the end of a stage said of the hidden states that ``run`` returned.

        Raises:
            ValueError: ``run`` did not return this array: a copy of it, or a part, was never asked about.
        """
        loaded = self._exits[stage.index]
        if loaded is None:
            return output_of(self._said.of(hidden))[0], memory
        given = feeds(loaded.graph, hidden, batch, memory)
        arrays = {name: np.ascontiguousarray(array) for name, array in given.items()}
        return output_of(self._call(loaded, arrays, batch.tokens.shape))

    def room(self, rows: int, width: int) -> tuple[int, int]:
        """With how many rows and tokens a batch is computed; see ``runtimes.base.Pads``."""
        return padded_rows(rows), self._padded_width(width)

    def _padded_width(self, width: int) -> int:
        """In steps, but never beyond what the model reads: it has no positions there."""
        step = self.manifest.length_step
        most = int(self.manifest.tokenizer.get("max_length", width))
        return max(width, min(-(-width // step) * step, most))

    def _call(
        self, loaded: _Loaded, given: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> dict[str, npt.NDArray[Any]]:
        """Every output by name; hidden states in an array of their own, the others copied."""
        said: dict[str, npt.NDArray[Any]] = {}
        request = loaded.requests.get()  # waits, where more ask at once than there are lanes
        try:
            for place, name in enumerate(loaded.graph.inputs):
                request.set_input_tensor(place, openvino.Tensor(given[name], shared_memory=True))
            if loaded.width:
                # Its own memory for every batch, written by the last operator: others may hold it for long.
                said["hidden"] = np.empty((*shape, loaded.width), dtype=np.float32)
                place = loaded.graph.outputs.index("hidden")
                request.set_output_tensor(place, openvino.Tensor(said["hidden"], shared_memory=True))
            request.infer(share_outputs=True)
            for place, name in enumerate(loaded.graph.outputs):
                if name != "hidden":
                    said[name] = request.get_output_tensor(place).data.copy()
        finally:
            loaded.requests.put(request)
        return said

    def _load(self, folder: Path, graph: Graph) -> _Loaded:
        path = check_files(folder, graph)
        try:
            model = core().read_model(path)
            names = [[each.any_name for each in ports] for ports in (model.inputs, model.outputs)]
            requests: LifoQueue[Any] = LifoQueue()
            for _ in range(self.lanes):  # compiled for each: streams of one would be handed every batch, and wake late
                compiled = core().compile_model(
                    model, "CPU", settings(self._info.dtype, self.threads, self.manifest.quantisation)
                )
                requests.put(compiled.create_infer_request())
        except Exception as error:  # openvino's errors share no class but this one
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise RunError(
                f"openvino {openvino.get_version()} cannot load {path} ({reason}): "
                "run `offramp export` again with this version"
            ) from error
        check_names(path, graph, *names)
        width = 0
        if "hidden" in graph.outputs:
            width = model.outputs[graph.outputs.index("hidden")].partial_shape[2].get_length()
        return _Loaded(graph, requests, width)


def settings(dtype: str, threads: int, quantisation: str | None = None) -> dict[str, Any]:
    """How OpenVINO runs a graph: one batch at a time, and no thread is bound to a core, where others may be at work.

    Args:
        dtype: in which it computes.
        threads: for each operator.
        quantisation: the manifest's; ``rows``: products round what they read by a scale for each ``GROUP`` numbers.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
        **({"DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP} if quantisation == "rows" else {}),
    }


@cache
def core() -> Any:
    """The ``openvino.Core`` of this process, one for as long as it lives.

    Each core with a compiled model gives the thread that made it a stack for signals, and takes it back when it is
    destroyed. Two that are not destroyed in the reverse order leave a stack that is no memory any more, and the next
    signal, Ctrl-C for one, ends the process with a segmentation fault (seen with OpenVINO 2026.4).
    """
    made = openvino.Core()
    made.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin: else it would refuse only when a graph is compiled
    with suppress(RuntimeError):  # not among the properties that it lists: a newer one may not know it
        made.set_property("CPU", {"CPU_RUNTIME_CACHE_CAPACITY": KERNELS})
    return made


def has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16 by instructions of its own."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _padded(array: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
    """An array [B, ...] or [B, L, ...] with so many rows and tokens, contiguous; as it is where it is so already.

    A row of padding has one token, a zero, so that nothing divides by nothing. Hidden states may be a corner of an
    array of that shape (``room``, or what a stage gave of which nobody has left): then it is that, padding and all.
    """
    wanted = (*shape, *array.shape[2:])[: max(1, array.ndim)]
    if array.shape == wanted:
        return np.ascontiguousarray(array)
    whole = array.base
    if array.ndim == _HIDDEN and isinstance(whole, np.ndarray) and whole.shape == wanted and _begins(array, whole):
        return whole
    made = np.ones(wanted, array.dtype) if array.ndim == 1 else np.zeros(wanted, array.dtype)
    made[tuple(slice(size) for size in array.shape)] = array
    return made


def _begins(corner: npt.NDArray[Any], whole: npt.NDArray[Any]) -> bool:
    """Whether a view starts where the array does that it is one of."""
    there: int = whole.__array_interface__["data"][0]
    return (
        whole.flags.c_contiguous and corner.strides == whole.strides and corner.__array_interface__["data"][0] == there
    )
