"""The best corpus rows of every query at every prefix width, in one pass over the corpus."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from nestling.core._one_pass import Source, ViewPass, run_on, threads_worth_starting
from nestling.core.dims import check_dims
from nestling.core.progress import Progress, silent
from nestling.core.topk import TopK
from nestling.errors import VectorError


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to read the corpus: as it is, through a number format and back, or rotated.

    Attributes:
        name: Key of the result.
        queries: Query vectors, as this view compares them.
        transform: Turns rows of the corpus (not to be written to) into what this view compares,
            shape kept. Called from several threads, a few hundred rows at a time. None takes the
            corpus as it is.
    """

    name: str
    queries: Float32[np.ndarray, "queries full"]
    transform: (
        Callable[[Float32[np.ndarray, "rows full"]], Float32[np.ndarray, "rows full"]] | None
    ) = None


class NestedTopK(NamedTuple):
    """The result of one view.

    Attributes:
        by_dim: The best rows and their cosines, per prefix width.
        seconds: Transforming and scoring time of this view, all widths together.
    """

    by_dim: dict[int, TopK]
    seconds: float


def nested_top_k(
    corpus: Float[np.ndarray, "rows full"],
    views: Sequence[View],
    dims: Sequence[int],
    k: int,
    *,
    num_threads: int | None = None,
    progress: Progress = silent,
) -> dict[str, NestedTopK]:
    """Return the top k by cosine of every query, view and prefix width, reading the corpus once.

    Dot products and norms of a wider prefix continue those of the narrower one, so all widths
    together cost little more arithmetic than the widest alone. Scores are never stored: compiled
    code compares each tile, while it is in the cache, with a threshold per query and width that
    rises as better rows are found.

    Args:
        corpus: Float32 or float16 rows, finite; may be memory-mapped.
        views: Ways to read the corpus, with distinct names. Each brings its own queries.
        dims: Ascending unique prefix widths; the full width need not be among them.
        k: Results per query; places beyond the number of rows hold row -1, score minus infinity.
        num_threads: Threads to use; by default one per core this process may use. It changes no
            bit of the result.
        progress: Told the rows done and the rows in all after each chunk.

    Returns:
        One result per view name. Prefixes are compared each by its own norm; a zero prefix scores
        0. Equal scores go to the lower row, and equal rows get equal scores. Memory in use beside
        the corpus: about twice the result, and a few chunks of 16 MB.

    Raises:
        DimensionError: If `dims` breaks the rules of `check_dims`.
        VectorError: If `k` is below 1, names repeat, or shapes do not fit.
    """
    widths = check_dims(dims, corpus.shape[1])
    _check(corpus, views, k)
    num_products = sum(len(view.queries) for view in views) * len(corpus) * widths[-1]
    threads = threads_worth_starting(num_products, num_threads)
    passes = [
        ViewPass(
            view.name,
            view.queries,
            view.transform,
            widths,
            num_kept=max(1, min(k, len(corpus))),
            num_threads=threads,
        )
        for view in views
    ]
    is_transformed = any(view.transform is not None for view in views)
    source = Source(corpus, num_threads=threads, is_transformed=is_transformed)
    with run_on(threads) as run:
        for start in range(0, len(corpus), source.chunk_rows):
            chunk = source.read(start, run)
            for view_pass in passes:
                view_pass.score(chunk, start, source, run)
            progress("score", start + len(chunk), len(corpus))
    return {view_pass.name: NestedTopK(*view_pass.result(k)) for view_pass in passes}


def _check(corpus: np.ndarray, views: Sequence[View], k: int) -> None:
    if k < 1:
        raise VectorError(f"`k` must be at least 1, got {k}. Ask for one result or more.")
    if len(corpus) >= 1 << 32:
        raise VectorError(
            f"`corpus` must have fewer than {1 << 32} rows, got {len(corpus)}. Search it in parts."
        )
    names = [view.name for view in views]
    if len(set(names)) < len(names):
        raise VectorError(f"`views` must have distinct names, got {names}. Rename one of them.")
    for view in views:
        if view.queries.shape[1] != corpus.shape[1]:
            raise VectorError(
                f"`queries` of view {view.name!r} must be as wide as the corpus, "
                f"{corpus.shape[1]}, got {view.queries.shape[1]}. Encode both with one model."
            )
