"""Results made by hand, and losses drawn from shapes whose true mean is known."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nestling.core import Dtype, Fingerprint, Space, bytes_per_vector
from nestling.measure.results import Results, Row

EMBED_DIM = 1024
Cut = tuple[str, int, Dtype]
Values = np.ndarray | list[float] | None


def make_row(family: str, dim: int, dtype: Dtype, values: Values, **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "model": "static:handmade",
        "task": "beir:handmade",
        "family": family,
        "dim": dim,
        "dtype": dtype,
        "metric": "ndcg_at_10",
        "value": 0.5 if values is None else float(np.mean(values)),
        "per_query": None if values is None else [float(value) for value in values],
        "bytes_per_vector": bytes_per_vector(dtype, dim),
        "seconds": 0.1,
        "shortlist_size": 100 if family == "funnel" else None,
    }
    return Row(**{**fields, **changes})


def make_results(full: Values, cuts: Mapping[Cut, Values], **changes: Any) -> Results:
    """A results file with the full width in float32 first; `changes` go to every row."""
    rows = [make_row("prefix", EMBED_DIM, Dtype.FLOAT32, full, **changes)]
    for (family, dim, dtype), values in cuts.items():
        rows.append(make_row(family, dim, dtype, values, **changes))
    space = Space(
        model="handmade", revision="1", pooling="mean", normalization="l2", embed_dim=EMBED_DIM
    )
    return Results(
        rows=rows,
        main_metric=rows[0].metric,
        query_ids=[f"q{place}" for place in range(300 if full is None else len(full))],
        embed_dim=EMBED_DIM,
        fingerprint=Fingerprint(space=space, encoder={}),
        corpus_hash="c0ffee",
        num_documents=5000,
        looks_nested=True,
        environment={"seed": 0, "date": "2026-11-23T15:00:00+00:00"},
    )


def share_lost(full: np.ndarray, share: float) -> np.ndarray:
    """Cut values that lose `share` of the whole, spread evenly and the same for every query."""
    return full * (1.0 - share)


Size = tuple[int, int]
Pair = tuple[np.ndarray, np.ndarray]
Shape = Callable[[np.random.Generator, Size, float], Pair]
"""From a generator, (trials, queries) and a relative loss, to values of the full width and of a cut
whose mean loss is exactly that, in expectation."""


def lost_whole(generator: np.random.Generator, size: Size, loss: float) -> Pair:
    """Every query is answered perfectly, but for rare ones that are lost whole."""
    return np.ones(size), (generator.random(size) >= loss).astype(float)


def lost_where_full_is_high(generator: np.random.Generator, size: Size, loss: float) -> Pair:
    """Losses fall only on the queries that the full width answers best."""
    full = np.where(generator.random(size) < 0.3, 1.0, 0.1)
    rate = loss * 0.37 / 0.3
    return full, np.where((full == 1.0) & (generator.random(size) < rate), 0.0, full)


def mostly_zero(generator: np.random.Generator, size: Size, loss: float) -> Pair:
    """The full width fails on nine queries in ten; the cut loses a few of the rest."""
    full = (generator.random(size) < 0.1).astype(float)
    return full, full * (generator.random(size) >= loss)


def unrelated(generator: np.random.Generator, size: Size, loss: float) -> Pair:
    """Heavy noise: the cut answers other queries than the full width does."""
    full = (generator.random(size) < 0.6).astype(float)
    return full, (generator.random(size) < 0.6 * (1.0 - loss)).astype(float)


def gains_and_losses(generator: np.random.Generator, size: Size, loss: float) -> Pair:
    """Graded values that move one rank up or down for some queries, as nDCG does."""
    rungs = np.array([0.0, 0.43, 0.5, 0.63, 1.0])
    shares = np.array([0.2, 0.1, 0.1, 0.2, 0.4])
    place = generator.choice(5, p=shares, size=size)
    up, down = np.minimum(np.arange(5) + 1, 4), np.maximum(np.arange(5) - 1, 0)
    gain, drop = ((rungs[up] - rungs) * shares).sum(), ((rungs - rungs[down]) * shares).sum()
    rate_up = 0.03
    rate_down = (loss * (rungs * shares).sum() + rate_up * gain) / drop
    chance = generator.random(size)
    moved = np.where(chance < rate_up + rate_down, rungs[down][place], rungs[place])
    return rungs[place], np.where(chance < rate_up, rungs[up][place], moved)


def dense_noise(generator: np.random.Generator, size: Size, loss: float) -> Pair:
    """Every query moves a little."""
    full = generator.beta(6.0, 4.0, size=size)
    centre = full * (1.0 - loss)
    width = np.minimum(0.1, np.minimum(centre, 1.0 - centre))
    return full, centre + width * generator.choice([-1.0, 1.0], size=size)


SHAPES: dict[str, Shape] = {
    shape.__name__: shape
    for shape in (
        lost_whole,
        lost_where_full_is_high,
        mostly_zero,
        unrelated,
        gains_and_losses,
        dense_noise,
    )
}
