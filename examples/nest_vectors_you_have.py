"""Nest vectors of a model that you cannot train: a rotation, learned without labels or queries."""

import tempfile
from pathlib import Path

from nestling.core import Dtype, cosine_scores
from nestling.data import open_task
from nestling.encode import encode_corpus, open_encoder
from nestling.measure import measure
from nestling.train.adapter import AdapterRecipe, read_source, train_adapter

DIMS = (16, 32, 64)


def main() -> None:
    task = open_task("builtin")
    frozen = open_encoder("static:wordllama")  # or openai:..., st:..., onnx:...
    with tempfile.TemporaryDirectory() as folder:
        vectors, nested = Path(folder) / "vectors", Path(folder) / "nested"
        encode_corpus(frozen, task.corpus, vectors)
        record = train_adapter(
            read_source(vectors),
            AdapterRecipe(nesting_dims=DIMS, method="rotation", sample_rows=2000),
            out=nested,
        )
        print(record.verdict)
        adapted = open_encoder(f"nest:{nested}")
        for name, encoder in (("as they are", frozen), ("adapted", adapted)):
            results = measure(encoder, task, dims=DIMS, baselines=False)
            values = [
                results.find(family="prefix", dim=dim, dtype=Dtype.FLOAT32).value for dim in DIMS
            ]
            print(f"{name:12} ndcg_at_10", *(f"{value:.4f}" for value in values), "at", *DIMS)
        texts = task.corpus.texts[:100]
        before, after = (
            cosine_scores(rows, rows, frozen.embed_dim)
            for rows in (model.encode(texts, role="document") for model in (frozen, adapted))
        )
        print(f"full-width cosines differ by {abs(after - before).max():.1e} at most")


if __name__ == "__main__":
    main()
