"""The life of an index in steps, each done twice: to an index folder, and to a model in memory."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from nestling.core import Dtype
from nestling.core.files import fsync_folder
from nestling.encode import encode_corpus
from nestling.errors import FormatError
from nestling.search import Index, Plan
from tests.search.support import RowEncoder, corpus_of, fingerprint_of, plan_of, random_rows
from tests.search.test_migrate import write_version_1

WIDTH = 32
POOL = random_rows(200, WIDTH)
QUERIES = random_rows(2, WIDTH, seed=1)
SMALL_HEAD = plan_of(WIDTH, (16, Dtype.INT8, 200), (WIDTH, Dtype.FLOAT32, None))
THREE_STAGES = plan_of(
    WIDTH,
    (8, Dtype.FLOAT32, 200),
    (16, Dtype.FLOAT16, 200),
    (WIDTH, Dtype.FLOAT32, None),
)
GRAPH = plan_of(WIDTH, (16, Dtype.FLOAT32, 200), (WIDTH, Dtype.FLOAT32, None), engine="hnsw")
ENGINES_WITH_FILES = ("hnsw", "graph", "ivf", "nested", *(["vamana"] if find_spec("svs") else []))
LAST_ENGINE = plan_of(WIDTH, (WIDTH, Dtype.FLOAT32, None), engine=ENGINES_WITH_FILES[-1])


@dataclass(frozen=True, slots=True)
class Model:
    """What an index must hold: a plan, and per document its row of `POOL`."""

    generation: int
    plan: Plan
    documents: Mapping[str, int]

    def look(self) -> Any:
        """Return what `look` returns of an index that holds this."""
        doc_ids = list(self.documents)
        rows = POOL[list(self.documents.values())].astype(np.float64)
        scores = (QUERIES @ rows.T) / np.linalg.norm(rows, axis=1)
        ranking = [[doc_ids[place] for place in np.argsort(-row)] for row in scores]
        return self.generation, _stages(self.plan), self._contents(), ranking

    def _contents(self) -> dict[str, Any]:
        return {
            doc_id: (f"text of document {row}", {"number": row})
            for doc_id, row in self.documents.items()
        }


class Step(NamedTuple):
    """Attributes:
    write: What is done to the folder `index` in a root folder.
    change: What is done to the model.
    killed_after: None, or the writer dies before its first fsync after it called this of `Path`
        (or of all, if empty). Then nobody acknowledges the step, but the next one builds on it.
    """

    write: Callable[[Path], None]
    change: Callable[[Model | None], Model | None]
    killed_after: str | None = None


def look(root: Path) -> Any:
    """Open, verify and read everything; None if there is no index."""
    try:
        index = Index.open(root / "index")
    except FormatError:
        if (root / "index").exists():
            raise
        return None
    with index:
        index.verify()
        hits = index.search(QUERIES, top_k=len(index))
        contents = {hit.doc_id: (hit.text, hit.metadata) for hit in hits[0]}
        assert len(contents) == len(index)
        ranking = [[hit.doc_id for hit in ranked] for ranked in hits]
        return index.generation, _stages(index.plan), contents, ranking


def look_and_add(root: Path) -> Any:
    """Look, and see that the next writer gets along with what a dead one left."""
    seen = look(root)
    if seen is None:
        build(range(3)).write(root)
        return seen
    add(range(190, 193)).write(root)
    generation, stages, contents, _ = seen
    after = look(root)
    added = {f"d{row}": (f"text of document {row}", {"number": row}) for row in range(190, 193)}
    assert after[:3] == (generation + 1, stages, {**contents, **added})
    return seen


def build(rows: Sequence[int], plan: Plan = SMALL_HEAD, *, overwrite: bool = False) -> Step:
    def write(root: Path) -> None:
        corpus = corpus_of(len(rows), rows[0])
        with TemporaryDirectory() as elsewhere:
            vectors = encode_corpus(RowEncoder(POOL), corpus, Path(elsewhere) / "vectors").folder
            Index.build(root / "index", vectors, corpus, plan=plan, overwrite=overwrite).close()

    def change(model: Model | None) -> Model:
        # An index that is replaced goes on counting.
        generation = 1 if model is None else model.generation + 1
        return Model(generation, plan, {f"d{row}": row for row in rows})

    return Step(write, change)


def add(rows: Sequence[int]) -> Step:
    def write(root: Path) -> None:
        with Index.open(root / "index") as index:
            index.add(POOL[list(rows)], **_documents(rows, [f"d{row}" for row in rows]))

    return Step(write, lambda model: _changed(model, {f"d{row}": row for row in rows}))


def upsert(documents: Mapping[str, int]) -> Step:
    rows = list(documents.values())

    def write(root: Path) -> None:
        with Index.open(root / "index") as index:
            index.upsert(POOL[rows], **_documents(rows, list(documents)))

    return Step(write, lambda model: _changed(model, documents))


def delete(doc_ids: Sequence[str]) -> Step:
    def write(root: Path) -> None:
        with Index.open(root / "index") as index:
            index.delete(doc_ids)

    return Step(write, lambda model: _changed(model, {}, gone=doc_ids))


def compact() -> Step:
    def write(root: Path) -> None:
        with Index.open(root / "index") as index:
            index.compact()

    return Step(write, lambda model: _changed(model, {}))


def resize(plan: Plan) -> Step:
    def write(root: Path) -> None:
        with Index.open(root / "index") as index:
            index.resize(plan)

    return Step(write, lambda model: replace(_changed(model, {}), plan=plan))


def old(rows: range) -> Step:
    """Return the step that puts an index of version 1 there, wholly or not at all."""

    def write(root: Path) -> None:
        with TemporaryDirectory() as elsewhere:
            source = Path(elsewhere) / "index"
            write_version_1(source, POOL[rows], SMALL_HEAD, fingerprint_of(WIDTH))
            copy = shutil.copytree(source, root / "copy")
        for path in [*copy.rglob("*"), copy]:
            if "head-1" not in path.parts:  # nobody reads what was derived
                fsync_folder(path)
        copy.rename(root / "index")
        fsync_folder(root)

    # Whoever looks at it finds what it becomes then.
    return Step(write, lambda _: Model(4, SMALL_HEAD, {f"d{row}": row for row in rows}))


def open_once() -> Step:
    return Step(lambda root: Index.open(root / "index").close(), lambda model: model)


def copied(steps: Sequence[Step]) -> Step:
    """Return the step that backs an index up from elsewhere, which these steps made."""

    def write(root: Path) -> None:
        with TemporaryDirectory() as elsewhere:
            for step in steps:
                step.write(Path(elsewhere))
            with Index.open(Path(elsewhere) / "index") as index:
                index.backup(root / "index")

    def change(model: Model | None) -> Model | None:
        for step in steps:
            model = step.change(model)
        return model

    return Step(write, change)


def killed(step: Step, after: str) -> Step:
    """Return a step that is killed at its commit, which then counts, or (after "") before it."""
    return step._replace(killed_after=after, change=step.change if after else lambda model: model)


LIVES: dict[str, list[Step]] = {
    "growing": [build(range(40)), add(range(40, 60)), add(range(60, 63))],
    "changing": [
        build(range(30)),
        delete(["d3", "d29"]),
        upsert({"d4": 100, "d5": 101, "new": 102}),
        compact(),
        add(range(30, 40)),
    ],
    "resized": [
        build(range(30)),
        resize(THREE_STAGES),
        add(range(30, 35)),
        resize(SMALL_HEAD),
    ],
    "with files of an engine": [
        build(range(30), GRAPH),
        add(range(30, 35)),
        delete(["d0"]),
        compact(),
    ],
    "through all engines": [
        build(range(30)),
        *(
            resize(plan_of(WIDTH, (WIDTH, Dtype.FLOAT32, None), engine=engine))
            for engine in ENGINES_WITH_FILES
        ),
    ],
    "of an old format": [old(range(30)), open_once(), add(range(30, 33))],
    "copied": [
        copied([build(range(30), LAST_ENGINE), add(range(30, 33)), delete(["d5"])]),
        add(range(33, 36)),
    ],
    "interrupted": [
        killed(build(range(20)), "rename"),
        add(range(20, 30)),
        killed(add(range(30, 40)), "replace"),
        upsert({"d3": 100}),
        killed(delete(["d0"]), ""),
        add(range(40, 45)),
        killed(compact(), "replace"),
        delete(["d1"]),
    ],
    "replaced": [build(range(20)), build(range(50, 75), THREE_STAGES, overwrite=True)],
}


def expected(life: Sequence[Step]) -> list[Any]:
    """Return what `look` must find after 0, 1, 2, ... steps."""
    model: Model | None = None
    states: list[Any] = [None]
    for step in life:
        model = step.change(model)
        states.append(model and model.look())
    return states


def _changed(model: Model | None, more: Mapping[str, int], gone: Sequence[str] = ()) -> Model:
    assert model is not None
    left = {doc_id: row for doc_id, row in model.documents.items() if doc_id not in gone}
    return replace(model, generation=model.generation + 1, documents={**left, **more})


def _documents(rows: Sequence[int], doc_ids: Sequence[str]) -> dict[str, Any]:
    return {
        "doc_ids": doc_ids,
        "fingerprint": fingerprint_of(WIDTH),
        "texts": [f"text of document {row}" for row in rows],
        "metadata": [{"number": row} for row in rows],
    }


def _stages(plan: Plan) -> list[Any]:
    return [(stage.dim, stage.dtype, stage.shortlist_size) for stage in plan.stages]
