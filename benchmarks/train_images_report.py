"""The report of `train_images.py`: tables, paired intervals, and a verdict on every line."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from report import cpu_name, describe_revision
from scipy import stats
from train_images_runs import BENCHES, Run, describe, hash_of_code

from nestling.measure.interpolation import check_interpolation

Results = Mapping[Run, Mapping[str, Any]]
CONFIDENCE = 0.95
TOLERANCE = 0.01
"""How far outside its neighbours a width in between may lie: one point."""

FIRST_D_GOAL = 0.2
FULL_WIDTH_GOAL = 0.01


class Difference(NamedTuple):
    """Mean of paired differences over seeds, and its t interval; in shares, not points."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Pair by seed: both arms of a seed see the same images in the same order."""
    values = first - second
    mean = float(values.mean())
    if len(values) < 2:
        return Difference(mean, -np.inf, np.inf)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return Difference(mean, mean - half, mean + half)


def judged(is_met: bool, difference: Difference | None = None, *, goal: float = 0.0) -> str:
    """A miss within the interval is a miss, but says so."""
    if is_met:
        return "met"
    within = difference is not None and difference.high >= goal
    return "MISSED, within the interval" if within else "MISSED"


class DataSet:
    """All numbers on one data set, by arm, as arrays over seeds."""

    def __init__(self, name: str, results: Results, boosts: Mapping[tuple[str, str], str]) -> None:
        self.name = name
        self.dims = BENCHES[name].dims
        self.boosts = {head: boosts[name, head] for head in ("untied", "tied") if boosts}
        self._runs = {run: numbers for run, numbers in results.items() if run.dataset == name}
        self.seeds = sorted({run.seed for run in self._runs})

    def of_arm(self, arm: str) -> list[Mapping[str, Any]]:
        """Numbers of "untied", "tied boosted", "rigid 16" ..., one per seed."""
        found = {
            run.seed: numbers for run, numbers in self._runs.items() if self._label(run) == arm
        }
        return [found[seed] for seed in self.seeds if seed in found]

    def has(self, arm: str) -> bool:
        return bool(self.of_arm(arm))

    @property
    def nested_arms(self) -> list[str]:
        arms = ("untied", "tied", "untied boosted", "tied boosted")
        return [arm for arm in arms if self.has(arm)]

    def values(self, arm: str, metric: str, dim: int) -> np.ndarray:
        """Values over seeds; "rigid" is the model trained at this width, "first" and others its cuts."""
        if arm == "rigid":
            arm = f"rigid {dim}"
        elif arm in ("first", "svd", "pca"):
            cuts = [one["cuts"] for one in self.of_arm(f"rigid {self.dims[-1]}")]
            return np.array([cut[f"{arm}_{metric}"][str(dim)] for cut in cuts])
        return np.array([one[metric][str(dim)] for one in self.of_arm(arm)])

    def mean(self, arm: str, metric: str, dim: int) -> float:
        return float(self.values(arm, metric, dim).mean())

    def compare(self, first: tuple[str, int], second: tuple[str, int], metric: str) -> Difference:
        one, other = (self.values(arm, metric, dim) for arm, dim in (first, second))
        return difference(one, other)

    @property
    def images_per_s(self) -> float:
        return float(np.median([numbers["images_per_s"] for numbers in self._runs.values()]))

    @property
    def seconds_per_run(self) -> float:
        return float(np.median([numbers["seconds"] for numbers in self._runs.values()]))

    @staticmethod
    def _label(run: Run) -> str:
        width = f" {run.dim}" if run.dim else ""
        return f"{run.arm}{width}{' boosted' if run.boost else ''}"


# --- Verdicts ----------------------------------------------------------------------------------


def verdicts(data: DataSet) -> list[str]:
    lines = [
        f"- paired intervals over {len(data.seeds)} seeds (goal: 5): {judged(len(data.seeds) >= 5)}"
    ]
    if data.has("rigid " + str(data.dims[-1])) and data.nested_arms:
        for arm in data.nested_arms:
            lines += [twice_the_width(data, arm, metric) for metric in ("head", "nn")]
        lines += [
            full_width(data, arm, metric) for arm in data.nested_arms for metric in ("head", "nn")
        ]
        lines += sixteenth(data)
        lines += boost_closes_the_gap(data)
    lines += widths_between(data)
    lines += cascade_lines(data)
    return lines


WORDS = {"head": "head", "nn": "1-NN"}


def twice_the_width(data: DataSet, arm: str, metric: str) -> str:
    pairs = [
        (narrow, data.compare((arm, wide), ("rigid", narrow), metric))
        for narrow, wide in pairwise(data.dims)
    ]
    worst_dim, worst = min(pairs, key=lambda pair: pair[1].mean)
    num_met = sum(each.mean >= 0 for _, each in pairs)
    return (
        f"- {arm}, {WORDS[metric]}: nested at 2d at least rigid at d at {num_met} of {len(pairs)} widths; the "
        f"least favourable is d = {worst_dim}, {worst} points (goal: at least 0 everywhere): "
        f"{judged(worst.mean >= 0, worst)}"
    )


def full_width(data: DataSet, arm: str, metric: str) -> str:
    full = data.dims[-1]
    gap = data.compare((arm, full), ("rigid", full), metric)
    return (
        f"- {arm}, {WORDS[metric]}: full width {gap} points from rigid (goal: within 1): "
        f"{judged(gap.mean >= -FULL_WIDTH_GOAL, gap, goal=-FULL_WIDTH_GOAL)}"
    )


def sixteenth(data: DataSet) -> list[str]:
    dim = data.dims[-1] // 16
    if not BENCHES[data.name].has_many_classes:
        return []
    lines = []
    for arm in data.nested_arms:
        for metric in ("head", "nn"):
            gain = data.compare((arm, dim), ("first", dim), metric)
            lines.append(
                f"- {arm}, {WORDS[metric]}: at {dim} of {data.dims[-1]} {gain} points above the first {dim} of "
                f"rigid (goal: 20): {judged(gain.mean >= FIRST_D_GOAL, gain, goal=FIRST_D_GOAL)}"
            )
    return lines


def boost_closes_the_gap(data: DataSet) -> list[str]:
    lines = []
    for head in ("untied", "tied"):
        boosted = f"{head} boosted"
        if not (data.has(head) and data.has(boosted)):
            continue
        for dim in data.dims[:2]:
            gap = data.compare(("rigid", dim), (head, dim), "head")
            left = data.compare((boosted, dim), ("rigid", dim), "head")
            text = f"- {head} boosted by {data.boosts[head]}, head at {dim}: "
            if gap.mean <= 0:
                text += f"without a boost {-100 * gap.mean:+.1f} points from rigid, boosted {left}: no gap to close, met"
            else:
                gained = data.compare((boosted, dim), (head, dim), "head")
                share = gained.mean / gap.mean
                text += (
                    f"the gap to rigid was {gap} points, the boost gains {gained} and leaves {left}: {share:.0%} of it "
                    f"closed (goal: half): {judged(share >= 0.5)}"
                )
            lines.append(text)
    return lines


def widths_between(data: DataSet) -> list[str]:
    lines = []
    for arm in data.nested_arms:
        rows = data.of_arm(arm)
        for metric in ("head", "nn"):
            if metric not in rows[0]["untrained"]:
                continue
            values = {dim: data.mean(arm, metric, dim) for dim in data.dims}
            for dim in map(int, rows[0]["untrained"][metric]):
                values[dim] = float(np.mean([row["untrained"][metric][str(dim)] for row in rows]))
            found = check_interpolation(values, data.dims, tolerance=TOLERANCE)
            worst = max(found, key=lambda each: abs(each.excess))
            lines.append(
                f"- {arm}, {WORDS[metric]}: {sum(each.is_between for each in found)} of {len(found)} widths in "
                f"between lie between their neighbours to one point; the worst is {worst.dim}, "
                f"{100 * worst.excess:+.1f} outside: {judged(all(each.is_between for each in found))}"
            )
    return lines


def cascade_lines(data: DataSet) -> list[str]:
    lines = []
    for arm in data.nested_arms:
        rows = [row["cascades"] for row in data.of_arm(arm)]
        for rule in rows[0]:
            mean = {
                key: float(np.mean([row[rule][key] for row in rows]))
                for key in ("accuracy", "mean_dim", "mean_cumulative_dim", "full")
            }
            lost = difference(
                *(np.array([row[rule][key] for row in rows]) for key in ("accuracy", "full"))
            )
            full = data.dims[-1]
            equal = [row[rule]["equal_dim"] for row in rows]
            fixed = [dim for dim in equal if dim is not None]
            smallest = f"{np.mean(fixed):.0f}" if fixed else "none"
            lines.append(
                f"- {arm}, {rule}: {100 * mean['accuracy']:.1f}% at {mean['mean_dim']:.1f} dims at exit, "
                f"{mean['mean_cumulative_dim']:.1f} of all widths tried; {lost} points from the full width, "
                f"{full / mean['mean_dim']:.1f}x and {full / mean['mean_cumulative_dim']:.1f}x fewer dims; the "
                f"smallest single width as accurate: {smallest} on average, in {len(fixed)} of {len(rows)} seeds "
                f"(reported; the paper claims 14x and 8x on ImageNet)"
            )
    return lines


# --- Tables ------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def accuracy_table(data: DataSet, metric: str) -> str:
    arms = [*data.nested_arms]
    if data.has(f"rigid {data.dims[-1]}"):
        arms += ["rigid", "first", "svd", *(["pca"] if metric == "nn" else [])]
    names = {
        "rigid": "rigid, one model per width",
        "first": "first coordinates of the widest rigid",
        "svd": "SVD of its classifier" if metric == "head" else "SVD of its embeddings",
        "pca": "PCA of its embeddings (centred)",
    }
    rows = []
    for arm in arms:
        if metric == "map" and arm in ("first", "svd"):
            continue
        cells = []
        for dim in data.dims:
            values = 100 * data.values(arm, metric, dim)
            spread = f" ±{values.std(ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}")
        rows.append([names.get(arm, f"nested, {arm}"), *cells])
    return table(["", *map(str, data.dims)], rows)


def difference_table(data: DataSet, metric: str) -> str:
    rows = [
        [arm, *(str(data.compare((arm, dim), ("rigid", dim), metric)) for dim in data.dims)]
        for arm in data.nested_arms
    ]
    return table(["minus rigid", *map(str, data.dims)], rows)


def between_table(data: DataSet) -> str:
    rows = []
    header: list[str] = []
    for arm in data.nested_arms:
        numbers = data.of_arm(arm)
        for metric in ("head", "nn"):
            if metric not in numbers[0]["untrained"]:
                continue
            dims = sorted(map(int, numbers[0]["untrained"][metric]))
            both = sorted([*dims, *data.dims])
            header = ["", *(f"{dim}" if dim in data.dims else f"*{dim}*" for dim in both)]
            cells = []
            for dim in both:
                values = [(n["untrained"] if dim in dims else n)[metric][str(dim)] for n in numbers]
                cells.append(f"{100 * np.mean(values):.1f}")
            rows.append([f"{arm}, {WORDS[metric]}", *cells])
    return table(header, rows)


def retrieval_table(data: DataSet) -> str:
    arm = data.nested_arms[0]
    rows = [numbers["retrieval"] for numbers in data.of_arm(arm)]
    chains = [[row[place] for row in rows] for place in range(len(rows[0]))]
    single = next(chain for chain in chains if chain[0]["kind"] == "single")

    def mean(chain: list[dict[str, Any]], metric: str) -> str:
        values, full = (np.array([row[metric] for row in each]) for each in (chain, single))
        change = "" if chain is single else f", {difference(values, full)}"
        return f"{100 * values.mean():.2f}{change}"

    lines = [
        [
            f"{chain[0]['kind']}: {chain[0]['chain']}",
            f"{chain[0]['full_scan_ratio']:.1f}x",
            *(mean(chain, metric) for metric in ("accuracy_1nn", "map_at_10_paper", "map_at_10")),
        ]
        for chain in chains
    ]
    return table(["chain", "fewer multiply-adds", "1-NN", "mAP@10 of the paper", "mAP@10"], lines)


# --- The page ----------------------------------------------------------------------------------


def machine(device: str) -> str:
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"{cpu_name()}, {os.cpu_count()} cores{gpu}"


def not_run(datasets: Sequence[str]) -> str:
    """A part of the whole says that it is one."""
    missing = [name for name in BENCHES if name not in datasets]
    here = f"On {', '.join(datasets)}."
    return f"{here} Not run: {', '.join(missing)}." if missing else here


def section(data: DataSet) -> list[str]:
    bench = BENCHES[data.name]
    blocks = [
        f"## {data.name}",
        (
            f"{describe(data.name)}; {bench.num_epochs} epochs unless said otherwise, "
            f"{data.seconds_per_run:.0f} s and {data.images_per_s:,.0f} images/s per model on one thread "
            f"(medians)."
        ),
        "\n".join(verdicts(data)),
    ]
    titles: list[tuple[str, str, Callable[[], str]]] = [
        ("Accuracy by the head", "head", lambda: accuracy_table(data, "head")),
        (
            "Accuracy by the nearest neighbour, cosine of renormalised prefixes",
            "nn",
            lambda: accuracy_table(data, "nn"),
        ),
        ("mAP@10 as the paper defines it", "map", lambda: accuracy_table(data, "map")),
    ]
    for title, metric, make in titles:
        blocks += [f"### {title}", make()]
        if data.has(f"rigid {data.dims[-1]}") and data.nested_arms:
            blocks.append(difference_table(data, metric))
    if data.nested_arms:
        blocks += ["### Widths in between (slanted: no loss looked at them)", between_table(data)]
        blocks += [
            f"### Adaptive retrieval, {data.nested_arms[0]}",
            "Change against one scan at full width in points, with its interval.",
            retrieval_table(data),
        ]
    return blocks


def _boosts(boosts: Mapping[tuple[str, str], str]) -> str:
    if not boosts:
        return ""
    chosen = "; ".join(f"{dataset}, {head}: {boost}" for (dataset, head), boost in boosts.items())
    return (
        " Boosts (weights of the first prefixes, the others 1) were chosen by the mean validation accuracy over all "
        f"widths, from a seed of their own: {chosen}."
    )


def write(
    results: Results,
    boosts: Mapping[tuple[str, str], str],
    *,
    loads: tuple[float, float],
    command: str,
    device: str,
) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("nestling", "torch", "numpy"))
    datasets = list(dict.fromkeys(run.dataset for run in results))
    blocks = [
        "# Nested image models against rigid ones",
        (
            f"{datetime.now(UTC):%Y-%m-%d}. {machine(device)}. Python {platform.python_version()}, {versions}, "
            f"revision {describe_revision() or 'unknown'}, code {hash_of_code()}. One-minute load {loads[0]:.2f} before and {loads[1]:.2f} "
            f"after. `{command}`."
        ),
        not_run(datasets),
        (
            "One residual network (`SmallResNet`, embedding by a linear map and a batch normalisation, no rectifier "
            "after it), one recipe, the same epochs for every arm; the head learns ten times as fast as the backbone "
            "in every arm. A rigid model of width d is the same network whose head and embedding have d coordinates. "
            "Accuracies in percent, mean ± standard deviation over seeds; differences in points, paired by seed, with "
            f"{CONFIDENCE:.0%} t intervals. Splits are fixed: the intervals tell about training again, not about other "
            f"images.{_boosts(boosts)}"
        ),
    ]
    for name in datasets:
        blocks += section(DataSet(name, results, boosts))
    return "\n\n".join(blocks) + "\n"
