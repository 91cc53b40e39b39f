"""Your model, your Trainer, our loss: fine-tune any sentence-transformers model so that it can be cut.

python examples/train_with_sentence_transformers.py [path or hub id of a model]

Without an argument a small model of token vectors is made on the spot.
"""

import sys
import tempfile
from pathlib import Path

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from nestling.data import open_training_pairs
from nestling.encode.static import wordllama_files
from nestling.train.losses.nested_info_nce import NestedInfoNCE
from nestling.train.sentence_transformers import SentenceTransformersLoss

DIMS = (16, 32, 64)


def open_model() -> SentenceTransformer:
    if len(sys.argv) > 1:
        return SentenceTransformer(sys.argv[1])
    _, tokenizer = wordllama_files()
    static = StaticEmbedding(Tokenizer.from_file(str(tokenizer)), embedding_dim=DIMS[-1])
    return SentenceTransformer(modules=[static], device="cpu")


def main(folder: Path) -> None:
    pairs = open_training_pairs("builtin")
    data = Dataset.from_dict(
        {
            "anchor": pairs.anchors[:2000],
            "positive": pairs.positives[:2000],
            "label": pairs.groups[:2000],  # pairs of one group are no negatives of each other
        }
    )
    model = open_model()
    full = model.get_embedding_dimension()
    loss = SentenceTransformersLoss(model, NestedInfoNCE([*DIMS[:-1], full]))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=128,
        learning_rate=2e-5 if len(sys.argv) > 1 else 0.02,
        logging_steps=8,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss)
    trainer.train()
    for entry in trainer.state.log_history:
        shares = {name: value for name, value in entry.items() if name.startswith("loss_dim")}
        if shares:
            print(f"step {entry['step']}: loss {entry['loss']:.3f} = {shares}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
