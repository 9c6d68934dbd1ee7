"""Prototypes follow class means: the same for one batch, for micro-batches of it, and for processes that share it."""

from __future__ import annotations

import copy
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from offramp.errors import KnobError
from offramp.model.exits import ExitSettings
from offramp.model.modeling import load_early_exit, parameters_of
from offramp.model.prototypes import Prototypes

NEAR = {"atol": 1e-6, "rtol": 1e-6}
SETTINGS = ExitSettings(
    head="prototypical",
    head_settings={"width": 8, "rate": 0.25, "dropout": 0.0},
    objective="distance_aware",
    objective_settings={"alpha": 1.0},
)
LENGTHS = (11, 3, 17, 9, 5, 14, 6, 8)
# The second step brings a class that the first did not have, in one of its halves only.
STEPS = ([0, 1, 1, 0, 0, 0, 1, 1], [2, 1, 2, 0, 0, 1, 0, 0], [2, 2, 2, 1, 0, 1, 2, 0])


def formula(batches: Sequence[tuple[torch.Tensor, torch.Tensor]], classes: int, rate: float) -> dict[int, torch.Tensor]:
    """p_k <- (1 - rate) p_k + rate * mean of class k, class by class and row by row; in double precision."""
    found: dict[int, torch.Tensor] = {}
    for embedded, labels in batches:
        for k in range(classes):
            rows = [row.double() for row, label in zip(embedded, labels, strict=True) if label == k]
            if rows:
                mean = torch.stack(rows).mean(dim=0)
                found[k] = mean if k not in found else (1 - rate) * found[k] + rate * mean
    return found


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=6),
    st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=60)
def test_equal_the_formula_whatever_the_micro_batches(labels: list[list[int]], rate: float, pieces: int) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(len(of), 5, generator=generator), torch.tensor(of)) for of in labels]
    prototypes = Prototypes(4, 5, rate=rate)
    for embedded, of in batches:
        for rows in torch.arange(len(of)).chunk(pieces):
            prototypes.gather(embedded[rows], of[rows])
        assert prototypes.pending
        prototypes.advance()
    expected = formula(batches, 4, rate)
    assert prototypes.seen.tolist() == [k in expected for k in range(4)]
    for k in range(4):
        wanted = expected.get(k, torch.zeros(5)).float()
        torch.testing.assert_close(prototypes.means[k], wanted, atol=1e-5, rtol=1e-5)


def test_the_first_value_is_the_first_mean_and_absent_classes_are_left_alone() -> None:
    prototypes = Prototypes(3, 2, rate=0.25)
    prototypes.gather(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 8.0]]), torch.tensor([0, 0, 2]))
    assert not prototypes.seen.any()  # gathered is not yet followed
    prototypes.advance()
    assert prototypes.means.tolist() == [[2.0, 0.0], [0.0, 0.0], [0.0, 8.0]]
    assert prototypes.seen.tolist() == [True, False, True]
    prototypes.gather(torch.tensor([[6.0, 4.0]]), torch.tensor([0]))
    prototypes.advance()
    assert prototypes.means.tolist() == [[3.0, 1.0], [0.0, 0.0], [0.0, 8.0]]
    prototypes.advance()  # nothing was gathered
    assert prototypes.means.tolist() == [[3.0, 1.0], [0.0, 0.0], [0.0, 8.0]]


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(KnobError, match="rate"):
        Prototypes(2, 2, rate=rate)


def test_no_gradient_reaches_them_and_float16_sums_do_not_overflow() -> None:
    prototypes = Prototypes(2, 1)
    embedded = torch.full((4, 1), 30000.0, dtype=torch.float16, requires_grad=True)
    prototypes.gather(embedded, torch.zeros(4, dtype=torch.int64))
    prototypes.advance()
    assert prototypes.means[0].item() == 30000.0
    assert not prototypes.means.requires_grad


# Through a model and an optimiser

Batch = dict[str, Any]


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    model = tiny_model("bert", SETTINGS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for head in model.offramp.early:
        head.prototypes.means.zero_()
        head.prototypes.seen.zero_()
    return model.train()


@pytest.fixture
def batches(rows: Callable[..., Batch]) -> list[Batch]:
    return [rows(LENGTHS, seed=i, labels=torch.tensor(labels)) for i, labels in enumerate(STEPS)]


def pieces_of(batch: Batch, pieces: int) -> list[Batch]:
    count = len(batch["labels"])
    return [{name: value[part] for name, value in batch.items()} for part in torch.arange(count).chunk(pieces)]


def fit(model: Any, batches: Sequence[Batch], optimizer: torch.optim.Optimizer, pieces: int) -> list[torch.Tensor]:
    """A plain loop; returns the gradients of every step, flat."""
    gradients = []
    for batch in batches:
        optimizer.zero_grad()
        for part in pieces_of(batch, pieces):
            (model(**part).loss / pieces).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        optimizer.step()
    return gradients


def prototypes_of(model: Any) -> torch.Tensor:
    return torch.stack([head.prototypes.means for head in model.offramp.early])


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2),
    "fused adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_micro_batches_give_what_one_batch_gives(model: Any, batches: list[Batch], optimizer: str, pieces: int) -> None:
    whole, split = model, copy.deepcopy(model)
    one = fit(whole, batches, OPTIMIZERS[optimizer](whole), 1)
    many = fit(split, batches, OPTIMIZERS[optimizer](split), pieces)
    for together, apart in zip(one, many, strict=True):
        torch.testing.assert_close(apart, together, **NEAR)
    torch.testing.assert_close(prototypes_of(split), prototypes_of(whole), **NEAR)
    assert all(head.prototypes.seen.all() for head in split.offramp.early)


def test_the_model_moves_them_as_the_formula_says(model: Any, batches: list[Batch]) -> None:
    """The embedded rows are caught on their way out of each prototypical network."""
    seen: list[list[torch.Tensor]] = [[], []]
    for head, caught in zip(model.offramp.early, seen, strict=True):
        head.network.register_forward_hook(lambda _, __, out, caught=caught: caught.append(out.detach().clone()))
    fit(model, batches, OPTIMIZERS["sgd"](model), 1)
    for head, caught in zip(model.offramp.early, seen, strict=True):
        expected = formula([(e, torch.tensor(y)) for e, y in zip(caught, STEPS, strict=True)], 3, 0.25)
        torch.testing.assert_close(head.prototypes.means, torch.stack([expected[k] for k in range(3)]).float(), **NEAR)


def test_a_plain_trainer_with_accumulation_gives_what_it_gives_without(
    model: Any, batches: list[Batch], tmp_path: Path
) -> None:
    items = [{name: value[i] for name, value in batch.items()} for batch in batches for i in range(len(LENGTHS))]
    width = max(LENGTHS)
    for item in items:
        for name in ("input_ids", "attention_mask"):
            item[name] = torch.nn.functional.pad(item[name], (0, width - len(item[name])))
    twins = []
    for accumulation in (1, 2):
        twin = copy.deepcopy(model)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=len(LENGTHS) // accumulation,
            gradient_accumulation_steps=accumulation, num_train_epochs=1, learning_rate=1e-3, adam_epsilon=1e-3,
            train_sampling_strategy="sequential", save_strategy="no", report_to="none", use_cpu=True,
            disable_tqdm=True, logging_strategy="no", max_grad_norm=0.0,
        )  # fmt: skip
        Trainer(model=twin, args=arguments, train_dataset=items).train()
        twins.append(twin)
    whole, split = twins
    torch.testing.assert_close(prototypes_of(split), prototypes_of(whole), **NEAR)
    for (name, a), (_, b) in zip(split.named_parameters(), whole.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, **NEAR, msg=name)
    assert not torch.equal(prototypes_of(whole), prototypes_of(model))


def test_they_stay_where_nothing_is_learned(model: Any, batches: list[Batch]) -> None:
    optimizer = OPTIMIZERS["sgd"](model)
    fit(model, batches[:1], optimizer, 1)
    before = prototypes_of(model)
    model.train()
    model(**batches[1]).loss.backward()  # gathered, but no step
    assert torch.equal(prototypes_of(model), before)
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0).step()  # of another model
    torch.optim.SGD([p for _, p in parameters_of(model, "backbone")], lr=0.0).step()  # of what is no exit
    assert torch.equal(prototypes_of(model), before)
    optimizer.step()
    assert not torch.equal(prototypes_of(model), before)


def test_evaluation_moves_nothing(model: Any, batches: list[Batch]) -> None:
    optimizer = OPTIMIZERS["sgd"](model)
    fit(model, batches[:1], optimizer, 1)
    before = prototypes_of(model)
    model.eval()
    with torch.no_grad():
        model(**batches[1])
    model.train()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(prototypes_of(model), before)


def test_frozen_heads_gather_nothing(model: Any, batches: list[Batch]) -> None:
    """A phase that trains the encoder only must not pile up class sums for the phase after it."""
    for _, parameter in parameters_of(model, "heads"):
        parameter.requires_grad_(False)
    fit(model, batches[:2], torch.optim.SGD([p for _, p in parameters_of(model, "backbone")], lr=1e-2), 1)
    assert not any(head.pending for head in model.offramp.early)


def test_they_are_float32_under_autocast(model: Any, batches: list[Batch]) -> None:
    plain = copy.deepcopy(model)
    fit(plain, batches[:1], OPTIMIZERS["sgd"](plain), 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = model(**batches[0])
        said.loss.backward()
        OPTIMIZERS["sgd"](model).step()
    assert prototypes_of(model).dtype == torch.float32
    # Rounded once at most: means of bfloat16 rows that were summed in float32.
    torch.testing.assert_close(prototypes_of(model), prototypes_of(plain), atol=0.1, rtol=0.02)
    assert (prototypes_of(model) != prototypes_of(model).bfloat16().float()).any()


def test_they_are_saved_and_loaded(model: Any, batches: list[Batch], tmp_path: Path) -> None:
    fit(model, batches, OPTIMIZERS["sgd"](model), 1)
    model.save_pretrained(tmp_path)
    again = load_early_exit(tmp_path)
    assert torch.equal(prototypes_of(again), prototypes_of(model))
    assert all(head.prototypes.seen.all() for head in again.offramp.early)


# Two processes


def train_rank(rank: int, model: Any, batches: Sequence[Batch], folder: Path) -> None:
    """One of two processes: rank 0 has the even rows of every step, rank 1 the odd ones."""
    address = f"file://{folder / 'meet'}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = OPTIMIZERS["sgd"](model)
    for batch in batches:
        optimizer.zero_grad()
        wrapped(**{name: value[rank::2] for name, value in batch.items()}).loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, to save the seconds in which two processes import torch")
def test_two_processes_give_what_one_gives(
    model: Any, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mix of classes is uneven: in the second step only rank 0 has rows of class 2."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train_rank, args=(rank, model, batches, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    fit(model, batches, OPTIMIZERS["sgd"](model), 1)
    expected = model.state_dict()
    for rank in range(2):
        found = torch.load(tmp_path / f"rank-{rank}.pt")
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], **NEAR, msg=name)
