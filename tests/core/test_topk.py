import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import top_k


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=0, max_size=12),
    st.integers(1, 15),
)
def test_best_first_and_ties_to_the_lower_row(scores: list[float], k: int) -> None:
    found = top_k(np.array([scores], np.float32).reshape(1, len(scores)), k)
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]
    empty = k - len(order)
    assert found.rows[0].tolist() == order + [-1] * empty
    assert found.scores[0].tolist() == [scores[row] for row in order] + [-np.inf] * empty
    assert found.rows.dtype == np.int64
    assert found.scores.dtype == np.float32


def test_columns_may_be_named() -> None:
    scores = np.array([[0.5, 0.9, 0.5]], np.float32)
    found = top_k(scores, 2, rows=np.array([[30, 20, 10]]))
    assert found.rows.tolist() == [[20, 10]]


def test_columns_named_minus_one_come_last_whatever_their_score() -> None:
    scores = np.array([[0.5, 9.0, -1.0]], np.float32)
    found = top_k(scores, 3, rows=np.array([[4, -1, 7]]))
    assert found.rows.tolist() == [[4, 7, -1]]
    assert found.scores.tolist() == [[0.5, -1.0, -np.inf]]
