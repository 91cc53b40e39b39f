"""Fine-tuning a sentence-transformers model: what is saved, what survives, what is refused."""

import copy
import dataclasses
import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers.utils import logging as chat

from nestling.core import Dtype, take_prefix
from nestling.core.progress import silent
from nestling.data.training_pairs import TrainingPairs
from nestling.data.types import RetrievalTask
from nestling.encode import Role, open_encoder
from nestling.encode.nest_manifest import NestManifest
from nestling.errors import (
    DataError,
    DimensionError,
    EncoderError,
    MissingExtraError,
    TrainingError,
    WriteError,
)
from nestling.measure import measure
from nestling.train.job import LoopOptions
from nestling.train.losses.nested_info_nce import NestedInfoNCE
from nestling.train.losses.nesting import LossValue
from nestling.train.losses.quantized_prefixes import QuantizedPrefixes
from nestling.train.losses.self_distillation import SelfDistillation
from nestling.train.losses.spread_out import SpreadOut
from nestling.train.model_folder import CHECKPOINT_FOLDER
from nestling.train.schedule import rate_factor
from nestling.train.sentence_transformers import fine_tune as fine_tune_module
from nestling.train.sentence_transformers import train_sentence_transformer, validation
from nestling.train.sentence_transformers.callbacks import FiniteCallback, RecordCallback
from nestling.train.sentence_transformers.checkpoints import (
    SEAL_FILE,
    find_checkpoint,
    seal_checkpoint,
)
from nestling.train.sentence_transformers.loss import SentenceTransformersLoss
from nestling.train.sentence_transformers.run import SeededBatches
from nestling.train.sentence_transformers.validation import LiveEncoder, PrefixEvaluator
from tests.train.killed_fine_tuning import BATCH_SIZE, TOGETHER, fine_tune
from tests.train.tiny_bert import DIMS, load_tiny_bert, make_pairs, save_tiny_bert


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> tuple[Path, Any]:
    """What an undisturbed run makes, and its record."""
    out = tmp_path_factory.mktemp("undisturbed") / "tiny-nested"
    return out, fine_tune(base, out)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def assert_same_bits(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def held_out() -> RetrievalTask:
    _, task = make_pairs(512).hold_out(0.2)
    assert task is not None
    return task


# --- What is saved -------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", DIMS)
def test_plain_sentence_transformers_cuts_it_to_nestlings_prefix(dim, trained):
    out, _ = trained
    texts = ["the cat eats bread at home", "a pilot", ""]
    model = SentenceTransformer(str(out), truncate_dim=dim, device="cpu")
    theirs = model.encode(texts, normalize_embeddings=True)
    full = open_encoder(f"st:{out}").encode(texts, role="document")
    np.testing.assert_allclose(theirs, take_prefix(full, dim, renormalize=True), atol=1e-6)


def test_the_folder_says_what_it_is(trained):
    out, record = trained
    config = json.loads((out / "config.json").read_text())
    assert config["is_matryoshka"] is True
    assert config["matryoshka_dimensions"] == list(DIMS)
    encoder = open_encoder(f"st:{out}")
    assert encoder.nesting_dims == DIMS
    manifest = NestManifest.load(out)
    assert manifest.kind == "sentence-transformers"
    assert manifest.nesting_dims == DIMS
    assert manifest.fingerprint == encoder.fingerprint
    assert manifest.training == json.loads(json.dumps(record.to_json()))
    card = (out / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert "tiny sentences" in card
    assert "SentenceTransformer(" in card
    assert not (out / CHECKPOINT_FOLDER).exists()


def test_a_rigid_model_does_not_say_that_it_can_be_cut(trained, tmp_path):
    """Not even one that was nested before."""
    fine_tune(
        trained[0],
        tmp_path / "rigid",
        dims=(16,),
        dims_per_step=None,
        options={"num_epochs": 1},
        pairs=make_pairs(64),
    )
    config = json.loads((tmp_path / "rigid" / "config.json").read_text())
    assert config["is_matryoshka"] is False
    assert "matryoshka_dimensions" not in config
    assert open_encoder(f"st:{tmp_path / 'rigid'}").nesting_dims is None
    assert NestManifest.load(tmp_path / "rigid").nesting_dims == (16,)


def test_the_record_tells_the_run(trained):
    _, record = trained
    assert (record.num_steps, record.num_resumes, record.stopped_early) == (30, 0, False)
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3]
    assert record.epochs[-1].loss < record.epochs[0].loss
    assert all(loss is not None for loss in record.epochs[0].loss_by_dim.values())
    assert record.settings["dims_per_step"] == 2
    assert record.settings["base"]["model"] == "tiny_bert"
    assert record.environment["num_threads"] == 1


def test_the_callers_generators_are_left_alone(base, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    fine_tune(base, tmp_path / "out", options={"num_epochs": 1})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002


def test_nothing_is_said_but_through_progress(base, tmp_path, capfd):
    labels: list[tuple[str, int, int]] = []
    fine_tune(base, tmp_path / "out", progress=lambda *said: labels.append(said))
    assert capfd.readouterr() == ("", "")
    assert labels[0][0].startswith("train | epoch 1/3 loss ")
    assert labels[-1][0].startswith("train | 3 of 3 epochs, loss ")
    assert labels[-1][1:] == (30, 30)


def test_how_columns_are_embedded_is_not_said_in_our_runs(base, tmp_path, caplog):
    whole = make_pairs(64, with_negatives=True)
    assert whole.negatives is not None
    some = [text if row % 3 else "" for row, text in enumerate(whole.negatives)]
    pairs = dataclasses.replace(whole, negatives=some)
    note = logging.getLogger(fine_tune_module.COLUMN_LOGGER)
    chat.warning_once.cache_clear()  # it is said once per process
    fine_tune(base, tmp_path / "out", pairs=pairs, options={"num_epochs": 1})
    assert [record.getMessage() for record in caplog.records if record.name == note.name] == []
    note.warning("outside of a run")
    assert "outside of a run" in caplog.messages


def test_every_option_trains(base, tmp_path):
    record = fine_tune(
        base,
        tmp_path / "out",
        symmetric=True,
        self_distillation_weight=0.5,
        quantize=[Dtype.INT4, Dtype.ROTATED_BINARY],
        quantize_weight=0.5,
        spread_out_weight=0.5,
        dims_per_step=None,
        dim_weights=[2.0, 1.0, 1.0],
        mini_batch_size=16,
        options={"precision": "bfloat16", "max_grad_norm": 1.0, "schedule": "cosine"},
    )
    assert record.epochs[-1].loss < record.epochs[0].loss
    assert record.settings["quantize"] == ["int4", "rotated-binary"]
    chosen = (record.settings["quantize_weight"], record.settings["spread_out_weight"])
    assert chosen == (0.5, 0.5)
    Accelerator(mixed_precision="no")  # the next training may choose another number format


def test_another_seed_is_another_model(base, trained, tmp_path):
    fine_tune(base, tmp_path / "out", options={"seed": 2, "num_epochs": 1})
    out, _ = trained
    assert any(
        not torch.equal(row, weights(out)[name]) for name, row in weights(tmp_path / "out").items()
    )


def test_rows_without_a_negative_bring_none(base, tmp_path):
    pairs = make_pairs(96)
    nothing = ["" for _ in pairs.anchors]
    some = ["the dog sleeps" if row % 3 else "" for row in range(len(pairs))]
    for name, negatives in (("none", None), ("empty", nothing), ("some", some)):
        changed = TrainingPairs(
            anchors=pairs.anchors,
            positives=pairs.positives,
            negatives=negatives,
            groups=pairs.groups,
            source="tiny",
        )
        fine_tune(base, tmp_path / name, pairs=changed, options={"num_epochs": 1})
    assert_same_bits(tmp_path / "none", tmp_path / "empty")
    one, other = weights(tmp_path / "none"), weights(tmp_path / "some")
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_models_prompts_are_trained_with(base, tmp_path):
    model = load_tiny_bert(base)
    model.prompts = {"query": "find ", "document": "text "}
    model.save_pretrained(str(tmp_path / "prompted"), create_model_card=False)
    pairs = make_pairs(64)
    written_out = TrainingPairs(
        anchors=[f"find {text}" for text in pairs.anchors],
        positives=[f"text {text}" for text in pairs.positives],
        negatives=None,
        groups=pairs.groups,
        source="tiny",
    )
    fine_tune(tmp_path / "prompted", tmp_path / "one", pairs=pairs, options={"num_epochs": 1})
    fine_tune(base, tmp_path / "two", pairs=written_out, options={"num_epochs": 1})
    assert_same_bits(tmp_path / "one", tmp_path / "two")


def test_batches_follow_from_seed_and_epoch():
    def batches(epoch: int, seed: int = 0) -> list[list[int]]:
        sampler = SeededBatches(range(10), 4, False, seed=seed)
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    assert [len(batch) for batch in batches(0)] == [4, 4]
    assert batches(1) == batches(1)
    assert len({str(batches(0)), str(batches(1)), str(batches(0, seed=1))}) == 3
    rows = [row for batch in batches(0) for row in batch]
    assert len(set(rows)) == 8
    assert [len(batch) for batch in SeededBatches(range(3), 4, False)] == [3]


@pytest.mark.parametrize(("num_rows", "num_batches"), [(8, 2), (11, 2), (12, 2), (19, 4), (3, 0)])
def test_processes_get_equally_many_batches(num_rows, num_batches):
    shared = list(SeededBatches(range(num_rows), 4, False, num_processes=2))
    alone = list(SeededBatches(range(num_rows), 4, False))
    assert shared == alone[:num_batches]
    assert len(SeededBatches(range(num_rows), 4, True, num_processes=2)) == num_batches


# --- On several devices --------------------------------------------------------------------------


def test_without_a_launcher_one_device_is_taken(base, trained, tmp_path, monkeypatch):
    """Two that are seen would be one batch of twice the size, and half the steps."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    fine_tune(base, tmp_path / "out", device=None)
    assert_same_bits(tmp_path / "out", trained[0])


def train_by_hand(base: Path) -> Iterator[tuple[float, dict[str, torch.Tensor]]]:
    """The slow, obvious twin of two processes: each step, the mean of the losses of two batches.

    Yields the mean loss of each epoch, and the weights after it.
    """
    model = load_tiny_bert(base).train()
    drawn: dict[str, Any] = {"dims_per_step": 2, "seed": 1}
    temperature = TOGETHER["temperature"]
    loss = SentenceTransformersLoss(
        model,
        NestedInfoNCE(DIMS, temperature=temperature, **drawn),
        self_distillation=SelfDistillation(DIMS, temperature=temperature, **drawn),
        self_distillation_weight=TOGETHER["self_distillation_weight"],
    )
    options = LoopOptions(**{"learning_rate": 3e-3, **TOGETHER["options"]})
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate, weight_decay=0.0)
    pairs = TOGETHER["pairs"]
    losses: list[float] = []
    for step in range(4):
        epoch, place = divmod(step, 2)
        order = np.random.default_rng([1, epoch]).permutation(len(pairs))
        optimizer.param_groups[0]["lr"] = 3e-3 * rate_factor(step, 4, options)
        loss.step = step
        for index in (2 * place, 2 * place + 1):
            batch = pairs.take(order[index * BATCH_SIZE : (index + 1) * BATCH_SIZE])
            columns = [model.preprocess(list(each)) for each in (batch.anchors, batch.positives)]
            parts = loss(columns, torch.from_numpy(batch.groups)).values()
            half = torch.stack(list(parts)).sum() / 2
            half.backward()
            losses.append(2 * half.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), TOGETHER["options"]["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        if place:
            yield float(np.mean(losses[-4:])), copy.deepcopy(model.transformers_model.state_dict())


def test_two_processes_train_together_through_a_kill(tmp_path):
    base, out = save_tiny_bert(tmp_path / "base", dropout=0.0), tmp_path / "out"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    child = "tests.train.killed_fine_tuning"
    finished = subprocess.run(
        [sys.executable, "-m", child, str(base), str(out), port],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert finished.returncode == 0, finished.stderr
    training = NestManifest.load(out).training
    losses, states = zip(*train_by_hand(base), strict=True)
    assert [epoch["loss"] for epoch in training["epochs"]] == pytest.approx(losses, rel=1e-4)
    twin = states[training["best_epoch"] - 1]
    for name, row in weights(out).items():
        if name.endswith("key.bias"):
            continue  # a softmax does not see it: its gradient is rounding, which Adam blows up
        torch.testing.assert_close(row, twin[name], atol=2e-5, rtol=1e-4, msg=name)
    assert not (out / CHECKPOINT_FOLDER).exists()


def test_every_process_needs_a_batch():
    with pytest.raises(
        TrainingError, match=r"got 3 batches for 4 processes. Take smaller batches, more data or"
    ):
        fine_tune_module._check(make_pairs(127), 32, num_processes=4)
    fine_tune_module._check(make_pairs(128), 32, num_processes=4)


# --- What survives -------------------------------------------------------------------------------


def test_killed_it_goes_on_to_the_same_bits(base, trained, tmp_path):
    """And so it does when its newest checkpoint is half-written."""
    out, record = trained
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.train.killed_fine_tuning", str(base), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    with child:
        assert any(int(line) == 14 for line in child.stdout)
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    newest = max(
        (tmp_path / "out" / CHECKPOINT_FOLDER).glob("checkpoint-*"),
        key=lambda path: int(path.name.split("-")[1]),
    )
    (newest / "optimizer.pt").write_bytes(b"")
    said: list[str] = []
    resumed = fine_tune(base, tmp_path / "out", warn=said.append)
    assert len(said) == 1
    assert said[0].startswith(f"passed over the half-written or damaged checkpoint {newest}, and")
    assert_same_bits(tmp_path / "out", out)
    assert resumed.num_resumes == 1
    for mine, expected in zip(resumed.epochs, record.epochs, strict=True):
        assert (mine.loss, mine.loss_by_dim) == (expected.loss, expected.loss_by_dim)


SETTINGS: dict[str, dict[str, Any]] = {"job": {"dims": [4, 8]}, "loop": {"seed": 0}}


def make_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "1_Pooling").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "1_Pooling" / "config.json").write_text("{}")
    seal_checkpoint(checkpoint, SETTINGS, {"step": step})
    return checkpoint


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / SEAL_FILE).unlink(),
        lambda path: (path / SEAL_FILE).write_text("{"),
        lambda path: (path / SEAL_FILE).write_text(
            (path / SEAL_FILE).read_text().replace("dims", "dins")
        ),
        lambda path: (path / "model.safetensors").write_bytes(b"weight"),
        lambda path: (path / "model.safetensors").write_bytes(b"Weights"),
        lambda path: (path / "1_Pooling" / "config.json").unlink(),
    ],
)
def test_a_half_written_checkpoint_is_passed_over(damage, tmp_path):
    good, bad = make_checkpoint(tmp_path, 9), make_checkpoint(tmp_path, 10)
    said: list[str] = []
    found = find_checkpoint(tmp_path, SETTINGS, said.append)
    assert found is not None
    assert (found.path, found.progress, said) == (bad, {"step": 10}, [])
    damage(bad)
    found = find_checkpoint(tmp_path, SETTINGS, said.append)
    assert found is not None
    assert (found.path, found.progress) == (good, {"step": 9})
    assert "the training goes on from the one before it" in said[0]
    assert not bad.exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """E.g. of a rigid one, which is not to be resumed as nested."""
    path = make_checkpoint(tmp_path, 9)
    with pytest.raises(
        TrainingError,
        match=rf"^a training is continued .* checkpoint {path} .* differ in dims \[4, 8\] against \[8\]; "
        rf"seed 0 against 1. Give the same settings, name another --out, or start over",
    ):
        find_checkpoint(tmp_path, {"job": {"dims": [8]}, "loop": {"seed": 1}}, print)


def test_a_checkpoint_is_not_read_into_memory(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 9)
    (checkpoint / "optimizer.pt").write_bytes(bytes(16 << 20))
    tracemalloc.start()
    seal_checkpoint(checkpoint, SETTINGS, {})
    assert find_checkpoint(tmp_path, SETTINGS, print) is not None
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 << 20


def interrupt(at_step: int) -> Any:
    def progress(label: str, done: int, total: int) -> None:
        if done >= at_step:
            raise KeyboardInterrupt

    return progress


def run_out_of_disk(*arguments: object, **options: object) -> None:
    raise WriteError("the disk is full")


def test_a_rigid_run_is_not_continued_as_a_nested_one(base, tmp_path, monkeypatch):
    monkeypatch.setattr("nestling.train.loop.SECONDS_BETWEEN_REPORTS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(base, tmp_path / "out", dims=(16,), dims_per_step=None, progress=interrupt(3))
    with pytest.raises(TrainingError, match=r"nesting_dims \[16\] against \[4, 8, 16\]"):
        fine_tune(base, tmp_path / "out", dims_per_step=None)
    with pytest.raises(TrainingError, match=r"differ in seed 1 against 2\."):
        fine_tune(base, tmp_path / "out", dims=(16,), dims_per_step=None, options={"seed": 2})


def test_asked_to_overwrite_it_starts_over_where_another_run_was(base, trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained[0], out)
    make_checkpoint(out / CHECKPOINT_FOLDER, 9)
    options = {"num_epochs": 1}
    record = fine_tune(base, out, overwrite=True, options=options, pairs=make_pairs(64))
    assert (record.num_resumes, record.num_steps) == (0, 2)
    assert NestManifest.load(out).training == json.loads(json.dumps(record.to_json()))


def test_a_run_that_stopped_before_it_was_saved_is_only_saved(base, trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fine_tune_module, "write_model_card", run_out_of_disk)
        with pytest.raises(WriteError):
            fine_tune(base, tmp_path / "out")
    assert not (tmp_path / "out" / "nestling.json").exists()
    record = fine_tune(base, tmp_path / "out")
    assert record.num_resumes == 0
    assert_same_bits(tmp_path / "out", trained[0])


# --- When it stops -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poisoned(base, tmp_path_factory) -> Path:
    """A model that knows a word whose vector is not a number."""
    folder = save_tiny_bert(tmp_path_factory.mktemp("poisoned"), dropout=0.0)
    stored = weights(folder)
    word = SentenceTransformer(str(folder)).tokenizer.convert_tokens_to_ids("sleeps")
    stored["embeddings.word_embeddings.weight"][word] = math.nan
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_loss_that_is_no_number_stops_the_run(poisoned, tmp_path):
    """One negative speaks the word: the run stops at the batch that holds it."""
    pairs = make_pairs(330)
    order = np.random.default_rng([1, 0]).permutation(330)
    negatives = ["" for _ in pairs.anchors]
    negatives[order[4 * 32 + 7]] = "the dog sleeps"
    changed = TrainingPairs(
        anchors=pairs.anchors,
        positives=pairs.positives,
        negatives=negatives,
        groups=pairs.groups,
        source="tiny",
    )
    last = tmp_path / "out" / CHECKPOINT_FOLDER / "checkpoint-4"
    with pytest.raises(
        TrainingError,
        match=rf"^the loss became nan at step 5 at prefix 4, 8, 16; the training stopped before that step "
        rf"changed the weights. The last good checkpoint is kept: {last}. Lower --learning-rate",
    ):
        fine_tune(poisoned, tmp_path / "out", pairs=changed, dims_per_step=None)
    kept = load_file(last / "model.safetensors")
    finite = [row.isfinite().all() for name, row in kept.items() if "word_emb" not in name]
    assert all(finite)


def test_a_gradient_that_is_no_number_stops_the_run(base, tmp_path):
    model = load_tiny_bert(base)
    parameter = next(iter(model.parameters()))
    parameter.grad = torch.full_like(parameter, math.inf)
    callback = FiniteCallback(SentenceTransformersLoss(model, NestedInfoNCE(DIMS)))
    args, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=6)
    with pytest.raises(
        TrainingError,
        match=r"^the norm of the gradients became inf at step 7; .* No checkpoint has",
    ):
        callback.on_pre_optimizer_step(args, state, None, model=model)


def state_at(step: int) -> tuple[SimpleNamespace, SimpleNamespace]:
    return SimpleNamespace(output_dir="nowhere"), SimpleNamespace(global_step=step)


def test_only_prefixes_that_were_drawn_are_blamed(base):
    loss = SentenceTransformersLoss(load_tiny_bert(base), NestedInfoNCE(DIMS, dims_per_step=2))
    loss.step = 0
    drawn = loss.nesting.at_step(0).positions[0]
    by_dim = torch.full((3,), math.nan)
    by_dim[2] = 1.0
    loss.last = LossValue(torch.tensor(math.nan), by_dim)
    with pytest.raises(
        TrainingError, match=rf"^the loss became nan at step 1 at prefix {DIMS[drawn]}; the"
    ):
        FiniteCallback(loss).on_pre_optimizer_step(*state_at(0), None, model=loss.model)


def test_a_distillation_that_is_no_number_is_a_loss_that_is_none(base):
    model = load_tiny_bert(base).train()
    loss = SentenceTransformersLoss(
        model,
        NestedInfoNCE(DIMS),
        self_distillation=SelfDistillation(DIMS),
        self_distillation_weight=math.inf,
    )
    pairs = make_pairs(8)
    loss([model.preprocess(list(texts)) for texts in (pairs.anchors, pairs.positives)])
    with pytest.raises(
        TrainingError, match=r"^the loss became inf at step 1 in the self-distillation; the train"
    ):
        FiniteCallback(loss).on_pre_optimizer_step(*state_at(0), None, model=model)


def test_codes_and_a_spread_that_are_no_numbers_are_named_as_where_it_may_be(base):
    model = load_tiny_bert(base).train()
    loss = SentenceTransformersLoss(
        model,
        QuantizedPrefixes(NestedInfoNCE(DIMS), [Dtype.INT8]),
        spread_out=SpreadOut(DIMS),
        spread_out_weight=math.inf,
    )
    pairs = make_pairs(8)
    loss([model.preprocess(list(texts)) for texts in (pairs.anchors, pairs.positives)])
    with pytest.raises(TrainingError, match=r"at step 1 in the codes or the spread; the train"):
        FiniteCallback(loss).on_pre_optimizer_step(*state_at(0), None, model=model)


def test_validation_measures_the_model_as_it_stands(base, monkeypatch):
    """As it would be measured once it is saved, with nothing but the prefixes."""
    model, task, made = load_tiny_bert(base).train(), held_out(), []

    def measure_and_keep(*arguments: Any, **options: Any) -> Any:
        made.append(measure(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(validation, "measure", measure_and_keep)
    monkeypatch.setattr(SentenceTransformer, "save_pretrained", run_out_of_disk)
    values = PrefixEvaluator(task, DIMS)(model)
    assert {row.family for row in made[0].rows} == {"prefix"}
    assert {(row.dim, row.dtype) for row in made[0].rows} == {(dim, "float32") for dim in DIMS}
    saved = measure(open_encoder(f"st:{base}"), task, dims=DIMS)
    for dim in DIMS:
        expected = saved.find(family="prefix", dim=dim, dtype=Dtype.FLOAT32).value
        assert values[f"dim_{dim}"] == pytest.approx(expected, abs=1e-6)


def test_a_live_model_is_an_encoder(base):
    live, saved = LiveEncoder(load_tiny_bert(base), embed_dim=16), open_encoder(f"st:{base}")
    texts = ["the cat eats bread at home", "a pilot", ""]
    roles: tuple[Role, ...] = ("query", "document")
    for role in roles:
        np.testing.assert_allclose(
            live.encode(texts, role=role), saved.encode(texts, role=role), atol=1e-6
        )
    assert live.encode([], role="query").shape == (0, 16)
    assert (live.embed_dim, live.nesting_dims, live.max_tokens) == (16, None, saved.max_tokens)
    assert live.count_tokens(texts) == saved.count_tokens(texts)


def test_early_stopping_keeps_the_best_epoch(base, tmp_path, monkeypatch):
    """A rate this high makes a model worse from some epoch on; stopped, it stays stopped."""
    task = held_out()
    options = {"num_epochs": 12, "learning_rate": 0.1, "early_stop_dim": 8, "patience": 2}
    with monkeypatch.context() as patch:
        patch.setattr(fine_tune_module, "write_model_card", run_out_of_disk)
        with pytest.raises(WriteError):
            fine_tune(base, tmp_path / "out", validation=task, options=options)
    record = fine_tune(base, tmp_path / "out", validation=task, options=options)
    values = [epoch.validation_by_dim[8] for epoch in record.epochs]
    assert record.stopped_early
    assert record.best_epoch == 1 + values.index(max(values))
    assert len(record.epochs) == record.best_epoch + 2
    assert values[-1] < max(values) - 0.02
    results = measure(open_encoder(f"st:{tmp_path / 'out'}"), task, dims=DIMS)
    measured = {
        row.dim: row.value
        for row in results.rows
        if (row.family, row.dtype, row.metric) == ("prefix", "float32", results.main_metric)
    }
    # Texts of a model this bad are nearly alike: rounding decides between some of them.
    assert measured == pytest.approx(record.kept_epoch.validation_by_dim, abs=5e-3)


def test_a_validation_value_that_is_no_number_stops_the_run(base, tmp_path):
    loss = SentenceTransformersLoss(load_tiny_bert(base), NestedInfoNCE(DIMS))
    record = RecordCallback(loss, LoopOptions(num_epochs=1, learning_rate=1.0), silent, {})
    metrics = {"eval_dim_4": 0.5, "eval_dim_8": math.nan, "eval_dim_16": 0.5}
    args = SimpleNamespace(output_dir=str(tmp_path))
    with pytest.raises(
        TrainingError, match=r"^validation values must be finite, got \{4: 0.5, 8: nan"
    ):
        record.on_evaluate(args, None, SimpleNamespace(), metrics=metrics)


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dims": (4, 32)}, DimensionError, r"`dim` must lie in \[1, 16\] .* got 32"),
        ({"dims": (8, 4)}, DimensionError, r"`dims` must ascend without repeats, got 8,4"),
        ({"dim_weights": [1.0]}, DimensionError, r"`dim_weights` must be one per nesting dim"),
        ({"batch_size": 1}, DataError, r"`batch_size` must be at least 2, .* got 1. The usual"),
        ({"pairs": make_pairs(1)}, DataError, r"`pairs` must be at least 2, .* got 1 from tiny"),
        (
            {"options": {"early_stop_dim": 5}},
            DimensionError,
            r"`early_stop_dim` must be one of the nesting dims 4,8,16, got 5.",
        ),
        (
            {"options": {"early_stop_dim": 8}},
            TrainingError,
            r"`early_stop_dim` 8 needs a validation value of that prefix, but nothing is held out",
        ),
        ({"temperature": 0.0}, TrainingError, r"`temperature` must be"),
        ({"quantize": [Dtype.FLOAT32]}, TrainingError, r"`quantize` must be among int8, int4"),
        ({"quantize_weight": -1.0}, TrainingError, r"`quantize_weight` must be positive and fini"),
        ({"spread_out_weight": math.inf}, TrainingError, r"`spread_out_weight` must be finite"),
        ({"dims_per_step": 4}, DimensionError, r"`dims_per_step` must lie in \[1, 3\]"),
        ({"mini_batch_size": 0}, DataError, r"`mini_batch_size` must be at least 1, got 0"),
        (
            {"dims": (16,), "dims_per_step": None, "self_distillation_weight": 1.0},
            DimensionError,
            r"`nesting_dims` must hold, .* a width below the full one",
        ),
    ],
)
def test_bad_input_is_named_before_anything_is_written(changes, error, message, base, tmp_path):
    with pytest.raises(error, match=message):
        fine_tune(base, tmp_path / "out", overwrite=True, **changes)
    assert not (tmp_path / "out").exists()


def test_bad_input_leaves_a_finished_model_as_it_is(base, trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained[0], out)
    with pytest.raises(DimensionError):
        fine_tune(base, out, overwrite=True, dim_weights=[1.0])
    assert NestManifest.load(out) == NestManifest.load(trained[0])
    assert_same_bits(out, trained[0])


@pytest.mark.parametrize("place", ["tiny_bert", "", "../models/tiny_bert/../tiny_bert"])
def test_the_base_model_is_not_trained_over(place, base, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(base, models / "tiny_bert")
    before = sorted(path.stat().st_mtime_ns for path in models.rglob("*"))
    with pytest.raises(
        WriteError,
        match=rf"^`out` must not be or hold the folder of the base model, got {models / place} for "
        rf"the model {models / 'tiny_bert'}: it would be overwritten. Name another --out.",
    ):
        fine_tune(models / "tiny_bert", models / place, overwrite=True)
    assert sorted(path.stat().st_mtime_ns for path in models.rglob("*")) == before


def test_only_sentence_transformers_models_are_fine_tuned(tmp_path):
    options = LoopOptions(num_epochs=1, learning_rate=1.0)
    for uri in ("static:wordllama", "st:"):
        with pytest.raises(
            EncoderError, match=rf"`model` must be st:<path or hub id> .* got '{uri}'"
        ):
            train_sentence_transformer(uri, make_pairs(4), dims=DIMS, options=options, out=tmp_path)


def test_a_finished_model_is_not_overwritten(base, trained):
    out, _ = trained
    with pytest.raises(WriteError, match=rf"^{out} holds a finished model .* --overwrite"):
        fine_tune(base, out)


def test_a_finished_model_is_overwritten_if_asked_to(base, tmp_path):
    out = tmp_path / "out"
    for seed in (0, 0, 1):
        options = {"num_epochs": 1, "seed": seed}
        fine_tune(base, out, overwrite=True, options=options, dims=None, pairs=make_pairs(64))
        assert NestManifest.load(out).training["options"]["seed"] == seed
    assert open_encoder(f"nest:{out}").nesting_dims == (8, 16)


def test_a_missing_extra_says_what_to_install(base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"`datasets`.*pip install 'nestling\[train-st\]'"):
        fine_tune(base, tmp_path / "out")
