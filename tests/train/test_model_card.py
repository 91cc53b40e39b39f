import re
from dataclasses import replace

import pytest
import yaml  # type: ignore[import-untyped]

from nestling.encode.nest_manifest import NestManifest
from nestling.train.model_card import Quality, write_model_card
from tests.train.test_record import make_epoch, make_record

QUALITY = Quality(metric="ndcg_at_10", measured_on="toy, test queries", by_dim={2: 0.3, 4: 0.6})


def make_manifest(kind="static", record=None, nesting_dims=(2, 4)):
    return NestManifest(
        kind=kind,
        model="a model",
        embed_dim=4,
        nesting_dims=nesting_dims,
        training=(record or make_record()).to_json(),
    )


def read_card(folder) -> str:
    return (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "library", "pipeline"),
    [
        ("static", "sentence-transformers", "feature-extraction"),
        ("images", "nestling", "image-feature-extraction"),
        ("sentence-transformers", "sentence-transformers", "sentence-similarity"),
    ],
)
def test_the_front_matter_is_what_hubs_read(tmp_path, kind, library, pipeline):
    write_model_card(tmp_path, make_manifest(kind))
    _, front, body = read_card(tmp_path).split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["library_name"] == library
    assert data["pipeline_tag"] == pipeline
    assert "matryoshka" in data["tags"]
    assert ("sentence-transformers" in data["tags"]) == (kind != "images")
    assert body.startswith("\n# a model\n")


def test_the_table_shows_quality_and_bytes_of_every_width(tmp_path):
    write_model_card(tmp_path, make_manifest(), quality=QUALITY)
    card = read_card(tmp_path)
    assert "ndcg_at_10 on toy, test queries; higher is better." in card
    assert "| 2 | 0.3000 | 50.0% | 8 |\n| 4 | 0.6000 | 100.0% | 16 |" in card
    assert "too good" not in card


def test_a_share_of_a_quality_below_zero_is_not_shown(tmp_path):
    write_model_card(tmp_path, make_manifest(), quality=replace(QUALITY, by_dim={2: 0.1, 4: -0.1}))
    assert "| 2 | 0.1000 | - | 8 |" in read_card(tmp_path)


def test_without_a_measurement_the_validation_of_the_kept_epoch_is_shown_and_its_flaw_told(
    tmp_path,
):
    write_model_card(tmp_path, make_manifest())
    card = read_card(tmp_path)
    assert "validation value on the data held out from training, after epoch 1" in card
    assert "| 2 | 0.1000 | 20.0% | 8 |" in card
    assert "The epoch was chosen by the values above" in card


def test_with_nothing_held_out_no_value_is_shown(tmp_path):
    record = make_record(epochs=(make_epoch(1, None),), best_epoch=None, stopped_early=False)
    write_model_card(tmp_path, make_manifest(record=record))
    card = read_card(tmp_path)
    assert "Nothing was held out from training, so nothing was measured." in card
    assert "float32" not in card
    assert "values above" not in card


def test_how_it_was_trained_is_told(tmp_path):
    write_model_card(
        tmp_path,
        make_manifest(),
        training_data="Three thousand questions.",
        command="nestling train text --pairs builtin",
    )
    card = read_card(tmp_path)
    for part in (
        "Three thousand questions.",
        "```\nnestling train text --pairs builtin\n```",
        "10 parameters, 6 steps in 2 epochs, 4 s.",
        "interrupted and continued 1 times",
        "- num_epochs: `3`\n- data: `toy`",
        "| 1 | 1.5000 | - | 0.2500 |",
        "- torch: `2`",
    ):
        assert part in card


def test_both_ways_to_load_say_that_a_cut_must_be_renormalised(tmp_path):
    write_model_card(tmp_path, make_manifest("sentence-transformers"))
    card = read_card(tmp_path)
    assert "take_prefix(vectors, 4, renormalize=True)" in card
    assert "truncate_dim=4" in card
    assert "normalize_embeddings=True" in card
    write_model_card(tmp_path, make_manifest("images"))
    assert "truncate_dim" not in read_card(tmp_path)


def test_a_rigid_model_is_not_called_nested(tmp_path):
    write_model_card(tmp_path, make_manifest(nesting_dims=(4,)))
    card = read_card(tmp_path)
    assert "by themselves" not in card
    assert "It was trained at 4 dims only, not to be cut." in card


def test_the_python_in_the_card_is_python(tmp_path):
    write_model_card(tmp_path, make_manifest("sentence-transformers"))
    blocks = re.findall(r"```python\n(.*?)```", read_card(tmp_path), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")
