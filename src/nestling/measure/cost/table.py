"""The cost table: plain data."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Place = Literal["RAM", "disk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What things cost per month; written into a TOML file by the user.

    Attributes:
        currency: Of all prices, e.g. "USD".
        ram_gb: One GB (10**9 bytes) of RAM.
        disk_gb: One GB of disk.
        core: One processor core.
        utilisation: Share of a core's time that queries may take, in (0, 1].
    """

    currency: str
    ram_gb: float
    disk_gb: float
    core: float
    utilisation: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is to be served.

    Attributes:
        replicas: Copies of the whole index.
        queries_per_second: All replicas together.
    """

    replicas: int = 1
    queries_per_second: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesPart:
    """What one part of an index takes.

    Attributes:
        name: E.g. "vectors", "64-d int8 codes", "graph", "catalogue".
        place: Where it lives.
        num_bytes: Of one replica.
    """

    name: str
    place: Place
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """A plan with so many documents, at unchanged settings.

    Attributes:
        num_documents: How many.
        parts: What one replica takes.
        latency_ms: Mean time of a single query on one thread.
        build_s: Time to make head tier and engine.
        is_foretold: Whether it was predicted; measured otherwise.
        money_per_month: All replicas and cores; None without prices.
    """

    num_documents: int
    parts: tuple[BytesPart, ...]
    latency_ms: float
    build_s: float
    is_foretold: bool
    money_per_month: float | None

    @property
    def ram_bytes(self) -> int:
        """RAM of one replica."""
        return sum(part.num_bytes for part in self.parts if part.place == "RAM")

    @property
    def disk_bytes(self) -> int:
        """Disk of one replica."""
        return sum(part.num_bytes for part in self.parts if part.place == "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """What a plan would cost.

    Attributes:
        description: The plan in words.
        rows: Ascending documents; the first is what was measured.
        load: What is to be served.
        prices: None if nobody gave any.
        measured_rows: Sizes that the laws were fitted to.
        calibration_s: How long that took.
        notes: What the prediction leaves out, in sentences.
    """

    description: str
    rows: tuple[CostRow, ...]
    load: Load
    prices: Prices | None
    measured_rows: tuple[int, ...]
    calibration_s: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data, sums included."""
        data = asdict(self)
        for row, written in zip(self.rows, data["rows"], strict=True):
            written |= {"ram_bytes": row.ram_bytes, "disk_bytes": row.disk_bytes}
        return data
