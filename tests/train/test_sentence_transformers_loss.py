"""Our losses behind the interface of sentence-transformers, judged by its own losses."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from torch import Tensor, nn

from nestling.core import Dtype
from nestling.errors import DataError, MissingExtraError, TrainingError
from nestling.train.losses.nested_info_nce import NestedInfoNCE
from nestling.train.losses.nested_loss import NestedLoss
from nestling.train.losses.quantized_prefixes import QuantizedPrefixes
from nestling.train.losses.self_distillation import SelfDistillation
from nestling.train.losses.spread_out import SpreadOut
from nestling.train.sentence_transformers.loss import SentenceTransformersLoss, cut_rows
from tests.train.tiny_bert import DIMS, load_tiny_bert, make_pairs, save_tiny_bert

NUM_ROWS = 11
WEIGHTS = (2.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("models"), dropout=0.0)


@pytest.fixture(scope="module")
def dropping_folder(tmp_path_factory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("dropping"), dropout=0.1)


def columns(num_columns: int, num_rows: int = NUM_ROWS) -> list[list[str]]:
    pairs = make_pairs(num_rows, with_negatives=True)
    assert pairs.negatives is not None
    shuffled = list(pairs.negatives[::-1])
    return [list(pairs.anchors), list(pairs.positives), list(pairs.negatives), shuffled][
        :num_columns
    ]


def features(model: Any, texts: list[list[str]]) -> list[dict[str, Any]]:
    return [model.preprocess(column) for column in texts]


def total(loss: nn.Module, batch: list[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
    """Add up the parts as the Trainer does."""
    made = loss(batch, labels)
    return torch.stack(list(made.values())).sum() if isinstance(made, dict) else made


def gradients(
    loss: nn.Module, texts: list[list[str]], labels: Tensor | None = None
) -> tuple[float, dict[str, Tensor]]:
    model: Any = loss.model
    model.zero_grad()
    made = total(loss, features(model, texts), labels)
    made.backward()
    named = model.named_parameters()
    return made.item(), {name: row.grad.clone() for name, row in named if row.grad is not None}


def assert_equal(
    ours: nn.Module, theirs: nn.Module, texts: list[list[str]], labels: Tensor | None = None
) -> None:
    our_value, our_gradients = gradients(ours, texts, labels)
    their_value, their_gradients = gradients(theirs, texts, labels)
    assert our_value == pytest.approx(their_value, abs=1e-9)
    assert our_gradients.keys() == their_gradients.keys()
    assert max(float(row.abs().max()) for row in their_gradients.values()) > 1e-2
    for name, row in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], row, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("num_columns", [2, 3, 4])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_equals_the_matryoshka_loss_around_multiple_negatives_ranking(num_columns, weights, folder):
    model = load_tiny_bert(folder, dtype=torch.float64)
    ours = SentenceTransformersLoss(model, NestedInfoNCE(DIMS, weights))
    ranking = losses.MultipleNegativesRankingLoss(model)
    theirs = losses.MatryoshkaLoss(model, ranking, DIMS, weights)
    assert_equal(ours, theirs, columns(num_columns))


def test_equals_the_symmetric_form(folder):
    model = load_tiny_bert(folder, dtype=torch.float64)
    ours = SentenceTransformersLoss(model, NestedInfoNCE(DIMS, symmetric=True, temperature=0.1))
    ranking = losses.MultipleNegativesRankingLoss(
        model,
        scale=10,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    assert_equal(ours, losses.MatryoshkaLoss(model, ranking, DIMS), columns(2))


@pytest.mark.parametrize("num_columns", [2, 3])
def test_a_large_batch_equals_the_cached_loss(num_columns, folder):
    model = load_tiny_bert(folder, dtype=torch.float64)
    ours = SentenceTransformersLoss(model, NestedInfoNCE(DIMS, WEIGHTS), mini_batch_size=4)
    ranking = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=4)
    theirs = losses.MatryoshkaLoss(model, ranking, DIMS, WEIGHTS)
    assert_equal(ours, theirs, columns(num_columns))
    at_once = SentenceTransformersLoss(model, NestedInfoNCE(DIMS, WEIGHTS))
    assert_equal(ours, at_once, columns(num_columns))


def test_cached_dropout_is_drawn_once(dropping_folder):
    """The second pass must see what the first one saw, or gradients belong to another loss."""
    model = load_tiny_bert(dropping_folder, dtype=torch.float64).train()
    made = {}
    for mini_batch_size in (None, NUM_ROWS):
        torch.manual_seed(3)
        loss = SentenceTransformersLoss(model, NestedInfoNCE(DIMS), mini_batch_size=mini_batch_size)
        made[mini_batch_size] = gradients(loss, columns(2))
    value, rows = made[None]
    assert made[NUM_ROWS][0] == pytest.approx(value, abs=1e-9)
    for name, row in rows.items():
        torch.testing.assert_close(made[NUM_ROWS][1][name], row, atol=1e-9, rtol=1e-9)


def test_the_parts_are_the_shares_and_leave_the_gradients_as_they_are(folder):
    model = load_tiny_bert(folder)
    nested = NestedInfoNCE(DIMS, WEIGHTS)
    loss = SentenceTransformersLoss(model, nested)
    texts = columns(2)
    parts = loss(features(model, texts))
    assert list(parts) == ["loss_dim_4", "loss_dim_8", "loss_dim_16"]
    queries, documents = (model(each)["sentence_embedding"] for each in features(model, texts))
    value = nested.value(queries, documents)
    shares = torch.stack(list(parts.values()))
    torch.testing.assert_close(shares, torch.tensor(WEIGHTS) * value.by_dim, atol=1e-5, rtol=1e-5)
    _, ours = gradients(loss, texts)
    model.zero_grad()
    value.total.backward()
    for name, row in model.named_parameters():
        if row.grad is not None:
            assert torch.equal(ours[name], row.grad), name


def test_a_label_column_tells_the_groups(folder):
    model = load_tiny_bert(folder, dtype=torch.float64)
    loss = SentenceTransformersLoss(model, NestedInfoNCE(DIMS))
    texts, groups = columns(3, 4), torch.tensor([-1, -1, 7, 7])
    free, masked = (gradients(loss, texts[:2], each)[0] for each in (None, groups))
    assert masked < free
    # A negative is masked by nobody, whatever the groups are called.
    embedded = [model(each)["sentence_embedding"].detach() for each in features(model, texts)]
    expected = NestedInfoNCE(DIMS)(
        embedded[0],
        torch.cat(embedded[1:]),
        query_groups=groups,
        document_groups=torch.cat([groups, 100 + torch.arange(4)]),
    )
    assert gradients(loss, texts, groups)[0] == pytest.approx(float(expected), abs=1e-9)


class CoSent(nn.Module):
    """CoSENT on the cosines of pairs: a pair with a higher score must have a higher cosine."""

    def forward(self, left: Tensor, right: Tensor, *, labels: Tensor) -> Tensor:
        cosines = 20 * nn.functional.cosine_similarity(left, right)
        differences = cosines[:, None] - cosines[None, :]
        is_wrong = labels[:, None] < labels[None, :]
        zero = cosines.new_zeros(1)
        return torch.logsumexp(torch.cat([zero, differences[is_wrong]]), 0)


def test_any_base_loss_of_embeddings_and_scores_is_nested(folder):
    model = load_tiny_bert(folder, dtype=torch.float64)
    ours = SentenceTransformersLoss(model, NestedLoss(CoSent(), DIMS, WEIGHTS, renormalize=True))
    theirs = losses.MatryoshkaLoss(model, losses.CoSENTLoss(model), DIMS, WEIGHTS)
    scores = torch.rand(NUM_ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_equal(ours, theirs, columns(2), scores)


@pytest.mark.parametrize("num_columns", [2, 3])
def test_codes_and_spread_are_parts_of_their_own(num_columns, folder):
    model = load_tiny_bert(folder, dtype=torch.float64)
    dtypes = [Dtype.INT4, Dtype.ROTATED_BINARY]
    plain = NestedInfoNCE(DIMS, WEIGHTS)
    nested, ranking = (
        QuantizedPrefixes(each, dtypes, weight=0.7) for each in (plain, SelfDistillation(DIMS))
    )
    spread = SpreadOut(DIMS)
    loss = SentenceTransformersLoss(
        model,
        nested,
        self_distillation=ranking,
        self_distillation_weight=0.3,
        spread_out=spread,
        spread_out_weight=2.0,
    )
    texts, labels = columns(num_columns), torch.arange(NUM_ROWS) // 2
    queries, *others = (model(each)["sentence_embedding"] for each in features(model, texts))
    documents = torch.cat(others)
    nobody = torch.full((len(documents) - NUM_ROWS,), -1)
    groups = {"query_groups": labels, "document_groups": torch.cat([labels, nobody])}
    value = plain.value(queries, documents, **groups)
    expected = {
        **dict(
            zip([f"loss_dim_{dim}" for dim in DIMS], WEIGHTS * value.by_dim.numpy(), strict=True)
        ),
        "loss_codes": (nested(queries, documents, **groups) - value.total).item(),
        "loss_self_distillation": 0.3 * ranking(queries, documents).item(),
        "loss_spread_out": 2.0 * spread(queries, documents, **groups).item(),
    }
    parts = loss(features(model, texts), labels)
    assert parts.keys() == expected.keys()
    for name, part in parts.items():
        assert part.item() == pytest.approx(expected[name], abs=1e-9), name
    _, ours = gradients(loss, texts, labels)
    model.zero_grad()
    whole = (
        nested(queries, documents, **groups)
        + 0.3 * ranking(queries, documents)
        + 2.0 * spread(queries, documents, **groups)
    )
    whole.backward()
    for name, row in model.named_parameters():
        if row.grad is not None:
            torch.testing.assert_close(ours[name], row.grad, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("mini_batch_size", [None, 4])
def test_self_distillation_is_added_with_its_weight(mini_batch_size, folder):
    model = load_tiny_bert(folder, dtype=torch.float64)
    distillation = SelfDistillation(DIMS)
    loss = SentenceTransformersLoss(
        model,
        NestedInfoNCE(DIMS),
        self_distillation=distillation,
        self_distillation_weight=0.3,
        mini_batch_size=mini_batch_size,
    )
    parts = loss(features(model, columns(3)))
    queries, *documents = (
        model(each)["sentence_embedding"] for each in features(model, columns(3))
    )
    expected = distillation.value(queries, torch.cat(documents)).total
    distilled = 0.3 * expected.item()
    model.train()
    total(loss, features(model, columns(3)))
    assert loss.last is not None
    alone = NestedInfoNCE(DIMS).value(queries, torch.cat(documents))
    assert loss.last.total.item() == pytest.approx(alone.total.item() + distilled, abs=1e-9)
    torch.testing.assert_close(loss.last.by_dim, alone.by_dim, atol=1e-9, rtol=0)
    model.eval()
    assert parts["loss_self_distillation"].item() == pytest.approx(distilled, abs=1e-9)
    nested = NestedInfoNCE(DIMS)(queries, torch.cat(documents)).item()
    value, ours = gradients(loss, columns(3))
    assert value == pytest.approx(nested + distilled, abs=1e-9)
    model.zero_grad()
    (NestedInfoNCE(DIMS)(queries, torch.cat(documents)) + 0.3 * expected).backward()
    for name, row in model.named_parameters():
        if row.grad is not None:
            torch.testing.assert_close(ours[name], row.grad, atol=1e-9, rtol=1e-9)


# --- Through the Trainer -------------------------------------------------------------------------


def make_trainer(
    folder: Path, out: Path, loss_options: dict[str, Any], **options: Any
) -> tuple[Any, SentenceTransformersLoss]:
    model = load_tiny_bert(folder)
    loss = SentenceTransformersLoss(model, NestedInfoNCE(DIMS, **loss_options))
    anchors, positives, negatives = columns(3, 64)
    data = Dataset.from_dict({"anchor": anchors, "positive": positives, "negative": negatives})
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 4,
        "save_strategy": "no",
    }
    args = SentenceTransformerTrainingArguments(output_dir=str(out), **{**settings, **options})
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=data.select(range(16)),
        loss=loss,
        callbacks=[loss.step_callback()],
    )
    return trainer, loss


@pytest.mark.parametrize(
    "options", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2, "logging_steps": 2}]
)
def test_the_trainer_logs_every_prefix(options, folder, tmp_path):
    trainer, _ = make_trainer(folder, tmp_path, {}, eval_strategy="epoch", **options)
    trainer.train()
    trained = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(trained) == 4
    assert len(evaluated) == 2
    for kind, entries in (("", trained), ("eval_", evaluated)):
        for entry in entries:
            shares = [entry[f"{kind}loss_dim_{dim}"] for dim in DIMS]
            assert sum(shares) == pytest.approx(entry[f"{kind}loss"], abs=1e-3)
    assert trained[-1]["loss"] < trained[0]["loss"]


def test_drawn_prefixes_follow_the_trainers_step_through_a_resume(folder, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 5}
    drawn = {"dims_per_step": 2, "seed": 4}
    undisturbed, _ = make_trainer(folder, tmp_path / "one", drawn, **options)
    undisturbed.train()
    resumed, loss = make_trainer(folder, tmp_path / "two", drawn, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-10"))
    assert loss.step == 15
    for name, row in resumed.model.named_parameters():
        assert torch.equal(row, dict(undisturbed.model.named_parameters())[name]), name


def test_drawn_prefixes_need_a_step(folder):
    model = load_tiny_bert(folder).train()
    loss = SentenceTransformersLoss(model, NestedInfoNCE(DIMS, dims_per_step=2))
    with pytest.raises(
        TrainingError, match=r"got a batch and no step. Pass callbacks=\[loss.step_c"
    ):
        loss(features(model, columns(2)))
    loss.step = 0
    parts = loss(features(model, columns(2)))
    assert sum(part.item() == 0 for part in parts.values()) == 1
    assert loss.last is not None
    assert int(torch.isnan(loss.last.by_dim).sum()) == 1
    model.eval()
    assert all(part.item() > 0 for part in loss(features(model, columns(2))).values())


def test_bad_input_is_named(folder, monkeypatch):
    model = load_tiny_bert(folder)
    with pytest.raises(
        DataError, match=r"`mini_batch_size` must be at least 1, got 0. Leave it out"
    ):
        SentenceTransformersLoss(model, NestedInfoNCE(DIMS), mini_batch_size=0)
    loss = SentenceTransformersLoss(model, NestedInfoNCE(DIMS))
    monkeypatch.setitem(sys.modules, "sentence_transformers.base.losses.merged_forward", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nestling\[train-st\]'"):
        loss(features(model, columns(2)))


def test_only_padded_text_is_cut(folder):
    loss = SentenceTransformersLoss(load_tiny_bert(folder), NestedInfoNCE(DIMS), mini_batch_size=2)
    with pytest.raises(
        DataError, match=r"`mini_batch_size` cuts .* got the features input_ids, of"
    ):
        loss([{"input_ids": torch.arange(3), "offsets": torch.arange(3)}])


def test_chunks_hold_all_tokens_and_no_padding_on_the_right():
    mask = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    column = {"input_ids": torch.arange(15).reshape(3, 5), "attention_mask": mask, "task": "query"}
    first, second, third = cut_rows(column, 1)
    assert first["input_ids"].tolist() == [[0, 1, 2]]
    assert second["input_ids"].tolist() == [[5]]
    assert third["input_ids"].tolist() == [[10, 11, 12, 13, 14]]
    assert {chunk["task"] for chunk in (first, second, third)} == {"query"}
    (whole,) = cut_rows(column, 4)
    assert whole["attention_mask"].tolist() == mask[:, :3].tolist()


def test_nothing_is_patched(folder):
    model = load_tiny_bert(folder)
    forward = model.forward
    loss = SentenceTransformersLoss(model, NestedInfoNCE(DIMS))
    total(loss, features(model, columns(2))).backward()
    assert model.forward == forward
    assert loss(features(model, columns(2)))["loss_dim_4"].item() > 0
