import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.data.splits import hold_out, unit_hash
from nestling.errors import DataError


def test_unit_hash_is_fixed_forever() -> None:
    digest = hashlib.blake2b(b"owl", digest_size=6).hexdigest()
    assert unit_hash("owl") == unit_hash(b"owl") == int(digest, 16) / 16**12


def test_unit_hash_spreads_evenly() -> None:
    values = np.array([unit_hash(str(number)) for number in range(10_000)])
    assert 0 <= values.min() < values.max() < 1
    assert abs(np.histogram(values, bins=10, range=(0, 1))[0] - 1000).max() < 150


@given(st.sets(st.text(max_size=5), min_size=2, max_size=60), st.randoms())
def test_hold_out_goes_by_id_whatever_the_order(names: set[str], random: object) -> None:
    ids = sorted(names)
    rows = hold_out(len(ids), ids)
    held = {ids[row] for row in rows}
    shuffled = list(ids)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert {shuffled[row] for row in hold_out(len(ids), shuffled)} == held
    assert held == set(sorted(ids, key=unit_hash)[: max(1, len(ids) // 10)])
    assert rows.tolist() == sorted(rows)


@pytest.mark.parametrize(
    ("num_rows", "held"), [(2, 1), (19, 1), (25, 2), (9_999, 999), (20_000, 1000)]
)
def test_hold_out_takes_a_tenth_up_to_1000(num_rows: int, held: int) -> None:
    rows = hold_out(num_rows)
    assert len(rows) == held
    assert rows.tolist() == hold_out(num_rows, [str(row) for row in range(num_rows)]).tolist()


def test_hold_out_refuses_what_it_cannot_split() -> None:
    with pytest.raises(DataError, match="`num_rows` must be at least 2 to hold a query out, got 1"):
        hold_out(1)
    with pytest.raises(DataError, match="`ids` must be one per row, got 1 for 2 rows"):
        hold_out(2, ["a"])
