import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import Projection
from nestling.errors import VectorError


@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 40))
def test_equals_the_product_of_numpy(num_rows: int, full: int, width: int) -> None:
    generator = np.random.default_rng(num_rows)
    rows = generator.standard_normal((num_rows, full), dtype=np.float32)
    matrix = generator.standard_normal((full, width), dtype=np.float32)
    products = Projection(matrix)(rows)
    assert products.shape == (num_rows, width)
    np.testing.assert_allclose(products, rows @ matrix, atol=1e-4)


def test_rows_may_be_cut_anywhere_without_changing_a_bit() -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((300, 70), dtype=np.float32)
    project = Projection(np.linalg.qr(generator.standard_normal((70, 70)))[0].astype(np.float32))
    whole = project(rows)
    pieces = [project(piece) for piece in np.split(rows, [1, 64, 129, 250])]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(project(np.asfortranarray(rows)), whole)


def test_rows_of_another_width_are_refused() -> None:
    project = Projection(np.eye(4, dtype=np.float32))
    with pytest.raises(VectorError, match=r"as wide as the matrix is high, 4, got 3\. Take both"):
        project(np.ones((2, 3), np.float32))
