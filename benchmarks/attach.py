"""Exits for a model that is there already: what attaching takes, and what the exits then save (docs/calibration.md).

    python benchmarks/attach.py --model MODEL --data FILE [--texts 2500 1250 1250] [--recipe NAME] [--rounds N]

FILE is read for its texts alone, drawn apart by seed: exits are attached on the first part (beside the time of one pass
of the model alone, transformers, over the same texts), operating points calibrated on the second, and on the third the
wall clock is measured: at full depth and at each point, interleaved, in torch. What counts is agreement with the full
model; nobody's labels are read. Nothing else should run on the machine. Writes benchmarks/results/attach.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

import offramp
from offramp.bench.provenance import provenance, write_result
from offramp.calibration.sweep import choose
from offramp.cli.common import quiet_transformers
from offramp.criteria import make
from offramp.engine.record import record
from offramp.inputs.batching import length_sorted, pad
from offramp.inputs.tokens import Encoded, Tokenizer
from offramp.pipeline import Classifier

RESULT = Path(__file__).parent / "results" / "attach.json"
RISKS = (0.01, 0.05)
ROWS = 32


def one_pass(model: Any, texts: Sequence[Encoded]) -> float:
    """Seconds that the model alone takes for all texts, in batches of like length."""
    start = time.perf_counter()
    with torch.inference_mode():
        for rows in length_sorted([len(text) for text in texts], max_rows=ROWS):
            given = pad([texts[row] for row in rows], rows.tolist(), pad_token=0, token_types=False)
            ids, lengths = torch.from_numpy(given["tokens"]).long(), torch.from_numpy(given["lengths"])
            model(input_ids=ids, attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long())
    return time.perf_counter() - start


def offramp_says(*words: str) -> Any:
    """What a command prints with --json."""
    command = [sys.executable, "-m", "offramp", *words, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def write(path: Path, texts: Sequence[str], labels: Sequence[str] | None = None) -> str:
    rows = [{"text": text} | ({} if labels is None else {"label": labels[n]}) for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def attached(model: str, data: str, out: Path, recipe: str | None = None) -> float:
    """Seconds of the whole command, as a user types it."""
    more = [] if recipe is None else ["--recipe", recipe]
    command = ["attach", model, "--data", data, "--no-labels", "--out", str(out), *more]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "offramp", *command], check=True)
    return time.perf_counter() - start


def drawn(data: Path, sizes: Sequence[int], seed: int) -> list[list[str]]:
    """Parts of the texts of a file, each text once, drawn apart by seed."""
    lines = data.read_text(encoding="utf-8").splitlines()
    texts = list(dict.fromkeys(json.loads(line)["text"] for line in lines))
    order = np.random.default_rng(seed).permutation(len(texts))
    return [[texts[row] for row in part] for part in np.split(order, np.cumsum(sizes))[: len(sizes)]]


def agreeing(run: Classifier, texts: Sequence[str], *, max_drop: float) -> list[str]:
    """The fastest threshold of the run's criterion that agreed so often on some texts, as options; no promise."""
    given = run.default_point
    criterion = make(given.criterion, **given.settings)
    trace = record(
        run.runtime, run.encode(texts), pad_token=run.tokenizer.pad_token, id2label=run.run.id2label, batch_size=ROWS
    )
    trace = replace(trace, labels=trace.logits[-1].argmax(axis=-1))
    return ["--threshold", repr(choose(trace, criterion, max_drop=max_drop).knobs["threshold"])]


def wishes(run: Path, full: Classifier, second: Sequence[str], calibrate: str) -> dict[str, list[str]]:
    """Name -> options of ``offramp evaluate``."""
    found = {"99 % agreement, no promise": agreeing(full, second, max_drop=1.0)}
    for risk in RISKS:
        offramp_says("calibrate", str(run), "--data", calibrate, "--no-labels", "--max-risk", str(risk))
        found[f"{100 * risk:g} % of answers differ at most, promised"] = ["--max-risk", str(risk)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, nargs=3, default=[2500, 1250, 1250])
    parser.add_argument("--recipe")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    quiet_transformers()
    first, second, third = drawn(given.data, given.texts, given.seed)
    tokenizer = Tokenizer.from_folder(Path(given.model), max_length=512)
    model = AutoModelForSequenceClassification.from_pretrained(given.model).eval()
    passes = [one_pass(model, tokenizer.encode(first)) for _ in range(2)]
    del model
    with tempfile.TemporaryDirectory(prefix="offramp-attach-") as work:
        run, folder = Path(work) / "run", Path(work)
        seconds = attached(given.model, write(folder / "attach.jsonl", first), run, given.recipe)
        full = offramp.load(run, device="cpu")
        options = wishes(run, full, second, write(folder / "calibrate.jsonl", second))
        last = write(folder / "last.jsonl", third, [str(each.label) for each in full(third, full_depth=True)])
        measured = ["--data", last, "--rounds", str(given.rounds), "--batch-size", str(ROWS)]
        points = {name: offramp_says("evaluate", str(run), *measured, *more) for name, more in options.items()}
        recipe = full.run.recipe
    write_result(
        RESULT,
        {
            **provenance(seeds=[given.seed]),
            "texts": given.texts, "threads": torch.get_num_threads(), "layers": full.runtime.info.num_layers,
            "recipe": recipe, "pass_seconds": passes, "attach_seconds": seconds, "points": points,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
