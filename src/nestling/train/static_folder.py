"""Write a static text model so that nestling and sentence-transformers both open it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors.numpy import save
from tokenizers import Tokenizer

from nestling import __version__
from nestling.core.files import write_atomically, write_json
from nestling.encode.nest import TOKENIZER_FILE, WEIGHTS_FILE, WEIGHTS_KEY
from nestling.encode.nest_manifest import NestManifest
from nestling.train.model_card import Quality, write_model_card
from nestling.train.model_folder import stamp, start_replacing
from nestling.train.record import TrainingRecord

MODULES = [
    {
        "idx": 0,
        "name": "0",
        "path": "",
        "type": "sentence_transformers.models.StaticEmbedding",
    },
    {
        "idx": 1,
        "name": "1",
        "path": "1_Normalize",
        "type": "sentence_transformers.models.Normalize",
    },
]
"""What sentence-transformers builds from the folder; these names are read by all its versions."""


def save_static(
    out: Path,
    table: Float32[np.ndarray, "tokens embed_dim"],
    tokenizer: Tokenizer,
    *,
    nesting_dims: tuple[int, ...],
    record: TrainingRecord,
    quality: Quality | None = None,
    training_data: str | None = None,
    command: str | None = None,
) -> NestManifest:
    """Write the folder; `nestling.json` comes last and says that all else is there.

    Args:
        out: The folder.
        table: One vector per token id.
        tokenizer: Text to token ids.
        nesting_dims: Widths it was trained at, the last the full one.
        record: Of its training.
        quality: What each prefix is worth, for the model card.
        training_data: A sentence for the model card.
        command: What was typed, for the model card.

    Raises:
        WriteError: If it cannot be written.
    """
    start_replacing(out)
    write_atomically(out / WEIGHTS_FILE, save({WEIGHTS_KEY: np.ascontiguousarray(table)}))
    write_atomically(out / TOKENIZER_FILE, tokenizer.to_str().encode())
    configs: Mapping[str, object] = {
        "modules.json": MODULES,
        "1_Normalize/config.json": {},
        "config_sentence_transformers.json": {
            "__version__": {"nestling": __version__},
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        # The keys that servers read before they let a client ask for `dimensions`.
        "config.json": {
            "is_matryoshka": len(nesting_dims) > 1,
            "matryoshka_dimensions": list(nesting_dims),
        },
    }
    for name, content in configs.items():
        write_json(out / name, content)
    manifest = NestManifest(
        kind="static",
        model=out.resolve().name,
        embed_dim=table.shape[1],
        nesting_dims=nesting_dims,
        training=record.to_json(),
    )
    write_model_card(out, manifest, quality=quality, training_data=training_data, command=command)
    manifest = stamp(out, manifest)
    manifest.save(out)
    return manifest
