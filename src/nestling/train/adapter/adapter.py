"""Fit an adapter: a map after which every prefix of a frozen embedding says more."""

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from nestling.core import BadRowPolicy, Dtype, check_nesting_dims
from nestling.core.progress import Progress, silent
from nestling.encode.nest_manifest import NestManifest
from nestling.errors import (
    DataError,
    DimensionError,
    FormatError,
    TrainingError,
    VectorError,
    WriteError,
)
from nestling.measure.drift import DriftReference
from nestling.measure.environment import describe_environment
from nestling.train.adapter.candidates import (
    AUTOMATIC,
    BASELINES,
    METHODS,
    Method,
    band_boundaries,
    fit_candidates,
)
from nestling.train.adapter.choose import choose
from nestling.train.adapter.folder import removing_if_empty, save_adapter
from nestling.train.adapter.learn import RotationOptions
from nestling.train.adapter.pairs import FitPairs
from nestling.train.adapter.record import AdapterRecord
from nestling.train.adapter.samples import FitSource, draw_sample
from nestling.train.losses.straight_through import check_coded
from nestling.train.model_folder import training_folder

DEFAULT_SAMPLE_ROWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecipe:
    """What is fitted.

    Attributes:
        nesting_dims: Ascending widths; the full one is added if it is missing.
        method: "auto" fits every kind of map and takes the lossless one that falls least short at
            any width; a kind of map fits that kind, beside identity and pca to compare with.
        sample_rows: Distinct vectors to fit on and to judge by, at most.
        seed: Of the sample, the rows held out, the fits and the bootstrap.
        dtypes: Codes that the prefixes will be stored in: int8, int4, binary, rotated-binary. Learned
            rotations are fitted to them and all maps are judged in them; none stands for float32.
        spread_out_weight: Of the regulariser that spreads unrelated vectors out; 0 leaves it out.
        rotation: How rotations are learned; its seed, dtypes and spread_out_weight are those above.
    """

    nesting_dims: tuple[int, ...]
    method: Method | Literal["auto"] = "auto"
    sample_rows: int = DEFAULT_SAMPLE_ROWS
    seed: int = 0
    dtypes: tuple[Dtype, ...] = ()
    spread_out_weight: float = 0.0
    rotation: RotationOptions = field(default_factory=RotationOptions)

    def __post_init__(self) -> None:
        """Check what does not depend on the vectors.

        Raises:
            DataError: If `sample_rows` is below 1.
            TrainingError: If a format has no codes.
        """
        if self.sample_rows < 1:
            raise DataError(
                f"`sample_rows` must be at least 1, got {self.sample_rows}. The usual number is "
                f"{DEFAULT_SAMPLE_ROWS}."
            )
        check_coded("dtypes", self.dtypes)

    @property
    def rotation_options(self) -> RotationOptions:
        """How rotations are learned, with what is said once for all."""
        return replace(
            self.rotation,
            seed=self.seed,
            dtypes=self.dtypes,
            spread_out_weight=self.spread_out_weight,
        )

    @property
    def fitted_methods(self) -> tuple[Method, ...]:
        """Kinds of map to fit."""
        return METHODS if self.method == "auto" else (*BASELINES, self.method)

    @property
    def allowed_methods(self) -> tuple[Method, ...]:
        """Kinds of map that may win."""
        return AUTOMATIC if self.method == "auto" else (self.method,)


def train_adapter(
    source: FitSource,
    recipe: AdapterRecipe,
    *,
    out: Path,
    pairs: FitPairs | None = None,
    overwrite: bool = False,
    bad_rows: BadRowPolicy = "error",
    command: str | None = None,
    progress: Progress = silent,
    warn: Callable[[str], object] = warnings.warn,
) -> AdapterRecord:
    """Fit maps to vectors, choose one on held-out rows, and write it as a `nest:` folder.

    No labels and no queries are looked at, but for a supervised rotation.

    Args:
        source: The vectors; see `encode_source` and `read_source`.
        recipe: What is fitted.
        out: Folder for the adapter.
        pairs: What belongs together, for a supervised rotation; see `encode_pairs`. It is fitted
            beside the others and may win only if the recipe names it.
        overwrite: Replace a finished model that is there, once the new one is fitted.
        bad_rows: "error" refuses NaN, infinite and zero rows by id; "drop" leaves them out.
        command: What was typed, for the card.
        progress: Told as it goes on.
        warn: Told what a person should know.

    Returns:
        The record, which is in the folder too.

    Raises:
        DimensionError: If a width breaks the rules, or none lies below the full one.
        DataError: If there are too few distinct vectors, or no pairs for a supervised rotation.
        VectorError: If a row is bad and `bad_rows` is "error", or the pairs are of another width.
        TrainingError: If a banded map is asked for where none could change a score.
        WriteError: As `training_folder`; also if `out` is the adapter that made the vectors, or one
            that it was fitted behind.
    """
    started_s = time.perf_counter()
    dims = _check_widths(recipe, source)
    _check_bands(recipe, dims)
    _check_pairs(recipe, source, pairs)
    _check_not_its_own_ancestor(source, out)
    sample = draw_sample(
        source,
        widest_dim=dims[-2],
        sample_rows=recipe.sample_rows,
        seed=recipe.seed,
        bad_rows=bad_rows,
    )
    for note in (*source.notes, *sample.notes):
        warn(note)
    with removing_if_empty(out), training_folder(out, overwrite=overwrite):
        candidates = list(
            fit_candidates(
                sample.fit,
                dims,
                methods=recipe.fitted_methods,
                options=recipe.rotation_options,
                pairs=pairs,
                progress=progress,
            )
        )
        choice = choose(
            candidates,
            fit_rows=sample.fit,
            held_out=sample.held_out,
            dims=dims,
            dtypes=recipe.dtypes or (Dtype.FLOAT32,),
            allowed=recipe.allowed_methods,
            pairs=None if pairs is None else pairs.held_out,
            seed=recipe.seed,
        )
        winner = choice.winner
        record = AdapterRecord(
            method=winner.method,
            winner=winner.name,
            table=choice.table,
            below=choice.below,
            nesting_dims=dims,
            recipe=_told_once(replace(recipe, nesting_dims=dims)),
            fitted_on=source.name,
            corpus_hash=source.corpus_hash,
            pairs=None if pairs is None else pairs.name,
            pairs_hash=None if pairs is None else pairs.pairs_hash,
            num_fit_rows=len(sample.fit),
            num_held_out=choice.num_held_out,
            reference=DriftReference.of(winner.map(sample.held_out), dims, seed=recipe.seed),
            environment={
                **describe_environment(seed=recipe.seed, command=command),
                "torch": str(torch.__version__),
                "num_threads": torch.get_num_threads(),
            },
            seconds=time.perf_counter() - started_s,
        )
        manifest = NestManifest(
            kind="adapter",
            model=f"{source.parent.space.model}, nested",
            embed_dim=dims[-1],
            nesting_dims=dims,
            training=record.to_json(),
            parent=source.parent,
        )
        save_adapter(out, manifest, winner.map, record, command=command)
    return record


def _check_widths(recipe: AdapterRecipe, source: FitSource) -> tuple[int, ...]:
    dims = check_nesting_dims(recipe.nesting_dims, source.vectors.shape[1])
    if len(dims) < 2:
        raise DimensionError(
            f"`nesting_dims` must name a width below the full one, {dims[-1]}, got {dims[-1]} alone. An adapter "
            f"leaves the full width as good as it was: name the widths to cut at."
        )
    return dims


def _check_bands(recipe: AdapterRecipe, dims: tuple[int, ...]) -> None:
    if recipe.method == "banded" and not band_boundaries(dims, by_coordinate=bool(recipe.dtypes)):
        raise TrainingError(
            f"`method` banded needs at least two widths below the full one, or `dtypes`, for a turn within bands "
            f"changes no score at the only one, got {' and '.join(map(str, dims))}. Name another width, codes with "
            f"--quantize, or another method."
        )


def _check_pairs(recipe: AdapterRecipe, source: FitSource, pairs: FitPairs | None) -> None:
    if recipe.method == "supervised" and pairs is None:
        raise DataError(
            "`pairs` must be given to learn a supervised rotation, got none. Name pairs or labels of the kind that "
            "will be searched, or another method."
        )
    if pairs is not None and pairs.anchors.shape[1] != source.vectors.shape[1]:
        raise VectorError(
            f"`pairs` must be as wide as the vectors to fit on, {source.vectors.shape[1]}, got "
            f"{pairs.anchors.shape[1]}. Encode both with the same model."
        )


def _check_not_its_own_ancestor(source: FitSource, out: Path) -> None:
    own = source.parent.origin.get("model", "")
    if out.resolve() in _ancestors(own):
        raise WriteError(
            f"`out` must not be a model that the adapter is for, got {out} for {own}, which needs it. Name another "
            f"--out."
        )


def _ancestors(model: str) -> set[Path]:
    """Return the folders of a `nest:` model and of those behind it, as far as they are still there."""
    found: set[Path] = set()
    while model.startswith("nest:"):
        folder = Path(model.removeprefix("nest:")).resolve()
        if folder in found:
            break
        found.add(folder)
        try:
            parent = NestManifest.load(folder).parent
        except FormatError:
            break
        model = "" if parent is None else parent.origin.get("model", "")
    return found


def _told_once(recipe: AdapterRecipe) -> dict[str, Any]:
    """Return what was asked for, without what the options of rotations only repeat."""
    asked = asdict(recipe)
    rotation = {name: value for name, value in asked["rotation"].items() if name not in asked}
    return {**asked, "rotation": rotation}
