"""Fine-tune a sentence-transformers model on pairs of texts, nested, through its own Trainer."""

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState

from nestling.core import Dtype
from nestling.core.dims import check_nesting_dims, default_nesting_dims
from nestling.core.files import naming_write_errors
from nestling.core.progress import Progress, silent
from nestling.data import Task
from nestling.data.training_pairs import TrainingPairs
from nestling.encode.nest_manifest import NestManifest
from nestling.encode.st import SentenceTransformersEncoder
from nestling.errors import (
    DataError,
    EncoderError,
    MissingExtraError,
    TrainingError,
    WriteError,
)
from nestling.train.coding import check_coding, with_codes
from nestling.train.job import LoopOptions, check_early_stopping
from nestling.train.losses.nested_info_nce import NestedInfoNCE
from nestling.train.losses.self_distillation import SelfDistillation
from nestling.train.losses.spread_out import SpreadOut
from nestling.train.model_card import write_model_card
from nestling.train.model_folder import (
    CHECKPOINT_FOLDER,
    stamp,
    start_replacing,
    training_folder,
)
from nestling.train.processes import process_state
from nestling.train.randomness import giving_generators_back
from nestling.train.record import TrainingRecord
from nestling.train.sentence_transformers.loss import SentenceTransformersLoss
from nestling.train.settings import as_json

TRANSFORMER_OPTIONS = LoopOptions(num_epochs=1, learning_rate=2e-5, max_grad_norm=1.0)
"""What fine-tuning takes unless told otherwise."""

SCHEME = "st:"

COLUMN_LOGGER = "sentence_transformers.base.losses.merged_forward"
"""Says why columns are embedded apart, e.g. as some rows have no negative: nothing to act on."""


def train_sentence_transformer(
    model_uri: str,
    pairs: TrainingPairs,
    *,
    out: Path,
    dims: Sequence[int] | None = None,
    options: LoopOptions = TRANSFORMER_OPTIONS,
    dim_weights: Sequence[float] | None = None,
    batch_size: int = 64,
    temperature: float = 0.05,
    symmetric: bool = False,
    self_distillation_weight: float = 0.0,
    dims_per_step: int | None = None,
    quantize: Sequence[Dtype] = (),
    quantize_weight: float = 1.0,
    spread_out_weight: float = 0.0,
    mini_batch_size: int | None = None,
    validation: Task | None = None,
    device: str | None = None,
    overwrite: bool = False,
    command: str | None = None,
    progress: Progress = silent,
    warn: Callable[[str], object] = warnings.warn,
) -> TrainingRecord:
    """Fine-tune a model so that every prefix is a good embedding, and save it as a model folder.

    `out` becomes a sentence-transformers folder that plain sentence-transformers opens, with or
    without `truncate_dim`; its config.json says `is_matryoshka` and `matryoshka_dimensions`, and
    `nestling.json` holds the training record. Until then checkpoints stand in `out/checkpoints`:
    killed at any moment, the same call goes on from the last whole one, on a CPU to the same bits.

    An epoch takes the pairs in an order that depends on seed and epoch alone. Pairs of one group
    are no negatives of each other. Texts get the model's own query and document prompts. Where
    there are more pairs than a batch holds, those left over at the end of an epoch are left out:
    a smaller batch would be another loss.

    With several processes (`accelerate launch`), each takes batches of its own, whose pairs are
    told from each other, and gradients are averaged; all must see the same `out`. Without a
    launcher one accelerator is taken, however many there are.

    Args:
        model_uri: `st:<path or hub id>`.
        pairs: What to train on; a negative is one more document for all queries of its batch,
            and rows without one bring none.
        out: The model folder to be.
        dims: Ascending widths; the full one is added if it is missing. None halves it down to 8.
        options: How; the schedule is that of `fit`.
        dim_weights: Weight of each width, 1 by default.
        batch_size: Pairs per step and process.
        temperature: Of `NestedInfoNCE`.
        symmetric: See `NestedInfoNCE`.
        self_distillation_weight: Weight of `SelfDistillation` beside it; 0 leaves it out.
        dims_per_step: Look at this many prefixes per step; None looks at all.
        quantize: Formats in which documents count besides float, see `QuantizedPrefixes`.
        quantize_weight: How much each of them counts beside float.
        spread_out_weight: Weight of `SpreadOut` beside it all; 0 leaves it out.
        mini_batch_size: Rows that are embedded at a time, see `SentenceTransformersLoss`.
        validation: Measured after each epoch, at every width.
        device: "cpu" keeps off an accelerator that is there; None takes it.
        overwrite: Replace a finished model in `out`, once the new one is trained; and start over
            where checkpoints of another training are there.
        command: What was typed, for the model card.
        progress: What stands before " | " in its label does not change, the rest tells the losses.
        warn: Told what a person should know, such as that a damaged checkpoint was passed over.

    Returns:
        The training record, which `out/nestling.json` holds, too.

    Raises:
        MissingExtraError: If datasets or sentence-transformers is not installed.
        EncoderError: If the model does not open.
        DimensionError: If `dims` leave the model's width or are unsorted, or `early_stop_dim` is
            not among them.
        DataError: If there are fewer than two pairs, or `batch_size` is below 2.
        TrainingError: If `quantize` names no codes, or a weight beside it is out of range; if a
            loss or a gradient is not finite (the last good checkpoint stays), if the checkpoints
            there are of another run, if early stopping has nothing to look at, or if there are
            fewer batches than processes.
        WriteError: If `out` is or holds the folder of the base model; as `training_folder`; or if
            it cannot be written. Nothing has been written or removed then, nor with any of the
            errors above that are about arguments.
    """
    _need_datasets()
    from nestling.train.sentence_transformers.run import TrainerRun, pick_device

    name = _name_of(model_uri)
    _check_apart(out, name)
    check_coding(quantize, quantize_weight, spread_out_weight)
    # How processes meet is decided once, before they do; the Trainer takes it from here.
    state = PartialState(cpu=True) if device == "cpu" else process_state()
    # Opening a model draws numbers, too.
    with giving_generators_back(pick_device(device)), _quiet(), _forgetting_precision():
        base = SentenceTransformersEncoder(name)
        nesting_dims = check_nesting_dims(
            default_nesting_dims(base.embed_dim) if dims is None else dims, base.embed_dim
        )
        _check(pairs, batch_size, num_processes=state.num_processes)
        check_early_stopping(options, nesting_dims, has_validation=validation is not None)
        settings = as_json(
            {
                "model": model_uri,
                "base": asdict(base.fingerprint.space),
                "pairs": pairs.source,
                "pairs_hash": pairs.pairs_hash,
                "num_pairs": len(pairs.anchors),
                "nesting_dims": nesting_dims,
                "dim_weights": dim_weights,
                "batch_size": batch_size,
                "temperature": temperature,
                "symmetric": symmetric,
                "self_distillation_weight": self_distillation_weight,
                "dims_per_step": dims_per_step,
                "quantize": quantize,
                "quantize_weight": quantize_weight,
                "spread_out_weight": spread_out_weight,
                "mini_batch_size": mini_batch_size,
                "validation": None if validation is None else validation.name,
            }
        )
        model = _open(name, device)
        contrast = NestedInfoNCE(
            nesting_dims,
            dim_weights,
            temperature=temperature,
            symmetric=symmetric,
            dims_per_step=dims_per_step,
            seed=options.seed,
        )
        ranking = spread_out = None
        if self_distillation_weight:
            distillation = SelfDistillation(
                nesting_dims,
                temperature=temperature,
                # One drawn prefix is the full width, which is the teacher: then all are taught.
                dims_per_step=None if dims_per_step == 1 else dims_per_step,
                seed=options.seed,
            )
            ranking = with_codes(distillation, quantize, quantize_weight)
        if spread_out_weight:
            spread_out = SpreadOut(
                nesting_dims, dim_weights, dims_per_step=dims_per_step, seed=options.seed
            )
        loss = SentenceTransformersLoss(
            model,
            with_codes(contrast, quantize, quantize_weight),
            self_distillation=ranking,
            self_distillation_weight=self_distillation_weight,
            spread_out=spread_out,
            spread_out_weight=spread_out_weight,
            mini_batch_size=mini_batch_size,
        )
        folder = out.resolve() / CHECKPOINT_FOLDER
        with training_folder(out, overwrite=overwrite):
            run = TrainerRun(
                model=model,
                loss=loss,
                pairs=pairs,
                options=options,
                settings=settings,
                folder=folder,
                batch_size=batch_size,
                validation=validation,
                device=device,
                progress=progress,
            )
            record = run.run(warn, restart=overwrite)
            PartialState().wait_for_everyone()  # all have read the weights of the best epoch
            if PartialState().is_main_process:
                manifest = NestManifest(
                    kind="sentence-transformers",
                    model=out.resolve().name,
                    embed_dim=base.embed_dim,
                    nesting_dims=nesting_dims,
                    training=record.to_json(),
                )
                _export(model, out, manifest, training_data=pairs.describe(), command=command)
                shutil.rmtree(folder, ignore_errors=True)
    return record


def _need_datasets() -> None:
    try:
        import datasets  # noqa: F401 - the Trainer reads its data with it
    except ImportError as error:
        raise MissingExtraError("datasets", "train-st") from error


def _name_of(model_uri: str) -> str:
    if model_uri.startswith(SCHEME) and len(model_uri) > len(SCHEME):
        return model_uri.removeprefix(SCHEME)
    raise EncoderError(
        f"`model` must be st:<path or hub id> to be fine-tuned, got {model_uri!r}. "
        f"E.g. st:sentence-transformers/all-MiniLM-L6-v2."
    )


def _check_apart(out: Path, name: str) -> None:
    """Refuse to train into the folder that is trained from, or around it."""
    base, target = Path(name).resolve(), out.resolve()
    if Path(name).is_dir() and (base == target or target in base.parents):
        raise WriteError(
            f"`out` must not be or hold the folder of the base model, got {out} for the model {name}: it would "
            f"be overwritten. Name another --out."
        )


def _check(pairs: TrainingPairs, batch_size: int, *, num_processes: int) -> None:
    num_pairs = len(pairs.anchors)
    if num_pairs < 2:
        raise DataError(
            f"`pairs` must be at least 2, as each is told from the others, got {num_pairs} from {pairs.source}. "
            f"Name another --pairs."
        )
    if batch_size < 2:
        raise DataError(
            f"`batch_size` must be at least 2, as each pair is told from the others of its batch, "
            f"got {batch_size}. The usual one is 64."
        )
    num_batches = max(1, num_pairs // batch_size)
    if num_batches < num_processes:
        raise TrainingError(
            f"an epoch must have at least one batch for each process, got {num_batches} batches for "
            f"{num_processes} processes. Take smaller batches, more data or fewer processes."
        )


def _open(name: str, device: str | None) -> Any:
    import sentence_transformers

    model = sentence_transformers.SentenceTransformer(name, device=device)
    model.truncate_dim = None
    # The model card is ours: nothing of it needs the hub, or examples worked out.
    model.model_card_data.local_files_only = True
    model.model_card_data.generate_widget_examples = False
    return model


def _export(
    model: Any, out: Path, manifest: NestManifest, *, training_data: str, command: str | None
) -> None:
    """Save the model folder; `nestling.json` comes last and says that all else is there."""
    transformer = model.transformers_model
    if transformer is not None:
        _say_where_it_is_cut(transformer.config, manifest.nesting_dims)
    start_replacing(out)
    with naming_write_errors(out):
        model.save_pretrained(str(out), create_model_card=False)
    manifest = stamp(out, manifest)
    write_model_card(out, manifest, training_data=training_data, command=command)
    manifest.save(out)


def _say_where_it_is_cut(config: Any, nesting_dims: tuple[int, ...]) -> None:
    config.is_matryoshka = len(nesting_dims) > 1
    if config.is_matryoshka:
        config.matryoshka_dimensions = list(nesting_dims)
    elif hasattr(config, "matryoshka_dimensions"):
        # The base was nested; readers take the mere presence of widths for a yes.
        del config.matryoshka_dimensions


@contextmanager
def _forgetting_precision() -> Iterator[None]:
    """Let the next training choose its number format: the Trainer sets it for the whole process."""
    try:
        yield
    finally:
        AcceleratorState._reset_state()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the bars and the chat of the Trainer off the terminal: `progress` is told instead."""
    from transformers.utils import logging as chat

    verbosity, has_bars = chat.get_verbosity(), chat.is_progress_bar_enabled()
    columns = logging.getLogger(COLUMN_LOGGER)
    chat.set_verbosity_error()
    chat.disable_progress_bar()
    columns.addFilter(_is_error)
    try:
        yield
    finally:
        columns.removeFilter(_is_error)
        chat.set_verbosity(verbosity)
        if has_bars:
            chat.enable_progress_bar()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
