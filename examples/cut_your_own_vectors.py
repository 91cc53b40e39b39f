"""You have vectors and no judgements: how much of the full-width ranking does each cut keep?

python examples/cut_your_own_vectors.py [vectors.npy]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from nestling.data import open_task
from nestling.measure import choose, measure


def main(path: Path) -> None:
    results = measure(None, open_task(f"self:{path}"))
    for row in results.rows:
        if row.metric == results.main_metric and row.family == "prefix":
            print(
                f"{row.dim:5}-d {row.dtype:8} {row.bytes_per_vector:6} bytes  {row.metric} {row.value:.3f}"
            )
    print(choose(results, max_loss=0.25).verdict)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        # Vectors whose leading coordinates matter most, as a nested model gives them.
        generator = np.random.default_rng(0)
        vectors = generator.standard_normal((20_000, 128)) / np.arange(1, 129) ** 0.75
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "vectors.npy", vectors.astype(np.float32))
            main(Path(folder) / "vectors.npy")
