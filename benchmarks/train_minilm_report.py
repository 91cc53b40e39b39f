"""The report of `train_minilm.py`: the cost of a step, the quality by width, and the verdicts."""

import argparse
import sys
from collections.abc import Sequence
from statistics import mean, median
from typing import Any

import torch
from report import Seconds, describe_machine, describe_run, ratios, spread, table

from nestling.data import Task
from nestling.data.training_pairs import TrainingPairs

STEP_GOAL = 1.05
RETENTION_DIM, RETENTION_GOAL = 64, 0.98
UNTRAINED = "as published, untrained"
SENTENCE_PAIRS = "STS-B"

Line = dict[str, Any]


def steps_table(seconds: Seconds, num_dims: int) -> str:
    names = {
        "plain": "plain: `MultipleNegativesRankingLoss`, full width alone",
        "nested": f"nested: `NestedInfoNCE`, {num_dims} widths",
        "MatryoshkaLoss": f"`MatryoshkaLoss(MultipleNegativesRankingLoss)`, {num_dims} widths",
    }
    return table(
        "| loss | relative to plain: median (range) | milliseconds: median (range) |",
        [
            f"| {text} | {spread(ratios(seconds, name, 'plain'))} | {spread(seconds[name], 1e3)} |"
            for name, text in names.items()
        ],
        to_the_right=True,
    )


def gpu_name(device: str) -> str | None:
    return torch.cuda.get_device_name() if device == "cuda" else None


def of_arm(lines: Sequence[Line], arm: str) -> list[Line]:
    return [line for line in lines if line["key"]["arm"] == arm]


def milliseconds(lines: Sequence[Line]) -> list[float]:
    return [1e3 * line["seconds"] / line["num_steps"] for line in lines]


def retentions(lines: Sequence[Line], task: str, dim: int) -> list[float]:
    values = [line["values"][task] for line in lines if task in line["values"]]
    return [value[str(dim)] / value[max(value, key=int)] for value in values]


def quality_table(
    lines: Sequence[Line], task: str, arms: Sequence[str], dims: Sequence[int]
) -> str:
    rows = []
    for arm in arms:
        found = of_arm(lines, arm)
        cells = []
        for dim in dims:
            values = [
                100 * line["values"][task][str(dim)] for line in found if task in line["values"]
            ]
            width = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
            kept = 100 * mean(retentions(found, task, dim))
            cells.append(f"{mean(values):.1f}{width} ({kept:.1f}%)")
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return table(f"| | {' | '.join(map(str, dims))} |", rows, to_the_right=True)


def verdicts(steps: dict[str, Seconds], lines: Sequence[Line], arms: Sequence[str]) -> list[str]:
    made = []
    for name, seconds in steps.items():
        cost = median(ratios(seconds, "nested", "plain"))
        made.append(
            f"- step, {name}: **{cost:.3f}x plain** (goal: at most {STEP_GOAL}x): "
            f"{'met' if cost <= STEP_GOAL else 'MISSED'}; `MatryoshkaLoss` "
            f"{median(ratios(seconds, 'MatryoshkaLoss', 'plain')):.3f}x"
        )
    plain = milliseconds(of_arm(lines, "plain"))
    for arm in arms:
        found = of_arm(lines, arm)
        if found and plain and arm != "plain":
            steps_ms = milliseconds(found)
            made.append(
                f"- step of the whole training, {arm}: {median(steps_ms):.0f} ms against {median(plain):.0f} ms "
                f"plain, {median(steps_ms) / median(plain):.3f}x (tokenisation, checks and checkpoints "
                f"included; as the arms ran, not in turn)"
            )
        if not found:
            continue
        kept = retentions(found, SENTENCE_PAIRS, RETENTION_DIM)
        goal = ""
        if arm != "plain":
            goal = f" (goal: at least {RETENTION_GOAL:.0%}): {'met' if mean(kept) >= RETENTION_GOAL else 'MISSED'}"
        made.append(
            f"- {SENTENCE_PAIRS} at {RETENTION_DIM} dims, {arm}: keeps **{mean(kept):.1%}** of the full width "
            f"({min(kept):.1%} to {max(kept):.1%} over {len(kept)} seeds){goal}"
        )
    made.append(
        "- published, mpnet-base trained on AllNLI, by other hands and with other steps: 98.4% nested, "
        "96.5% plain at 64 of 768 dims"
    )
    return made


def write_report(
    *,
    steps: dict[str, Seconds],
    lines: Sequence[Line],
    pairs: TrainingPairs,
    tasks: dict[str, Task],
    dims: Sequence[int],
    num_epochs: int,
    packages: Sequence[str],
    loads: tuple[float, float],
    options: argparse.Namespace,
) -> str:
    machine, _ = describe_machine(gpu_name(options.device))
    num_steps = num_epochs * (len(pairs) // options.batch)
    arms = [UNTRAINED, *options.arms]
    trained_s = [line["seconds"] for line in lines if line["key"]["arm"] != UNTRAINED]
    blocks = [
        "# MiniLM, trained nested",
        describe_run(
            machine,
            num_threads=torch.get_num_threads(),
            packages=packages,
            loads=loads,
            revision=options.revision,
        ),
        (
            f"`{' '.join(['python', 'benchmarks/train_minilm.py', *sys.argv[1:]])}`: all-MiniLM-L6-v2, "
            f"prefixes {', '.join(map(str, dims))}, batch {options.batch}, float32."
        ),
        "\n".join(verdicts(steps, lines, options.arms)),
        "## One step",
        (
            f"Forward, backward and AdamW (fused); tokenisation is left out. All sides in turn on the same "
            f"batch, {options.rounds} rounds; ratios are medians of the rounds' ratios."
        ),
    ]
    for name, seconds in steps.items():
        blocks += [f"### {name.capitalize()}", steps_table(seconds, len(dims))]
    blocks += [
        "## Quality by width",
        (
            f"{num_steps:,} steps on {pairs.describe()}; learning rate {options.learning_rate:g}, linear "
            f"schedule with 10% warm-up, texts of at most {options.longest} characters; {options.seeds} seeds (order of the batches, dropout), "
            f"of which the first {min(options.seeds, options.search_seeds)} measured on the search tasks, too. A pair without "
            f"a hard negative brings none. {min(trained_s, default=0):.0f} to "
            f"{max(trained_s, default=0):.0f} s of training per arm. Mean over the seeds, half the range behind "
            f"it, and in brackets what is kept of the arm's own full width."
        ),
    ]
    for name, task in tasks.items():
        if not any(name in line["values"] for line in lines):
            continue  # no seed was measured on it
        metric = "Spearman x 100" if name == SENTENCE_PAIRS else "nDCG@10 x 100"
        blocks += [
            f"### {name}: {metric}",
            f"{task.name.rpartition('/')[2]}",
            quality_table(lines, name, arms, dims),
        ]
    return "\n\n".join(blocks) + "\n"
