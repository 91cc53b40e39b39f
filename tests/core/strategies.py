"""What hypothesis draws for the tests of the core."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

# Squares of these values neither overflow nor vanish in float32.
ordinary = st.floats(-100, 100, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)


def float32_matrices(*, max_rows: int = 8, max_dim: int = 24) -> st.SearchStrategy[np.ndarray]:
    shapes = npst.array_shapes(min_dims=2, max_dims=2, max_side=max(max_rows, max_dim))
    return shapes.flatmap(lambda shape: npst.arrays(np.float32, shape, elements=ordinary))


@st.composite
def vectors_and_dims(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    vectors = draw(float32_matrices())
    dims = draw(st.sets(st.integers(1, vectors.shape[1]), min_size=1, max_size=5))
    return vectors, sorted(dims)
