"""Changes of an index, one after another, and what a model in memory holds after each."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nestling.core import Dtype
from nestling.search import Index, Plan
from tests.search.support import Document, build_index, fingerprint_of, plan_of, random_rows

WIDTH = 32
NUM_IDS = 40
FLAT = plan_of(WIDTH, (16, Dtype.FLOAT16, 500), (WIDTH, Dtype.FLOAT32, None))
CODES = plan_of(WIDTH, (8, Dtype.INT8, 500), (16, Dtype.FLOAT16, 500), (WIDTH, Dtype.FLOAT32, None))
SIGNS = plan_of(WIDTH, (16, Dtype.BINARY, 500), (WIDTH, Dtype.FLOAT32, None))
GRAPH = plan_of(WIDTH, (8, Dtype.INT8, 500), (WIDTH, Dtype.FLOAT32, None), engine="hnsw")
OWN_GRAPH = plan_of(WIDTH, (8, Dtype.INT8, 500), (WIDTH, Dtype.FLOAT32, None), engine="graph")
PLANS = (FLAT, CODES, SIGNS, GRAPH, OWN_GRAPH)

Model = dict[str, Document]


class Step(NamedTuple):
    """One change and what there is after it."""

    name: str
    apply: Callable[[Index], object]
    model: Model


def start(path: Path, num_rows: int, plan: Plan) -> Model:
    """Build an index, close it, and return what it holds."""
    rows = random_rows(num_rows, WIDTH)
    build_index(path, rows, plan=plan).close()
    return {
        f"d{row}": Document(rows[row].tobytes(), f"text of document {row}", {"number": row})
        for row in range(num_rows)
    }


def steps(model: Model, *, seed: int = 0) -> Iterator[Step]:
    """Yield changes without end; the same for the same beginning."""
    number = 0
    while True:
        step = _step(model, number, random.Random(1000 * seed + number))
        model = step.model
        number += 1
        yield step


def add_step(model: Model, doc_ids: list[str], number: int) -> Step:
    """Add documents of new ids, or replace those of known ones."""
    rows = random_rows(len(doc_ids), WIDTH, seed=100 + number)
    texts = [f"{doc_id} as of change {number}" for doc_id in doc_ids]
    metadata = [{"change": number}] * len(doc_ids)

    def apply(index: Index) -> object:
        write = index.upsert if model.keys() & set(doc_ids) else index.add
        return write(
            rows,
            doc_ids=doc_ids,
            fingerprint=fingerprint_of(WIDTH),
            texts=texts,
            metadata=metadata,
        )

    new = {
        doc_id: Document(row.tobytes(), text, {"change": number})
        for doc_id, row, text in zip(doc_ids, rows, texts, strict=True)
    }
    name = "upsert" if model.keys() & set(doc_ids) else "add"
    return Step(name, apply, {**model, **new})


def delete_step(model: Model, doc_ids: list[str]) -> Step:
    """Delete documents."""
    left = {doc_id: document for doc_id, document in model.items() if doc_id not in doc_ids}
    return Step("delete", lambda index: index.delete(doc_ids), left)


def _step(model: Model, number: int, generator: random.Random) -> Step:
    known = sorted(model)
    unknown = sorted({f"d{number}" for number in range(NUM_IDS)} - model.keys())
    choice = generator.random()
    if choice < 0.15:
        return Step("compact", lambda index: index.compact(), model)
    if choice < 0.3:
        plan = generator.choice(PLANS)
        return Step("resize", lambda index: index.resize(plan), model)
    if choice < 0.5 and len(known) > 3:
        return delete_step(model, generator.sample(known, 3))
    if choice < 0.75 and known:
        chosen = generator.sample(known, min(2, len(known))) + unknown[:1]
        return add_step(model, chosen, number)
    return add_step(model, unknown[:4] or known[:2], number)


def ranking(model: Model, query: np.ndarray) -> list[tuple[str, float]]:
    """All documents by cosine, in float64, best first."""
    if not model:
        return []
    doc_ids = list(model)
    rows = np.stack([np.frombuffer(model[doc_id].vector, np.float32) for doc_id in doc_ids])
    rows = rows.astype(np.float64)
    wide = query.astype(np.float64)
    scores = rows @ wide / np.linalg.norm(rows, axis=1) / np.linalg.norm(wide)
    order = np.argsort(-scores, kind="stable")
    return [(doc_ids[place], float(scores[place])) for place in order]
