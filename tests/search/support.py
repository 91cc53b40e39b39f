"""Small vector folders, made through the public door with an encoder that looks rows up."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from nestling.core import Dtype, Fingerprint, Space, normalize
from nestling.data.types import Corpus, Inputs
from nestling.encode import VectorFolder, encode_corpus
from nestling.encode.protocol import Role
from nestling.search import EngineChoice, Index, Plan, Stage

DTYPES = tuple(Dtype)


def fingerprint_of(embed_dim: int, model: str = "fake") -> Fingerprint:
    space = Space(
        model=model, revision="1", pooling="none", normalization="none", embed_dim=embed_dim
    )
    return Fingerprint(space=space, encoder={"backend": "fake"})


class RowEncoder:
    """Gives row i of an array for the text "text of document i"."""

    nesting_dims = None
    max_tokens = None

    def __init__(self, rows: np.ndarray, model: str = "fake") -> None:
        self.rows = rows
        self.embed_dim = rows.shape[1]
        self.fingerprint = fingerprint_of(self.embed_dim, model)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def encode(self, inputs: Inputs, *, role: Role, ids: Sequence[str] | None = None) -> np.ndarray:
        return self.rows[[int(str(text).split()[-1]) for text in inputs]]


def corpus_of(num_rows: int, first_row: int = 0) -> Corpus:
    numbers = range(first_row, first_row + num_rows)
    return Corpus(
        doc_ids=[f"d{number}" for number in numbers],
        texts=[f"text of document {number}" for number in numbers],
        source="made up",
        metadata=[{"number": number} for number in numbers],
    )


def make_folder(path: Path, rows: np.ndarray, dtype: Dtype = Dtype.FLOAT32) -> VectorFolder:
    return encode_corpus(RowEncoder(rows), corpus_of(len(rows)), path, dtype=dtype).folder


def build_index(
    path: Path,
    rows: np.ndarray,
    *,
    plan: Plan | None = None,
    dtype: Dtype = Dtype.FLOAT32,
    overwrite: bool = False,
) -> Index:
    folder = make_folder(path.with_name(f"{path.name}-vectors-{len(rows)}"), rows, dtype)
    return Index.build(path, folder, corpus_of(len(rows)), plan=plan, overwrite=overwrite)


def plan_of(embed_dim: int, *stages: tuple[int, Dtype, int | None], engine: str = "flat") -> Plan:
    return Plan(
        engine=EngineChoice(name=engine),
        stages=tuple(
            Stage(dim=dim, dtype=dtype, shortlist_size=size) for dim, dtype, size in stages
        ),
        embed_dim=embed_dim,
        space=None,
        evidence={},
    )


def random_rows(num_rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Rows of different lengths, so that a forgotten norm shows."""
    generator = np.random.default_rng(seed)
    rows = normalize(generator.standard_normal((num_rows, dim)))
    return (rows * generator.uniform(0.5, 2.0, (num_rows, 1))).astype(np.float32)


def tied_rows(num_rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Rows of signs: at a width that is a power of 4 every cosine is exact, and many are equal."""
    generator = np.random.default_rng(seed)
    return generator.choice([-1.0, 1.0], (num_rows, dim)).astype(np.float32)


def found(index: Index, queries: np.ndarray, top_k: int) -> list[list[tuple[str, float]]]:
    return [
        [(hit.doc_id, hit.score) for hit in hits] for hits in index.search(queries, top_k=top_k)
    ]


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder in RAM where there is one: flushing there costs nothing."""
    memory = Path("/dev/shm")  # noqa: S108
    is_there = memory.is_dir() and os.access(memory, os.W_OK)
    with TemporaryDirectory(dir=memory if is_there else None) as folder:
        yield Path(folder)


class Document(NamedTuple):
    """What a model of an index in memory knows of a document."""

    vector: bytes
    text: str | None
    metadata: Mapping[str, Any] | None


def contents(index: Index) -> dict[str, Document]:
    """All documents of an index, as a search for all of them finds them."""
    if len(index) == 0:
        return {}
    query = np.ones((1, index.fingerprint.space.embed_dim), np.float32)
    found = index.explain(query, top_k=len(index) + 5)
    (hits,) = index.search(query, top_k=len(index) + 5)
    rows = found.rows[found.rows >= 0]
    assert index.doc_ids(rows) == [hit.doc_id for hit in hits]
    vectors = index.snapshot.vectors
    vectors.ensure(rows)
    documents = {
        hit.doc_id: Document(vectors.rows[row].tobytes(), hit.text, hit.metadata)
        for row, hit in zip(rows.tolist(), hits, strict=True)
    }
    assert len(documents) == len(hits) == len(index)
    return documents


def tree(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
