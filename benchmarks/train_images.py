"""Are the prefixes of one nested image model as good as models trained at each width?

Section by section as Kusupati et al. 2022 (arXiv:2205.13147) compare them, on Omniglot (242
characters), a part of Fashion-MNIST and scikit-learn's digits: nested models with untied and tied
heads, with and without a boost of the first prefixes (searched on validation images), against rigid
models of every width, cuts of the widest rigid model (its first coordinates, SVD of its classifier,
PCA and SVD of its embeddings), over several seeds with paired intervals; widths in between, adaptive
classification and retrieval.

    NESTLING_DATA=... python benchmarks/train_images.py --out runs/images
    python benchmarks/train_images.py --datasets digits --seeds 2 --epochs 2 --out runs/quick

Two workers of one thread each. About half an hour for everything. Every trained model's numbers are
kept in OUT/runs.jsonl: run it again after a kill and it goes on. The report is written to OUT/report.md.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before anything counts the cores; the workers inherit it

import train_images_report as report  # noqa: E402
import train_images_runs as runs  # noqa: E402
from train_images_runs import BENCHES, BOOSTS, SEARCH_SEED, Run  # noqa: E402

NUM_WORKERS = 2
HEADS = ("untied", "tied")
ARMS = ("rigid", "untied", "tied", "boosted")

Results = dict[Run, dict[str, Any]]


class Store:
    """Numbers of trained models in a JSONL file, by what they depend on."""

    def __init__(self, path: Path, num_epochs: int | None) -> None:
        self._path = path
        self._num_epochs = num_epochs
        self._known: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a kill cut the line off: the model is trained again
            self._known[row["key"]] = row["numbers"]

    def find(self, run: Run) -> dict[str, Any] | None:
        return self._known.get(self._key(run))

    def add(self, run: Run, numbers: dict[str, Any]) -> None:
        # Through JSON at once, so that a fresh number and a stored one are alike.
        line = json.dumps({"key": self._key(run), "numbers": numbers})
        with self._path.open("a") as file:
            file.write("\n" + line if self._ends_mid_line() else line)
            file.write("\n")
        self._known[self._key(run)] = json.loads(line)["numbers"]

    def _ends_mid_line(self) -> bool:
        content = self._path.read_bytes() if self._path.exists() else b""
        return bool(content) and not content.endswith(b"\n")

    def _key(self, run: Run) -> str:
        return json.dumps(runs.settings_of(run, self._num_epochs), sort_keys=True)


def train_all(wanted: Sequence[Run], store: Store, num_epochs: int | None) -> Results:
    """Train what is not in the store yet, two at a time, longest data sets first."""
    missing = [run for run in wanted if store.find(run) is None]
    started_s = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        NUM_WORKERS, mp_context=context, initializer=runs.prepare_worker
    ) as pool:
        jobs = {pool.submit(runs.execute, run, num_epochs): run for run in missing}
        for done, job in enumerate(as_completed(jobs), 1):
            run = jobs[job]
            store.add(run, job.result())
            left_s = (time.perf_counter() - started_s) / done * (len(missing) - done)
            print(
                f"{done}/{len(missing)} {run.dataset}, {run.name}, seed {run.seed}: "
                f"{job.result()['seconds']:.1f} s; about {left_s / 60:.1f} min left in this part",
                file=sys.stderr,
                flush=True,
            )
    return {run: store.find(run) or {} for run in wanted}


def choose_boosts(
    datasets: Sequence[str], store: Store, num_epochs: int | None
) -> dict[tuple[str, str], str]:
    """Return the boost whose mean accuracy over all widths is highest on the validation images."""
    searched = [
        Run(dataset=dataset, arm=head, seed=SEARCH_SEED, boost=boost)
        for dataset in datasets
        for head in HEADS
        for boost in BOOSTS
    ]
    found = train_all(searched, store, num_epochs)
    chosen = {}
    for dataset in datasets:
        for head in HEADS:
            values = {
                run.boost: sum(numbers["validation"].values())
                for run, numbers in found.items()
                if (run.dataset, run.arm) == (dataset, head)
            }
            chosen[dataset, head] = max(values, key=lambda boost: values[boost])
    return chosen


def compared_runs(
    dataset: str, arms: Sequence[str], num_seeds: int, boosts: dict[tuple[str, str], str]
) -> list[Run]:
    planned = []
    for seed in range(num_seeds):
        if "rigid" in arms:
            dims = BENCHES[dataset].dims
            planned += [Run(dataset=dataset, arm="rigid", seed=seed, dim=dim) for dim in dims]
        planned += [Run(dataset=dataset, arm=head, seed=seed) for head in HEADS if head in arms]
        if "boosted" in arms:
            planned += [
                Run(dataset=dataset, arm=head, seed=seed, boost=boosts[dataset, head])
                for head in HEADS
            ]
    return planned


def estimate_minutes(
    datasets: Sequence[str], arms: Sequence[str], num_seeds: int, num_epochs: int | None
) -> float:
    """Train a little of each data set, and count."""
    runs.prepare_worker()
    seconds = 0.0
    for dataset in datasets:
        runs.execute(Run(dataset=dataset, arm="tied", seed=SEARCH_SEED), 1)  # warms up
        one = runs.execute(Run(dataset=dataset, arm="tied", seed=SEARCH_SEED), 1)["seconds"]
        boosts = dict.fromkeys([(dataset, head) for head in HEADS], next(iter(BOOSTS)))
        num_runs = len(compared_runs(dataset, arms, num_seeds, boosts))
        num_runs += len(HEADS) * len(BOOSTS) if "boosted" in arms else 0
        seconds += num_runs * one * (num_epochs or BENCHES[dataset].num_epochs)
    return seconds / NUM_WORKERS / 60


def names(allowed: Sequence[str], given: str) -> list[str]:
    chosen = given.split(",")
    unknown = sorted(set(chosen) - set(allowed))
    if unknown:
        raise argparse.ArgumentTypeError(f"knows {', '.join(allowed)}, got {', '.join(unknown)}")
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of numbers and report")
    parser.add_argument(
        "--datasets", type=lambda given: names(list(BENCHES), given), default=list(BENCHES)
    )
    parser.add_argument("--arms", type=lambda given: names(ARMS, given), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="instead of each data set's own number")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    load_before = os.getloadavg()[0]
    minutes = estimate_minutes(options.datasets, options.arms, options.seeds, options.epochs)
    print(f"about {minutes:.0f} minutes if nothing is known yet", file=sys.stderr, flush=True)
    store = Store(options.out / "runs.jsonl", options.epochs)
    boosts = {}
    if "boosted" in options.arms:
        boosts = choose_boosts(options.datasets, store, options.epochs)
    planned = [
        run
        for dataset in options.datasets
        for run in compared_runs(dataset, options.arms, options.seeds, boosts)
    ]
    results = train_all(planned, store, options.epochs)
    written = report.write(
        results, boosts, num_epochs=options.epochs, loads=(load_before, os.getloadavg()[0])
    )
    (options.out / "report.md").write_text(written)
    print(written)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
