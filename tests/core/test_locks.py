import os
import signal
import threading
from pathlib import Path

import pytest

from nestling.core.locks import locked
from nestling.errors import WriteError


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(WriteError, match=r"is being written by another process\. Wait"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        with locked(tmp_path):
            os.write(writer, b".")
            signal.pause()
    assert os.read(reader, 1) == b"."
    with pytest.raises(WriteError, match="another process"), locked(tmp_path):
        pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with locked(tmp_path):
        pass
    os.close(reader)
    os.close(writer)


def test_a_lock_on_a_folder_that_was_replaced_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    refusals: list[str] = []

    def write() -> None:
        try:
            with locked(path, wait=True):
                refusals.append("none")
        except WriteError as error:
            refusals.append(str(error))

    writer = threading.Thread(target=write)
    with locked(path):
        writer.start()
        writer.join(timeout=0.2)
        path.rename(tmp_path / "old")
        path.mkdir()
    writer.join()
    assert refusals == [f"{path} was replaced by another process. Try again."]
