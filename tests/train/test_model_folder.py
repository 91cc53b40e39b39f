import multiprocessing

import pytest

from nestling.encode.nest_manifest import MANIFEST_FILE
from nestling.errors import WriteError
from nestling.train.model_folder import CHECKPOINT_FOLDER, start_replacing, training_folder


def enter(out, overwrite=False):
    with training_folder(out, overwrite=overwrite):
        return sorted(path.name for path in out.iterdir())


def test_a_new_folder_is_made(tmp_path):
    assert enter(tmp_path / "a/b") == []


def test_a_finished_model_is_refused_and_stays_whole_when_it_is_to_be_replaced(tmp_path):
    (tmp_path / MANIFEST_FILE).write_text("{}")
    with pytest.raises(
        WriteError, match="holds a finished model and is never overwritten silently"
    ):
        enter(tmp_path)
    assert enter(tmp_path, overwrite=True) == [MANIFEST_FILE]
    start_replacing(tmp_path)
    assert not (tmp_path / MANIFEST_FILE).exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_things_is_refused(tmp_path, overwrite):
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(WriteError, match=r"which holds README\.md\. Name another --out"):
        enter(tmp_path, overwrite=overwrite)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(WriteError, match="must be a folder, got the file"):
        enter(tmp_path / "out")


def test_a_run_that_was_killed_while_it_saved_is_gone_on_with(tmp_path):
    (tmp_path / CHECKPOINT_FOLDER).mkdir()
    (tmp_path / "model.safetensors").write_text("half")
    assert enter(tmp_path) == [CHECKPOINT_FOLDER, "model.safetensors"]


def _try(out, answers):
    try:
        enter(out, overwrite=True)
    except WriteError as error:
        answers.put(str(error))
    else:
        answers.put("entered")


def test_two_runs_never_share_a_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with training_folder(tmp_path, overwrite=True):
        other = context.Process(target=_try, args=(tmp_path, answers))
        other.start()
        assert "another process" in answers.get(timeout=60)
        other.join()
    assert enter(tmp_path, overwrite=True) == []
