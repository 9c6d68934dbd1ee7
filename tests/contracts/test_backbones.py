"""What every backbone adapter must pass: layer by layer it is the untouched model, whoever shares the batch.

The slow, obvious twin is transformers itself with ``output_hidden_states=True``. Models are tiny and random, with
weights large enough that a wrong mask, position or layer is seen at 1e-5, and configured so that every kind of layer
occurs.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from offramp.errors import UnsupportedError
from offramp.model.backbone import SUPPORTED, Cut, cut, lengths_to_mask

TOLERANCE = {"atol": 1e-5, "rtol": 0.0}
PAD, VOCABULARY, LABELS = 1, 60, 3
LENGTHS = torch.tensor([11, 3, 17, 9, 1, 14])
BERT_LIKE = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 40}
DEBERTA_V3 = BERT_LIKE | {
    "relative_attention": True,
    "position_buckets": 4,
    "max_relative_positions": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
MODERNBERT = BERT_LIKE | {
    "num_hidden_layers": 4,  # global, local, local, global
    "global_attn_every_n_layers": 3,
    "local_attention": 6,
    "norm_bias": True,
    "classifier_bias": True,
    **{f"{name}_token_id": PAD for name in ("bos", "eos", "cls", "sep")},
}


@dataclass(frozen=True)
class Case:
    """A family, or a configuration of it that takes another path."""

    config: type
    settings: dict[str, object]
    last: Callable[[nn.Module], nn.Module]
    """The Linear that ends the model's own head."""
    segments: int = 0
    """Token types it tells apart."""
    kernels: tuple[str, ...] = ("eager", "sdpa")
    spread: float = 0.25
    """Standard deviation added to every weight, biases and norms too: transformers' own 0.02 hides mistakes."""


def plain(model: nn.Module) -> nn.Module:
    return model.classifier


def two_layers(model: nn.Module) -> nn.Module:
    return model.classifier.out_proj


CASES = {
    "bert": Case(hf.BertConfig, BERT_LIKE, plain, segments=2),
    "roberta": Case(hf.RobertaConfig, BERT_LIKE | {"type_vocab_size": 2}, two_layers, segments=2),
    "xlm-roberta": Case(hf.XLMRobertaConfig, BERT_LIKE | {"type_vocab_size": 1}, two_layers),
    "albert": Case(hf.AlbertConfig, BERT_LIKE | {"embedding_size": 16}, plain, segments=2),
    "albert, 2 groups": Case(
        hf.AlbertConfig, BERT_LIKE | {"embedding_size": 16, "num_hidden_groups": 2}, plain, segments=2
    ),
    "albert, 2 groups of 2": Case(
        hf.AlbertConfig,
        BERT_LIKE | {"embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 2},
        plain,
        segments=2,
    ),
    "distilbert": Case(hf.DistilBertConfig, {"dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 40}, plain),
    "electra": Case(hf.ElectraConfig, BERT_LIKE | {"embedding_size": 16}, two_layers, segments=2),
    "electra, wide embedding": Case(hf.ElectraConfig, BERT_LIKE | {"embedding_size": 32}, two_layers, segments=2),
    "mpnet": Case(hf.MPNetConfig, BERT_LIKE, two_layers, kernels=("eager",)),
    "deberta-v2": Case(
        hf.DebertaV2Config,
        DEBERTA_V3 | {"conv_kernel_size": 3, "conv_act": "gelu", "type_vocab_size": 2, "share_att_key": False},
        plain,
        segments=2,
        kernels=("eager",),
    ),
    "deberta-v2, as v3": Case(hf.DebertaV2Config, DEBERTA_V3, plain, kernels=("eager",)),
    "deberta-v2, absolute": Case(
        hf.DebertaV2Config, BERT_LIKE | {"embedding_size": 16, "pooler_dropout": 0.1}, plain, kernels=("eager",)
    ),
    # Without a norm after each block the numbers grow, and float32 with them: smaller weights.
    "modernbert": Case(hf.ModernBertConfig, MODERNBERT, plain, spread=0.12),
    "modernbert, mean": Case(hf.ModernBertConfig, MODERNBERT | {"classifier_pooling": "mean"}, plain, spread=0.12),
}
CHECKPOINTING = {"bert", "roberta", "xlm-roberta", "distilbert", "electra", "deberta-v2", "modernbert"}
"""Families whose layers transformers can recompute in the backward pass."""


def build(name: str, kernel: str = "eager", **settings: object) -> hf.PreTrainedModel:
    """A tiny random model, in eval mode, the same each time."""
    case = CASES[name]
    config = case.config(
        **(case.settings | {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "pad_token_id": PAD} | settings),
        num_labels=LABELS,
    )
    torch.manual_seed(0)
    model = hf.AutoModelForSequenceClassification.from_config(config, attn_implementation=kernel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(case.spread * torch.randn_like(parameter))
    return model.eval()


@dataclass(frozen=True)
class Rows:
    tokens: Tensor
    lengths: Tensor
    token_types: Tensor | None

    def take(self, rows: Tensor) -> Rows:
        """Some of the rows, as wide as the longest of them."""
        lengths = self.lengths[rows]
        width = int(lengths.max())
        types = None if self.token_types is None else self.token_types[rows, :width]
        return Rows(self.tokens[rows, :width], lengths, types)

    @property
    def real(self) -> Tensor:
        return lengths_to_mask(self.lengths, self.tokens.shape[1])


def make_rows(name: str, lengths: Tensor = LENGTHS) -> Rows:
    generator = torch.Generator().manual_seed(1)
    shape = (len(lengths), int(lengths.max()))
    tokens = torch.randint(PAD + 1, VOCABULARY, shape, generator=generator)
    tokens[~lengths_to_mask(lengths, shape[1])] = PAD
    segments = CASES[name].segments
    types = torch.randint(0, segments, shape, generator=generator) if segments else None
    return Rows(tokens, lengths, types)


@dataclass(frozen=True)
class Reference:
    hidden: tuple[Tensor, ...]
    logits: Tensor


def untouched(model: hf.PreTrainedModel, rows: Rows) -> Reference:
    """What transformers says."""
    padded = bool((rows.lengths < rows.tokens.shape[1]).any())
    inputs = {"input_ids": rows.tokens, "attention_mask": rows.real.long() if padded else None}
    if rows.token_types is not None:
        inputs["token_type_ids"] = rows.token_types
    output = model(**inputs, output_hidden_states=True)
    return Reference(output.hidden_states, output.logits)


def resume(parts: Cut, hidden: Tensor, lengths: Tensor, first: int) -> list[Tensor]:
    """Hidden states from before layer ``first`` on; the context is made anew at each layer, as by one-layer stages."""
    states = [hidden]
    for index in range(first, parts.num_layers):
        states.append(parts.layer(index, states[-1], parts.context(states[-1], lengths)))
    return states


def run_as_one_stage(parts: Cut, rows: Rows) -> Tensor:
    """Logits, with one context for all layers."""
    hidden = parts.embed(rows.tokens, rows.lengths, rows.token_types)
    context = parts.context(hidden, rows.lengths)
    for index in range(parts.num_layers):
        hidden = parts.layer(index, hidden, context)
    return parts.head(hidden, rows.lengths)


def assert_same(hidden: Tensor, expected: Tensor, lengths: Tensor) -> None:
    """Equal where there are tokens; both are at least as wide as the longest row."""
    width = int(lengths.max())
    real = lengths_to_mask(lengths, width)
    torch.testing.assert_close(hidden[:, :width][real], expected[:, :width][real], **TOLERANCE)


each_case = pytest.mark.parametrize("name", CASES)
each_kernel = pytest.mark.parametrize(
    ("name", "kernel"), [(name, kernel) for name, case in CASES.items() for kernel in case.kernels]
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors are quicker without threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_adapter_is_put_to_the_contract() -> None:
    assert {case.config.model_type for case in CASES.values()} == set(SUPPORTED)


# --- the same as the untouched model ---------------------------------------------------------------------------


@each_kernel
@pytest.mark.parametrize("lengths", [LENGTHS, torch.full((4,), 15)], ids=["ragged", "unpadded"])
@torch.no_grad()
def test_layer_by_layer(name: str, kernel: str, lengths: Tensor) -> None:
    model, rows = build(name, kernel), make_rows(name, lengths)
    expected = untouched(model, rows)
    parts = cut(model)
    states = resume(parts, parts.embed(rows.tokens, rows.lengths, rows.token_types), rows.lengths, 0)

    assert parts.num_layers == len(expected.hidden) - 1
    assert states[0].shape == (*rows.tokens.shape, parts.hidden_size)
    for state, reference in zip(states, expected.hidden, strict=True):
        assert_same(state, reference, rows.lengths)
    torch.testing.assert_close(parts.head(states[-1], rows.lengths), expected.logits, **TOLERANCE)


@each_case
@torch.no_grad()
def test_one_context_serves_all_layers_of_a_stage(name: str) -> None:
    model, rows = build(name), make_rows(name)
    torch.testing.assert_close(run_as_one_stage(cut(model), rows), untouched(model, rows).logits, **TOLERANCE)


def count_every_call(model: nn.Module) -> Counter[str]:
    """How often each module is called, but for those that only hold layers and the loop over them."""
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        loops = any(isinstance(child, nn.ModuleList) for child in module.children())
        if not loops and not isinstance(module, hf.PreTrainedModel):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


@each_case
@torch.no_grad()
def test_hooks_see_what_they_saw(name: str) -> None:
    """Modules are called, not their forward; as often as in the untouched model."""
    model, rows = build(name), make_rows(name)
    calls = count_every_call(model)
    untouched(model, rows)
    expected = dict(calls)
    calls.clear()
    run_as_one_stage(cut(model), rows)
    assert dict(calls) == expected


@each_case
@torch.no_grad()
def test_absent_token_types_are_zero(name: str) -> None:
    model, rows = build(name), make_rows(name)
    parts = cut(model)
    zeros = parts.embed(rows.tokens, rows.lengths, torch.zeros_like(rows.tokens))
    torch.testing.assert_close(parts.embed(rows.tokens, rows.lengths), zeros, **TOLERANCE)


@each_case
@torch.no_grad()
def test_pool_is_what_the_last_linear_reads(name: str) -> None:
    model, rows = build(name), make_rows(name)
    parts = cut(model)
    last = untouched(model, rows).hidden[-1]
    pooled = parts.pool(last, rows.lengths)
    assert pooled.shape == (len(rows.lengths), parts.pooled_size)
    linear = CASES[name].last(model)
    assert isinstance(linear, nn.Linear)
    torch.testing.assert_close(linear(pooled), parts.head(last, rows.lengths), **TOLERANCE)


# --- whoever shares the batch ------------------------------------------------------------------------------------


@each_kernel
@pytest.mark.parametrize("after", [0, 1, 2])
@torch.no_grad()
def test_keep(name: str, kernel: str, after: int) -> None:
    """Rows that stay, trimmed to the longest of them, are what they were in the full batch."""
    model, rows = build(name, kernel), make_rows(name)
    parts, expected = cut(model), untouched(model, rows)
    stay = torch.tensor([0, 3, 4])
    kept = rows.take(stay)

    states = resume(parts, parts.embed(rows.tokens, rows.lengths, rows.token_types), rows.lengths, 0)
    hidden = states[after][stay, : kept.tokens.shape[1]]
    for state, reference in zip(resume(parts, hidden, kept.lengths, after), expected.hidden[after:], strict=True):
        assert_same(state, reference[stay], kept.lengths)
        last = state
    torch.testing.assert_close(parts.head(last, kept.lengths), expected.logits[stay], **TOLERANCE)


@each_kernel
@pytest.mark.parametrize("after", [0, 1, 2])
@torch.no_grad()
def test_merge(name: str, kernel: str, after: int) -> None:
    """Two batches of unlike width become one; what stands at padding does not matter."""
    model, rows = build(name, kernel), make_rows(name)
    parts, expected = cut(model), untouched(model, rows)
    pieces = []
    for part in (torch.tensor([0, 1, 3]), torch.tensor([2, 4, 5])):
        half = rows.take(part)
        states = resume(parts, parts.embed(half.tokens, half.lengths, half.token_types), half.lengths, 0)
        room = rows.tokens.shape[1] - half.tokens.shape[1]
        pieces.append(nn.functional.pad(states[after], (0, 0, 0, room), value=5.0))
    order = torch.tensor([0, 1, 3, 2, 4, 5])
    hidden, lengths = torch.cat(pieces), rows.lengths[order]
    hidden[~lengths_to_mask(lengths, hidden.shape[1])] = 5.0

    for state, reference in zip(resume(parts, hidden, lengths, after), expected.hidden[after:], strict=True):
        assert_same(state, reference[order], lengths)
        last = state
    torch.testing.assert_close(parts.head(last, lengths), expected.logits[order], **TOLERANCE)


@each_kernel
@torch.no_grad()
def test_rows_alone(name: str, kernel: str) -> None:
    model, rows = build(name, kernel), make_rows(name)
    parts, expected = cut(model), untouched(model, rows)
    for row in range(len(rows.lengths)):
        alone = rows.take(torch.tensor([row]))
        states = resume(parts, parts.embed(alone.tokens, alone.lengths, alone.token_types), alone.lengths, 0)
        for state, reference in zip(states, expected.hidden, strict=True):
            assert_same(state, reference[[row]], alone.lengths)
        torch.testing.assert_close(parts.head(states[-1], alone.lengths), expected.logits[[row]], **TOLERANCE)


def test_lengths_to_mask() -> None:
    expected = torch.tensor([[True, True, False, False], [True, True, True, True], [False] * 4])
    assert torch.equal(lengths_to_mask(torch.tensor([2, 4, 0]), 4), expected)


# --- training ----------------------------------------------------------------------------------------------------


@each_case
def test_gradient_flows_into_embeddings(name: str) -> None:
    model, rows = build(name), make_rows(name)
    model.zero_grad()
    untouched(model, rows).logits.square().sum().backward()
    expected = {key: parameter.grad for key, parameter in model.named_parameters()}

    model.zero_grad()
    parts = cut(model)
    states = resume(parts, parts.embed(rows.tokens, rows.lengths, rows.token_types), rows.lengths, 0)
    parts.head(states[-1], rows.lengths).square().sum().backward()

    seen = model.get_input_embeddings().weight.grad[rows.tokens[rows.real]]
    assert (seen.abs().sum(dim=-1) > 0).all()
    for key, parameter in model.named_parameters():
        if expected[key] is None:
            assert parameter.grad is None, key
        else:
            scale = float(expected[key].abs().max())
            torch.testing.assert_close(parameter.grad, expected[key], atol=1e-4 * max(scale, 1.0), rtol=0.0)


@each_kernel
def test_dropout_is_that_of_the_model(name: str, kernel: str) -> None:
    """In training mode, with the same seed, the same numbers are dropped."""
    model, rows = build(name, kernel).train(), make_rows(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    torch.manual_seed(5)
    expected = untouched(model, rows).logits
    torch.manual_seed(5)
    logits = run_as_one_stage(cut(model), rows)

    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0.0)
    assert not torch.allclose(logits, untouched(model.eval(), rows).logits, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in CASES if name.partition(",")[0] in CHECKPOINTING])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing(name: str, reentrant: bool) -> None:
    """Layers are recomputed in the backward pass, and the gradient is the same."""
    gradients, calls = [], []
    for checkpointing in (False, True):
        model, rows = build(name), make_rows(name)
        for module in model.train().modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        seen = count_calls(next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)))
        parts = cut(model)
        states = resume(parts, parts.embed(rows.tokens, rows.lengths, rows.token_types), rows.lengths, 0)
        parts.head(states[-1], rows.lengths).square().sum().backward()
        gradients.append(model.get_input_embeddings().weight.grad)
        calls.append(len(seen))
    assert calls[1] == 2 * calls[0] > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)


def count_calls(layer: nn.Module) -> list[int]:
    """A list that grows whenever the first Linear inside the layer is computed."""
    calls: list[int] = []
    inner = next(module for module in layer.modules() if isinstance(module, nn.Linear))
    inner.register_forward_hook(lambda *_: calls.append(1))
    return calls


@each_kernel
@torch.no_grad()
def test_autocast(name: str, kernel: str) -> None:
    model, rows = build(name, kernel), make_rows(name)
    parts = cut(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = untouched(model, rows).logits
        states = resume(parts, parts.embed(rows.tokens, rows.lengths, rows.token_types), rows.lengths, 0)
        logits = parts.head(states[-1], rows.lengths)
    assert logits.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.05)


# --- what is special to a family -----------------------------------------------------------------------------------


@torch.no_grad()
def test_modernbert_window_matters() -> None:
    """The window is narrower than the rows, or the contract above would not see it."""
    rows = make_rows("modernbert")
    narrow, wide = build("modernbert"), build("modernbert", local_attention=80)
    wide.load_state_dict(narrow.state_dict())
    assert not torch.allclose(untouched(narrow, rows).logits, untouched(wide, rows).logits, atol=1e-2)


@torch.no_grad()
def test_modernbert_exits_read_through_the_final_norm() -> None:
    model, rows = build("modernbert"), make_rows("modernbert")
    parts = cut(model)
    norm = parts.exit_norm()
    assert norm is not None
    states = resume(parts, parts.embed(rows.tokens, rows.lengths), rows.lengths, 0)
    before = model.model.layers[-1](
        states[-2],
        attention_mask=parts.context(states[-2], rows.lengths).extras["masks"]["full_attention"],
        position_embeddings=parts.context(states[-2], rows.lengths).extras["rotary"]["full_attention"],
    )
    torch.testing.assert_close(norm(before), states[-1], **TOLERANCE)
    assert not torch.allclose(before, states[-1], atol=1e-2)


@each_case
def test_other_families_need_no_norm_before_an_exit(name: str) -> None:
    if not name.startswith("modernbert"):
        assert cut(build(name)).exit_norm() is None


@torch.no_grad()
def test_deberta_convolution_matters() -> None:
    """The convolution reaches the output, so leaving it out would be seen."""
    model, rows = build("deberta-v2"), make_rows("deberta-v2")
    parts = cut(model)
    hidden = parts.embed(rows.tokens, rows.lengths, rows.token_types)
    context = parts.context(hidden, rows.lengths)
    with_convolution = parts.layer(0, hidden, context)
    model.base_model.encoder.conv = None
    assert not torch.allclose(with_convolution, parts.layer(0, hidden, context), atol=1e-2)


# --- finding the adapter -------------------------------------------------------------------------------------------


@each_case
def test_a_cut_leaves_the_model_as_it_was(name: str) -> None:
    model = build(name)
    before = list(model.state_dict())
    parts = cut(model)
    assert not isinstance(parts, nn.Module)
    assert list(model.state_dict()) == before


@torch.no_grad()
def test_a_copied_model_is_cut_anew() -> None:
    model, rows = build("bert"), make_rows("bert")
    expected = cut(model).embed(rows.tokens, rows.lengths)
    twin = copy.deepcopy(model)
    model.get_input_embeddings().weight.zero_()
    torch.testing.assert_close(cut(twin).embed(rows.tokens, rows.lengths), expected, **TOLERANCE)


def test_subclasses_are_cut_by_their_family() -> None:
    model = build("bert")
    model.__class__ = type("BertForSequenceClassification", (hf.BertForSequenceClassification,), {})
    assert type(cut(model)) is SUPPORTED["bert"]


TINY = {"vocab_size": VOCABULARY, "num_labels": LABELS}
UNSUPPORTED = {
    "decoder-only": lambda: hf.GPT2ForSequenceClassification(
        hf.GPT2Config(**TINY, n_embd=32, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0)
    ),
    "encoder-decoder": lambda: hf.BartForSequenceClassification(
        hf.BartConfig(
            **TINY, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4
        )
    ),
    "'fnet' models": lambda: hf.FNetForSequenceClassification(
        hf.FNetConfig(**TINY, hidden_size=32, num_hidden_layers=1, intermediate_size=40)
    ),
    "configured as a decoder": lambda: hf.BertForSequenceClassification(
        hf.BertConfig(**TINY, **BERT_LIKE, is_decoder=True)
    ),
}


@pytest.mark.parametrize("words", UNSUPPORTED)
def test_other_families_are_refused_by_name(words: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        cut(UNSUPPORTED[words]())
    assert words in str(error.value)
    for family in SUPPORTED:
        assert family in str(error.value)


def test_other_tasks_are_refused() -> None:
    model = hf.BertModel(hf.BertConfig(vocab_size=VOCABULARY, **BERT_LIKE))
    with pytest.raises(UnsupportedError, match="AutoModelForSequenceClassification"):
        cut(model)
