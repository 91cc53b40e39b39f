"""Encode texts, build a two-tier index by a hand-written plan, and search it."""

import tempfile
from pathlib import Path

from nestling.core import Dtype
from nestling.data import open_corpus
from nestling.encode import encode_corpus, open_encoder
from nestling.search import Index, Plan, Stage


def main(folder: Path) -> None:
    encoder = open_encoder("static:wordllama")
    corpus = open_corpus("builtin")
    vectors = encode_corpus(encoder, corpus, folder / "vectors").folder
    plan = Plan(
        stages=(
            Stage(dim=64, dtype=Dtype.INT8, shortlist_size=100),
            Stage(dim=256, dtype=Dtype.FLOAT32),
        ),
        embed_dim=encoder.embed_dim,
        space=encoder.fingerprint.space,
        evidence={},
    )
    index = Index.build(folder / "index", vectors, corpus, plan=plan)
    queries = ["wait until a thread has finished", "split a path into folder and file"]
    for query, hits in zip(
        queries, index.search(encoder.encode(queries, role="query"), top_k=3), strict=True
    ):
        print(f"\n{query}")
        for hit in hits:
            print(f"  {hit.score:.3f}  {hit.doc_id}  {(hit.text or '')[:80]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
