"""Learn a rotation that moves what matters to the first coordinates, on the rotations themselves.

The rotation R is never parametrised. A step multiplies it by the exponential of a small
antisymmetric matrix K, which is again a rotation: R <- R exp(K). The gradient with respect to K at
K = 0 needs two thin products, Z^T G - G^T Z with the turned batch Z = X R and its gradient G, so no
step differentiates through a D x D exponential, inverse or product of reflections. Adam (Kingma and
Ba 2015, arXiv:1412.6980) works on K, whose basis turns along with R.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from nestling.core import Dtype, check_dims
from nestling.core.progress import Progress, silent
from nestling.errors import DataError, TrainingError
from nestling.train.adapter.principal_axes import Matrix, in_principal_axes
from nestling.train.losses.nested_info_nce import NestedInfoNCE
from nestling.train.losses.quantized_prefixes import QuantizedPrefixes
from nestling.train.losses.self_distillation import SelfDistillation
from nestling.train.losses.spread_out import SpreadOut

Rows = Float32[np.ndarray, "rows dim"]

LABEL = "learning a rotation"

PASSES = 4
"""Times that each row is drawn, unless told how many steps to take."""

FEWEST_STEPS, MOST_STEPS = 60, 600
"""Of those; beyond some hundred steps hardly anything moves, whatever the number of rows."""

FIRST_DECAY, SECOND_DECAY = 0.9, 0.99
"""Of Adam's moments: a few hundred steps are too few for the usual 0.999."""

SMALLEST_SLOPE = 1e-12
"""Below this a pair of coordinates is not pulled at all, and does not turn."""

POLISH_EVERY = 20
"""Steps after which rounding is taken out of R; it grows by about 1e-7 per step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationOptions:
    """How a rotation is learned.

    Attributes:
        num_steps: Steps of Adam; the rate falls to zero linearly. None takes as many as draw each row
            four times, within bounds: a map can learn few rows by heart, and fresh ones rank worse.
        learning_rate: Of the entries of K, in radians.
        seeds_per_batch: Rows drawn per step; pairs, when learning from pairs.
        neighbours_per_seed: Nearest neighbours at full width of each drawn row, which join the
            batch: among random rows there is little to rank.
        temperature: Of the softmax over cosines, of teacher and prefixes alike.
        dtypes: Also rank with the documents as codes of these formats; see `QuantizedPrefixes`.
        spread_out_weight: Weight of `SpreadOut` on the drawn rows; 0 leaves it out.
        seed: Same seed and number of threads, same rotation.
    """

    num_steps: int | None = None
    learning_rate: float = 1e-3
    seeds_per_batch: int = 64
    neighbours_per_seed: int = 12
    temperature: float = 0.05
    dtypes: tuple[Dtype, ...] = ()
    spread_out_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers that no loss checks.

        Raises:
            TrainingError: If one breaks its rule; the message names it.
        """
        rules = (
            ("num_steps", "must be at least 1", self.num_steps is None or self.num_steps >= 1),
            ("learning_rate", "must be positive", 0 < self.learning_rate < np.inf),
            ("seeds_per_batch", "must be at least 2", self.seeds_per_batch >= 2),
            ("neighbours_per_seed", "must be at least 0", self.neighbours_per_seed >= 0),
            ("spread_out_weight", "must be at least 0", 0 <= self.spread_out_weight < np.inf),
            ("seed", "must be at least 0", self.seed >= 0),
        )
        for name, rule, is_kept in rules:
            if not is_kept:
                raise TrainingError(f"`{name}` {rule}, got {getattr(self, name)}. Change it.")

    def steps_for(self, num_rows: int) -> int:
        """Return how many steps to take for so many rows, or pairs."""
        if self.num_steps is not None:
            return self.num_steps
        return min(MOST_STEPS, max(FEWEST_STEPS, PASSES * num_rows // self.seeds_per_batch))


def learn_rotation(
    rows: Rows,
    dims: Sequence[int],
    *,
    start: Matrix,
    bands: Sequence[int] = (),
    options: RotationOptions | None = None,
    progress: Progress = silent,
) -> Matrix:
    """Return a rotation under which prefixes rank as the full width does, as nearly as possible.

    Listwise KL from the softmax over the detached full-width cosines of a batch to that over the
    cosines of each prefix, summed over `dims`; see `SelfDistillation`. No labels, no queries.

    Args:
        rows: Unit rows, at least two.
        dims: Ascending widths below the full one.
        start: Rotation to begin with, e.g. the uncentred PCA; rows are multiplied from the left.
        bands: Ascending widths. The turn away from `start` stays within the bands between them, so
            that prefixes of these widths keep the scores that `start` gives them.
        options: How; see `RotationOptions`.
        progress: Counts steps.

    Raises:
        DimensionError: If a width is not below the full one.
        DataError: If there are fewer than two rows.
        TrainingError: If the loss is no longer finite.
    """
    options = options or RotationOptions()
    if len(rows) < 2:
        raise DataError(
            f"`rows` must hold at least two vectors to rank, got {len(rows)}. Give more."
        )
    widths = (*check_dims(dims, start.shape[0] - 1), start.shape[0])
    vectors = torch.from_numpy(np.ascontiguousarray(rows))
    ranked = _with_codes(SelfDistillation(widths, temperature=options.temperature), options)
    spread = SpreadOut(widths)
    generator = np.random.default_rng(options.seed)
    num_seeds = min(options.seeds_per_batch, len(rows))
    num_neighbours = min(options.neighbours_per_seed, len(rows) - 1)

    def draw() -> list[Tensor]:
        seeds = torch.from_numpy(generator.choice(len(vectors), num_seeds, replace=False))
        neighbours = nearest_rows(vectors, seeds, num_neighbours)
        # Sorted, so that the batch does not depend on the order in which neighbours are found.
        batch = torch.unique(torch.cat([seeds, neighbours.flatten()]))
        return [vectors[batch], vectors[seeds]]

    def loss(batch: Tensor, drawn: Tensor) -> Tensor:
        total: Tensor = ranked.value(batch).total
        if options.spread_out_weight:
            total = total + options.spread_out_weight * spread.value(drawn).total
        return total

    step = _Step(draw=draw, loss=loss, num_drawn_from=len(rows))
    return _learn(step, rows, widths, start=start, bands=bands, options=options, progress=progress)


def learn_supervised_rotation(
    anchors: Rows,
    positives: Rows,
    dims: Sequence[int],
    *,
    groups: Int64[np.ndarray, " rows"],
    start: Matrix,
    options: RotationOptions | None = None,
    progress: Progress = silent,
) -> Matrix:
    """Return a rotation under which prefixes tell the positive of an anchor from those of others.

    Nested InfoNCE in both directions over pairs that belong together; see `NestedInfoNCE`. The full
    width is where it was: only what comes first is learned.

    Args:
        anchors: Unit rows.
        positives: Unit rows; row i belongs to anchor i.
        dims: Ascending widths below the full one.
        groups: What each pair is about: pairs of one group are no negatives of each other.
        start: See `learn_rotation`.
        options: See `RotationOptions`; `seeds_per_batch` counts pairs, neighbours are not drawn.
        progress: Counts steps.

    Raises:
        DimensionError: If a width is not below the full one.
        DataError: If there are fewer than two pairs.
        TrainingError: If the loss is no longer finite.
    """
    options = options or RotationOptions()
    if len(anchors) < 2:
        raise DataError(
            f"`anchors` must hold at least two rows to tell apart, got {len(anchors)}. Give more pairs."
        )
    widths = (*check_dims(dims, start.shape[0] - 1), start.shape[0])
    sides = [torch.from_numpy(np.ascontiguousarray(side)) for side in (anchors, positives)]
    about = torch.from_numpy(groups)
    contrast = _with_codes(
        NestedInfoNCE(widths, temperature=options.temperature, symmetric=True), options
    )
    spread = SpreadOut(widths)
    generator = np.random.default_rng(options.seed)
    num_pairs = min(options.seeds_per_batch, len(anchors))
    drawn = torch.empty(0, dtype=torch.int64)

    def draw() -> list[Tensor]:
        nonlocal drawn
        drawn = torch.from_numpy(generator.choice(len(about), num_pairs, replace=False))
        return [side[drawn] for side in sides]

    def loss(left: Tensor, right: Tensor) -> Tensor:
        of_pairs = {"query_groups": about[drawn], "document_groups": about[drawn]}
        total: Tensor = contrast.value(left, right, **of_pairs).total
        if options.spread_out_weight:
            total = total + options.spread_out_weight * spread.value(left, right, **of_pairs).total
        return total

    step = _Step(draw=draw, loss=loss, num_drawn_from=len(anchors))
    both = np.concatenate([anchors, positives])
    return _learn(step, both, widths, start=start, bands=(), options=options, progress=progress)


def nearest_rows(vectors: Float[Tensor, "rows dim"], seeds: Tensor, num_neighbours: int) -> Tensor:
    """Return the nearest rows of some rows by cosine, themselves left out, of shape (seeds, neighbours)."""
    scores = vectors[seeds] @ vectors.T
    scores[torch.arange(len(seeds)), seeds] = -torch.inf
    return scores.topk(num_neighbours, dim=1).indices


def _with_codes(loss: SelfDistillation | NestedInfoNCE, options: RotationOptions) -> Any:
    return QuantizedPrefixes(loss, options.dtypes) if options.dtypes else loss


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What differs between learning from documents and from pairs.

    Attributes:
        draw: Returns the batches of a step, not turned yet.
        loss: Takes them turned.
        num_drawn_from: Rows, or pairs, that it draws from.
    """

    draw: Callable[[], list[Tensor]]
    loss: Callable[..., Tensor]
    num_drawn_from: int


def _learn(
    step: _Step,
    rows: Rows,
    widths: Sequence[int],
    *,
    start: Matrix,
    bands: Sequence[int],
    options: RotationOptions,
    progress: Progress,
) -> Matrix:
    by_coordinate = bool(options.dtypes)
    turning = Turning(start, may_turn(widths, bands, by_coordinate=by_coordinate))
    num_steps = options.steps_for(step.num_drawn_from)
    for done in range(num_steps):
        turned = [(batch @ turning.rotation).requires_grad_() for batch in step.draw()]
        total = step.loss(*turned)
        if not torch.isfinite(total):
            raise TrainingError(
                f"the loss of the rotation is {float(total.detach())} at step {done + 1}. Lower the learning rate, or "
                f"raise the temperature."
            )
        total.backward()
        turning.step(turned, options.learning_rate * (1 - done / num_steps))
        progress(LABEL, done + 1, num_steps)
    learned = turning.finish()
    return learned if by_coordinate else in_principal_axes(learned, rows, (*bands, *widths[:-1]))


def may_turn(
    widths: Sequence[int], bands: Sequence[int], *, by_coordinate: bool
) -> Bool[np.ndarray, "dim dim"]:
    """Return which pairs of coordinates a turn may mix.

    Cosines of prefixes do not change when coordinates between two neighbouring widths are mixed. The
    gradient there is rounding alone, which Adam would blow up to full steps, so these pairs stay as
    they are, unless codes are learned for, which see single coordinates.

    Args:
        widths: Ascending, the last the full one.
        bands: Only pairs within one of the bands between these widths may turn.
        by_coordinate: Whether the loss depends on single coordinates.
    """
    coordinates = np.arange(widths[-1])
    band = np.searchsorted(np.asarray(bands, np.int64), coordinates, side="right")
    same_band = np.equal.outer(band, band)
    if by_coordinate:
        return same_band
    step = np.searchsorted(np.asarray(widths, np.int64), coordinates, side="right")
    return same_band & np.not_equal.outer(step, step)


@final
class Turning:
    """A rotation and Adam's moments of its turn.

    Attributes:
        rotation: R, float32, of shape (dim, dim).
    """

    def __init__(self, start: Matrix, may_turn: Bool[np.ndarray, "dim dim"]) -> None:
        """Begin at a rotation, and turn only the pairs of coordinates that may turn."""
        self.rotation = torch.from_numpy(start.astype(np.float32))
        dim = len(self.rotation)
        self._may_turn = torch.from_numpy(may_turn.astype(np.float32))
        self._reach = reach_of(may_turn)
        self._first = torch.zeros(dim, dim)
        self._second = torch.zeros(dim, dim)
        self._num_steps = 0

    def step(self, turned: Sequence[Tensor], learning_rate: float) -> None:
        """Turn once.

        Args:
            turned: Batches of rows times R, with gradients; those without are passed over.
            learning_rate: Of Adam.
        """
        slope = tangent(turned).mul_(self._may_turn)
        self._num_steps += 1
        self._first.lerp_(slope, 1 - FIRST_DECAY)
        self._second.lerp_(slope.square(), 1 - SECOND_DECAY)
        first = self._first / (1 - FIRST_DECAY**self._num_steps)
        second = self._second / (1 - SECOND_DECAY**self._num_steps)
        turn = first.div_(second.sqrt_().add_(SMALLEST_SLOPE)).mul_(-learning_rate)
        self.rotation = turned_by(self.rotation, turn, reach=self._reach)
        if self._num_steps % POLISH_EVERY == 0:
            self.rotation = nearest_rotation(self.rotation)

    def finish(self) -> Matrix:
        """Return the rotation in float64, orthogonal to rounding."""
        exact: Matrix = nearest_rotation(self.rotation.double()).numpy()
        return exact


def tangent(turned: Sequence[Tensor]) -> Float[Tensor, "dim dim"]:
    """Return the gradient with respect to K at K = 0 of a loss of the rows turned by R exp(K)."""
    products = [rows.detach().T @ rows.grad for rows in turned if rows.grad is not None]
    total = torch.stack(products).sum(0)
    return total - total.T


def reach_of(may_turn: Bool[np.ndarray, "dim dim"]) -> int:
    """Return the coordinate from which on no two turn into each other: the widest width cut at."""
    coordinates = np.arange(len(may_turn))
    smaller_of_pair = np.minimum.outer(coordinates, coordinates)
    return int(smaller_of_pair[may_turn].max(initial=-1)) + 1


def turned_by(
    rotation: Float[Tensor, "dim dim"], turn: Float[Tensor, "dim dim"], *, reach: int
) -> Float[Tensor, "dim dim"]:
    """Return R exp(K) for a small antisymmetric K, to the fourth power of K.

    Args:
        rotation: R.
        turn: K.
        reach: K is zero where both coordinates lie at or beyond this one; most of K, where a wide
            embedding is cut at small widths alone.
    """
    term, result = rotation, rotation.clone()
    for power in range(1, 5):
        beyond = term[:, :reach] @ turn[:reach, reach:]
        term = torch.cat([term @ turn[:, :reach], beyond], dim=1).div_(power)
        result += term
    return result


def nearest_rotation(matrix: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """Return the orthogonal matrix nearest to one that is almost orthogonal.

    Newton's iteration for the polar factor, X <- X (3 - X^T X) / 2 (Higham 2008, Functions of Matrices,
    section 8.3), which doubles the digits at every turn.
    """
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    for _ in range(3):
        matrix = matrix @ (1.5 * identity - 0.5 * (matrix.T @ matrix))
    return matrix
