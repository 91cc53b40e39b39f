import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.core import Dtype
from nestling.core.progress import Progress
from nestling.encode import VectorFolder, encode_corpus
from nestling.encode.blocks import read_blocks
from nestling.encode.vector_folder import Manifest
from nestling.errors import (
    DataError,
    DimensionError,
    EncoderError,
    FingerprintError,
    FormatError,
    VectorError,
    WriteError,
)
from tests.encode.fakes import FakeEncoder, make_corpus, make_texts

TEXTS = make_texts(25)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of a folder that was written in one go."""
    out = tmp_path_factory.mktemp("undisturbed") / "v"
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), out, block_rows=4)
    return contents(out)


def state_after(files: dict[str, bytes], num_bytes: int, out: Path) -> int:
    """Write what is on disk once `num_bytes` have been written in all; return the finished inputs."""
    whole = out.parent / "whole"
    for folder in (out, whole):
        folder.mkdir()
    for name, content in files.items():
        (whole / name).write_bytes(content)
    manifest = Manifest.load(whole)
    replace(manifest, complete=False, num_rows=None).save(out)
    written = {"vectors.bin": 0, "rows.jsonl": 0, "blocks.jsonl": 0}
    finished = 0
    lines = files["blocks.jsonl"].splitlines(keepends=True)
    for block, line in zip(read_blocks(whole, may_be_torn=False), lines, strict=True):
        steps = {
            "vectors.bin": block.num_rows * manifest.row_bytes,
            "rows.jsonl": block.rows_end - block.rows_start,
            "blocks.jsonl": len(line),
        }
        finished = block.num_inputs if sum(steps.values()) <= num_bytes else finished
        for name, length in steps.items():
            written[name] += min(length, num_bytes)
            num_bytes -= min(length, num_bytes)
    for name, length in written.items():
        (out / name).write_bytes(files[name][:length])
    shutil.rmtree(whole)
    return finished


@settings(max_examples=40)
@given(per_mille=st.integers(0, 1000))
def test_a_run_cut_off_after_any_byte_goes_on_to_the_same_bytes(
    per_mille, undisturbed, tmp_path_factory
):
    out = tmp_path_factory.mktemp("cut") / "v"
    total = sum(len(content) for name, content in undisturbed.items() if name != "vectors.json")
    finished = state_after(undisturbed, total * per_mille // 1000, out)
    encoder = FakeEncoder()
    encoded = encode_corpus(encoder, make_corpus(TEXTS), out, block_rows=4)
    assert contents(out) == undisturbed
    assert encoder.asked == make_corpus(TEXTS).doc_ids[finished:]
    assert (encoded.num_resumed, encoded.num_encoded) == (finished, 25 - finished)


@pytest.mark.parametrize("name", ["vectors.bin", "rows.jsonl"])
def test_a_log_that_reached_the_disk_before_its_data_is_not_believed(name, undisturbed, tmp_path):
    out = tmp_path / "v"
    state_after(undisturbed, 10**9, out)
    path = out / name
    path.write_bytes(path.read_bytes()[:-20] + b"\0" * 20)
    encoder = FakeEncoder()
    encode_corpus(encoder, make_corpus(TEXTS), out, block_rows=4)
    assert encoder.asked == ["doc 24"]
    assert contents(out) == undisturbed


def test_garbage_behind_the_finished_blocks_is_cut_off(undisturbed, tmp_path):
    """A power cut may leave a file longer than what was ever written to it."""
    out = tmp_path / "v"
    finished = state_after(undisturbed, 700, out)
    for name in ("vectors.bin", "rows.jsonl", "blocks.jsonl"):
        with (out / name).open("ab") as file:
            file.write(b"\0" * 10_000)
    encoder = FakeEncoder()
    encode_corpus(encoder, make_corpus(TEXTS), out, block_rows=4)
    assert contents(out) == undisturbed
    assert encoder.asked[0] == f"doc {finished}"


def test_a_finished_folder_encodes_nothing_and_stays_as_it_is(undisturbed, tmp_path):
    out = tmp_path / "v"
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), out, block_rows=4)
    encoder, calls = FakeEncoder(), []
    encoded = encode_corpus(
        encoder,
        make_corpus(TEXTS),
        out,
        block_rows=7,
        progress=lambda *call: calls.append(call),
    )
    assert encoder.asked == []
    assert (encoded.num_resumed, encoded.num_reused, encoded.num_encoded) == (25, 0, 0)
    assert calls == [("encoding documents", 25, 25)]
    assert contents(out) == undisturbed


def test_progress_is_told_after_every_block(tmp_path):
    calls = []
    encode_corpus(
        FakeEncoder(),
        make_corpus(TEXTS),
        tmp_path / "v",
        block_rows=10,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [("encoding documents", done, 25) for done in (0, 10, 20, 25)]


def test_long_texts_make_shorter_blocks(tmp_path):
    texts = [f"{number} " + "x" * 60_000 for number in range(10)] + TEXTS
    calls: list[int] = []
    encode_corpus(
        FakeEncoder(),
        make_corpus(texts),
        tmp_path / "v",
        progress=lambda label, done, total: calls.append(done),
    )
    assert calls == [0, 4, 8, 35]


def test_a_begun_folder_keeps_its_block_size(undisturbed, tmp_path):
    out = tmp_path / "v"
    state_after(undisturbed, 1000, out)
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), out, block_rows=9)
    assert contents(out) == undisturbed


def test_equal_texts_are_encoded_once(tmp_path):
    texts = ["a", "b", "a", "c", "b", "a"]
    encoder = FakeEncoder()
    encoded = encode_corpus(encoder, make_corpus(texts), tmp_path / "v", block_rows=2)
    assert encoder.asked == ["doc 0", "doc 1", "doc 3"]
    assert (encoded.num_encoded, encoded.num_reused) == (3, 3)
    expected = FakeEncoder().encode(texts, role="document", ids=texts)
    np.testing.assert_array_equal(encoded.folder.vectors, expected)
    assert encoded.folder.doc_ids == [f"doc {number}" for number in range(6)]


def test_a_changed_corpus_encodes_only_what_is_new(tmp_path):
    out = tmp_path / "v"
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), out, block_rows=4)
    before = VectorFolder.open(out).vectors
    old_vectors = before.copy()
    changed = make_corpus(
        ["new one", *TEXTS[5:20], "new two", *TEXTS[:3]], ids=[f"other {i}" for i in range(20)]
    )
    encoder = FakeEncoder()
    encoded = encode_corpus(encoder, changed, out, block_rows=4)
    assert encoder.asked == ["other 0", "other 16"]
    assert (encoded.num_encoded, encoded.num_reused, encoded.num_resumed) == (2, 18, 0)
    fresh = encode_corpus(FakeEncoder(), changed, tmp_path / "fresh", block_rows=4)
    assert contents(out) == contents(fresh.folder.path)
    assert encoded.folder.path == out
    np.testing.assert_array_equal(before, old_vectors)  # an open reader keeps the old rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "v"]


def test_a_changed_corpus_takes_over_from_a_folder_that_was_not_finished(undisturbed, tmp_path):
    out = tmp_path / "v"
    finished = state_after(undisturbed, 700, out)
    assert 0 < finished < 25
    encoder = FakeEncoder()
    encoded = encode_corpus(encoder, make_corpus([*TEXTS, "one more"]), out, block_rows=4)
    assert encoded.num_reused == finished
    assert len(encoder.asked) == 26 - finished


class StoppedError(Exception):
    pass


def stop_after(num_blocks: int) -> Progress:
    def progress(label: str, done: int, total: int) -> None:
        if done == num_blocks * 4:
            raise StoppedError

    return progress


def test_a_rebuild_that_was_cut_off_is_resumed_and_one_for_a_third_state_is_not_lost(tmp_path):
    out = tmp_path / "v"
    first = TEXTS[:8]
    second = [*first, *(f"second {number}" for number in range(8))]
    third = [*second, *(f"third {number}" for number in range(4))]
    encode_corpus(FakeEncoder(), make_corpus(first), out, block_rows=4)
    with pytest.raises(StoppedError):
        encode_corpus(FakeEncoder(), make_corpus(second), out, block_rows=4, progress=stop_after(3))
    assert VectorFolder.open(out).corpus_hash == make_corpus(first).corpus_hash
    shutil.copytree(tmp_path, tmp_path.parent / "copy", dirs_exist_ok=True)

    same = FakeEncoder()
    encoded = encode_corpus(same, make_corpus(second), out, block_rows=4)
    assert same.asked == [f"doc {number}" for number in range(12, 16)]
    assert encoded.num_resumed == 12
    assert [path.name for path in tmp_path.iterdir()] == ["v"]

    other = FakeEncoder()
    copied = tmp_path.parent / "copy" / "v"
    encode_corpus(other, make_corpus(third), copied, block_rows=4)
    assert other.asked == [f"doc {number}" for number in range(12, 20)]
    assert [path.name for path in copied.parent.iterdir()] == ["v"]


def test_a_swap_that_was_cut_off_between_its_renames_is_finished(tmp_path):
    out = tmp_path / "v"
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), tmp_path / ".v.next", block_rows=4)
    encode_corpus(FakeEncoder(), make_corpus(["old"]), tmp_path / ".v.old")
    encoder = FakeEncoder()
    encode_corpus(encoder, make_corpus(TEXTS), out, block_rows=4)
    assert encoder.asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def damage(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_damaged_blocks_of_a_finished_folder_are_mended_and_only_these_encoded(
    undisturbed, tmp_path
):
    out = tmp_path / "v"
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), out, block_rows=4)
    damage(out / "vectors.bin", 5 * 32)
    damage(out / "rows.jsonl", 3)
    encoder = FakeEncoder()
    encoded = encode_corpus(encoder, make_corpus(TEXTS), out, block_rows=4)
    assert encoder.asked == [f"doc {number}" for number in range(8)]
    assert encoded.num_reused == 17
    assert contents(out) == undisturbed


def test_a_truncated_folder_is_mended(undisturbed, tmp_path):
    out = tmp_path / "v"
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), out, block_rows=4)
    (out / "vectors.bin").write_bytes(undisturbed["vectors.bin"][: 17 * 32])
    encoder = FakeEncoder()
    encode_corpus(encoder, make_corpus(TEXTS), out, block_rows=4)
    assert encoder.asked == [f"doc {number}" for number in range(16, 25)]
    assert contents(out) == undisturbed


def test_an_unfinished_folder_says_how_far_it_is(undisturbed, tmp_path):
    finished = state_after(undisturbed, 700, tmp_path / "v")
    with pytest.raises(FormatError, match=rf"is not finished: {finished} of 25 inputs") as caught:
        VectorFolder.open(tmp_path / "v")
    assert "it goes on from there" in str(caught.value)


@pytest.mark.parametrize("finished", [True, False])
def test_another_space_is_refused_and_both_are_named(finished, undisturbed, tmp_path):
    out = tmp_path / "v"
    state_after(undisturbed, 700, out)
    if finished:
        encode_corpus(FakeEncoder(), make_corpus(TEXTS), out)
    before = contents(out)
    with pytest.raises(FingerprintError, match=r"the folder .*/v is 'fake' and .* is 'other'"):
        encode_corpus(FakeEncoder(model="other"), make_corpus(TEXTS), out)
    assert contents(out) == before


def test_other_settings_of_the_same_space_are_refused(tmp_path):
    out = tmp_path / "v"
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), out)
    with pytest.raises(FingerprintError, match=r"differ in prompt '' against 'passage: '\. Name"):
        encode_corpus(FakeEncoder(prompt="passage: "), make_corpus(TEXTS), out)
    with pytest.raises(FingerprintError, match="differ in dtype 'float32' against 'float16'"):
        encode_corpus(FakeEncoder(), make_corpus(TEXTS), out, dtype=Dtype.FLOAT16)


def test_bad_rows_are_named_and_what_is_finished_stays(tmp_path):
    texts = [*TEXTS[:6], "nan", "zero", "nan", "infinite", "good"]
    with pytest.raises(VectorError, match=r"got 2 bad of 2: 'doc 6', 'doc 7'\. Mend"):
        encode_corpus(FakeEncoder(), make_corpus(texts), tmp_path / "v", block_rows=2)
    encoder = FakeEncoder()
    encoded = encode_corpus(
        encoder, make_corpus(texts), tmp_path / "v", block_rows=2, bad_rows="drop"
    )
    assert encoder.asked[:2] == ["doc 6", "doc 7"]
    assert encoded.dropped_ids == ("doc 6", "doc 7", "doc 8", "doc 9")
    assert encoded.folder.doc_ids == [f"doc {number}" for number in (0, 1, 2, 3, 4, 5, 10)]
    assert len(encoded.folder.vectors) == 7
    encoded.folder.verify()


def test_a_folder_with_dropped_rows_is_not_passed_off_as_whole(tmp_path):
    corpus = make_corpus(["good", "zero", "fine"])
    encode_corpus(FakeEncoder(), corpus, tmp_path / "v", bad_rows="drop")
    with pytest.raises(VectorError, match=r"got 1 bad of 3, left out of .*/v: 'doc 1'\. Mend"):
        encode_corpus(FakeEncoder(), corpus, tmp_path / "v")
    again = encode_corpus(FakeEncoder(), corpus, tmp_path / "v", bad_rows="drop")
    assert again.dropped_ids == ("doc 1",)


def test_a_folder_of_nothing_but_bad_rows_is_refused(tmp_path):
    with pytest.raises(VectorError, match="got 2 bad of 2"):
        encode_corpus(FakeEncoder(), make_corpus(["zero", "nan"]), tmp_path / "v", bad_rows="drop")


def test_an_encoder_that_breaks_its_promise_is_named(tmp_path):
    encoder = FakeEncoder()
    encoder.embed_dim = 9
    with pytest.raises(EncoderError, match=r"shape \(25, 8\), got \(25, 9\) from fake"):
        encode_corpus(encoder, make_corpus(TEXTS), tmp_path / "v")


def test_inputs_that_cannot_be_encoded_are_refused(tmp_path):
    with pytest.raises(DataError, match="encoding documents: there must be at least one input"):
        encode_corpus(FakeEncoder(), make_corpus([]), tmp_path / "v")
    with pytest.raises(DataError, match="must be unique, got 1 repeated: 'a'"):
        encode_corpus(FakeEncoder(), make_corpus(["1", "2"], ids=["a", "a"]), tmp_path / "v")
    with pytest.raises(VectorError, match="`dtype` of a vector folder must be float32 or float16"):
        encode_corpus(FakeEncoder(), make_corpus(["1"]), tmp_path / "v", dtype=Dtype.INT8)
    with pytest.raises(DimensionError, match=r"at least 1, got 0\. Leave it out"):
        encode_corpus(FakeEncoder(), make_corpus(["1"]), tmp_path / "v", block_rows=0)
    assert not (tmp_path / "v").exists()


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(WriteError, match=r"which holds other files\. Name another --out"):
        encode_corpus(FakeEncoder(), make_corpus(TEXTS), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_temporary_files_of_a_killed_run_are_removed(undisturbed, tmp_path):
    out = tmp_path / "v"
    state_after(undisturbed, 700, out)
    (out / ".vectors.json.123.part").write_text("{")
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), out, block_rows=4)
    assert contents(out) == undisturbed


def test_a_folder_has_one_writer(tmp_path):
    out = tmp_path / "v"

    def second_writer(label, done, total):
        with pytest.raises(WriteError, match="another process is encoding into"):
            encode_corpus(FakeEncoder(), make_corpus(TEXTS), out)

    encode_corpus(FakeEncoder(), make_corpus(TEXTS), out, progress=second_writer)


def test_a_value_that_float16_cannot_hold_is_named(tmp_path, monkeypatch):
    encoder = FakeEncoder()
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda *args, **kwargs: 1e6 * encode(*args, **kwargs))
    with pytest.raises(VectorError, match="got 1 bad of 1: 'doc 0'"):
        encode_corpus(encoder, make_corpus(["one"]), tmp_path / "v", dtype=Dtype.FLOAT16)


def test_vectors_of_another_corpus_are_not_replaced_by_mistake(tmp_path):
    out = tmp_path / "v"
    encode_corpus(FakeEncoder(), make_corpus(["tea", "bread"]), out)
    before = (out / "vectors.bin").read_bytes()
    with pytest.raises(WriteError, match=r"2 vectors of other inputs.*--overwrite"):
        encode_corpus(FakeEncoder(), make_corpus(["salt", "pepper"]), out)
    assert (out / "vectors.bin").read_bytes() == before
    # One text in common is an edit, not a mistake.
    assert encode_corpus(FakeEncoder(), make_corpus(["tea", "pepper"]), out).num_reused == 1
    replaced = encode_corpus(FakeEncoder(), make_corpus(["salt"]), out, overwrite=True)
    assert len(replaced.folder) == 1


ENCODE_OVER_AND_OVER = """
import sys
from pathlib import Path
from nestling.encode import encode_corpus
from nestling.errors import WriteError
from tests.encode.fakes import FakeEncoder, make_corpus
done = 0
while done < 15:
    try:
        corpus = make_corpus([f"{sys.argv[2]}, round {done}, text {place}" for place in range(4)])
        encode_corpus(FakeEncoder(), corpus, Path(sys.argv[1]), block_rows=2, overwrite=True)
        done += 1
    except WriteError as error:
        assert "another process is encoding into" in str(error), error
"""


def test_writers_that_replace_each_others_folder_never_meet(tmp_path):
    out = tmp_path / "v"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", ENCODE_OVER_AND_OVER, str(out), name],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("left", "right")
    ]
    assert [writer.communicate(timeout=60)[1] for writer in writers] == ["", ""]
    VectorFolder.open(out).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def run_child(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=60,
        check=False,
    )


ENCODE = """
import sys
from dataclasses import replace
from pathlib import Path
from nestling.encode import encode_corpus
from tests.encode.fakes import FakeEncoder, make_corpus, make_texts
corpus = make_corpus(make_texts(25))
"""


@pytest.fixture
def mounted(tmp_path):
    """Mount a small file system, or skip loudly where that is not allowed."""
    folders: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mount {len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if (
            os.geteuid() != 0
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip(
                "mounting a tmpfs needs root: the full and the read-only disk are not tried"
            )
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_folder_goes_on_once_there_is_space(mounted, tmp_path):
    disk = mounted("size=64k")
    (disk / "ballast").write_bytes(b"x" * 30_000)
    texts = make_texts(600)
    encoder = FakeEncoder(embed_dim=16)
    with pytest.raises(WriteError, match=r"cannot write .*/v/.*: the disk is full\. Free"):
        encode_corpus(encoder, make_corpus(texts), disk / "v", block_rows=16)
    finished = read_blocks(disk / "v", may_be_torn=True)[-1].num_inputs
    assert 0 < finished < 600
    (disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    encoder = FakeEncoder(embed_dim=16)
    encode_corpus(encoder, make_corpus(texts), disk / "v", block_rows=16)
    assert encoder.asked[0] == f"doc {finished}"
    encode_corpus(FakeEncoder(embed_dim=16), make_corpus(texts), tmp_path / "whole", block_rows=16)
    assert contents(disk / "v") == contents(tmp_path / "whole")


def test_a_read_only_disk_is_named(mounted):
    disk = mounted("size=64k,ro")
    with pytest.raises(WriteError, match=r"/v: the file system is read-only\. Name a folder"):
        encode_corpus(FakeEncoder(), make_corpus(TEXTS), disk / "v")


def test_a_file_size_limit_is_named_and_the_folder_stays_resumable(undisturbed, tmp_path):
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))"
        + ENCODE
        + "encode_corpus(FakeEncoder(), corpus, Path(sys.argv[1]), block_rows=4)"
    )
    run = run_child(program, tmp_path / "v")
    assert "nestling.errors.WriteError: cannot write" in run.stderr
    assert ": the file would be larger than the limit of this process" in run.stderr
    finished = read_blocks(tmp_path / "v", may_be_torn=True)[-1].num_inputs
    encoder = FakeEncoder()
    encode_corpus(encoder, make_corpus(TEXTS), tmp_path / "v", block_rows=4)
    assert 0 < finished < 25
    assert encoder.asked[0] == f"doc {finished}"
    assert contents(tmp_path / "v") == undisturbed


def test_ctrl_c_leaves_a_folder_that_goes_on(undisturbed, tmp_path):
    program = (
        ENCODE
        + """
import os, signal
def interrupt(label, done, total):
    if done == 12:
        os.kill(os.getpid(), signal.SIGINT)
encode_corpus(FakeEncoder(), corpus, Path(sys.argv[1]), block_rows=4, progress=interrupt)
"""
    )
    run = run_child(program, tmp_path / "v")
    assert run.returncode == -signal.SIGINT
    encoder = FakeEncoder()
    encode_corpus(encoder, make_corpus(TEXTS), tmp_path / "v", block_rows=4)
    assert encoder.asked[0] == "doc 12"
    assert contents(tmp_path / "v") == undisturbed


@pytest.mark.parametrize("name", ["file", "file/v"])
def test_a_file_in_the_way_is_named(name, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(WriteError, match="a file is where a folder should be"):
        encode_corpus(FakeEncoder(), make_corpus(TEXTS), tmp_path / name)
