"""What do classification heads on every prefix cost beside one plain head?

10,000 classes x 2,048 coordinates, 9 prefixes (8, 16, ... 2,048), batch 256, AdamW. All sides run in
turn on the same batch, round after round; the ratios are medians over the rounds. Sides: a plain
head (`F.linear`, `F.cross_entropy`); `NestedCrossEntropy` with tied and untied heads; the same heads
in the style of the published code, one product, one softmax and one loss per prefix.

    python benchmarks/train_heads.py [--out report.md] [--rounds 15] [--threads 2]

Best on a quiet machine; takes a few minutes and 4 GB. `--quick` tries it out in a second.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812
from report import Seconds, describe_machine, describe_run, ratios, spread, table
from torch import Tensor, nn, optim

from nestling.train.losses.nested_cross_entropy import NestedCrossEntropy
from nestling.train.models.nested_head import NestedHead

Loss = Callable[[Tensor, Tensor], Tensor]

TARGETS = {"tied": 1.3, "untied": 2.3}
NAMES = {
    "plain": "plain head: `F.linear`, `F.cross_entropy`",
    "tied": "tied heads, `NestedCrossEntropy`",
    "untied": "untied heads, `NestedCrossEntropy`",
    "tied, per prefix": "tied heads, one loss per prefix",
    "untied, per prefix": "untied heads, one `nn.Linear` and one loss per prefix",
}


class Side:
    """A head with its optimiser, and what it computes from embeddings and labels."""

    def __init__(self, parameters: Iterable[nn.Parameter], loss: Loss) -> None:
        self.parameters = list(parameters)
        self.loss = loss
        self.optimizer = make_optimizer(self.parameters)

    def run(self, embeddings: Tensor, labels: Tensor, *, with_update: bool) -> None:
        self.optimizer.zero_grad()
        embeddings.grad = None
        self.loss(embeddings, labels).backward()
        if with_update:
            self.optimizer.step()


def make_optimizer(parameters: list[nn.Parameter]) -> optim.Optimizer:
    # Of AdamW's three ways to update, the fused one is the fastest on a CPU by far.
    return optim.AdamW(parameters, lr=1e-3, fused=True)


def make_plain(num_classes: int, width: int) -> Side:
    head = nn.Linear(width, num_classes)
    return Side(
        head.parameters(), lambda embeddings, labels: F.cross_entropy(head(embeddings), labels)
    )


def make_nested(dims: tuple[int, ...], num_classes: int, *, tied: bool) -> Side:
    head, loss = NestedHead(dims, num_classes, tied=tied), NestedCrossEntropy(dims)
    return Side(
        head.parameters(),
        lambda embeddings, labels: loss(embeddings, labels, head.weight, head.bias),
    )


def make_per_prefix(dims: tuple[int, ...], num_classes: int, *, tied: bool) -> Side:
    """As published: a list of logits, and a stack of losses."""
    widths = dims[-1:] if tied else dims
    heads = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)

    def loss(embeddings: Tensor, labels: Tensor) -> Tensor:
        if tied:
            weight, bias = heads[0].weight, heads[0].bias
            outputs = [F.linear(embeddings[:, :dim], weight[:, :dim], bias) for dim in dims]
        else:
            pairs = zip(heads, dims, strict=True)
            outputs = [head(embeddings[:, :dim]) for head, dim in pairs]
        return torch.stack([F.cross_entropy(output, labels) for output in outputs]).sum()

    return Side(heads.parameters(), loss)


def make_side(name: str, dims: tuple[int, ...], num_classes: int) -> Side:
    if name == "plain":
        return make_plain(num_classes, dims[-1])
    make = make_per_prefix if name.endswith("per prefix") else make_nested
    return make(dims, num_classes, tied=name.startswith("tied"))


def make_batch(num_rows: int, width: int, num_classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(num_rows, width, generator=generator).requires_grad_()
    return embeddings, torch.randint(num_classes, (num_rows,), generator=generator)


def check_agreement(sides: dict[str, Side], batch: tuple[Tensor, Tensor]) -> str:
    """Fused and per-prefix sides must compute the same before their seconds mean anything."""
    worst = 0.0
    for name in ("tied", "untied"):
        fused, loop = sides[name], sides[f"{name}, per prefix"]
        weights = loop.parameters[0::2]
        biases = loop.parameters[1::2]
        with torch.no_grad():
            fused.parameters[0].copy_(torch.cat(weights, 1))
            stacked = biases[0] if name == "tied" else torch.stack(biases)
            fused.parameters[1].copy_(stacked)
        gradients = []
        for side in (fused, loop):
            side.run(*batch, with_update=False)
            gradients.append(batch[0].grad)
        worst = max(worst, relative(*gradients))
        found = torch.cat([one.grad for one in weights], 1)
        worst = max(worst, relative(fused.parameters[0].grad, found))
    assert worst < 1e-4, worst
    return (
        f"Fused and per-prefix heads agree: their gradients differ by {worst:.1g} of the largest "
        f"(float32)."
    )


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def time_in_turn(
    sides: dict[str, Side], batch: tuple[Tensor, Tensor], rounds: int, *, with_update: bool
) -> Seconds:
    seconds: Seconds = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            started_s = time.perf_counter()
            side.run(*batch, with_update=with_update)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started_s)
    return seconds


def profile(side: Side, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return milliseconds of a step by kind of work."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        side.run(*batch, with_update=True)
    spent = {"products": 0.0, "softmax": 0.0, "update": 0.0, "other": 0.0}
    for event in recorded.key_averages():
        if re.search(r"mm_?$|linear$", event.key):
            kind = "products"
        elif re.search(r"softmax|amax", event.key):
            kind = "softmax"
        elif re.search(r"adam|Optimizer", event.key, re.IGNORECASE):
            kind = "update"
        else:
            kind = "other"
        spent[kind] += event.self_cpu_time_total / 1e3
    return spent


CHILD = """
import sys
sys.path.insert(0, {folder!r})
import train_heads as bench
def megabytes(field):
    status = open("/proc/self/status").read()
    return int(status.split(field + ":")[1].split()[0]) / 1024
bench.torch.set_num_threads(1)
dims, name = {dims}, {name!r}
side = bench.make_side(name, dims, {classes})
batch = bench.make_batch({rows}, dims[-1], {classes})
for one in side.parameters:
    one.grad = bench.torch.ones_like(one)
before = megabytes("VmRSS")
for one in side.parameters:
    one.grad = None
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
side.run(*batch, with_update=False)
print(megabytes("VmHWM") - before)
"""


def measure_memory(dims: tuple[int, ...], options: argparse.Namespace) -> list[str]:
    """Return table rows: MiB above parameters and gradients at the peak of forward and backward."""
    lines = []
    for name, used in (
        ("plain", dims),
        ("tied", dims[-1:]),
        ("tied", dims[-3:]),
        ("tied", dims),
        ("tied, per prefix", dims),
        ("untied", dims),
        ("untied, per prefix", dims),
    ):
        text = CHILD.format(
            folder=str(Path(__file__).parent),
            dims=used,
            name=name,
            classes=options.classes,
            rows=options.batch,
        )
        child = [sys.executable, "-c", text]
        done = subprocess.run(child, capture_output=True, text=True, check=True)
        num_prefixes = 1 if name == "plain" else len(used)
        lines.append(f"| {NAMES[name]} | {num_prefixes} | {float(done.stdout):.0f} |")
    return lines


# --- The report --------------------------------------------------------------------------------


def ratio(seconds: Seconds, slow: str, fast: str) -> float:
    return median(ratios(seconds, slow, fast))


def ratio_spread(seconds: Seconds, name: str) -> str:
    costs = ratios(seconds, name, "plain")
    return f"{median(costs):.2f} ({min(costs):.2f} to {max(costs):.2f})"


def sides_table(seconds: Seconds) -> str:
    return table(
        "| side | relative to the plain head: median (range) | milliseconds: median (range) |",
        [
            f"| {text} | {ratio_spread(seconds, name)} | {spread(seconds[name], 1e3, 4)} |"
            for name, text in NAMES.items()
        ],
    )


def verdicts(step: Seconds, passes: Seconds) -> list[str]:
    lines = []
    for name, target in TARGETS.items():
        cost = ratio(step, name, "plain")
        lines.append(
            f"- {name} heads, step with AdamW: **{cost:.2f}x the plain head's** (goal: at most {target}x): "
            f"{'met' if cost <= target else 'MISSED'}"
        )
        lines.append(
            f"- {name} heads, forward and backward alone: {ratio(passes, name, 'plain'):.2f}x the plain head's; "
            f"{ratio(passes, f'{name}, per prefix', name):.2f}x faster than one loss per prefix"
        )
    return lines


def floor_text(dims: tuple[int, ...], options: argparse.Namespace) -> str:
    per_column = 6 * options.batch * options.classes / 1e9
    return (
        f"A column of a head takes three products: {per_column * dims[-1]:.3g} GFLOP for the "
        f"{dims[-1]:,} columns of the plain and of tied heads, {per_column * sum(dims):.3g} for the "
        f"{sum(dims):,} of untied heads ({sum(dims) / dims[-1]:.2f}x) and, without shared work, of tied ones. "
        f"AdamW reads and writes {28 * options.classes * dims[-1] / 2**20:.0f} MiB per step for the plain and "
        f"tied heads and {28 * options.classes * sum(dims) / 2**20:.0f} MiB for untied ones; each gradient is written "
        f"once, in place. Times are of one profiled step, of all threads in milliseconds."
    )


def write_report(
    *,
    dims: tuple[int, ...],
    step: Seconds,
    passes: Seconds,
    profiles: dict[str, dict[str, float]],
    memory: list[str],
    agreement: str,
    loads: tuple[float, float],
    options: argparse.Namespace,
) -> str:
    machine, _ = describe_machine()
    kinds = ("products", "softmax", "update", "other")
    blocks = [
        "# Classification heads on every prefix",
        describe_run(
            machine, num_threads=options.threads, packages=("nestling", "torch"), loads=loads
        ),
        (
            f"`python benchmarks/train_heads.py --rounds {options.rounds} --threads {options.threads}`: "
            f"{options.classes:,} classes x {dims[-1]:,} coordinates, prefixes {', '.join(map(str, dims))}, "
            f"batch {options.batch}, float32, AdamW (fused). All sides in turn, {options.rounds} rounds; "
            f"ratios are medians of the rounds' ratios. The embeddings take a gradient, as they do with an "
            f"encoder below."
        ),
        agreement,
        "\n".join(verdicts(step, passes)),
        "## Step: forward, backward, AdamW",
        sides_table(step),
        "## Forward and backward alone",
        sides_table(passes),
        "## Where the time goes",
        table(
            "| milliseconds | products | softmax | update | other |",
            [
                f"| {NAMES[name]} | " + " | ".join(f"{spent[kind]:.1f}" for kind in kinds) + " |"
                for name, spent in profiles.items()
            ],
        ),
        floor_text(dims, options),
        "## Memory",
        "Peak of forward and backward in a process of its own, above its parameters and their gradients.",
        table("| side | prefixes | MiB |", memory),
    ]
    return "\n\n".join(blocks) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="report; by default next to this script")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="tiny, printed and not written")
    options = parser.parse_args()
    if options.quick:
        options.classes, options.width, options.batch, options.rounds = 500, 256, 64, 3
    torch.set_num_threads(options.threads)
    dims = tuple(8 << place for place in range((options.width // 8).bit_length()))
    load_before = os.getloadavg()[0]
    torch.manual_seed(0)
    sides = {name: make_side(name, dims, options.classes) for name in NAMES}
    batch = make_batch(options.batch, dims[-1], options.classes)
    agreement = check_agreement(sides, batch)
    passes = time_in_turn(sides, batch, options.rounds, with_update=False)
    step = time_in_turn(sides, batch, options.rounds, with_update=True)
    report = write_report(
        dims=dims,
        step=step,
        passes=passes,
        profiles={name: profile(side, batch) for name, side in sides.items()},
        memory=measure_memory(dims, options),
        agreement=agreement,
        loads=(load_before, os.getloadavg()[0]),
        options=options,
    )
    _, slug = describe_machine()
    if not options.quick:
        default = Path(__file__).with_name(f"train_heads_{slug}_{datetime.now(UTC):%Y%m}.md")
        (options.out or default).write_text(report)
    print(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
