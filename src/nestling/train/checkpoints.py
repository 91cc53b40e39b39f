"""Checkpoints that a run can be killed at any moment with, and go on from to the same bits."""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn, optim

from nestling.core.files import (
    fsync_folder,
    naming_write_errors,
    read_json,
    seal,
    unseal,
    write_json,
)
from nestling.errors import FormatError, TrainingError, WriteError

CHECKPOINT_VERSION = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files are whole.

    Attributes:
        path: Its folder.
        state: What the loop gave to `Checkpoints.write`, and `step`.
    """

    path: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.state["step"])

    def load_into(self, module: nn.Module, optimizer: optim.Optimizer) -> None:
        """Put weights and optimiser state back, to the bit.

        Raises:
            TrainingError: If they are those of another model or optimiser.
        """
        # Copied, because the files may be removed while the tensors are still in use.
        tensors = {
            name: tensor.clone() for name, tensor in load_file(self.path / OPTIMIZER_FILE).items()
        }
        try:
            load_model(module, self.path / MODEL_FILE)
            optimizer.load_state_dict(join_tensors(self.state["optimizer"], tensors))
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                f"the checkpoint {self.path} does not fit the model or the optimiser of this run: "
                f"{' '.join(str(error).split())}. "
                f"Name another --out, or start over with --overwrite."
            ) from error


class Checkpoints:
    """The checkpoints of one run: `step-00000123/` folders, of which the newest two are kept.

    Beside them stays the best one, if there is one. A checkpoint is written in a hidden folder,
    flushed to the disk, and renamed: what has its name is whole, unless the disk damages it later,
    which its checksums tell.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # The newest checkpoint, and the best one it refers to: what must outlive the next write.
        self._newest: tuple[int, int | None] | None = None

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint after so many steps."""
        return self._folder / f"step-{step:08d}"

    def describe_newest(self) -> str:
        """Say which checkpoint would be continued, for an error."""
        if self._newest is None:
            return "No checkpoint has been written yet."
        step = self._newest[0]
        return f"The last good checkpoint is kept: {self.path(step)}, after {step:,} steps."

    def newest(self, warn: Callable[[str], object]) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, and whose best one is; None if there is none.

        Args:
            warn: Told if half-written or damaged ones were passed over, and what is used instead.

        Raises:
            TrainingError: If a newer version of nestling wrote it.
        """
        passed_over = [path.name for path in self._parts()]
        for step in sorted(self._steps(), reverse=True):
            try:
                checkpoint = self._read(step)
            except FormatError as error:
                passed_over.append(f"{self.path(step).name} ({error})")
            else:
                self._newest = (step, checkpoint.state["best_step"])
                break
        else:
            checkpoint = None
        if passed_over:
            instead = (
                "the training starts from the beginning"
                if checkpoint is None
                else f"the training goes on from {checkpoint.path.name}"
            )
            warn(
                f"passed over half-written or damaged checkpoints in {self._folder}: "
                f"{'; '.join(passed_over)}; {instead}"
            )
        return checkpoint

    def write(
        self,
        step: int,
        *,
        module: nn.Module,
        optimizer: optim.Optimizer,
        state: Mapping[str, Any],
    ) -> None:
        """Write a checkpoint, whole or not at all, and remove those that are not needed any more.

        Args:
            step: Optimiser steps done.
            module: Its weights are kept.
            optimizer: Its state is kept.
            state: JSON without NaN; `best_step` in it is the step of the best checkpoint (which
                may be this one) or None.

        Raises:
            TrainingError: If a weight is not finite; nothing is written.
            WriteError: If the folder cannot be written or the disk is full; the checkpoints before
                it stay.
        """
        self._check_weights(step, module)
        path = self.path(step)
        part = path.with_name(f".{path.name}.part")
        with naming_write_errors(path):
            try:
                _write_files(part, module, optimizer, {**state, "step": step})
                # What has the name already was passed over as damaged, or it would be continued.
                shutil.rmtree(path, ignore_errors=True)
                part.rename(path)
                fsync_folder(self._folder)
            except SafetensorError as error:
                raise WriteError(
                    f"cannot write {path}: {error}. Free some space, or name another folder, and run "
                    f"the same command again. {self.describe_newest()}"
                ) from error
            finally:
                shutil.rmtree(part, ignore_errors=True)
            self._remove_all_but(step, state["best_step"])

    def load_weights(self, step: int, module: nn.Module) -> None:
        """Put the weights of a checkpoint into the module."""
        load_model(module, self.path(step) / MODEL_FILE)

    def remove_parts(self) -> None:
        """Remove what a killed run left half-written; for the one writer only."""
        for part in self._parts():
            shutil.rmtree(part)

    def remove_all(self) -> None:
        """Remove every checkpoint; for the one writer only."""
        for step in self._steps():
            shutil.rmtree(self.path(step))
        self._newest = None

    def _check_weights(self, step: int, module: nn.Module) -> None:
        # One wait for the device, not one per tensor.
        named = list(module.named_parameters())
        are_finite = torch.stack([torch.isfinite(weights).all() for _, weights in named]).tolist()
        bad = [
            name for (name, _), is_finite in zip(named, are_finite, strict=True) if not is_finite
        ]
        if bad:
            raise TrainingError(
                f"weights must be finite to be written, but after step {step:,} these are not: {', '.join(bad)}. "
                f"{self.describe_newest()} Lower --learning-rate, and train again with another --out, or with "
                f"--overwrite."
            )

    def _steps(self) -> list[int]:
        return [int(path.name[5:]) for path in self._folder.glob("step-" + "[0-9]" * 8)]

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob(".step-*.part"))

    def _read(self, step: int) -> Checkpoint:
        state = _read_state(self.path(step))
        best_step = state["best_step"]
        # Without the best one, the end of the run could not be that of an undisturbed one.
        if best_step not in (None, step):
            _read_state(self.path(best_step))
        return Checkpoint(path=self.path(step), state=state)

    def _remove_all_but(self, step: int, best_step: int | None) -> None:
        # Were the new one damaged later, the one before it must find its own best one.
        keep = {step, best_step, *(self._newest or ())}
        self._newest = (step, best_step)
        for other in self._steps():
            if other not in keep:
                shutil.rmtree(self.path(other))


def _write_files(
    part: Path, module: nn.Module, optimizer: optim.Optimizer, state: Mapping[str, Any]
) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_model(module, str(part / MODEL_FILE))
    tree, tensors = split_tensors(optimizer.state_dict())
    save_file(tensors, part / OPTIMIZER_FILE)
    checksums = {name: _flush(part / name) for name in (MODEL_FILE, OPTIMIZER_FILE)}
    content = {
        **state,
        "checkpoint_version": CHECKPOINT_VERSION,
        "optimizer": tree,
        "checksums": checksums,
    }
    write_json(part / STATE_FILE, seal(content))
    fsync_folder(part)


def _flush(path: Path) -> str:
    """Flush a file to the disk and return its checksum."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _checksum(path)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read_state(path: Path) -> dict[str, Any]:
    """Return the state of a checkpoint after checking all its files.

    Raises:
        FormatError: If one is missing or damaged.
        TrainingError: If a newer version of nestling wrote it.
    """
    file = path / STATE_FILE
    state = unseal(read_json(file), source=str(file), advice="Remove this checkpoint.")
    if state["checkpoint_version"] > CHECKPOINT_VERSION:
        raise TrainingError(
            f"{file} has version {state['checkpoint_version']}, newer than {CHECKPOINT_VERSION}, the newest that "
            f"this nestling reads. Upgrade nestling, or start over with --overwrite."
        )
    for name, expected in state["checksums"].items():
        try:
            found = _checksum(path / name)
        except OSError as error:
            raise FormatError(f"{path / name} cannot be read: {error.strerror}") from error
        if found != expected:
            raise FormatError(f"{path / name} does not fit its checksum")
    return state


def split_tensors(tree: Any, *, name: str = "optimizer") -> tuple[Any, dict[str, torch.Tensor]]:
    """Split what an optimiser remembers into JSON and tensors.

    Args:
        tree: Dicts (of any keys that JSON has), lists and tuples of tensors and plain values.
        name: Of the root; the tensors are named by their places below it.

    Returns:
        The tree as JSON with names in the place of tensors, and the tensors by name.

    Raises:
        TrainingError: If there is something else in the tree.
    """
    tensors: dict[str, torch.Tensor] = {}

    def split(node: Any, name: str) -> Any:
        if isinstance(node, torch.Tensor):
            tensors[name] = node.detach().contiguous()
            return {"tensor": name}
        if isinstance(node, dict):
            return {"dict": [[key, split(value, f"{name}.{key}")] for key, value in node.items()]}
        if isinstance(node, (list, tuple)):
            kind = "list" if isinstance(node, list) else "tuple"
            return {kind: [split(value, f"{name}.{place}") for place, value in enumerate(node)]}
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise TrainingError(
            f"`optimizer` must remember tensors and plain values only, got {type(node).__name__} at {name}. "
            f"Return another optimiser from `make_optimizer`."
        )

    return split(tree, name), tensors


def join_tensors(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Undo `split_tensors`."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: join_tensors(value, tensors) for key, value in content}
    values = [join_tensors(value, tensors) for value in content]
    return values if kind == "list" else tuple(values)
