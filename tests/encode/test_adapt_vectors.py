import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nestling.core import Dtype, normalize, top_k
from nestling.data.types import Corpus
from nestling.encode import (
    AdaptedEncoder,
    VectorFolder,
    adapt_vectors,
    encode_corpus,
    open_encoder,
    open_stored,
    reopen_encoder,
)
from nestling.encode.blocks import read_blocks
from nestling.encode.vector_folder import STORED_DTYPES
from nestling.errors import (
    DataError,
    DimensionError,
    FingerprintError,
    FormatError,
    VectorError,
    WriteError,
)
from nestling.search import Index
from tests.encode.adapters import residual, rotation, save_adapter
from tests.encode.fakes import FakeEncoder, make_corpus, make_texts
from tests.encode.test_fill_folder import StoppedError, contents, damage, state_after, stop_after

TEXTS = [*make_texts(24), make_texts(1)[0]]
"""Twenty-five, the last like the first."""

ROWS = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float32) * 3


@pytest.fixture
def adapter(tmp_path):
    return open_adapter(tmp_path / "adapter")


def open_adapter(folder: Path, vector_map=None) -> AdaptedEncoder:
    opened = open_encoder(save_adapter(folder, FakeEncoder().fingerprint, vector_map))
    assert isinstance(opened, AdaptedEncoder)
    return opened


@pytest.fixture
def source(tmp_path):
    return encode_corpus(
        FakeEncoder(), make_corpus(TEXTS), tmp_path / "source", block_rows=7
    ).folder


@pytest.mark.parametrize("make", [rotation, residual])
@pytest.mark.parametrize("block_rows", [1, 4, 7, 100])
def test_a_folder_is_mapped_and_keeps_what_it_says_of_its_inputs(
    make, block_rows, source, tmp_path
):
    adapter = open_adapter(tmp_path / "adapter", make(8))
    adapted = adapt_vectors(adapter, source.path, tmp_path / "out", block_rows=block_rows)
    folder = adapted.folder
    folder.verify()
    np.testing.assert_array_equal(folder.vectors, adapter.map(np.array(source.vectors)))
    assert folder.doc_ids == source.doc_ids
    assert folder.content_hashes == source.content_hashes
    assert folder.corpus_hash == source.corpus_hash
    assert folder.manifest.role == source.manifest.role
    assert folder.fingerprint == adapter.fingerprint
    assert (adapted.num_encoded, adapted.num_reused) == (24, 1), "equal inputs are mapped once"


@pytest.mark.parametrize("stored", [Dtype.FLOAT32, Dtype.FLOAT16])
@pytest.mark.parametrize("options", [{}, {"dtype": Dtype.FLOAT32}, {"dtype": Dtype.FLOAT16}])
def test_the_number_format_is_float32_unless_asked_for(stored, options, adapter, tmp_path):
    source = encode_corpus(
        FakeEncoder(), make_corpus(TEXTS), tmp_path / "source", dtype=stored
    ).folder
    folder = adapt_vectors(adapter, source.path, tmp_path / "out", **options).folder
    wanted = options.get("dtype", Dtype.FLOAT32)
    assert folder.manifest.dtype == wanted
    mapped = adapter.map(np.array(source.vectors, dtype=np.float32))
    np.testing.assert_array_equal(folder.vectors, mapped.astype(wanted))


def test_rows_in_float16_keep_their_scores(tmp_path):
    parent = FakeEncoder(embed_dim=256)
    adapter = open_encoder(save_adapter(tmp_path / "adapter", parent.fingerprint))
    assert isinstance(adapter, AdaptedEncoder)
    source = encode_corpus(
        parent, make_corpus(TEXTS), tmp_path / "source", dtype=Dtype.FLOAT16
    ).folder
    before = normalize(np.array(source.vectors, dtype=np.float32))
    after = normalize(
        np.array(adapt_vectors(adapter, source.path, tmp_path / "out").folder.vectors)
    )
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-5)


@pytest.mark.parametrize("first", [Dtype.FLOAT32, Dtype.FLOAT16])
@pytest.mark.parametrize("is_finished", [True, False])
def test_rows_of_two_precisions_do_not_mix(first, is_finished, adapter, tmp_path):
    corpus, out = make_corpus(TEXTS), tmp_path / "out"
    for dtype in STORED_DTYPES:
        encode_corpus(FakeEncoder(), corpus, tmp_path / dtype, dtype=dtype)
    if is_finished:
        adapt_vectors(adapter, tmp_path / first, out)
    else:
        with pytest.raises(StoppedError):
            adapt_vectors(adapter, tmp_path / first, out, block_rows=4, progress=stop_after(3))
    before = contents(out)
    (second,) = set(STORED_DTYPES) - {first}
    with pytest.raises(FingerprintError, match=r"differ in source_dtype .*'float16'"):
        adapt_vectors(adapter, tmp_path / second, out)
    assert contents(out) == before
    again = adapt_vectors(adapter, tmp_path / first, out)
    assert again.folder.fingerprint.encoder.get("source_dtype", "float32") == first


@pytest.mark.parametrize("num_bytes", range(0, 2600, 130))
def test_a_run_cut_off_after_any_byte_goes_on_to_the_same_bytes(
    num_bytes, adapter, source, tmp_path
):
    whole = adapt_vectors(adapter, source.path, tmp_path / "whole", block_rows=4).folder.path
    out = tmp_path / "cut" / "out"
    out.parent.mkdir()
    finished = state_after(contents(whole), num_bytes, out)
    adapted = adapt_vectors(adapter, source.path, out, block_rows=9)
    assert contents(out) == contents(whole)
    assert adapted.num_resumed == finished


def test_a_finished_folder_is_left_as_it_is_and_a_damaged_one_is_mended(adapter, source, tmp_path):
    out = tmp_path / "out"
    adapt_vectors(adapter, source.path, out, block_rows=4)
    before = contents(out)
    again = adapt_vectors(adapter, source.path, out)
    assert (again.num_resumed, again.num_encoded) == (25, 0)
    damage(out / "vectors.bin", 5 * 32)
    mended = adapt_vectors(adapter, source.path, out, block_rows=4)
    assert (mended.num_encoded, mended.num_reused) == (4, 21)
    assert contents(out) == before


def test_when_the_vectors_grow_only_what_is_new_is_mapped(adapter, source, tmp_path):
    out = tmp_path / "out"
    adapt_vectors(adapter, source.path, out, block_rows=4)
    grown = make_corpus([*TEXTS, "one more", "and another"])
    encode_corpus(FakeEncoder(), grown, source.path)
    adapted = adapt_vectors(adapter, source.path, out, block_rows=4)
    assert adapted.num_encoded == 2
    fresh = adapt_vectors(adapter, source.path, tmp_path / "fresh", block_rows=4)
    assert contents(out) == contents(fresh.folder.path)


def test_progress_is_told_after_every_block(adapter, source, tmp_path):
    calls = []
    adapt_vectors(
        adapter,
        source.path,
        tmp_path / "out",
        block_rows=10,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [("adapting vectors", done, 25) for done in (0, 10, 20, 25)]


def test_vectors_of_another_model_are_refused_and_both_are_named(adapter, tmp_path):
    other = FakeEncoder(model="other")
    source = encode_corpus(other, make_corpus(TEXTS), tmp_path / "source").folder
    with pytest.raises(FingerprintError, match=r"/source is 'other' and what nest:.*/adapter was"):
        adapt_vectors(adapter, source.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_vectors_that_are_adapted_already_are_refused(adapter, source, tmp_path):
    adapt_vectors(adapter, source.path, tmp_path / "once")
    with pytest.raises(FingerprintError, match=r"differ in adapter 'random-\w+' against None"):
        adapt_vectors(adapter, tmp_path / "once", tmp_path / "twice")


def test_a_folder_of_another_adapter_is_not_written_into(adapter, source, tmp_path):
    other = open_adapter(tmp_path / "other", rotation(8, seed=1))
    adapt_vectors(adapter, source.path, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(FingerprintError, match=r"differ in adapter 'random-\w+' against 'random-"):
        adapt_vectors(other, source.path, tmp_path / "out")
    with pytest.raises(FingerprintError, match="differ in dtype 'float32' against 'float16'"):
        adapt_vectors(adapter, source.path, tmp_path / "out", dtype=Dtype.FLOAT16)
    assert contents(tmp_path / "out") == before


def test_vectors_that_are_still_being_written_are_refused(adapter, tmp_path):
    source = tmp_path / "source"
    with pytest.raises(StoppedError):
        encode_corpus(
            FakeEncoder(), make_corpus(TEXTS), source, block_rows=4, progress=stop_after(3)
        )
    with pytest.raises(FormatError, match=r"source is not finished: 12 of 25 inputs"):
        adapt_vectors(adapter, source, tmp_path / "out")


@pytest.mark.parametrize("name", ["vectors.bin", "rows.jsonl"])
def test_damaged_vectors_are_refused_and_what_came_before_stays(name, adapter, source, tmp_path):
    rows = (source.path / "rows.jsonl").read_bytes()
    where = {"vectors.bin": 12 * 32, "rows.jsonl": rows.index(source.content_hashes[12].encode())}
    damage(source.path / name, where[name])
    with pytest.raises(FormatError, match=rf"rows 7 to 13 in .*{name} differ from their checksum"):
        adapt_vectors(adapter, source.path, tmp_path / "out", block_rows=5)
    (block,) = read_blocks(tmp_path / "out", may_be_torn=False)
    assert block.num_rows == 5


def test_damage_is_found_wherever_a_resumed_run_begins(adapter, source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        adapt_vectors(adapter, source.path, out, block_rows=4, progress=stop_after(4))
    damage(source.path / "vectors.bin", 17 * 32)  # in the block that the run goes on within
    with pytest.raises(FormatError, match="rows 14 to 20 in"):
        adapt_vectors(adapter, source.path, out)


@pytest.mark.parametrize("out", ["source", "source/below", "../{name}/source"])
def test_the_vectors_are_not_written_over_themselves(out, adapter, source, tmp_path):
    with pytest.raises(WriteError, match="`out` must be a folder apart from the vectors"):
        adapt_vectors(adapter, source.path, tmp_path / out.format(name=tmp_path.name))
    source.verify()


def test_a_number_format_or_a_block_that_cannot_be_written_is_refused(adapter, source, tmp_path):
    with pytest.raises(VectorError, match="`dtype` of a vector folder must be float32 or float16"):
        adapt_vectors(adapter, source.path, tmp_path / "out", dtype=Dtype.INT8)
    with pytest.raises(DimensionError, match=r"at least 1, got 0\. Leave it out"):
        adapt_vectors(adapter, source.path, tmp_path / "out", block_rows=0)


def save_file(rows: np.ndarray, path: Path, ids=None) -> Path:
    if path.suffix == ".npz":
        np.savez(path, vectors=rows, ids=np.array(ids))
    elif path.suffix == ".fvecs":
        width = np.full((len(rows), 1), rows.shape[1], "<i4").view("<f4")
        np.concatenate([width, rows], axis=1).astype("<f4").tofile(path)
    else:
        np.save(path, rows)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".fvecs"])
def test_a_plain_file_is_taken_for_vectors_of_the_parent(suffix, adapter, tmp_path):
    ids = [f"row {number}" for number in range(9)] if suffix == ".npz" else None
    path = save_file(ROWS, tmp_path / f"v{suffix}", ids)
    folder = adapt_vectors(adapter, path, tmp_path / "out", block_rows=2).folder
    np.testing.assert_array_equal(folder.vectors, adapter.map(normalize(ROWS)))
    assert folder.doc_ids == (ids or [str(number) for number in range(9)])
    assert folder.fingerprint.space == adapter.fingerprint.space
    assert folder.fingerprint.encoder["backend"] == "vectors", "it vouches for no text"
    assert folder.fingerprint.origin == adapter.fingerprint.origin


def test_another_file_is_not_taken_for_the_one_that_was_mapped(adapter, tmp_path):
    path = save_file(ROWS, tmp_path / "v.npy")
    adapt_vectors(adapter, path, tmp_path / "out", block_rows=2)
    save_file(ROWS[::-1].copy(), path)
    turned = adapt_vectors(adapter, path, tmp_path / "out", block_rows=2)
    assert turned.num_encoded == 0
    np.testing.assert_array_equal(turned.folder.vectors, adapter.map(normalize(ROWS[::-1])))
    save_file(ROWS + 1, path)
    with pytest.raises(WriteError, match=r"9 vectors of other inputs.*--overwrite"):
        adapt_vectors(adapter, path, tmp_path / "out")
    adapt_vectors(adapter, path, tmp_path / "out", overwrite=True)


def test_bad_rows_of_a_file_are_named_or_left_out(adapter, tmp_path):
    rows = ROWS.copy()
    rows[2], rows[5, 3], rows[7, 0] = 0.0, np.nan, np.inf
    path = save_file(rows, tmp_path / "v.npy")
    with pytest.raises(VectorError, match=r"got 1 bad of 4: '2'\. Mend"):
        adapt_vectors(adapter, path, tmp_path / "out", block_rows=4)
    adapted = adapt_vectors(adapter, path, tmp_path / "out", bad_rows="drop")
    assert adapted.dropped_ids == ("2", "5", "7")
    good = [0, 1, 3, 4, 6, 8]
    np.testing.assert_array_equal(adapted.folder.vectors, adapter.map(normalize(ROWS[good])))


def test_a_folder_that_lacks_rows_is_another_one_once_it_has_them(adapter, tmp_path):
    corpus = make_corpus(["one", "zero", "two"])
    encode_corpus(FakeEncoder(), corpus, tmp_path / "source", bad_rows="drop")
    partial = adapt_vectors(adapter, tmp_path / "source", tmp_path / "out").folder
    assert partial.doc_ids == ["doc 0", "doc 2"]
    assert partial.corpus_hash != corpus.corpus_hash
    shutil.rmtree(tmp_path / "source")
    whole = make_corpus(["one", "mended", "two"])
    encode_corpus(FakeEncoder(), whole, tmp_path / "source")
    adapted = adapt_vectors(adapter, tmp_path / "source", tmp_path / "out")
    assert adapted.folder.corpus_hash == whole.corpus_hash
    assert (adapted.num_encoded, adapted.num_reused) == (1, 2)


def test_files_that_do_not_fit_are_refused(adapter, tmp_path):
    with pytest.raises(
        VectorError, match=r"was fitted on, 8, got 5\. Name the adapter of the model"
    ):
        adapt_vectors(adapter, save_file(ROWS[:, :5], tmp_path / "v.npy"), tmp_path / "out")
    with pytest.raises(DataError, match=r"nowhere\.npy"):
        adapt_vectors(adapter, tmp_path / "nowhere.npy", tmp_path / "out")
    path = save_file(ROWS[:2], tmp_path / "v.npz", ["a", "a"])
    with pytest.raises(DataError, match="must be unique"):
        adapt_vectors(adapter, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def words(count: int) -> Corpus:
    return make_corpus(
        [f"the {text} of number {place}" for place, text in enumerate(make_texts(count))]
    )


def test_an_index_of_adapted_vectors_ranks_as_the_one_of_the_originals(tmp_path):
    """The issue's promise: identical full-width ranking, and text finds its way through the map."""
    parent, corpus = open_encoder("static:wordllama"), words(400)
    source = encode_corpus(parent, corpus, tmp_path / "source").folder
    uri = save_adapter(tmp_path / "adapter", parent.fingerprint)
    adapter = open_encoder(uri)
    assert isinstance(adapter, AdaptedEncoder)
    adapted = adapt_vectors(adapter, source.path, tmp_path / "adapted").folder
    before = Index.build(tmp_path / "before", source, corpus)
    after = Index.build(tmp_path / "after", adapted, corpus)
    reader = reopen_encoder(after.fingerprint)
    assert reader is not None
    after.check_encoder(reader.fingerprint)
    queries = ["search by prefix", "width of an index", "number 17", "query 日本"]
    for plain, turned in zip(
        before.search(parent.encode(queries, role="query"), top_k=400),
        after.search(reader.encode(queries, role="query"), top_k=400),
        strict=True,
    ):
        scores = np.array([hit.score for hit in plain])
        np.testing.assert_allclose([hit.score for hit in turned], scores, atol=1e-5)
        # Neighbours that are closer together than float32 tells apart may change places.
        ranks = {hit.doc_id: rank for rank, hit in enumerate(plain)}
        moved = [scores[ranks[hit.doc_id]] - scores[rank] for rank, hit in enumerate(turned)]
        np.testing.assert_allclose(moved, 0.0, atol=1e-6)
        assert [hit.doc_id for hit in turned[:10]] == [hit.doc_id for hit in plain[:10]]
    with pytest.raises(FingerprintError, match="differ in adapter 'random-"):
        after.check_encoder(parent.fingerprint)


def test_adapted_vectors_open_like_any_others(adapter, source, tmp_path):
    adapt_vectors(adapter, source.path, tmp_path / "out")
    opened = open_stored(tmp_path / "out", cache=tmp_path / "cache", made_by=adapter)
    assert opened.folder.fingerprint == adapter.fingerprint
    rows = np.array(opened.folder.vectors)
    np.testing.assert_array_equal(
        top_k(rows @ rows.T, 1).rows[:24, 0], np.arange(24), err_msg="each finds itself"
    )


def test_what_the_source_was_encoded_with_is_kept(tmp_path):
    adapter = open_adapter(tmp_path / "adapter")
    asked = FakeEncoder(prompt="passage: ")
    source = encode_corpus(asked, make_corpus(TEXTS), tmp_path / "source").folder
    folder = adapt_vectors(adapter, source.path, tmp_path / "out").folder
    name = adapter.fingerprint.space.adapter
    assert folder.fingerprint.encoder == {**asked.fingerprint.encoder, "adapter": name}


MEASURE = """
import resource, sys
from pathlib import Path
from nestling.encode import adapt_vectors, open_encoder
adapter = open_encoder(sys.argv[1])
adapter.map(adapter.map.matrix[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
adapt_vectors(adapter, Path(sys.argv[2]), Path(sys.argv[3]), block_rows=1024)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_does_not_grow_with_the_vectors(tmp_path):
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    dim, num_rows = 512, 48_000
    uri = save_adapter(tmp_path / "adapter", FakeEncoder(embed_dim=dim).fingerprint)
    rows = np.lib.format.open_memmap(
        tmp_path / "v.npy", mode="w+", dtype=np.float32, shape=(num_rows, dim)
    )
    block = np.random.default_rng(0).standard_normal((1000, dim)).astype(np.float32)
    for start in range(0, num_rows, 1000):
        rows[start : start + 1000] = block + start
    rows.flush()
    grown = []
    for path, out in ((tmp_path / "v.npy", tmp_path / "a"), (tmp_path / "p", tmp_path / "b")):
        if not path.exists():
            make_plain_folder(path, tmp_path / "a", dim)
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, uri, str(path), str(out)],
            capture_output=True,
            text=True,
            check=True,
        )
        grown.append(int(run.stdout))
    assert VectorFolder.open(tmp_path / "b").vectors.nbytes == rows.nbytes
    # Ids and hashes take some; either file alone would take all of it and more.
    assert max(grown) < 0.75 * rows.nbytes


def make_plain_folder(path: Path, adapted: Path, dim: int) -> None:
    """A folder of the parent's own from one that was mapped: the numbers do not matter here."""
    from dataclasses import replace

    from nestling.encode.vector_folder import Manifest

    shutil.copytree(adapted, path)
    manifest = Manifest.load(path)
    replace(manifest, fingerprint=FakeEncoder(embed_dim=dim).fingerprint).save(path)
