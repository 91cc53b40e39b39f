"""Write a fitted adapter as a `nest:` folder, and as what others load."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors.numpy import save

from nestling.core.files import naming_write_errors, write_atomically, write_json
from nestling.encode.nest_manifest import NestManifest
from nestling.encode.vector_map import OrthogonalMap, VectorMap, save_map
from nestling.train.adapter.card import write_card
from nestling.train.adapter.record import AdapterRecord
from nestling.train.model_folder import CHECKPOINT_FOLDER, stamp, start_replacing

ROTATION_FILE = "rotation.npy"
DENSE_FOLDER = "Dense"


@contextmanager
def removing_if_empty(out: Path) -> Iterator[None]:
    """Take a new folder away again if the block fails before anything is in it."""
    is_new = not out.exists()
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                out.rmdir()
        raise


def save_adapter(
    out: Path,
    manifest: NestManifest,
    vector_map: VectorMap,
    record: AdapterRecord,
    *,
    command: str | None,
) -> None:
    """Write the folder; `nestling.json` comes last and says that all else is there.

    Args:
        out: The folder.
        manifest: Of the adapter, not stamped yet.
        vector_map: The map; of a rotation the matrix is written as `rotation.npy` too, and as the
            module `Dense` of sentence-transformers.
        record: Of its fit, for the card.
        command: What was typed, for the card.

    Raises:
        WriteError: If it cannot be written.
    """
    start_replacing(out)
    with naming_write_errors(out):
        # Says that this folder is ours, should writing be cut off.
        (out / CHECKPOINT_FOLDER).mkdir(exist_ok=True)
        # What an adapter that stood here before has left, and a residual map would not replace.
        (out / ROTATION_FILE).unlink(missing_ok=True)
        shutil.rmtree(out / DENSE_FOLDER, ignore_errors=True)
    save_map(out, vector_map)
    if isinstance(vector_map, OrthogonalMap):
        _export_matrix(out, vector_map.matrix)
    write_card(out, manifest, record, command=command)
    stamp(out, manifest).save(out)
    shutil.rmtree(out / CHECKPOINT_FOLDER)


def _export_matrix(out: Path, matrix: Float32[np.ndarray, "embed_dim embed_dim"]) -> None:
    file = io.BytesIO()
    np.save(file, matrix)
    write_atomically(out / ROTATION_FILE, file.getvalue())
    dense = out / DENSE_FOLDER
    write_atomically(
        dense / "model.safetensors", save({"linear.weight": np.ascontiguousarray(matrix.T)})
    )
    write_json(
        dense / "config.json",
        {
            "in_features": len(matrix),
            "out_features": len(matrix),
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
