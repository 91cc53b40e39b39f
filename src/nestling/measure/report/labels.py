"""Names and numbers as people read them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from nestling.core import Dtype

_METRIC_WORDS = {
    "ndcg": "nDCG",
    "mrr": "MRR",
    "map": "MAP",
    "spearman": "Spearman",
    "1nn": "1-NN",
}
_FAMILY_LABELS = {"pca": "PCA"}


def metric_label(metric: str) -> str:
    """Return a metric's name for people: "ndcg_at_10" gives "nDCG@10"."""
    return " ".join(_metric_word(word) for word in metric.replace("_at_", "@").split("_"))


def _metric_word(word: str) -> str:
    head, at, cutoff = word.partition("@")
    return _METRIC_WORDS.get(head, head) + at + cutoff


def family_label(family: str) -> str:
    """Return a family's name for people."""
    return _FAMILY_LABELS.get(family, family)


def cut_label(family: str, dim: int, dtype: Dtype) -> str:
    """Return one cut in words, e.g. "64-d int8 prefix"."""
    return f"{dim}-d {dtype} {family_label(family)}"


def percent(share: float | None) -> str:
    """Return a share as a percentage, or a dash."""
    return "\N{EN DASH}" if share is None else f"{100 * share:.1f}%"


def percent_interval(interval: tuple[float, float] | None) -> str:
    """Return an interval of shares as percentages; "" where there is none or it has no width."""
    if interval is None or interval[0] == interval[1]:
        return ""
    return f"{100 * interval[0]:.1f}\N{EN DASH}{100 * interval[1]:.1f}%"


def times(ratio: float) -> str:
    """Return how many times smaller, e.g. 7.5 and a multiplication sign."""
    digits = 1 if ratio < 10 and ratio != round(ratio) else 0
    return f"{ratio:,.{digits}f}\N{MULTIPLICATION SIGN}"


def share_text(share: float) -> str:
    """Return a share that was asked for with the digits that it has, e.g. "99.25%"."""
    return f"{100 * share:.6g}%"


def low_text(share: float) -> str:
    """Return a share rounded down: a lower bound of 98.96% must not read as one of 99%."""
    return f"{math.floor(round(1000 * share, 6)) / 10:.1f}%"


def loss_text(loss: float, is_relative: bool) -> str:
    """Return a loss, 0 to 1, in the unit of the tolerance: a percentage, or points of 0 to 100."""
    return f"{100 * loss:.2f}{'%' if is_relative else ' points'}"


def bound_text(bound: float, is_relative: bool) -> str:
    """Return a bound on a loss as `loss_text` does, but rounded up: rounded down it is no bound."""
    # `loss_bound` leaves 6e-8 above where the test turns, which is not worth a digit.
    return loss_text(math.ceil(round(10_000 * bound, 2)) / 10_000, is_relative)


def about(number: int) -> str:
    """Return an estimate, rounded up to two digits: it is no better than that."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return f"about {math.ceil(number / unit) * unit:,}"


def flatten(value: Any) -> str:
    """Return a value of the environment in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {flatten(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(flatten(inner) for inner in value)
    return str(value)


def keep_widths_whole(text: str) -> Markup:
    """Return text as HTML in which no line ends inside "64-d"."""
    return Markup(re.sub(r"(\d+-d)\b", r'<span class="whole">\1</span>', str(escape(text))))  # noqa: S704  (escaped)
