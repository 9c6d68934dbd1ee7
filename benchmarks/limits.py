"""What this machine can do at most: matrix products in fp32, bf16 and int8, and copying memory.

    python benchmarks/limits.py [--threads N]

Beside the operations that a model needs for a text, this says how far a deployment is from the machine's limit
(docs/performance.md). Products have the shapes of a small encoder's layers (384 x 1536, as many rows as 32 texts have
tokens) and of large squares, where nothing but arithmetic counts. Int8 is ONNX Runtime's MatMulInteger. Best of many
timings: a limit is no average. Writes benchmarks/results/limits.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from offramp.bench.provenance import provenance, write_result
from offramp.runtimes.cpu import check_threads

RESULT = Path(__file__).parent / "results" / "limits.json"
SHAPES = {"a layer of 6 x 384, 32 texts": (800, 384, 1536), "large squares": (2048, 2048, 2048)}
SECONDS = 3.0
"""For which each product is repeated."""


def best(call: Callable[[], Any]) -> float:
    """Least seconds of a call."""
    call()
    found, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found = min(found, time.perf_counter() - start)
    return found


def products(shape: tuple[int, int, int], threads: int) -> dict[str, float]:
    """Thousand million operations a second (a multiplication and an addition are two), by dtype."""
    import torch

    rows, inner, columns = shape
    operations = 2e-9 * rows * inner * columns
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        found[str(dtype).removeprefix("torch.")] = operations / best(lambda x=left, y=right: x @ y)  # type: ignore[misc]
    found["int8"] = operations / best(int8_product(shape, threads))
    return found


def int8_product(shape: tuple[int, int, int], threads: int) -> Callable[[], Any]:
    """A call that multiplies eight-bit matrices in ONNX Runtime."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = shape
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, size=(inner, columns), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [rows, columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"x": rng.integers(0, 256, size=(rows, inner), dtype=np.uint8)}
    return lambda: session.run(None, given)


def limits(threads: int) -> dict[str, Any]:
    """Products of every shape and dtype, and copies, with so many threads."""
    import torch

    torch.set_num_threads(threads)
    memory = np.zeros(1 << 28, dtype=np.uint8)
    target = np.empty_like(memory)
    return {
        "gigaoperations_per_second": {name: products(shape, threads) for name, shape in SHAPES.items()},
        "copied_gigabytes_per_second": 2e-9 * memory.nbytes / best(lambda: np.copyto(target, memory)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    threads = check_threads(parser.parse_args().threads)
    found = limits(threads)
    write_result(RESULT, {**provenance(), "threads": threads, **found})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
