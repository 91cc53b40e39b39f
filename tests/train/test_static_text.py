import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from nestling.core import Dtype
from nestling.data import open_training_pairs
from nestling.data.training_pairs import make_pairs
from nestling.encode import open_encoder
from nestling.encode.nest_manifest import NestManifest
from nestling.errors import DataError, DimensionError, FormatError, TrainingError, WriteError
from nestling.train.job import LoopOptions
from nestling.train.losses import NestedInfoNCE, QuantizedPrefixes, SelfDistillation, SpreadOut
from nestling.train.models.static_text import Bags, StaticText, TokenizedTexts, train_tokenizer
from nestling.train.static_text import StaticRecipe, StaticTextJob, train_static_text

PORT = 29_571
WORDS = [
    "read",
    "write",
    "file",
    "line",
    "thread",
    "lock",
    "parse",
    "date",
    "time",
    "open",
    "close",
    "socket",
    "path",
    "name",
]
OPTIONS = LoopOptions(num_epochs=2, learning_rate=0.02, schedule="constant", warmup_share=0.0)


def small_pairs(num_pairs=120, seed=0, with_negatives=False):
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(num_pairs):
        words = generator.choice(WORDS, 3, replace=False)
        other = generator.choice(WORDS, 4)
        hard = " ".join(other) if with_negatives and number % 2 else ""
        rows.append(
            (f"{' '.join(words)} {number}", f"{words[0]} the {words[2]} {words[1]} {number}", hard)
        )
    return make_pairs(rows, source="handmade")


def recipe(**changes):
    return StaticRecipe(
        **{"embed_dim": 32, "nesting_dims": (8, 16, 32), "batch_size": 32, **changes}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("nest") / "model"
    record = train_static_text(
        small_pairs(), recipe(), out=out, options=OPTIONS, validation_share=0.1, command="typed"
    )
    return out, record


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("getMandatoryRelease", ["get", "mandatory", "release"]),
        ("HTTPServer", ["http", "server"]),
        ("http_server", ["http", "_", "server"]),
        ("Café", ["cafe"]),
        ("a.b(c)", ["a", ".", "b", "(", "c", ")"]),
    ],
)
def test_words_are_split_at_case_and_marks(text, tokens):
    corpus = ["get mandatory release http server cafe a b c . ( ) _"] * 3
    assert train_tokenizer(corpus).encode(text).tokens == tokens


def test_a_tokenizer_is_learned_the_same_twice():
    texts = small_pairs().positives
    assert train_tokenizer(texts).to_str() == train_tokenizer(texts).to_str()


@given(st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=8), st.data())
def test_bags_hold_the_tokens_of_the_texts_in_order(token_lists, data):
    tokenizer = train_tokenizer(WORDS * 2)
    texts = [" ".join(WORDS[place] for place in row) for row in token_lists]
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=10))
    bags = TokenizedTexts(tokenizer, texts).take(np.array(rows))
    ends = [*bags.offsets.tolist()[1:], len(bags.places)]
    for row, start, end in zip(rows, bags.offsets.tolist(), ends, strict=True):
        ids = bags.tokens[bags.places[start:end]].tolist()
        assert ids == tokenizer.encode(texts[row], add_special_tokens=False).ids
    assert bags.tokens.tolist() == sorted(set(bags.tokens.tolist()))


def test_an_embedding_and_its_gradient_equal_those_of_a_plain_embedding_bag():
    generator = np.random.default_rng(0)
    table = generator.standard_normal((20, 8)).astype(np.float32)
    module, twin = StaticText(table), torch.tensor(table, requires_grad=True)
    flat, offsets = torch.tensor([3, 3, 7, 1, 19, 7]), torch.tensor([0, 2, 2, 5])
    tokens, places = torch.unique(flat, return_inverse=True)
    ours = module(Bags(tokens, places, offsets))
    plain = functional.embedding_bag(flat, twin, offsets, mode="sum")
    torch.testing.assert_close(ours, plain)
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    (ours * weight).sum().backward()
    (plain * weight).sum().backward()
    gradient = module.table.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    torch.testing.assert_close(gradient.to_dense(), twin.grad)
    assert gradient.coalesce().indices().tolist() == [[1, 3, 7, 19]]


def test_batches_depend_on_seed_and_epoch_alone_and_cover_the_pairs():
    pairs = small_pairs(with_negatives=True)
    one, other = (StaticTextJob(recipe(), pairs, seed=3) for _ in range(2))
    first = one.batch(1, 2)
    for left, right in zip(first, other.batch(1, 2), strict=True):
        for a, b in zip(left, right, strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(first.anchor_groups, one.batch(2, 2).anchor_groups)
    groups = torch.cat([one.batch(0, index).anchor_groups for index in range(one.num_batches)])
    assert len(groups.unique()) == len(groups) == one.num_batches * 32


def test_hard_negatives_stand_after_the_positives_with_the_group_of_an_equal_positive():
    rows = [(f"a{row}", f"p{row}", f"n{row}") for row in range(30)]
    rows += [("a30", "p30", "p3"), ("a31", "p31", "")]
    pairs = make_pairs(rows, source="handmade")
    batch = StaticTextJob(recipe(), pairs).batch(0, 0)
    order = batch.anchor_groups.tolist()
    assert torch.equal(batch.document_groups[:32], batch.anchor_groups)
    hard = batch.document_groups[32:].tolist()
    assert len(hard) == len(batch.documents.offsets) - 32 == 31
    assert sorted(hard) == [-1] * 30 + [int(pairs.groups[3])]
    assert int(pairs.groups[3]) in order


def test_training_teaches(trained):
    _, record = trained
    first, last = record.epochs[0], record.epochs[-1]
    assert last.loss < first.loss
    assert set(last.validation_by_dim) == {8, 16, 32}


def test_the_folder_opens_in_nestling_without_torch(trained):
    out, _ = trained
    program = (
        "import sys, numpy as np; from nestling.encode import open_encoder\n"
        f"e = open_encoder('nest:{out}')\n"
        "v = e.encode(['read file', ''], role='query')\n"
        "assert v.shape == (2, 32) and abs(np.linalg.norm(v[0]) - 1) < 1e-6 and not v[1].any()\n"
        "assert e.nesting_dims == (8, 16, 32)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_plain_sentence_transformers_gives_the_same_vectors_at_every_width(trained):
    from sentence_transformers import SentenceTransformer

    out, _ = trained
    texts = ["read file line", "open the socket", "THREAD lock"]
    ours = open_encoder(f"nest:{out}").encode(texts, role="document")
    for dim in (8, 16, 32):
        model = SentenceTransformer(str(out), truncate_dim=dim, device="cpu")
        theirs = model.encode(texts, normalize_embeddings=True)
        prefix = ours[:, :dim] / np.linalg.norm(ours[:, :dim], axis=1, keepdims=True)
        np.testing.assert_allclose(theirs, prefix, atol=1e-6)


def test_the_card_and_the_configuration_say_the_widths(trained):
    out, _ = trained
    card = (out / "README.md").read_text()
    assert "typed" in card
    assert "120 pairs from handmade" in card
    assert '"matryoshka_dimensions"' in (out / "config.json").read_text()
    assert not (out / "checkpoints").exists()


def test_the_same_seed_gives_the_same_bytes(trained, tmp_path):
    out, _ = trained
    train_static_text(
        small_pairs(), recipe(), out=tmp_path / "model", options=OPTIONS, validation_share=0.1
    )
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "model" / name).read_bytes() == (out / name).read_bytes()


def test_a_finished_model_is_refused_unless_told(trained):
    out, _ = trained
    with pytest.raises(WriteError, match="holds a finished model and is never overwritten"):
        train_static_text(small_pairs(), recipe(), out=out, options=OPTIONS)


def test_overwriting_leaves_what_is_not_the_models(tmp_path):
    out = tmp_path / "model"
    train_static_text(small_pairs(), recipe(), out=out, options=OPTIONS)
    (out / "notes.txt").write_text("mine")
    train_static_text(
        small_pairs(),
        recipe(embed_dim=16, nesting_dims=(16,)),
        out=out,
        options=OPTIONS,
        overwrite=True,
    )
    assert (out / "notes.txt").read_text() == "mine"
    assert open_encoder(f"nest:{out}").embed_dim == 16


def test_a_rigid_run_is_not_continued_as_nested(tmp_path):
    out = tmp_path / "model"
    job = StaticTextJob(recipe(nesting_dims=(32,)), small_pairs().hold_out(0.05)[0])
    from nestling.train.loop import fit

    fit(job, OPTIONS, checkpoint_folder=out / "checkpoints")
    with pytest.raises(TrainingError, match="nesting_dims"):
        train_static_text(small_pairs(), recipe(), out=out, options=OPTIONS)


def test_other_weights_than_those_trained_are_noticed(trained, tmp_path):
    out, _ = trained
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("thread", "threat"))
    with pytest.raises(FormatError, match="its weights are not those it was saved with"):
        open_encoder(f"nest:{copy}")


def test_going_on_from_wordllama_keeps_its_tokenizer_and_width():
    job = StaticTextJob(
        recipe(start="wordllama", embed_dim=300, nesting_dims=(64, 300)), small_pairs()
    )
    assert job.encoder.vectors().shape == (32000, 300)
    first = job.token_encoder().encode(["read a file"], role="query")[:, :256]
    known = open_encoder("static:wordllama").encode(["read a file"], role="query")
    cosine = (first / np.linalg.norm(first)) @ known.T
    assert cosine > 0.9999
    with pytest.raises(DimensionError, match="must be at least 256"):
        StaticTextJob(recipe(start="wordllama"), small_pairs())


def test_half_precision_is_refused_since_it_would_do_nothing(tmp_path):
    options = LoopOptions(num_epochs=1, learning_rate=0.02, precision="bfloat16")
    with pytest.raises(TrainingError, match="`precision` must be float32 for a static model"):
        train_static_text(small_pairs(), recipe(), out=tmp_path / "out", options=options)


def test_early_stopping_without_held_out_pairs_is_refused_before_anything_is_trained(tmp_path):
    options = LoopOptions(num_epochs=1, learning_rate=0.02, early_stop_dim=16)
    with pytest.raises(TrainingError, match="but nothing is held out"):
        train_static_text(
            small_pairs(), recipe(), out=tmp_path / "out", options=options, validation_share=0.0
        )
    assert not (tmp_path / "out").exists()


def test_a_run_that_overwrites_is_gone_on_with_and_another_one_starts_over(tmp_path, monkeypatch):
    out = tmp_path / "model"
    train_static_text(small_pairs(), recipe(), out=out, options=OPTIONS)
    before = (out / "model.safetensors").read_bytes()

    def killed(*_, **__):
        raise KeyboardInterrupt

    longer = LoopOptions(num_epochs=3, learning_rate=0.02)
    with monkeypatch.context() as patch:
        patch.setattr("nestling.train.static_text.save_static", killed)
        with pytest.raises(KeyboardInterrupt):
            train_static_text(small_pairs(), recipe(), out=out, options=longer, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert open_encoder(f"nest:{out}").embed_dim == 32  # the old model is whole until then
    record = train_static_text(small_pairs(), recipe(), out=out, options=longer, overwrite=True)
    assert (record.num_resumes, len(record.epochs)) == (0, 3)  # it was finished, only not saved
    assert (out / "model.safetensors").read_bytes() != before
    with monkeypatch.context() as patch:
        patch.setattr("nestling.train.static_text.save_static", killed)
        with pytest.raises(KeyboardInterrupt):
            train_static_text(small_pairs(), recipe(), out=out, options=longer, overwrite=True)
    other = train_static_text(small_pairs(), recipe(), out=out, options=OPTIONS, overwrite=True)
    assert len(other.epochs) == 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"nesting_dims": (8, 64)}, DimensionError, "must lie in"),
        ({"nesting_dims": (16, 8)}, DimensionError, "must ascend"),
        ({"embed_dim": 0, "nesting_dims": (1,)}, DimensionError, "`embed_dim` must lie in"),
        ({"batch_size": 1}, DataError, "`batch_size` must be at least 2"),
        ({"quantize": (Dtype.FLOAT16,)}, TrainingError, "`quantize` must be among int8, int4"),
        ({"quantize": (Dtype.INT8,) * 2}, TrainingError, "each once, got int8,int8"),
        ({"quantize_weight": 0.0}, TrainingError, "`quantize_weight` must be positive and finite"),
        ({"spread_out_weight": -1.0}, TrainingError, "`spread_out_weight` must be finite and at"),
        ({"spread_out_weight": float("nan")}, TrainingError, "`spread_out_weight` must be finite"),
    ],
)
def test_bad_recipes_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        recipe(**changes)


def test_pairs_fewer_than_a_batch_make_one_batch():
    job = StaticTextJob(recipe(batch_size=1024), small_pairs(20))
    assert job.num_batches == 1
    assert len(job.batch(0, 0).anchor_groups) == 20


def test_self_distillation_and_sampling_train_too(tmp_path):
    record = train_static_text(
        small_pairs(),
        recipe(self_distillation_weight=1.0, dims_per_step=2),
        out=tmp_path / "model",
        options=OPTIONS,
    )
    assert np.isfinite(record.epochs[-1].loss)


CODED: dict[str, Any] = {
    "quantize": (Dtype.INT4, Dtype.ROTATED_BINARY),
    "quantize_weight": 0.5,
    "spread_out_weight": 2.0,
    "self_distillation_weight": 1.5,
}


def test_codes_and_spread_are_added_with_their_weights_and_leave_the_float_losses_as_they_are():
    job = StaticTextJob(recipe(**CODED), small_pairs(with_negatives=True))
    batch = job.batch(0, 0)
    value = job.module(batch, 0)
    queries, documents = job.encoder(batch.anchors), job.encoder(batch.documents)
    groups = {"query_groups": batch.anchor_groups, "document_groups": batch.document_groups}
    contrast, ranking = NestedInfoNCE(job.nesting_dims), SelfDistillation(job.nesting_dims)
    dtypes = CODED["quantize"]
    expected = (
        QuantizedPrefixes(contrast, dtypes, weight=0.5)(queries, documents, **groups)
        + 1.5 * QuantizedPrefixes(ranking, dtypes, weight=0.5)(queries, documents)
        + 2.0 * SpreadOut(job.nesting_dims)(queries, documents, **groups)
    )
    torch.testing.assert_close(value.total, expected)
    plain = contrast.value(queries, documents, **groups)
    torch.testing.assert_close(value.by_dim, plain.by_dim)
    assert value.total > plain.total + 0.1


def test_codes_and_spread_train_are_recorded_and_repeat_to_the_byte(tmp_path):
    for name in ("one", "other"):
        record = train_static_text(
            small_pairs(), recipe(**CODED), out=tmp_path / name, options=OPTIONS
        )
    assert np.isfinite(record.epochs[-1].loss)
    settings = NestManifest.load(tmp_path / "one").training["settings"]
    assert settings["quantize"] == ["int4", "rotated-binary"]
    assert (settings["quantize_weight"], settings["spread_out_weight"]) == (0.5, 2.0)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("quantize", (Dtype.BINARY,)), ("quantize_weight", 2.0), ("spread_out_weight", 1.0)],
)
def test_a_run_is_not_continued_with_other_codes_or_another_spread(name, value, tmp_path):
    from nestling.train.loop import fit

    out = tmp_path / "model"
    before = {"quantize": (Dtype.INT8,)}
    job = StaticTextJob(recipe(**before), small_pairs().hold_out(0.05)[0])
    fit(job, OPTIONS, checkpoint_folder=out / "checkpoints")
    with pytest.raises(TrainingError, match=f"differ in .*{name}"):
        train_static_text(
            small_pairs(), recipe(**(before | {name: value})), out=out, options=OPTIONS
        )


def _train_on_rank(rank, folder):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(PORT),
        "ACCELERATE_USE_CPU": "true",
    }
    torch.set_num_threads(1)
    train_static_text(
        small_pairs(), recipe(), out=folder / "model", options=OPTIONS, validation_share=0.0
    )


def test_two_processes_train_one_model(tmp_path):
    torch.multiprocessing.spawn(_train_on_rank, args=(tmp_path,), nprocs=2)
    manifest = NestManifest.load(tmp_path / "model")
    assert manifest.training["environment"]["num_processes"] == 2
    assert open_encoder(f"nest:{tmp_path / 'model'}").embed_dim == 32


def test_the_command_trains_and_measures(tmp_path):
    out = tmp_path / "nest"
    typed = [sys.executable, "-m", "nestling", "train", "text", "--pairs", "builtin"]
    typed += ["--dims", "8,32", "--epochs", "1", "--out", str(out)]
    finished = subprocess.run(typed, capture_output=True, text=True, check=True)
    said = " ".join(finished.stdout.split())  # a long path breaks the title into lines
    assert "ndcg_at_10 on the pairs held out" in said
    assert "pairs from builtin#train" in finished.stderr
    assert Path(out / "nestling.json").exists()
    assert len(open_training_pairs("builtin")) > 1000
