import numpy as np

from nestling.core import Dtype
from nestling.measure.table import Measured, average_draws, make_rows


def cut(family: str, *, dim: int = 8, draw: int = 0, values: list[float], seconds: float = 1.0):
    return Measured(
        family=family,
        dim=dim,
        dtype=Dtype.INT8,
        metrics={"ndcg_at_10": np.array(values), "spearman": values[0]},
        seconds=seconds,
        draw=draw,
    )


def test_draws_are_averaged_query_by_query_in_order():
    measured = [
        cut("prefix", values=[0.5, 1.0]),
        cut("random", draw=0, values=[0.0, 0.5], seconds=1.0),
        cut("random", draw=0, dim=16, values=[1.0, 1.0]),
        cut("random", draw=1, values=[1.0, 0.5], seconds=2.0),
        cut("random", draw=1, dim=16, values=[0.0, 1.0]),
    ]
    averaged = average_draws(measured)
    assert [(row.family, row.dim) for row in averaged] == [
        ("prefix", 8),
        ("random", 8),
        ("random", 16),
    ]
    assert averaged[0] is measured[0]
    np.testing.assert_allclose(averaged[1].metrics["ndcg_at_10"], [0.5, 0.5])
    assert averaged[1].metrics["spearman"] == 0.5
    assert averaged[1].seconds == 1.5


def test_a_row_per_metric_with_and_without_values_per_query():
    rows = make_rows([cut("prefix", values=[0.25, 0.75])], model="m", task="t")
    assert [(row.metric, row.value, row.per_query) for row in rows] == [
        ("ndcg_at_10", 0.5, (0.25, 0.75)),
        ("spearman", 0.25, None),
    ]
    assert {row.bytes_per_vector for row in rows} == {8 + 4}
