"""A set of rows as a bitmap: what of an index may be found."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from jaxtyping import Bool, Int64, UInt8


@final
@dataclass(frozen=True, eq=False)
class RowSet:
    """Some of the rows 0 to `num_rows` - 1, one bit each.

    Attributes:
        bits: Row r is bit r % 8 (the lowest first) of byte r // 8, as FAISS's bitmap selector reads it.
        num_rows: Rows in all, in the set or not.
    """

    bits: UInt8[np.ndarray, " bytes"]
    num_rows: int

    @classmethod
    def of_mask(cls, mask: Bool[np.ndarray, " rows"]) -> "RowSet":
        """Return the rows at which `mask` is true."""
        return cls(np.packbits(mask, bitorder="little"), len(mask))

    @classmethod
    def of_rows(cls, rows: Int64[np.ndarray, " members"], num_rows: int) -> "RowSet":
        """Return the set of `rows`, in any order."""
        mask = np.zeros(num_rows, dtype=bool)
        mask[rows] = True
        return cls.of_mask(mask)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def rows(self) -> Int64[np.ndarray, " members"]:
        """The members, ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def mask(self) -> Bool[np.ndarray, " rows"]:
        """One truth value per row."""
        return np.unpackbits(self.bits, count=self.num_rows, bitorder="little").view(bool)

    def __and__(self, other: "RowSet") -> "RowSet":
        if self.num_rows != other.num_rows:
            raise ValueError(
                f"sets of {self.num_rows} and {other.num_rows} rows have no common part"
            )
        return RowSet(self.bits & other.bits, self.num_rows)
