"""Are the prefixes of one nested image model as good as models trained at each width?

Section by section as Kusupati et al. 2022 (arXiv:2205.13147) compare them, on Omniglot (242
characters), scikit-learn's digits and a part of Fashion-MNIST: nested models with untied and tied
heads, with and without a boost of the first prefixes (searched on validation images), against rigid
models of every width, cuts of the widest rigid model (its first coordinates, SVD of its classifier,
PCA and SVD of its embeddings), over several seeds with paired intervals; widths in between, adaptive
classification and retrieval.

    NESTLING_DATA=... python benchmarks/train_images.py
    NESTLING_DATA=... python benchmarks/train_images.py --datasets omniglot,digits --report part.md
    NESTLING_DATA=... python benchmarks/train_images.py --datasets fashion_full --device cuda
    python benchmarks/train_images.py --datasets digits --seeds 2 --epochs 2 --out quick

Two workers of one thread each; each part first says how long it may take. The data sets are run one
after the other, and the report is written after each: it says what was not run. Every trained
model's numbers are kept in OUT/runs.jsonl, so that the same call after a kill goes on; they count
for the same code, recipe, data, versions and device only.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before anything counts the cores; the workers inherit it

import torch  # noqa: E402
import train_images_report as report  # noqa: E402
import train_images_runs as runs  # noqa: E402
from train_images_runs import (  # noqa: E402
    BENCHES,
    BOOSTS,
    DEFAULT_DATASETS,
    SEARCH_SEED,
    Run,
)

NUM_WORKERS = 2
HEADS = ("untied", "tied")
ARMS = ("rigid", "untied", "tied", "boosted")

Results = dict[Run, dict[str, Any]]


class Store:
    """Numbers of trained models in a JSONL file, by all they depend on."""

    def __init__(self, path: Path, num_epochs: int | None, device: str) -> None:
        self._path = path
        self._num_epochs = num_epochs
        self._device = device
        self._known: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a kill cut the line off: the model is trained again
            self._known[as_key(row["settings"])] = row["numbers"]
        self._runs = {as_key(json.loads(key)["run"]) for key in self._known}

    def find(self, run: Run) -> dict[str, Any] | None:
        return self._known.get(as_key(self._settings(run)))

    def is_outdated(self, run: Run) -> bool:
        """Whether its numbers are there, but of other code, recipe, data, versions or device."""
        return self.find(run) is None and as_key(asdict(run)) in self._runs

    def add(self, run: Run, numbers: dict[str, Any]) -> None:
        # Through JSON at once, so that a fresh number and a stored one are alike.
        line = json.dumps({"settings": self._settings(run), "numbers": numbers})
        with self._path.open("a") as file:
            file.write("\n" + line if self._ends_mid_line() else line)
            file.write("\n")
        self._known[as_key(self._settings(run))] = json.loads(line)["numbers"]

    def _ends_mid_line(self) -> bool:
        content = self._path.read_bytes() if self._path.exists() else b""
        return bool(content) and not content.endswith(b"\n")

    def _settings(self, run: Run) -> dict[str, Any]:
        return runs.settings_of(run, self._num_epochs, self._device)


def as_key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


class Trainer:
    """What trains the runs that no store knows yet, two at a time, in the order given."""

    def __init__(self, pool: Executor, store: Store, num_epochs: int | None) -> None:
        self._pool = pool
        self._store = store
        self._num_epochs = num_epochs

    def train(self, wanted: Sequence[Run]) -> Results:
        missing = [run for run in wanted if self._store.find(run) is None]
        num_outdated = sum(map(self._store.is_outdated, missing))
        if num_outdated:
            tell(f"{num_outdated} stored models are of other code, data or versions: trained again")
        started_s = time.perf_counter()
        jobs = {self._pool.submit(runs.execute, run, self._num_epochs): run for run in missing}
        for done, job in enumerate(as_completed(jobs), 1):
            run, numbers = jobs[job], job.result()
            self._store.add(run, numbers)
            left_s = (time.perf_counter() - started_s) / done * (len(missing) - done)
            tell(
                f"{done}/{len(missing)} {run.dataset}, {run.name}, seed {run.seed}: "
                f"{numbers['seconds']:.1f} s; about {left_s / 60:.1f} min left in this part"
            )
        return {run: self._store.find(run) or {} for run in wanted}

    def estimate_minutes(self, dataset: str, arms: Sequence[str], num_seeds: int) -> float:
        """Train an epoch or two, and count what is missing."""
        boosts = dict.fromkeys(HEADS, next(iter(BOOSTS)))
        wanted = compared_runs(dataset, arms, num_seeds, boosts)
        wanted += searched_runs(dataset) if "boosted" in arms else []
        missing = [run for run in wanted if self._store.find(run) is None]
        if not missing:
            return 0.0
        trial = Run(dataset=dataset, arm="tied", seed=SEARCH_SEED)
        jobs = [self._pool.submit(runs.execute, trial, 1) for _ in range(2 * NUM_WORKERS)]
        epoch_s = min(job.result()["seconds"] for job in jobs)  # the first of a worker warms up
        num_epochs = self._num_epochs or BENCHES[dataset].num_epochs
        return len(missing) * epoch_s * num_epochs / NUM_WORKERS / 60

    def choose_boosts(self, dataset: str) -> dict[str, str]:
        """Return, by head, the boost whose mean validation accuracy over all widths is highest."""
        found = self.train(searched_runs(dataset))
        chosen = {}
        for head in HEADS:
            values = {
                run.boost: sum(numbers["validation"].values())
                for run, numbers in found.items()
                if run.arm == head
            }
            chosen[head] = max(values, key=lambda boost: values[boost])
        return chosen


def searched_runs(dataset: str) -> list[Run]:
    return [
        Run(dataset=dataset, arm=head, seed=SEARCH_SEED, boost=boost)
        for head in HEADS
        for boost in BOOSTS
    ]


def compared_runs(
    dataset: str, arms: Sequence[str], num_seeds: int, boosts: dict[str, str]
) -> list[Run]:
    """Seed by seed, so that fewer seeds are a part of more."""
    planned = []
    for seed in range(num_seeds):
        if "rigid" in arms:
            dims = BENCHES[dataset].dims
            planned += [Run(dataset=dataset, arm="rigid", seed=seed, dim=dim) for dim in dims]
        planned += [Run(dataset=dataset, arm=head, seed=seed) for head in HEADS if head in arms]
        if "boosted" in arms:
            planned += [
                Run(dataset=dataset, arm=head, seed=seed, boost=boosts[head]) for head in HEADS
            ]
    return planned


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def names(allowed: Sequence[str], given: str) -> list[str]:
    chosen = given.split(",")
    unknown = sorted(set(chosen) - set(allowed))
    if unknown:
        raise argparse.ArgumentTypeError(f"knows {', '.join(allowed)}, got {', '.join(unknown)}")
    return chosen


def read_options() -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("train_images_runs"), help="folder of the numbers"
    )
    parser.add_argument("--report", type=Path, help="by default OUT/report.md")
    parser.add_argument(
        "--datasets",
        type=lambda given: names(list(BENCHES), given),
        help=f"of {','.join(BENCHES)}; by default {','.join(DEFAULT_DATASETS)}",
    )
    parser.add_argument("--arms", type=lambda given: names(ARMS, given), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="instead of each data set's own number")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if has_gpu else "cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not has_gpu:
        parser.error("argument --device: PyTorch finds no GPU here")
    if "NESTLING_DATA" not in os.environ:
        if options.datasets is None:
            options.datasets = [name for name in DEFAULT_DATASETS if BENCHES[name].is_built_in]
            tell("NESTLING_DATA is not set: only on what is built in")
        elif not all(BENCHES[name].is_built_in for name in options.datasets):
            parser.error("argument --datasets: these need NESTLING_DATA, the folder of data sets")
    options.datasets = options.datasets or list(DEFAULT_DATASETS)
    options.report = options.report or options.out / "report.md"
    return options


def command_of(options: argparse.Namespace) -> str:
    """What was asked for, as it would be typed; not where it was written."""
    words = ["python benchmarks/train_images.py", f"--datasets {','.join(options.datasets)}"]
    words += [] if options.arms == list(ARMS) else [f"--arms {','.join(options.arms)}"]
    words += [f"--seeds {options.seeds}"]
    words += [] if options.epochs is None else [f"--epochs {options.epochs}"]
    return " ".join([*words, f"--device {options.device}"])


def main() -> int:
    options = read_options()
    options.out.mkdir(parents=True, exist_ok=True)
    load_before = os.getloadavg()[0]
    store = Store(options.out / "runs.jsonl", options.epochs, options.device)
    results: Results = {}
    boosts: dict[tuple[str, str], str] = {}
    with ProcessPoolExecutor(
        NUM_WORKERS,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=runs.prepare_worker,
        initargs=(options.device,),
    ) as pool:
        trainer = Trainer(pool, store, options.epochs)
        for dataset in options.datasets:
            minutes = trainer.estimate_minutes(dataset, options.arms, options.seeds)
            tell(f"{dataset}: about {minutes:.0f} minutes of training")
            chosen = trainer.choose_boosts(dataset) if "boosted" in options.arms else {}
            boosts |= {(dataset, head): boost for head, boost in chosen.items()}
            results |= trainer.train(compared_runs(dataset, options.arms, options.seeds, chosen))
            written = report.write(
                results,
                boosts,
                loads=(load_before, os.getloadavg()[0]),
                command=command_of(options),
                device=options.device,
            )
            options.report.write_text(written)
            tell(f"{dataset}: in {options.report}")
    print(written)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
