import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import Fingerprint, Space
from nestling.core.files import seal
from nestling.encode.nest_manifest import MANIFEST_FILE, NEST_VERSION, NestKind, NestManifest
from nestling.errors import DimensionError, FormatError, WriteError

FINGERPRINT = Fingerprint(
    space=Space(model="m", revision="r", pooling="mean", normalization="l2", embed_dim=8),
    encoder={"backend": "static"},
    origin={"model": "nest:/somewhere"},
)
MANIFEST = NestManifest(
    kind="static",
    model="m",
    embed_dim=8,
    nesting_dims=(2, 8),
    fingerprint=FINGERPRINT,
    training={"epochs": [{"loss": 0.5}], "note": "ä"},
)


def saved(folder: Path, **changes: object) -> Path:
    """Write a manifest with some values of its own, sealed as if nestling had meant them."""
    MANIFEST.save(folder)
    path = folder / MANIFEST_FILE
    data = json.loads(path.read_text())
    data.pop("checksum")
    path.write_text(json.dumps(seal({**data, **changes})))
    return path


@given(
    st.sampled_from(get_args(NestKind)),
    st.sets(st.integers(1, 512), min_size=1),
    st.sampled_from(["l2", "none"]),
    st.booleans(),
    st.sampled_from([None, FINGERPRINT]),
    st.text(),
)
def test_what_is_loaded_is_what_was_saved(
    tmp_path_factory, kind, widths, normalization, stamped, parent, text
):
    folder = tmp_path_factory.mktemp("nest")
    manifest = NestManifest(
        kind=kind,
        model=text,
        embed_dim=max(widths),
        nesting_dims=tuple(sorted(widths)),
        normalization=normalization,
        fingerprint=FINGERPRINT if stamped else None,
        training={"data": text},
        parent=parent,
    )
    manifest.save(folder)
    assert NestManifest.load(folder) == manifest
    assert [path.name for path in folder.iterdir()] == [MANIFEST_FILE]


def test_saving_again_replaces_the_file(tmp_path):
    MANIFEST.save(tmp_path)
    replace(MANIFEST, model="other").save(tmp_path)
    assert NestManifest.load(tmp_path).model == "other"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FormatError, match=rf"no file .*{MANIFEST_FILE}\. Check the path"):
        NestManifest.load(tmp_path)


def test_half_a_file_is_refused(tmp_path):
    MANIFEST.save(tmp_path)
    path = tmp_path / MANIFEST_FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError, match="is not a JSON file"):
        NestManifest.load(tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", "{}", "3", '{"nest_version": 1}', '{"model": "no checksum"}']
)
def test_json_that_nestling_did_not_write_is_refused(tmp_path, content):
    (tmp_path / MANIFEST_FILE).write_text(content)
    with pytest.raises(FormatError, match=r"is damaged: .* checksum\. Train the model again, or"):
        NestManifest.load(tmp_path)


def test_a_changed_value_is_noticed(tmp_path):
    MANIFEST.save(tmp_path)
    path = tmp_path / MANIFEST_FILE
    path.write_text(path.read_text().replace('"model": "m"', '"model": "n"', 1))
    with pytest.raises(FormatError, match="its content does not fit its checksum"):
        NestManifest.load(tmp_path)


def test_a_newer_version_is_refused_with_both_versions(tmp_path):
    saved(tmp_path, nest_version=NEST_VERSION + 1)
    with pytest.raises(FormatError, match=r"has version 2, newer than 1, .* Upgrade nestling"):
        NestManifest.load(tmp_path)


def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path):
    saved(tmp_path, kind="audio")
    with pytest.raises(
        FormatError, match=r"`kind` in .* must be one of static, images, .* got 'audio'"
    ):
        NestManifest.load(tmp_path)


@pytest.mark.parametrize("dims", [[4, 2, 8], [2, 16], [], [0, 8]])
def test_dims_that_break_the_rules_are_refused(tmp_path, dims):
    saved(tmp_path, nesting_dims=dims)
    with pytest.raises(DimensionError, match=r"`dims?` must"):
        NestManifest.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="a file is where a folder should be"):
        MANIFEST.save(tmp_path / "file")
