"""The ways to cut that are compared: prefixes, and the baselines that compete with them.

A prefix is only worth having if it beats what anybody can do to any vector at the same number of
bytes: rotate by PCA and cut, pick coordinates at random, or keep the full width in fewer bits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from jaxtyping import Float, Float32, Int

from nestling.core import (
    CODECS,
    Dtype,
    Projection,
    ScalarCodec,
    normalize,
    random_rotation,
)

SAMPLE_ROWS = 10_000
"""Corpus rows that the PCA rotation is fitted on; all of a smaller corpus."""

NUM_RANDOM_DRAWS = 5
"""Random choices of coordinates whose scores are averaged."""

PCA_DTYPES = (Dtype.FLOAT32, Dtype.INT8, Dtype.INT4, Dtype.ROTATED_BINARY)
"""Formats that PCA is measured in if they are asked for."""

Vectors = Float[np.ndarray, "rows embed_dim"]
Chunk = Float32[np.ndarray, "rows embed_dim"]
Map = Callable[[Chunk], Chunk]


class Rotation:
    """An orthogonal change of basis: full-width scores stay what they were."""

    def __init__(self, basis: Float32[np.ndarray, "embed_dim embed_dim"]) -> None:
        self.basis = basis
        self._turn = Projection(basis)

    @classmethod
    def fit_pca(cls, sample: Chunk) -> "Rotation":
        """Return the uncentred PCA of unit rows: eigenvectors of X^T X, largest eigenvalue first.

        Centring would change full-width cosines: the mean vector carries signal.
        """
        unit = normalize(sample)
        _, vectors = np.linalg.eigh((unit.T @ unit).astype(np.float64))
        return cls(np.ascontiguousarray(vectors[:, ::-1], dtype=np.float32))

    def __call__(self, rows: Chunk) -> Chunk:
        """Return the rows in the new basis."""
        return self._turn(rows)


class PrefixRotation:
    """The rotation inside the prefix of one width, perhaps of coordinates in another basis.

    What lies behind the prefix is zero: these rows are compared at this width alone.
    """

    def __init__(self, dim: int, basis: Float32[np.ndarray, "embed_dim embed_dim"] | None) -> None:
        rotation = random_rotation(dim)
        self._turn = Projection(rotation if basis is None else basis[:, :dim] @ rotation)

    def __call__(self, rows: Chunk) -> Chunk:
        """Return the rows with their prefix rotated."""
        height, dim = self._turn.matrix.shape
        turned = np.zeros_like(rows)
        turned[:, :dim] = self._turn(rows[:, :height])
        return turned


class Shuffle:
    """Coordinates in a random order, so that a prefix is a random choice of them."""

    def __init__(self, order: Int[np.ndarray, " embed_dim"]) -> None:
        self.order = order

    def __call__(self, rows: Chunk) -> Chunk:
        """Return the rows with their coordinates in the new order."""
        return rows[:, self.order]


class Coder:
    """Round to integer codes and back; may be called from several threads.

    Attributes:
        num_clipped: Values outside the calibrated range among all rows coded so far.
    """

    def __init__(self, codec: ScalarCodec) -> None:
        self.codec = codec
        self.num_clipped = 0
        self._lock = Lock()

    def __call__(self, rows: Chunk) -> Chunk:
        """Return the values that the codes of the rows stand for."""
        codes, num_clipped = self.codec.encode(rows)
        with self._lock:
            self.num_clipped += num_clipped
        return self.codec.decode(codes)


def round_to_float16(rows: Chunk) -> Chunk:
    """Return unit rows rounded to float16 and back; unit length keeps any scale within range."""
    return normalize(rows).astype(np.float16).astype(np.float32)


def take_signs(rows: Chunk) -> Chunk:
    """Return +1 where a value is positive and -1 elsewhere, as stored sign bits decode."""
    return np.where(rows > 0, np.float32(1.0), np.float32(-1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One way to cut, at any width.

    The corpus side is coded, the query side stays float32, as in search.

    Attributes:
        family: "prefix", "pca" or "random".
        dtype: Number format of the corpus side.
        dims: Widths at which it is measured.
        turn: What happens to both sides before the cut, or None.
        code: What the number format does to the corpus side after `turn`, or None for float32.
        draw: Number of the random draw.
    """

    family: str
    dtype: Dtype
    dims: tuple[int, ...]
    turn: Map | None = None
    code: Map | None = None
    draw: int = 0

    @property
    def name(self) -> str:
        """Unique among the cuts of one sweep."""
        return f"{self.family} {self.dtype} {self.dims} {self.draw}"

    @property
    def num_clipped(self) -> int:
        """Values that int8 clipped so far; 0 for other formats. int4 clips by design."""
        if self.dtype is Dtype.INT8 and isinstance(self.code, Coder):
            return self.code.num_clipped
        return 0

    @property
    def is_plain(self) -> bool:
        """Whether vectors are scored as they are."""
        return self.turn is None and self.code is None

    def query_side(self, queries: Chunk) -> Chunk:
        """Return the query vectors as this cut scores them."""
        return queries if self.turn is None else self.turn(queries)

    def corpus_side(self, rows: Chunk) -> Chunk:
        """Return corpus vectors, whole or a chunk, as this cut scores them."""
        turned = rows if self.turn is None else self.turn(rows)
        return turned if self.code is None else self.code(turned)


def make_cuts(
    sample: Float32[np.ndarray, "kept embed_dim"],
    *,
    dims: Sequence[int],
    dtypes: Sequence[Dtype],
    seed: int,
    corpus: Vectors | None = None,
    baselines: bool = True,
) -> list[Cut]:
    """Return the cuts to compare; the first is the float32 prefix, which holds the reference.

    Prefixes in every format, and the full width in int8 and binary in any case; PCA in float32,
    and in int8, int4 and rotated binary if they are asked for; random coordinates in float32, drawn
    `NUM_RANDOM_DRAWS` times, below the full width (all coordinates in another order are the full
    width once more). A cut in rotated binary has one width, since its bits do not nest.

    Args:
        sample: Corpus rows that the rotation is fitted on.
        dims: Ascending widths, the last the full one.
        dtypes: Number formats asked for; float32 is always among them.
        seed: Of the random draws.
        corpus: What int8 and int4 are calibrated on for the prefixes, as an index does: all rows
            of the corpus. None takes the sample.
        baselines: False leaves the prefixes in the formats asked for, and nothing beside them.
    """
    widths = tuple(dims)
    asked = {Dtype.FLOAT32, *dtypes}
    always = {Dtype.INT8, Dtype.BINARY} - asked if baselines else set()
    codecs = _calibrate(sample if corpus is None else corpus, asked | always)
    cuts = _family("prefix", [dtype for dtype in Dtype if dtype in asked], widths, codecs)
    cuts += _family("prefix", [dtype for dtype in Dtype if dtype in always], widths[-1:], codecs)
    if not baselines:
        return cuts
    rotation = Rotation.fit_pca(sample)
    rotated_dtypes = [dtype for dtype in PCA_DTYPES if dtype in asked]
    rotated_codecs = _calibrate(rotation(sample), rotated_dtypes)
    cuts += _family("pca", rotated_dtypes, widths, rotated_codecs, rotation)
    generator = np.random.default_rng(seed)
    for draw in range(NUM_RANDOM_DRAWS if len(widths) > 1 else 0):
        shuffle = Shuffle(generator.permutation(sample.shape[1]))
        cuts.append(
            Cut(family="random", dtype=Dtype.FLOAT32, dims=widths[:-1], turn=shuffle, draw=draw)
        )
    return cuts


def sample_rows(corpus: Vectors, *, seed: int) -> Float32[np.ndarray, "kept embed_dim"]:
    """Return a seeded sample of at most `SAMPLE_ROWS` rows, in corpus order."""
    if len(corpus) <= SAMPLE_ROWS:
        return np.asarray(corpus, dtype=np.float32)
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(corpus), SAMPLE_ROWS, replace=False)
    return np.asarray(corpus[np.sort(chosen)], dtype=np.float32)


def clipping_notes(cuts: Iterable[Cut]) -> list[str]:
    """Say how many values int8 clipped, if any."""
    return [
        f"{cut.family} {cut.dtype} clipped {cut.num_clipped:,} values outside the calibrated range"
        for cut in cuts
        if cut.num_clipped
    ]


def _calibrate(rows: Vectors, dtypes: Iterable[Dtype]) -> dict[Dtype, ScalarCodec]:
    return {dtype: CODECS[dtype].calibrate(rows) for dtype in dtypes if dtype in CODECS}


def _family(
    family: str,
    dtypes: Iterable[Dtype],
    dims: tuple[int, ...],
    codecs: Mapping[Dtype, ScalarCodec],
    rotation: Rotation | None = None,
) -> list[Cut]:
    basis = None if rotation is None else rotation.basis
    cuts = []
    for dtype in dtypes:
        if dtype is Dtype.ROTATED_BINARY:
            cuts += [
                Cut(
                    family=family,
                    dtype=dtype,
                    dims=(dim,),
                    turn=PrefixRotation(dim, basis),
                    code=take_signs,
                )
                for dim in dims
            ]
        else:
            code = _code(dtype, codecs)
            cuts.append(Cut(family=family, dtype=dtype, dims=dims, turn=rotation, code=code))
    return cuts


def _code(dtype: Dtype, codecs: Mapping[Dtype, ScalarCodec]) -> Map | None:
    if dtype in codecs:
        return Coder(codecs[dtype])
    return {Dtype.FLOAT16: round_to_float16, Dtype.BINARY: take_signs}.get(dtype)
