"""One run of the sentence-transformers Trainer: from a checkpoint or the beginning to its record."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from nestling.core.progress import Progress, silent
from nestling.data import Task
from nestling.data.training_pairs import TrainingPairs
from nestling.errors import MissingExtraError
from nestling.train.job import LoopOptions
from nestling.train.record import TrainingRecord
from nestling.train.schedule import rate_factor
from nestling.train.sentence_transformers.callbacks import (
    CheckpointCallback,
    FiniteCallback,
    RecordCallback,
    StepCallback,
)
from nestling.train.sentence_transformers.checkpoints import SealedCheckpoint, find_checkpoint
from nestling.train.sentence_transformers.loss import SentenceTransformersLoss
from nestling.train.sentence_transformers.validation import PrefixEvaluator
from nestling.train.settings import continuation_settings, describe_machine

try:
    import datasets
    import sentence_transformers
    import torch
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer.data_collator import (
        SentenceTransformerDataCollator,
    )
    from transformers import PrinterCallback
except ImportError as error:
    raise MissingExtraError("datasets", "train-st") from error

DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@final
class SeededBatches(DefaultBatchSampler):
    """Batches in an order that is a function of seed and epoch, so that a resumed run needs no memory.

    Each process gets as many as the others: up to one less than there are processes is left out.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool,
        *,
        num_processes: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, **options)
        self._num_rows = len(dataset)
        self._num_processes = num_processes

    def __len__(self) -> int:
        num_batches = count_batches(self._num_rows, self.batch_size)
        return num_batches // self._num_processes * self._num_processes

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self._num_rows)
        for index in range(len(self)):
            yield order[index * self.batch_size : (index + 1) * self.batch_size].tolist()


class _Collator(SentenceTransformerDataCollator):
    """Leaves out the negatives that are not there, so that a batch may hold fewer of them than pairs."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Tokenise a batch."""
        negatives = [
            {"negative": row.pop("negative")} for row in features if row.get("negative") is not None
        ]
        there = [row for row in negatives if row["negative"]]
        return {**super().__call__(features), **super().__call__(there)}

    def maybe_warn_about_column_order(self, column_names: list[str]) -> None:
        """Say nothing: the columns are ours."""


class _Trainer(SentenceTransformerTrainer):
    data_collator_class = _Collator

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none: the card of a model folder is nestling's own."""


class TrainerRun:
    """Trains the model of a loss; see `train_sentence_transformer`."""

    def __init__(
        self,
        *,
        model: Any,
        loss: SentenceTransformersLoss,
        pairs: TrainingPairs,
        options: LoopOptions,
        settings: Mapping[str, Any],
        folder: Path,
        batch_size: int,
        validation: Task | None,
        device: str | None,
        progress: Progress,
    ) -> None:
        state = PartialState()
        self._settings = settings
        self._nesting_dims = loss.nesting.dims
        self._num_batches = count_batches(len(pairs.anchors), batch_size)
        self._model = model
        self._options = options
        self._folder = folder
        self._progress = progress if state.is_main_process else silent
        self._steps_per_epoch = self._num_batches // state.num_processes
        self._continuation = continuation_settings(
            settings,
            options,
            nesting_dims=self._nesting_dims,
            num_batches=self._num_batches,
            num_processes=state.num_processes,
        )
        args = SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch_size,
            num_train_epochs=options.num_epochs,
            max_grad_norm=options.max_grad_norm or 0.0,
            bf16=options.precision == "bfloat16",
            seed=options.seed,
            batch_sampler=partial(SeededBatches, num_processes=state.num_processes),
            prompts=_prompts(model),
            save_strategy="epoch",
            # The best one and the newest stay, and the one before, lest the newest be half-written.
            save_total_limit=2 if options.early_stop_dim is None else 3,
            eval_strategy="no" if validation is None else "epoch",
            metric_for_best_model=options.early_stop_dim and f"dim_{options.early_stop_dim}",
            greater_is_better=True,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
            dataloader_drop_last=state.num_processes > 1,
            dataloader_pin_memory=torch.cuda.is_available() and device != "cpu",
        )
        # Several accelerators in one process would be one larger batch, and fewer steps.
        args._n_gpu = min(args.n_gpu, 1)
        self._trainer = _Trainer(
            model=model,
            args=args,
            train_dataset=_dataset(pairs),
            loss=loss,
            evaluator=None
            if validation is None
            else PrefixEvaluator(validation, self._nesting_dims),
            callbacks=[StepCallback(loss), FiniteCallback(loss)],
            optimizers=self._make_optimizers(),
        )
        self._trainer.remove_callback(PrinterCallback)
        environment = {
            **describe_machine(self._trainer.accelerator, options),
            "sentence-transformers": sentence_transformers.__version__,
        }
        self._record = RecordCallback(loss, options, self._progress, environment)
        checkpoints = CheckpointCallback(
            options.checkpoint_every_s,
            self._continuation,
            self._record,
            steps_per_epoch=self._steps_per_epoch,
        )
        for callback in (self._record, checkpoints):
            self._trainer.add_callback(callback)

    def run(self, warn: Callable[[str], object], *, restart: bool = False) -> TrainingRecord:
        """Train, or go on with what was begun; afterwards the model has the weights to keep.

        Args:
            warn: Told of checkpoints that were passed over, and of another machine.
            restart: Begin anew where the checkpoints are of another run, and remove them.

        Raises:
            TrainingError: See `train_sentence_transformer`.
        """
        seen: list[SealedCheckpoint | None] = [None]
        if PartialState().is_main_process:
            seen = [find_checkpoint(self._folder, self._continuation, warn, restart=restart)]
        (found,) = broadcast_object_list(seen)  # one decides for all, and removes what is damaged
        if found is not None:
            self._record.restore(
                found.progress, warn if PartialState().is_main_process else _ignore
            )
        if not self._record.is_finished:
            self._trainer.train(resume_from_checkpoint=found and str(found.path))
        self._take_weights(found)
        return self._finish()

    def _make_optimizers(self) -> tuple[Any, Any]:
        options, num_steps = self._options, self._options.num_epochs * self._steps_per_epoch
        trained = [weights for weights in self._model.parameters() if weights.requires_grad]
        optimizer = torch.optim.AdamW(trained, options.learning_rate, weight_decay=0.0, fused=True)
        factor = partial(_factor, num_steps=num_steps, options=options)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def _take_weights(self, found: SealedCheckpoint | None) -> None:
        """Load the weights of the best epoch, or of the end of a run that was finished before."""
        best = self._record.best_epoch
        if best is not None:
            path = self._folder / f"checkpoint-{best * self._steps_per_epoch}"
        elif found is not None and self._trainer.state.global_step == 0:
            path = found.path
        else:
            return
        kept = sentence_transformers.SentenceTransformer(str(path), device="cpu")
        self._model.load_state_dict(kept.state_dict())

    def _finish(self) -> TrainingRecord:
        self._model.eval()
        epochs = self._record.epochs
        num_steps = len(epochs) * self._steps_per_epoch
        label = f"train | {len(epochs)} of {self._options.num_epochs} epochs, loss {epochs[-1].loss:.3g}"
        self._progress(label, num_steps, num_steps)
        return TrainingRecord(
            settings=self._settings,
            options=asdict(self._options),
            nesting_dims=self._nesting_dims,
            num_parameters=sum(weights.numel() for weights in self._model.parameters()),
            epochs=tuple(epochs),
            num_steps=num_steps,
            num_resumes=self._record.num_resumes,
            stopped_early=len(epochs) < self._options.num_epochs,
            best_epoch=self._record.best_epoch,
            environment=self._record.environment,
        )


def count_batches(num_pairs: int, batch_size: int) -> int:
    """Return the batches of an epoch: whole ones, or all pairs where they fill none."""
    return max(1, num_pairs // batch_size)


def pick_device(device: str | None) -> torch.device:
    """Return the device that is asked for, or the one the Trainer takes."""
    return torch.device(device or sentence_transformers.util.get_device_name())


def _factor(step: int, *, num_steps: int, options: LoopOptions) -> float:
    # The Trainer asks for the rate of the step after the last one, too.
    return rate_factor(min(step, num_steps - 1), num_steps, options)


def _dataset(pairs: TrainingPairs) -> Any:
    columns: dict[str, Any] = {"anchor": list(pairs.anchors), "positive": list(pairs.positives)}
    if pairs.negatives is not None:
        columns["negative"] = list(pairs.negatives)
    # A label column goes to the loss as it is; these tell which pairs are no negatives of each other.
    return datasets.Dataset.from_dict({**columns, "label": pairs.groups})


def _prompts(model: Any) -> dict[str, str]:
    """Return the prompts that the model encodes queries and documents with, by column."""
    of_document = next((model.prompts[key] for key in DOCUMENT_PROMPTS if key in model.prompts), "")
    prompts = {
        "anchor": model.prompts.get("query", ""),
        "positive": of_document,
        "negative": of_document,
    }
    return {column: prompt for column, prompt in prompts.items() if prompt}


def _ignore(message: str) -> None:
    """A message that another process tells already."""
