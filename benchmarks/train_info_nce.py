"""What does a contrastive loss on every prefix cost, beside one on the full width?

Batch 1,024 x 2,048 float32, nine prefixes (8, 16, ... 2,048), forward and backward to the
embeddings. All sides run in turn, on the same tensors, round after round; the ratios are medians
over the rounds. Sides: `NestedInfoNCE`; the loop over prefixes in autograd (slice, normalize,
matmul, cross_entropy); sentence-transformers' `MatryoshkaLoss` around
`MultipleNegativesRankingLoss`; the loss at full width alone, in autograd.

    python benchmarks/train_info_nce.py [--out report.md] [--rounds 15] [--batch 1024]

Best on a quiet machine; takes about two minutes and 2 GB.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from report import Seconds, describe_machine, describe_run, ratios, spread, table
from torch import Tensor, nn
from torch.nn import functional

from nestling.train.losses.nested_info_nce import NestedInfoNCE
from nestling.train.losses.self_distillation import SelfDistillation

NUM_DIMS = 9
TEMPERATURE = 0.05
# For a while after a call, threads of OpenMP spin in wait for the next one.
PAUSE_S = 0.05

Loss = Callable[[Tensor, Tensor], Tensor]


def nesting_dims(embed_dim: int) -> tuple[int, ...]:
    return tuple(sorted(embed_dim >> step for step in range(NUM_DIMS) if embed_dim >> step))


def make_batch(rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Positives near their queries; leading coordinates carry more, as in a nested embedding."""
    generator = torch.Generator().manual_seed(0)
    falling = torch.arange(1, dim + 1).rsqrt()
    queries = torch.randn(rows, dim, generator=generator) * falling
    documents = queries + torch.randn(rows, dim, generator=generator) * falling
    return queries.requires_grad_(), documents.requires_grad_()


# --- The sides ---------------------------------------------------------------------------------


def cosines(queries: Tensor, documents: Tensor, dim: int) -> Tensor:
    left = functional.normalize(queries[:, :dim], dim=1)
    right = functional.normalize(documents[:, :dim], dim=1)
    return left @ right.T / TEMPERATURE


def info_nce_loop(
    queries: Tensor, documents: Tensor, *, dims: Sequence[int], symmetric: bool = False
) -> Tensor:
    targets = torch.arange(len(queries))
    total = queries.new_zeros(())
    for dim in dims:
        logits = cosines(queries, documents, dim)
        loss = functional.cross_entropy(logits, targets)
        if symmetric:
            loss = (loss + functional.cross_entropy(logits.T, targets)) / 2
        total = total + loss
    return total


def distillation_loop(queries: Tensor, documents: Tensor, *, dims: Sequence[int]) -> Tensor:
    with torch.no_grad():
        target = functional.log_softmax(cosines(queries, documents, dims[-1]), 1)
    total = queries.new_zeros(())
    for dim in dims[:-1]:
        shares = functional.log_softmax(cosines(queries, documents, dim), 1)
        total = total + functional.kl_div(shares, target, reduction="batchmean", log_target=True)
    return total


class Columns(nn.Module):
    """Stands where sentence-transformers expects a model, and hands out ready embeddings."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embedding"]}

    def get_embedding_dimension(self) -> int:
        return self.embed_dim


def sentence_transformers_loss(dims: Sequence[int]) -> Loss:
    from sentence_transformers.sentence_transformer import losses

    model = Columns(dims[-1])
    inner = losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    loss = losses.MatryoshkaLoss(model, inner, list(dims))
    labels = torch.empty(0)
    return lambda *columns: loss([{"embedding": column} for column in columns], labels)


def groups_of_sides(dims: Sequence[int]) -> dict[str, dict[str, Loss]]:
    """Per question: the fused side, the loop, the full width alone, and others."""
    full = dims[-1:]
    return {
        "InfoNCE": {
            "fused": NestedInfoNCE(dims),
            "loop": partial(info_nce_loop, dims=dims),
            "full width": partial(info_nce_loop, dims=full),
            "sentence-transformers": sentence_transformers_loss(dims),
            "fused, full width": NestedInfoNCE(full),
        },
        "Symmetric InfoNCE": {
            "fused": NestedInfoNCE(dims, symmetric=True),
            "loop": partial(info_nce_loop, dims=dims, symmetric=True),
            "full width": partial(info_nce_loop, dims=full, symmetric=True),
        },
        "Self-distillation": {
            "fused": SelfDistillation(dims),
            "loop": partial(distillation_loop, dims=dims),
        },
    }


def step(loss: Loss, queries: Tensor, documents: Tensor) -> None:
    queries.grad = documents.grad = None
    loss(queries, documents).backward()


def check_agreement(sides: dict[str, Loss], queries: Tensor, documents: Tensor) -> float:
    """Return the largest difference of gradients to the loop, relative to the largest gradient."""
    answers = {}
    for name, loss in sides.items():
        if "full width" not in name:
            total = loss(queries, documents)
            answers[name] = torch.autograd.grad(total, (queries, documents))
    differences = [
        float((one - other).abs().max() / other.abs().max())
        for answer in answers.values()
        for one, other in zip(answer, answers["loop"], strict=True)
    ]
    assert max(differences) < 1e-4, differences
    return max(differences)


def time_in_turn(jobs: dict[str, Callable[[], object]], rounds: int) -> Seconds:
    seconds: Seconds = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(rounds):
        for name, job in jobs.items():
            time.sleep(PAUSE_S)
            started_s = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - started_s)
    return seconds


# --- Memory ------------------------------------------------------------------------------------

CHILD = """
import sys
sys.path.insert(0, {folder!r})
import torch, train_info_nce as bench
def megabytes(field):
    status = open("/proc/self/status").read()
    return int(status.split(field + ":")[1].split()[0]) / 1024
torch.set_num_threads({threads})
small = bench.make_batch(64, {dim})
dims = tuple({dim} * count // {num} for count in range(1, {num} + 1))
make = {{
    "fused": bench.NestedInfoNCE,
    "symmetric": lambda dims: bench.NestedInfoNCE(dims, symmetric=True),
    "loop": lambda dims: bench.partial(bench.info_nce_loop, dims=dims),
}}["{side}"]
loss = make(dims)
bench.step(loss, *small)
batch = bench.make_batch({rows}, {dim})
before = megabytes("VmRSS")
bench.step(loss, *batch)
print(megabytes("VmHWM") - before)
"""


def measure_memory(options: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Return the megabytes that a step adds at its peak, per side and number of prefixes."""
    measured: dict[str, dict[int, float]] = {"fused": {}, "symmetric": {}, "loop": {}}
    for side, by_num in measured.items():
        for num in options.prefix_counts:
            code = CHILD.format(
                folder=str(Path(__file__).parent),
                threads=options.threads,
                rows=options.batch,
                dim=options.dim,
                side=side,
                num=num,
            )
            child = [sys.executable, "-c", code]
            done = subprocess.run(child, capture_output=True, text=True, check=True)
            by_num[num] = float(done.stdout)
    return measured


# --- The report --------------------------------------------------------------------------------


def verdicts(timed: dict[str, Seconds]) -> str:
    lines = []
    for question, seconds in timed.items():
        faster = ratios(seconds, "loop", "fused")
        line = f"- {question}: **{spread(faster)} times as fast** as the loop over prefixes"
        if question == "InfoNCE":
            line += f" (goal: 2): {'met' if median(faster) >= 2 else 'MISSED'}"
        lines.append(line)
        if "full width" in seconds:
            dearer = ratios(seconds, "fused", "full width")
            line = f"- {question}: all prefixes cost **{spread(dearer)} of the full width alone**"
            if question == "InfoNCE":
                line += f" (goal: at most 1.5): {'met' if median(dearer) <= 1.5 else 'MISSED'}"
            lines.append(line)
    return "\n".join(lines)


def sides_table(seconds: Seconds) -> str:
    return table(
        "| side | relative to fused: median (range) | milliseconds: median (range) |",
        [
            f"| {name} | {spread(ratios(seconds, name, 'fused'))} | {spread(values, 1e3)} |"
            for name, values in seconds.items()
        ],
    )


def memory_table(memory: dict[str, dict[int, float]], counts: Sequence[int]) -> str:
    return table(
        f"| MiB at the peak, by number of prefixes | {' | '.join(map(str, counts))} |",
        [
            f"| {side} | {' | '.join(f'{by_num[num]:.0f}' for num in counts)} |"
            for side, by_num in memory.items()
        ],
    )


def write_report(
    timed: dict[str, Seconds],
    memory: dict[str, dict[int, float]],
    difference: float,
    loads: tuple[float, float],
    options: argparse.Namespace,
) -> str:
    dims = nesting_dims(options.dim)
    matrix_mb = options.batch**2 * 4 / 2**20
    gradients_mb = 2 * options.batch * options.dim * 4 / 2**20
    blocks = [
        "# Contrastive losses on every prefix",
        describe_run(
            describe_machine()[0],
            num_threads=options.threads,
            packages=("nestling", "torch", "sentence-transformers"),
            loads=loads,
        ),
        (
            f"`python benchmarks/train_info_nce.py --rounds {options.rounds} --batch {options.batch} --dim "
            f"{options.dim} --threads {options.threads}`: forward and backward to the embeddings of "
            f"{options.batch:,} queries and as many documents, {options.dim:,} float32 coordinates, "
            f"prefixes {', '.join(map(str, dims))}. All sides in turn, {options.rounds} rounds; ratios are "
            f"medians (ranges) of the rounds' ratios."
        ),
        (
            f"All sides agree: gradients differ from the loop's by at most {difference:.1g} of the "
            f"largest."
        ),
        verdicts(timed),
    ]
    for question, seconds in timed.items():
        blocks += [f"## {question}", sides_table(seconds)]
    blocks += [
        "## Memory",
        (
            f"What one step adds to the resident memory of a fresh process at its peak, with evenly "
            f"spaced prefixes. The gradients of both sides take {gradients_mb:.0f} MiB, and one matrix of "
            f"logits {matrix_mb:.0f} MiB."
        ),
        memory_table(memory, options.prefix_counts),
    ]
    return "\n\n".join(blocks) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="report; by default next to this script")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefix-counts", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    load_before = os.getloadavg()[0]
    batch = make_batch(options.batch, options.dim)
    timed: dict[str, Seconds] = {}
    differences = []
    for question, sides in groups_of_sides(nesting_dims(options.dim)).items():
        differences.append(check_agreement(sides, *batch))
        jobs: dict[str, Any] = {name: partial(step, loss, *batch) for name, loss in sides.items()}
        timed[question] = time_in_turn(jobs, options.rounds)
        print(f"{question}\n{sides_table(timed[question])}", file=sys.stderr, flush=True)
    report = write_report(
        timed,
        measure_memory(options),
        max(differences),
        (load_before, os.getloadavg()[0]),
        options,
    )
    default = Path(__file__).with_name(
        f"train_info_nce_{describe_machine()[1]}_{datetime.now(UTC):%Y%m}.md"
    )
    (options.out or default).write_text(report)
    print(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
