"""Scalable Vector Search's Vamana graph (Subramanya et al. 2019; Aguerrebere et al. 2023, arXiv:2304.04759).

The package comes under Intel's own licence, and its compressed codes (LVQ) run on Intel processors only.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, ClassVar, final

import numpy as np
import svs
from jaxtyping import Float, Float32, Int64

from nestling.core import Dtype
from nestling.core.files import fsync_folder
from nestling.core.progress import Progress, silent
from nestling.errors import FormatError
from nestling.search.engines.base import Engine, EngineFound, Setting
from nestling.search.engines.own_scores import OwnScores, unit_rows
from nestling.search.rescore import norms_of, pick_best, rank_products
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier

CONFIG, LINKS, CODES = "config", "graph", "data"

ALPHA = 0.95
"""How much nearer another neighbour must be for a link to be left out; below 1 for inner products."""

PLAIN_TYPES = {32: np.float32, 16: np.float16}
LVQ_BITS = frozenset({(4, 0), (4, 4), (4, 8), (8, 0), (8, 8)})

FACTORS_ASKED = (1, 2, 4, 8)
"""Rows asked for, over those that a filter of the same size drawn at random would call for."""

LENGTH_SLACK = 1e-3
"""How far from 1 lengths may be for products to lead a walk as cosines would."""

SCAN_SHARE = 16
"""Below one allowed row in so many, they are better read one by one."""


@final
class VamanaEngine(Engine):
    """Walks a flat graph of near neighbours, over codes of its own.

    The package prints a line and ends the process if it is asked for LVQ codes on a processor that is
    not Intel's, so that this class looks first. Where its codes can be those of the tier, so are its
    scores; other codes are scored again from the tier. It knows no filter: more rows are asked for, twice as
    many each time, until enough of them are allowed; past eight times what a filter drawn at random
    would call for it gives up, and a scan finds the rest.
    """

    name: ClassVar[str] = "vamana"
    checks_rows: ClassVar[bool] = True
    effort: ClassVar[str | None] = "window"
    formats: ClassVar[frozenset[Dtype]] = frozenset(
        {Dtype.FLOAT32, Dtype.FLOAT16, Dtype.INT8, Dtype.INT4}
    )
    build_settings: ClassVar[Mapping[str, Setting]] = {
        "degree": Setting(default=32, low=2, high=512, help="links per row at most"),
        "build_window": Setting(
            default=100,
            low=1,
            high=4096,
            help="candidates kept while a row's neighbours are sought",
        ),
        "bits": Setting(
            default=16,
            low=4,
            high=32,
            help="bits per code: 32 or 16 float, 8 or 4 LVQ (Intel only)",
        ),
        "residual_bits": Setting(
            default=0, low=0, high=8, help="bits of a second LVQ code that refines the first"
        ),
    }
    search_settings: ClassVar[Mapping[str, Setting]] = {
        "window": Setting(
            default=40, low=1, high=65_536, help="candidates kept while the graph is walked"
        )
    }

    def __init__(self, tier: Tier, index: Any, num_rows: int, settings: Mapping[str, int]) -> None:
        self._tier = tier
        self._scores = OwnScores(tier)
        self._index = index
        self.num_rows = num_rows
        self._bytes_per_row = _bytes_per_row(tier, settings)
        self._norms = norms_of(tier)
        self._has_own_codes = not _takes_codes(tier, num_rows, settings)
        self._lock = Lock()
        self._window = self._num_threads = 0

    @classmethod
    def build(
        cls,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "VamanaEngine":
        """Link all rows, and only then compress them.

        Raises:
            FormatError: If there are no codes of so many bits, or none on this processor.
        """
        bits = _checked_bits(tier, settings)
        num_rows = len(tier)
        if not num_rows:
            return cls(tier, None, 0, settings)
        if _takes_codes(tier, num_rows, settings):
            tier.ensure_span(0, num_rows)
            rows = np.ascontiguousarray(tier.codes[:, : tier.dim])
        else:
            rows = unit_rows(tier, 0, num_rows)
            rows = rows.astype(PLAIN_TYPES.get(bits, np.float32), copy=False)
        parameters = svs.VamanaBuildParameters(
            alpha=ALPHA, graph_max_degree=settings["degree"], window_size=settings["build_window"]
        )
        index = svs.Vamana.build(parameters, rows, svs.DistanceType.MIP, num_threads=num_threads)
        if bits not in PLAIN_TYPES:
            with TemporaryDirectory() as folder:
                index.save(*_folders(Path(folder)))
                whole = svs.VectorDataLoader(f"{folder}/{CODES}", svs.DataType.float32)
                codes = svs.LVQLoader(whole, primary=bits, residual=settings["residual_bits"])
                index = _opened(Path(folder), codes)
        progress("link rows", num_rows, num_rows)
        return cls(tier, index, num_rows, settings)

    def search(
        self,
        queries: Float32[np.ndarray, "queries width"],
        k: int,
        *,
        settings: Mapping[str, int],
        allowed: RowSet | None = None,
        num_threads: int = 1,
    ) -> EngineFound:
        """Return the best rows met on the walk, at most `k` per query."""
        if self._index is None or not len(queries):
            empty = np.full((len(queries), 1), -1, dtype=np.int64)
            return EngineFound(pick_best(empty, np.empty(empty.shape, np.float32), k))
        # The length of a query changes no order.
        prefixes = np.ascontiguousarray(queries[:, : self._tier.dim])
        window = settings["window"]
        if allowed is None:
            rows, products = self._walk(prefixes, min(k, self.num_rows), window, num_threads)
        else:
            rows, products = self._walk_allowed(prefixes, k, window, allowed, num_threads)
        if self._has_own_codes:
            rows = _without_repeats(rows)
            return EngineFound(self._scores.best(queries, rows, k, num_threads=num_threads))
        return EngineFound(rank_products(prefixes, self._norms, rows, products, k))

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write parameters, links and codes, each into a folder of its own."""
        if self._index is None:
            return ()
        self._index.save(*_folders(folder))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for each in (*_folders(folder), folder):
            fsync_folder(Path(each))
        return tuple(path.relative_to(folder).as_posix() for path in files)

    @classmethod
    def load(
        cls,
        folder: Path,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_rows: int,
    ) -> "VamanaEngine":
        """Read links and codes.

        Raises:
            FormatError: If the codes cannot be used on this processor.
        """
        bits = _checked_bits(tier, settings)
        if not num_rows:
            return cls(tier, None, 0, settings)
        codes = f"{folder}/{CODES}"
        plain = {32: svs.DataType.float32, 16: svs.DataType.float16}.get(bits)
        loader = svs.LVQLoader(codes) if plain is None else svs.VectorDataLoader(codes, plain)
        return cls(tier, _opened(folder, loader), num_rows, settings)

    def page_size(self, settings: Mapping[str, int]) -> int:
        """Return the candidates that a walk keeps."""
        return settings["window"]

    def prefers_scan(self, num_allowed: int) -> bool:
        """Say whether walking past rows that may not be found would take longer than reading the rest."""
        return num_allowed * SCAN_SHARE < self.num_rows

    @property
    def num_bytes(self) -> int:
        """The links and the codes."""
        return self.num_rows * self._bytes_per_row

    def _walk(
        self, prefixes: Float32[np.ndarray, "queries dim"], k: int, window: int, num_threads: int
    ) -> tuple[Int64[np.ndarray, "queries k"], Float32[np.ndarray, "queries k"]]:
        window = min(max(window, k), self.num_rows)
        # Both are properties of the index, and starting threads takes a hundred searches' time.
        with self._lock:
            if window != self._window:
                self._index.search_window_size = self._window = window
            if num_threads != self._num_threads and len(prefixes) > 1:
                self._index.num_threads = self._num_threads = num_threads
            found, scores = self._index.search(prefixes, k)
        return found.view(np.int64), scores

    def _walk_allowed(
        self,
        prefixes: Float32[np.ndarray, "queries dim"],
        k: int,
        window: int,
        allowed: RowSet,
        num_threads: int,
    ) -> tuple[Int64[np.ndarray, "queries found"], Float32[np.ndarray, "queries found"]]:
        num_allowed = int(np.count_nonzero(allowed.mask[: self.num_rows]))
        if not num_allowed:
            empty = np.full((len(prefixes), 1), -1, dtype=np.int64)
            return empty, np.empty(empty.shape, np.float32)
        share = self.num_rows / num_allowed
        wanted = min(k, num_allowed)
        first_asked = int(max(window, k) * share)
        for factor in FACTORS_ASKED:
            num_asked = min(factor * first_asked, self.num_rows)
            rows, scores = self._walk(prefixes, num_asked, window, num_threads)
            rows = _without_repeats(rows)
            rows = np.where((rows >= 0) & allowed.mask[rows], rows, -1)
            if num_asked == self.num_rows or ((rows >= 0).sum(axis=1) >= wanted).all():
                break
        return rows, scores


def _without_repeats(rows: Int64[np.ndarray, "queries k"]) -> Int64[np.ndarray, "queries k"]:
    """Return rows as walked to, with -1 where a place was not filled: the walk leaves row 0 there."""
    is_first = rows == 0
    return np.where(is_first & (np.cumsum(is_first, axis=1) > 1), -1, rows)


def _takes_codes(tier: Tier, num_rows: int, settings: Mapping[str, int]) -> bool:
    """Say whether the graph can walk over the tier's own codes."""
    if PLAIN_TYPES.get(_bits(tier, settings)) != tier.codes.dtype:
        return False
    norms = tier.norms
    return norms is None or bool((np.abs(norms[:num_rows] - 1) <= LENGTH_SLACK).all())


def _folders(folder: Path) -> tuple[str, str, str]:
    return f"{folder}/{CONFIG}", f"{folder}/{LINKS}", f"{folder}/{CODES}"


def _opened(folder: Path, codes: Any) -> Any:
    config, links, _ = _folders(folder)
    return svs.Vamana(config, svs.GraphLoader(links), codes, svs.DistanceType.MIP)


def _bits(tier: Tier, settings: Mapping[str, int]) -> int:
    return settings["bits"] or (32 if tier.dtype is Dtype.FLOAT32 else 16)


def _bytes_per_row(tier: Tier, settings: Mapping[str, int]) -> int:
    bits = _bits(tier, settings)
    # An LVQ code brings its two float16 bounds; a list of links brings its length.
    bounds = 0 if bits in PLAIN_TYPES else 4
    num_bits = tier.dim * (bits + settings["residual_bits"])
    return (num_bits + 7) // 8 + bounds + 4 * (settings["degree"] + 1)


def _checked_bits(tier: Tier, settings: Mapping[str, int]) -> int:
    bits, residual = _bits(tier, settings), settings["residual_bits"]
    if bits in PLAIN_TYPES and not residual:
        return bits
    if (bits, residual) not in LVQ_BITS:
        raise FormatError(
            f"`bits` and `residual_bits` of the engine 'vamana' must be 32 or 16 and 0, or one of "
            f"{', '.join(f'{one} and {other}' for one, other in sorted(LVQ_BITS))}, got {bits} and "
            f"{residual}. Change the plan."
        )
    if not runs_lvq():
        raise FormatError(
            f"`bits` {bits} of the engine 'vamana' are LVQ codes, which run on Intel processors only, and "
            f"this is none. Set `bits` to 16, or take the engine 'graph'."
        )
    return bits


def runs_lvq() -> bool:
    """Say whether the package does not end the process when it is asked for LVQ codes."""
    # The wheels are for Linux on x86 only.
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "GenuineIntel" in cpu.read_text()
