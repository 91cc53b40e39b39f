from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nestling.search.ids import PackedIds, RowIds, pack_ids
from nestling.search.rowfile import NOTHING, RowWriter, map_rows

id_lists = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=6)


def rows_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@given(batches=st.lists(id_lists, min_size=1, max_size=4), data=st.data())
def test_batches_read_like_one_list(batches: list[list[str]], data: st.DataObject) -> None:
    packed = [PackedIds(np.empty(0, np.uint8), np.empty(0, np.int64))]
    for batch in batches:
        packed.append(pack_ids(batch, num_bytes=sum(len(part.text) for part in packed)))
    ids = RowIds(*(np.concatenate(parts) for parts in zip(*packed, strict=True)))
    expected = [doc_id for batch in batches for doc_id in batch]
    assert len(ids) == len(expected)
    assert ids.lookup(np.arange(len(expected))) == expected
    if expected:
        rows = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=5))
        assert ids.lookup(rows_of(*rows)) == [expected[row] for row in rows]


def test_ids_are_read_from_mapped_files(tmp_path: Path) -> None:
    state = NOTHING
    ends_state = NOTHING
    for doc_ids in (["a", "", "größe"], ["😀", "z"]):
        packed = pack_ids(doc_ids, num_bytes=state.num_bytes)
        with (
            RowWriter(tmp_path / "text", state) as text,
            RowWriter(tmp_path / "ends", ends_state) as ends,
        ):
            text.write(packed.text)
            ends.write(packed.ends)
        state, ends_state = text.state, ends.state
    ids = RowIds(
        map_rows(tmp_path / "text", (state.num_bytes,), np.uint8),
        map_rows(tmp_path / "ends", (5,), np.int64),
    )
    assert ids.lookup(rows_of(4, 0, 2, 2, 1, 3)) == ["z", "a", "größe", "größe", "", "😀"]
    assert ids.lookup(rows_of()) == []


def test_looking_up_leaves_the_ends_as_they_are() -> None:
    packed = pack_ids(["a", "b"], num_bytes=0)
    ids = RowIds(*packed)
    assert ids.lookup(rows_of(0)) == ids.lookup(rows_of(0)) == ["a"]
    assert packed.ends.tolist() == [1, 2]
