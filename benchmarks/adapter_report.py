"""The report of `adapter.py`: quality by width, by bytes, with the codes in the loss, and speed."""

import argparse
import os
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import numpy as np
from report import describe_machine, describe_run, spread, table

from nestling.measure.intervals import bootstrap_loss_intervals, bootstrap_mean_interval

WIDTHS = (16, 32, 64, 128, 256)
"""Asked for; those below the full width count."""

BUDGETS_BYTES = (16, 32, 64, 128)
GAIN_GOALS = {64: 0.12, 32: 0.22, 16: 0.80}
BUDGET_GOALS = {128: 0.98, 64: 0.95}
FIT_GOAL_S = 60
APPLY_GOAL = 0.8
STREAM_GOAL_BYTES = 2 * 2**30
PACKAGES = ("nestling", "numpy", "torch", "sentence-transformers")
CHOSEN = "chosen"
"""Of each seed the map that was chosen on held-out documents."""

Result = dict[str, Any]
Seeds = Sequence[Result]


def write_report(quality: Mapping[str, Result], speed: Result, options: argparse.Namespace) -> str:
    searches, sentences = group(quality)
    loads = [load for result in quality.values() for load in result["loads"]]
    revisions = {result["revision"] for result in quality.values()}
    blocks = [
        "# Adapters: nesting vectors that are frozen",
        describe_run(
            describe_machine()[0],
            num_threads=options.threads,
            packages=PACKAGES,
            loads=(speed["loads"][0], speed["loads"][1]),
        )
        + " The loads are those of the speed half; the quality half, which no clock decides, saw up to "
        f"{max(loads):.1f}. Revisions: quality {', '.join(sorted(revisions))}; speed {speed['revision']}.",
        (
            f"`{command_of(options)}`, "
            f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'as is')}"
        ),
        "\n".join(f"- {line}" for line in verdicts(searches, sentences, speed)),
        "## Search by width",
        (
            f"nDCG@10, mean over {options.seeds} seeds. Maps are fitted on half of the documents (four fifths "
            f"of it; the rest chooses among them), at the widths {', '.join(map(str, WIDTHS))}, without labels or "
            f"queries; all documents are searched. MiniLM reads 128 tokens. "
            f"`{CHOSEN}` is the map that held-out documents chose, seed by seed. Brackets: 95% bootstrap "
            f"interval over the queries, of the mean over the seeds."
        ),
    ]
    for (model, task), seeds in searches.items():
        winners = ", ".join(seed["winner"] for seed in seeds)
        blocks += [
            f"### {model}, {task}",
            f"Chosen: {winners}.",
            quality_table(seeds),
            "Against the renormalised prefix, and against PCA fitted on the same documents:",
            gain_table(seeds),
        ]
    blocks += [
        "## Widths times bits",
        (
            "At most so many bytes per vector, the norm beside int8 and int4 codes included. A plan is a map, a "
            "format and a width. Two ways to choose among all that fit, seed by seed: with judgements, as "
            "`measure` and `choose` do, on one half of the queries, told on the other half and the other way "
            "round; and without, the plan whose ten nearest neighbours among held-out documents agree best "
            "with the full width in float32. What is kept is nDCG@10 against the full width; brackets as above."
        ),
    ]
    for (model, task), seeds in searches.items():
        blocks += [f"### {model}, {task}", budget_table(seeds)]
    blocks += [
        "## Codes in the loss",
        (
            "A rotation learned with the codes of the documents in its loss, against the rotation learned "
            "at the same widths without, coded afterwards in the same format: difference of nDCG@10 in points, "
            "positive where training for the codes helps."
        ),
    ]
    for (model, task), seeds in searches.items():
        blocks += [f"### {model}, {task}", aware_table(seeds), choice_line(seeds)]
    blocks += ["## STS-B test", "Spearman x 100, mean over the seeds."]
    for (model, task), seeds in sentences.items():
        blocks += [f"### {model}, {task}", sentence_table(seeds)]
    blocks += ["## Speed", *speed_blocks(speed)]
    return "\n\n".join(blocks) + "\n"


def command_of(options: argparse.Namespace) -> str:
    """Return what was asked for, as it would be typed; not where it was written."""
    steps = "" if options.steps is None else f" --steps {options.steps}"
    quick = " --quick" if options.quick else ""
    return f"python benchmarks/adapter.py --seeds {options.seeds}{steps}{quick}"


def group(
    quality: Mapping[str, Result],
) -> tuple[dict[tuple[str, str], list[Result]], dict[tuple[str, str], list[Result]]]:
    searches: dict[tuple[str, str], list[Result]] = {}
    sentences: dict[tuple[str, str], list[Result]] = {}
    for name, result in quality.items():
        model, task, _ = name.split("|")
        into = sentences if "spearman" in result else searches
        into.setdefault((model, task), []).append(result)
    return searches, sentences


# --- By width ------------------------------------------------------------------------------------


def values_of(seeds: Seeds, name: str, dim: str) -> np.ndarray:
    """Return nDCG@10 per query, mean over the seeds."""
    names = [seed["winner"] if name == CHOSEN else name for seed in seeds]
    return np.mean(
        [seed["quality"][each][dim] for seed, each in zip(seeds, names, strict=True)], axis=0
    )


def widths_of(seeds: Seeds) -> list[str]:
    return list(seeds[0]["quality"]["identity"])


def quality_table(seeds: Seeds) -> str:
    widths = widths_of(seeds)
    names = [CHOSEN, *seeds[0]["quality"]]
    rows = [
        f"| {name} | "
        + " | ".join(f"{values_of(seeds, name, dim).mean():.4f}" for dim in widths)
        + " |"
        for name in names
    ]
    return table(f"| map | {' | '.join(widths)} |", rows, to_the_right=True)


def gains(seeds: Seeds, dim: str) -> tuple[float, tuple[float, float], float, tuple[float, float]]:
    """Return the relative gain over the prefix and the difference from PCA, with intervals."""
    prefix, pca, chosen = (values_of(seeds, name, dim) for name in ("identity", "pca", CHOSEN))
    loss = bootstrap_loss_intervals(prefix, chosen[None], relative=True, confidence=0.95, seed=0)[0]
    low, high = bootstrap_mean_interval(chosen - pca, confidence=0.95, seed=0)
    gain = float(chosen.mean() / prefix.mean() - 1)
    return (
        gain,
        (-float(loss[1]), -float(loss[0])),
        float((chosen - pca).mean()),
        (float(low), float(high)),
    )


def gain_table(seeds: Seeds) -> str:
    rows = []
    for dim in widths_of(seeds)[:-1]:
        gain, of_gain, difference, of_difference = gains(seeds, dim)
        rows.append(
            f"| {dim} | {gain:+.1%} ({of_gain[0]:+.1%} to {of_gain[1]:+.1%}) | "
            f"{100 * difference:+.2f} ({100 * of_difference[0]:+.2f} to {100 * of_difference[1]:+.2f}) |"
        )
    return table("| dims | over the prefix | over PCA, points |", rows, to_the_right=True)


# --- By bytes ------------------------------------------------------------------------------------


def best_plans(seeds: Seeds, budget: int, *, aware: bool = True) -> list[Result]:
    """Return the plan of each seed that held-out documents chose for a budget."""
    return [
        max(
            (
                plan
                for plan in seed["bits"]
                if plan["bytes"] <= budget and (aware or plan["map"] != "quantisation-aware")
            ),
            key=lambda plan: (plan["overlap_held_out"], -plan["bytes"]),
        )
        for seed in seeds
    ]


def by_other_queries(seed: Result, budget: int) -> np.ndarray:
    """Return nDCG@10 per query of the plan that is best on the half of the queries it is not in."""
    plans = [plan for plan in seed["bits"] if plan["bytes"] <= budget]
    values = np.array([plan["ndcg_at_10"] for plan in plans])
    half = np.random.default_rng(0).permutation(values.shape[1]) % 2
    best = [int(values[:, half != side].mean(axis=1).argmax()) for side in (0, 1)]
    return np.where(half == 0, values[best[0]], values[best[1]])


def kept_by(seeds: Seeds, budget: int, *, judged: bool) -> tuple[float, float, float]:
    """Return what is kept of the full width, with its interval; judged queries or documents choose."""
    full = values_of(seeds, "identity", widths_of(seeds)[-1])
    plans = (
        np.mean([by_other_queries(seed, budget) for seed in seeds], axis=0)
        if judged
        else np.mean([plan["ndcg_at_10"] for plan in best_plans(seeds, budget)], axis=0)
    )
    loss = bootstrap_loss_intervals(full, plans[None], relative=True, confidence=0.95, seed=0)[0]
    return float(plans.mean() / full.mean()), 1 - float(loss[1]), 1 - float(loss[0])


def budget_table(seeds: Seeds) -> str:
    rows = []
    for budget in BUDGETS_BYTES[::-1]:
        cells = [
            "{:.1%} ({:.1%} to {:.1%})".format(*kept_by(seeds, budget, judged=judged))
            for judged in (True, False)
        ]
        plans = "; ".join(
            f"{plan['dim']}-d {plan['dtype']} ({plan['map']}, {plan['bytes']} bytes)"
            for plan in best_plans(seeds, budget)
        )
        rows.append(f"| {budget} | {' | '.join(cells)} | {plans} |")
    head = "| bytes | chosen by the other queries, keeps | chosen by documents, keeps | plans of these |"
    text = table(head, rows)
    return f"{text}\n\n{format_table(seeds)}"


def format_table(seeds: Seeds) -> str:
    """Return what each map keeps in each format at each budget, mean over the seeds."""
    full = values_of(seeds, "identity", widths_of(seeds)[-1]).mean()
    names = list(dict.fromkeys(role_of(plan, seed) for seed in seeds for plan in seed["bits"]))
    dtypes = list(dict.fromkeys(plan["dtype"] for plan in seeds[0]["bits"]))
    rows = []
    for dtype in dtypes:
        for name in names:
            cells = [kept_in(seeds, name, dtype, budget, full) for budget in BUDGETS_BYTES[::-1]]
            if any(cells):
                rows.append(f"| {dtype} | {name} | {' | '.join(cell or '-' for cell in cells)} |")
    head = f"| format | map | {' | '.join(f'{budget} bytes' for budget in BUDGETS_BYTES[::-1])} |"
    return table(head, rows)


def role_of(plan: Result, seed: Result) -> str:
    """Return the name of a plan's map, the same for all seeds."""
    known = ("identity", "pca", "coded afterwards", "quantisation-aware")
    return plan["map"] if plan["map"] in known else CHOSEN


def kept_in(seeds: Seeds, name: str, dtype: str, budget: int, full: float) -> str | None:
    found = [
        plan
        for seed in seeds
        for plan in seed["bits"]
        if (role_of(plan, seed), plan["dtype"], plan["budget_bytes"]) == (name, dtype, budget)
    ]
    if not found:
        return None
    return f"{mean(np.mean(plan['ndcg_at_10']) for plan in found) / full:.1%} ({found[0]['dim']}-d)"


def aware_table(seeds: Seeds) -> str:
    rows = []
    dtypes = dict.fromkeys(
        plan["dtype"] for plan in seeds[0]["bits"] if plan["map"] == "quantisation-aware"
    )
    for dtype in dtypes:
        for budget in BUDGETS_BYTES:
            difference = aware_gain(seeds, dtype, budget)
            if difference is not None:
                gain, low, high, dim = difference
                rows.append(
                    f"| {dtype} | {budget} | {dim} | {100 * gain:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}) |"
                )
    return table("| format | bytes | dims | points of nDCG@10 |", rows, to_the_right=True)


def choice_line(seeds: Seeds) -> str:
    """Say what it brings that held-out documents may choose maps trained for codes, too."""
    parts = []
    for budget in BUDGETS_BYTES:
        with_aware, without = (
            np.mean([plan["ndcg_at_10"] for plan in best_plans(seeds, budget, aware=aware)], axis=0)
            for aware in (True, False)
        )
        low, high = bootstrap_mean_interval(with_aware - without, confidence=0.95, seed=0)
        gain = float((with_aware - without).mean())
        parts.append(f"{100 * gain:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}) at {budget} bytes")
    return (
        "Held-out documents choosing among all formats and maps, with those trained for codes against "
        f"without: {'; '.join(parts)}."
    )


def aware_gain(seeds: Seeds, dtype: str, budget: int) -> tuple[float, float, float, int] | None:
    sides: dict[str, list[list[float]]] = {"quantisation-aware": [], "coded afterwards": []}
    dim = 0
    for seed in seeds:
        for plan in seed["bits"]:
            if plan["map"] in sides and (plan["dtype"], plan["budget_bytes"]) == (dtype, budget):
                sides[plan["map"]].append(plan["ndcg_at_10"])
                dim = plan["dim"]
    if not sides["quantisation-aware"]:
        return None
    aware, after = (np.mean(values, axis=0) for values in sides.values())
    low, high = bootstrap_mean_interval(aware - after, confidence=0.95, seed=0)
    return float((aware - after).mean()), low, high, dim


# --- Sentences, speed, verdicts ------------------------------------------------------------------


def sentence_values(seeds: Seeds, name: str) -> dict[str, float]:
    names = [seed["winner"] if name == CHOSEN else name for seed in seeds]
    widths = list(seeds[0]["spearman"]["identity"])
    return {
        dim: 100
        * mean(seed["spearman"][each][dim] for seed, each in zip(seeds, names, strict=True))
        for dim in widths
    }


def sentence_table(seeds: Seeds) -> str:
    rows = []
    for name in (CHOSEN, *seeds[0]["spearman"]):
        values = sentence_values(seeds, name)
        rows.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in values.values())} |")
    widths = list(seeds[0]["spearman"]["identity"])
    winners = ", ".join(seed["winner"] for seed in seeds)
    return f"Chosen: {winners}.\n\n" + table(
        f"| map | {' | '.join(widths)} |", rows, to_the_right=True
    )


def speed_blocks(speed: Result) -> list[str]:
    steps = speed["steps_s"]
    here = median(steps["seconds"]["here"])
    rows = [
        f"| {name} | {spread(seconds, 1e3)} | {median(seconds) / here:.1f} | {steps['deviations'][name]:.1e} |"
        for name, seconds in steps["seconds"].items()
    ]
    apply, streamed = speed["apply_s"], speed["stream"]
    fits = speed["fit_s"]
    return [
        "Fitting 5,000 x 384, `nestling train adapter` from the start of the process to the finished folder: "
        + "; ".join(f"`--method {name}` {spread(seconds)} s" for name, seconds in fits.items())
        + ".",
        (
            f"One step of learning, {steps['batch']} rows x 384, forward, backward and update, beside "
            "`torch.nn.utils.parametrizations.orthogonal` with Adam, in turn on the same batch and loss:"
        ),
        table(
            "| rotations by | milliseconds: median (range) | relative | largest entry of R^T R - 1 after it |",
            rows,
            to_the_right=True,
        ),
        (
            f"Here a rotation is made exactly orthogonal every 20 steps and at the end: then "
            f"{steps['deviations']['here, finished']:.1e} in float32."
        ),
        (
            f"Applying to {apply['shape'][0]:,} x {apply['shape'][1]:,} in memory: {apply_ratio(speed):.2f} of the "
            f"speed of the plain product (median of {len(apply['seconds']['map'])} rounds, in turn)."
        ),
        (
            f"`nestling encode --model nest: --vectors` of {streamed['rows']:,} x {streamed['dim']:,} float32, "
            f"checksums, ids and flushes to the disk included: {streamed['seconds']:.0f} s, peak memory "
            f"{streamed['peak_bytes'] / 2**30:.2f} GiB; the bare products, in the same blocks of 1,024 rows, take "
            f"{streamed['product_s']:.0f} s."
        ),
    ]


def apply_ratio(speed: Result) -> float:
    seconds = speed["apply_s"]["seconds"]
    return median(b / a for a, b in zip(seconds["map"], seconds["product"], strict=True))


def goal(is_met: bool, text: str) -> str:
    return f"({text}: {'met' if is_met else 'missed'})"


def verdicts(
    searches: Mapping[tuple[str, str], Seeds],
    sentences: Mapping[tuple[str, str], Seeds],
    speed: Result,
) -> list[str]:
    made = []
    for (model, task), seeds in searches.items():
        for dim, least in GAIN_GOALS.items():
            if str(dim) in widths_of(seeds)[:-1]:
                gain, _, difference, _ = gains(seeds, str(dim))
                aim = goal(gain >= least, f"goal {least:+.0%}") if model == "MiniLM" else ""
                aim = aim or goal(gain >= 0, "goal: no worse, it is nested already")
                made.append(
                    f"{model}, {task}, {dim} dims: {gain:+.1%} over the prefix {aim}, {100 * difference:+.2f} "
                    f"points over PCA {goal(difference >= 0, 'goal: not below')}"
                )
    for (model, task), seeds in searches.items():
        parts = []
        for budget in BUDGETS_BYTES[::-1]:
            (kept, low, _), (unjudged, *_) = (
                kept_by(seeds, budget, judged=judged) for judged in (True, False)
            )
            least = BUDGET_GOALS.get(budget)
            aim = "" if least is None else " " + goal(kept >= least, f"goal {least:.0%}")
            parts.append(
                f"{budget} bytes keep {kept:.1%}, from {low:.1%}{aim}, {unjudged:.1%} where documents chose"
            )
        made.append(f"{model}, {task}: {'; '.join(parts)}")
    for (model, task), seeds in sentences.items():
        chosen, prefix = (sentence_values(seeds, name) for name in (CHOSEN, "identity"))
        differences = {dim: chosen[dim] - prefix[dim] for dim in ("64", "32", "16")}
        text = ", ".join(f"{value:+.2f} at {dim}" for dim, value in differences.items())
        is_met = min(differences.values()) >= 0
        made.append(f"{model}, {task}: {text} over the prefix {goal(is_met, 'goal: not below')}")
    slowest = max(speed["fit_s"]["auto"])
    made.append(f"fitting: {slowest:.0f} s {goal(slowest < FIT_GOAL_S, f'goal {FIT_GOAL_S} s')}")
    ratio = apply_ratio(speed)
    made.append(
        f"applying: {ratio:.2f} of a plain product {goal(ratio >= APPLY_GOAL, f'goal {APPLY_GOAL}')}"
    )
    peak = speed["stream"]["peak_bytes"]
    made.append(
        f"streaming: {peak / 2**30:.2f} GiB {goal(peak < STREAM_GOAL_BYTES, 'goal: under 2 GiB')}"
    )
    return made
