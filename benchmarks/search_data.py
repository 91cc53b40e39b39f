"""Vectors of the search benchmarks: two sets of real nested vectors, made once in a work folder.

- `wide256`: the documents of builtin:wide by static:wordllama, 256-d; a query is the name of a
  function or class, its document the relevant one.
- `wide1024`: every sentence, or rest of a paragraph, of the whole docstrings that builtin:wide
  covers, by a nested static model of 1,024 dims trained on the train split; the relevant row of a
  name is the first sentence of its docstring.

Queries are those of the test split.
"""

import ast
import gc
import json
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nestling.core.progress import silent
from nestling.data import RetrievalTask, open_task
from nestling.data.builtin import FOREIGN_FOLDERS, OWN_PACKAGE, find_sources
from nestling.data.chunking import SENTENCE_END
from nestling.data.docstrings import PARAGRAPH_END, _find_docstrings
from nestling.encode import Encoder, open_encoder

SETS = ("wide256", "wide1024")
DIMS = tuple(8 << step for step in range(8))
NUM_ASKED = 2000
"""Queries of a benchmark unless it is told otherwise."""
SHORTEST_PIECE = 15
ROWS_AT_ONCE = 16_384
PERTURBATION = 0.35
"""Length of the noise added to a unit vector; its cosine with the original is about 0.94."""


@dataclass(frozen=True, kw_only=True)
class SearchSet:
    """Unit vectors, unit queries, and the one relevant row of each query."""

    name: str
    vectors: np.ndarray
    queries: np.ndarray
    relevant: np.ndarray
    source: str

    @property
    def embed_dim(self) -> int:
        return self.vectors.shape[1]

    def take_queries(self, count: int) -> "SearchSet":
        """Keep so many queries, evenly spread."""
        kept = spread_places(len(self.queries), count)
        return SearchSet(
            name=self.name,
            vectors=self.vectors,
            queries=np.ascontiguousarray(self.queries[kept]),
            relevant=self.relevant[kept],
            source=self.source,
        )


def spread_places(count: int, wanted: int) -> np.ndarray:
    """Return so many of `count` places, evenly spread."""
    return np.linspace(0, count - 1, min(wanted, count)).astype(int)


def open_set(work: Path, name: str) -> SearchSet:
    """Read a set, or make it where it is not there; the vectors are a memory map.

    Args:
        work: Folder that keeps them.
        name: One of `SETS`; "#100000" behind it takes so many rows, see `expand`.
    """
    folder = work / name.replace("#", "-")
    if not (folder / "source.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        if "#" in name:
            _make_expanded(folder, work, name)
        else:
            _make_wide256(folder) if name == "wide256" else _make_wide1024(folder, work)
    return SearchSet(
        name=name,
        vectors=np.load(folder / "docs.npy", mmap_mode="r"),
        queries=np.load(folder / "queries.npy"),
        relevant=np.load(folder / "relevant.npy"),
        source=(folder / "source.txt").read_text().strip(),
    )


def expand(vectors: np.ndarray, num_rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield blocks of `num_rows` rows: the vectors in a random order, then perturbed copies of them.

    For curves of cost only: a perturbed row is no document, and nothing is relevant to it. Row i is
    row `row_order(len(vectors))[i % len(vectors)]`; from i = `len(vectors)` on, with noise that has the
    spread of each coordinate, so that what is nested stays so. The same seed gives the same rows,
    whatever `num_rows`.
    """
    order = row_order(len(vectors), seed)
    spread = np.asarray(vectors[:: max(1, len(vectors) // 20_000)]).std(axis=0)
    spread *= PERTURBATION / np.linalg.norm(spread)
    for start in range(0, num_rows, ROWS_AT_ONCE):
        rows = np.arange(start, start + ROWS_AT_ONCE)
        block = np.asarray(vectors[order[rows % len(vectors)]], dtype=np.float32)
        is_copy = rows >= len(vectors)
        if is_copy.any():
            noise = np.random.default_rng([seed, start]).standard_normal(block.shape, np.float32)
            block[is_copy] += (noise * spread)[is_copy]
            block /= np.linalg.norm(block, axis=1, keepdims=True)
        yield block[: num_rows - start]


def row_order(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


# --- Making them ---------------------------------------------------------------------------------


def _make_wide256(folder: Path) -> None:
    task = _open_names()
    place = {doc_id: row for row, doc_id in enumerate(task.corpus.doc_ids)}
    relevant = [place[next(iter(task.qrels[query_id]))] for query_id in task.query_ids]
    source = f"builtin:wide by static:wordllama, corpus_hash {task.corpus.corpus_hash}"
    encoder = open_encoder("static:wordllama")
    _save(folder, encoder, list(task.corpus.texts), list(task.queries), relevant, source)


def _make_wide1024(folder: Path, work: Path) -> None:
    task = _open_names()
    texts = harvest_pieces()
    place = {text: row for row, text in enumerate(texts)}
    documents = dict(zip(task.corpus.doc_ids, task.corpus.texts, strict=True))
    queries, relevant = [], []
    for query_id, query in zip(task.query_ids, task.queries, strict=True):
        first = next(cut_pieces(documents[next(iter(task.qrels[query_id]))]), None)
        if first in place:
            queries.append(query)
            relevant.append(place[first])
    source = (
        f"sentences of the docstrings of builtin:wide, corpus_hash {task.corpus.corpus_hash}, by a "
        f"nested static model of {DIMS[-1]} dims"
    )
    _save(folder, open_encoder(f"nest:{train_model(work)}"), texts, queries, relevant, source)


def _make_expanded(folder: Path, work: Path, name: str) -> None:
    """Write so many rows; queries whose row is not among them seek -1."""
    base, _, count = name.partition("#")
    data = open_set(work, base)
    shape = (int(count), data.embed_dim)
    out = np.lib.format.open_memmap(folder / "docs.npy", "w+", np.float32, shape)
    for number, block in enumerate(expand(data.vectors, shape[0])):
        out[number * ROWS_AT_ONCE :][: len(block)] = block
    out.flush()
    place = np.argsort(row_order(len(data.vectors)))[data.relevant]
    np.save(folder / "queries.npy", data.queries)
    np.save(folder / "relevant.npy", np.where(place < shape[0], place, -1))
    (folder / "source.txt").write_text(f"{shape[0]:,} rows made from {data.source}")


def train_model(work: Path) -> Path:
    """Train the nested static model on the train split, unless it is there."""
    out = work / "nest1024"
    if not (out / "nestling.json").exists():
        train = [sys.executable, "-m", "nestling", "train", "text", "--pairs", "builtin:wide"]
        dims = ",".join(map(str, DIMS))
        train += ["--embed-dim", str(DIMS[-1]), "--dims", dims, "--out", str(out), "--overwrite"]
        subprocess.run(train, check=True)
    return out


def harvest_pieces() -> list[str]:
    """Return the different pieces of all docstrings that builtin:wide covers, in order."""
    sources = find_sources([Path(sysconfig.get_path("stdlib"))], skip=FOREIGN_FOLDERS)
    folders = sorted({Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")})
    sources += find_sources(folders, skip=(OWN_PACKAGE,))
    sources.sort()
    with ProcessPoolExecutor() as pool:
        found = pool.map(_read_pieces, [source.path for source in sources], chunksize=64)
        return list(dict.fromkeys(piece for pieces in found for piece in pieces))


def cut_pieces(docstring: str) -> Iterator[str]:
    """Yield sentences, or what a paragraph ends with, whitespace normalised."""
    for paragraph in PARAGRAPH_END.split(docstring.strip()):
        text = " ".join(paragraph.split())
        ends = [match.end() for match in SENTENCE_END.finditer(text)]
        for start, end in zip([0, *ends], [*ends, len(text)], strict=True):
            if len(piece := text[start:end].strip()) >= SHORTEST_PIECE:
                yield piece


def _read_pieces(path: str) -> list[str]:
    gc.disable()  # trees hold no cycles
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(Path(path).read_bytes())
            docstrings = [docstring for _, docstring in _find_docstrings(tree.body, "")]
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return []
    pieces = [piece for docstring in docstrings for piece in cut_pieces(docstring)]
    return [piece for piece in pieces if piece.encode(errors="ignore").decode() == piece]


def _open_names() -> RetrievalTask:
    task = open_task("builtin:wide", progress=silent)
    assert isinstance(task, RetrievalTask)
    return task


def _save(
    folder: Path,
    encoder: Encoder,
    texts: list[str],
    queries: list[str],
    relevant: list[int],
    source: str,
) -> None:
    """Encode and write; a text without tokens has no vector, and leaves with its queries."""
    sought = np.array(relevant)
    documents = encoder.encode(texts, role="document")
    asked = encoder.encode(queries, role="query")
    has_vector = documents.any(axis=1)
    new_row = np.cumsum(has_vector) - 1
    kept = asked.any(axis=1) & has_vector[sought]
    np.save(folder / "docs.npy", documents[has_vector])
    np.save(folder / "queries.npy", asked[kept])
    np.save(folder / "relevant.npy", new_row[sought[kept]])
    kept_texts = [text for text, keep in zip(texts, has_vector, strict=True) if keep]
    (folder / "texts.json").write_text(json.dumps(kept_texts))
    (folder / "source.txt").write_text(source)
