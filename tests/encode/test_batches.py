import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nestling.encode.batches import hash_files, origin_of, take_inputs, text_batches


@given(
    st.lists(st.text(max_size=8), max_size=20),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_batches_cover_all_texts_in_order_within_both_bounds(texts, max_texts, max_characters):
    batches = list(text_batches(texts, max_texts=max_texts, max_characters=max_characters))
    assert [text for batch in batches for text in batch] == texts
    for batch in batches:
        assert 1 <= len(batch) <= max_texts
        assert len(batch) == 1 or sum(map(len, batch)) <= max_characters


@given(st.lists(st.text(max_size=8), max_size=20), st.integers(1, 5), st.integers(1, 20))
def test_no_batch_could_have_taken_the_next_text(texts, max_texts, max_characters):
    batches = list(text_batches(texts, max_texts=max_texts, max_characters=max_characters))
    for batch, after in itertools.pairwise(batches):
        grown = [*batch, after[0]]
        assert len(grown) > max_texts or sum(map(len, grown)) > max_characters


def test_taking_rows_of_texts_and_images():
    assert take_inputs(["a", "b", "c"], [2, 0]) == ["c", "a"]
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    np.testing.assert_array_equal(take_inputs(images, [2, 0]), images[[2, 0]])


def test_the_hash_of_files_depends_on_names_and_contents_but_not_on_the_folder(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(b"12")
        (tmp_path / folder / "b").write_bytes(b"3")
    one, two = ([tmp_path / folder / name for name in "ba"] for folder in ("one", "two"))
    assert hash_files(one) == hash_files(reversed(two))
    (tmp_path / "two" / "a").write_bytes(b"1")
    (tmp_path / "two" / "b").write_bytes(b"23")
    assert hash_files(one) != hash_files(two)


def test_a_local_model_is_found_again_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert origin_of("st", "model") == {"model": f"st:{tmp_path / 'model'}"}
    assert origin_of("st", "some/hub-id") == {"model": "st:some/hub-id"}
