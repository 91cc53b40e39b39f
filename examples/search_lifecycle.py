"""The life of an index: build, search, filter, add, replace, delete, resize, compact, verify, back up."""

import tempfile
from pathlib import Path

from nestling.core import Dtype
from nestling.data import Corpus
from nestling.encode import encode_corpus, open_encoder
from nestling.search import EngineChoice, Index, Plan, Stage

TEXTS = {
    "tea": "Green tea wants water at eighty degrees.",
    "coffee": "Coffee is ground just before it is brewed.",
    "bread": "Rye bread needs a sourdough and a long rest.",
    "fish": "Salt keeps fish for a year.",
}


def main(folder: Path) -> None:
    encoder = open_encoder("static:wordllama")
    corpus = Corpus(
        doc_ids=list(TEXTS),
        texts=list(TEXTS.values()),
        metadata=[{"year": 2020}, {"year": 2021}, {"year": 2022}, {"year": 2023}],
        source="a kitchen",
    )
    vectors = encode_corpus(encoder, corpus, folder / "vectors").folder

    def plan(head: Stage, engine: EngineChoice) -> Plan:
        last = Stage(dim=256, dtype=Dtype.FLOAT32)
        return Plan(
            stages=(head, last),
            embed_dim=encoder.embed_dim,
            space=encoder.fingerprint.space,
            evidence={},
            engine=engine,
        )

    narrow = Stage(dim=64, dtype=Dtype.INT8, shortlist_size=3)
    first = plan(narrow, EngineChoice())
    with Index.build(folder / "index", vectors, corpus, plan=first) as index:

        def show(what: str, where: str | None = None) -> None:
            query = encoder.encode(["hot water for a drink"], role="query")
            (hits,) = index.search(query, top_k=2, where=where)
            found = ", ".join(f"{hit.doc_id} {hit.score:.2f}" for hit in hits)
            print(f"generation {index.generation}, {len(index)} documents, {what}: {found}")

        show("built")
        show("with a filter", where="year >= 2021")
        new = {"cocoa": "Cocoa is stirred into hot milk.", "fish": "Hot stones dry fish."}
        index.upsert(
            encoder.encode(list(new.values()), role="document"),
            doc_ids=list(new),
            fingerprint=encoder.fingerprint,
            texts=list(new.values()),
            metadata=[{"year": 2024}, {"year": 2024}],
        )
        show("one added, one replaced")
        index.delete(["tea"])
        show("one deleted")
        wide = Stage(dim=128, dtype=Dtype.INT4, shortlist_size=3)
        index.resize(plan(wide, EngineChoice(name="graph", build={"degree": 8})))
        show(f"resized to {index.plan.describe()}")
        index.compact()
        show("compacted")
        index.verify()
        index.backup(folder / "copy")
    with Index.open(folder / "copy") as copy:
        print(f"a copy of generation {copy.generation} with {len(copy)} documents")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
