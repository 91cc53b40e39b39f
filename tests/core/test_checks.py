import numpy as np
import pytest

from nestling.core import check_rows, check_unique_ids, distinct_rows, find_bad_rows, normalize
from nestling.errors import DataError, VectorError

VECTORS = np.array([[1, 0], [0, 0], [np.nan, 1], [np.inf, 1], [0, -1]], np.float32)
IDS = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_zero_and_endless_rows_are_found(dtype: str) -> None:
    assert find_bad_rows(VECTORS.astype(dtype)).tolist() == [False, True, True, True, False]


def test_bad_rows_are_dropped_on_request() -> None:
    assert check_rows(VECTORS, IDS, policy="drop").tolist() == [True, False, False, False, True]


def test_bad_rows_are_refused_by_name() -> None:
    message = r"got 3 bad of 5: 'b', 'c', 'd'\. Mend these inputs .* --bad-rows drop"
    with pytest.raises(VectorError, match=message):
        check_rows(VECTORS, IDS, policy="error")
    many = np.zeros((8, 2), np.float32)
    with pytest.raises(VectorError, match=r"got 8 bad of 8: 'a', .*'e' and 3 more\. Mend"):
        check_rows(many, [*IDS, "f", "g", "h"], policy="error")


def test_good_rows_pass() -> None:
    assert check_rows(VECTORS[[0, 4]], ["a", "e"], policy="error").all()


def test_repeated_ids_are_refused_by_name() -> None:
    check_unique_ids(IDS, source="corpus.jsonl")
    with pytest.raises(
        DataError, match=r"ids in corpus\.jsonl must be unique, got 1 repeated: 'a'"
    ):
        check_unique_ids(["a", "b", "a"], source="corpus.jsonl")


def test_rows_that_are_equal_up_to_rounding_count_once_and_keep_their_order() -> None:
    rows = normalize(np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32))
    copies = normalize(rows[[3, 7]] * np.float32(0.7))

    found = distinct_rows(np.concatenate([rows, copies, rows[:5]]))

    assert np.array_equal(found, rows)
