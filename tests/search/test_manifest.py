import dataclasses
import json
from pathlib import Path

import pytest

from nestling.core import Dtype
from nestling.errors import FormatError
from nestling.search.catalogue import CatalogueState
from nestling.search.manifest import (
    EngineEntry,
    Manifest,
    TierEntry,
    mark_of,
    next_generation,
    version_of,
)
from nestling.search.plan import Stage
from nestling.search.rowfile import NOTHING, FileState
from tests.search.support import fingerprint_of, plan_of

MANIFEST = Manifest(
    generation=7,
    num_rows=12,
    vector_dtype=Dtype.FLOAT16,
    fingerprint=fingerprint_of(32),
    nesting_dims=(8, 32),
    plan=plan_of(32, (8, Dtype.INT8, 5), (32, Dtype.FLOAT16, None), engine="hnsw"),
    rows="rows-3",
    tiers=(TierEntry(dim=8, dtype=Dtype.INT8, folder="tier-5-8-int8"),),
    engine=EngineEntry(name="hnsw", build={"degree": 8}, folder="engine-6-hnsw", num_rows=10),
    files={
        "rows-3/dead.bin": FileState(24, 1),
        "rows-3/vectors.bin": FileState(768, 2),
        "tier-5-8-int8/codes.bin": FileState(96, 3),
        "engine-6-hnsw/graph.bin": FileState(5, 4),
    },
    catalogue=CatalogueState(12, 3, 1 << 63, 5),
)


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST
    assert version_of(tmp_path) == 2


def test_a_manifest_says_what_belongs_to_it() -> None:
    assert (MANIFEST.num_dead, MANIFEST.num_live, MANIFEST.embed_dim) == (3, 9, 32)
    assert MANIFEST.folders == {"rows-3", "tier-5-8-int8", "engine-6-hnsw"}
    assert MANIFEST.tier_of(Stage(dim=8, dtype=Dtype.INT8)) == MANIFEST.tiers[0]
    assert MANIFEST.tier_of(Stage(dim=32, dtype=Dtype.FLOAT16)) is None
    assert MANIFEST.states_in("rows-3").keys() == {"dead.bin", "vectors.bin"}
    assert MANIFEST.state("rows-3", "vectors.bin") == FileState(768, 2)
    assert MANIFEST.state("rows-3", "new.bin") == NOTHING


def test_a_switch_changes_the_mark(tmp_path: Path) -> None:
    assert mark_of(tmp_path) is None
    marks = set()
    for generation in range(5):
        dataclasses.replace(MANIFEST, generation=generation).save(tmp_path)
        marks.add(mark_of(tmp_path))
    assert len(marks) == 5


def test_a_new_generation_is_above_all_that_were_named(tmp_path: Path) -> None:
    assert next_generation(tmp_path) == 1
    MANIFEST.save(tmp_path)
    assert next_generation(tmp_path) == 8
    (tmp_path / "engine-12-graph").mkdir()
    (tmp_path / "rows-9").mkdir()
    assert next_generation(tmp_path) == 13
    (tmp_path / "index.json").write_text("damaged")
    assert next_generation(tmp_path) == 13


@pytest.mark.parametrize("missing", ["files", "catalogue", "tiers", "engine", "nesting_dims"])
def test_a_manifest_that_lacks_something_is_refused(tmp_path: Path, missing: str) -> None:
    MANIFEST.save(tmp_path)
    content = json.loads((tmp_path / "index.json").read_text())
    del content[missing]
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"index\.json is damaged.*Restore the file"):
        Manifest.load(tmp_path)
