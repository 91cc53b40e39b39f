import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nestling.core import Fingerprint
from nestling.encode import open_encoder
from nestling.encode.nest_manifest import NestManifest
from nestling.encode.nesting_dims import find_nesting_dims
from tests.encode.adapters import rotation, save_adapter


@pytest.fixture
def table() -> Fingerprint:
    return open_encoder("static:wordllama").fingerprint


@pytest.fixture
def adapter(table: Fingerprint, tmp_path: Path) -> str:
    return save_adapter(tmp_path / "adapter", table)


def test_a_table_and_an_adapter_of_it_tell(table: Fingerprint, adapter: str) -> None:
    assert find_nesting_dims(table) == open_encoder("static:wordllama").nesting_dims
    assert find_nesting_dims(open_encoder(adapter).fingerprint) == (2, 256)


def test_other_models_are_not_opened_for_it(
    table: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nestling.encode.st", None)
    monkeypatch.setitem(sys.modules, "nestling.encode.openai", None)
    for uri in ("st:org/model", "openai:some-model", "vectors:mine.npy"):
        assert find_nesting_dims(replace(table, origin={"model": uri})) is None
    assert find_nesting_dims(replace(table, origin={})) is None


def test_vectors_outlive_their_model(adapter: str, tmp_path: Path) -> None:
    made = open_encoder(adapter).fingerprint
    folder = tmp_path / "adapter"
    moved = folder.rename(tmp_path / "moved")
    assert find_nesting_dims(made) is None
    assert find_nesting_dims(replace(made, origin={"model": f"nest:{moved}"})) == (2, 256)

    folder.mkdir()
    (folder / "nestling.json").write_text("{}")
    assert find_nesting_dims(made) is None


def test_another_model_in_the_same_place_tells_nothing(
    table: Fingerprint, adapter: str, tmp_path: Path
) -> None:
    made = open_encoder(adapter).fingerprint
    folder = tmp_path / "adapter"
    shutil.rmtree(folder)
    save_adapter(folder, table, rotation(256, seed=1))
    assert find_nesting_dims(made) is None
    assert find_nesting_dims(replace(table, space=made.space)) is None

    unfinished = NestManifest.load(folder)
    replace(unfinished, fingerprint=None).save(folder)
    assert find_nesting_dims(made) is None
