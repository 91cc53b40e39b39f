"""Batches larger than memory: in-batch negatives from chunks that are encoded twice."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nestling.errors import DataError

Chunk = TypeVar("Chunk")


def encode_in_chunks(
    encode: Callable[[Chunk], Tensor], chunks: Sequence[Chunk]
) -> Float[Tensor, "rows dim"]:
    """Encode a large batch with the activations of one chunk in memory at a time.

    Gradient caching (Gao et al. 2021, arXiv:2101.06983). Every chunk is encoded without keeping
    its activations; any loss is taken on all embeddings at once; backward, the gradient of the
    loss by the embeddings is known first, and then each chunk is encoded again, and propagated
    back, in turn. Gradients are those of the whole batch in one go, for one more forward pass:

        queries = encode_in_chunks(encode, query_chunks)
        documents = encode_in_chunks(encode, document_chunks)
        loss(queries, documents).backward()

    The second encoding sees the random numbers (dropout) and the autocast of the first, and leaves
    the random state of the caller alone. It works under DDP, with gradient scaling, and with
    parameters in the loss. State that a forward pass changes, such as the running means of batch
    norm, changes twice; statistics over a batch are those of the chunk.

    Args:
        encode: From a chunk to its embeddings. It must do the same whenever it is called.
        chunks: Anything `encode` takes: tensors, dicts of tensors, texts.

    Returns:
        The embeddings of all chunks, in order. With gradients disabled, nothing is encoded twice.

    Raises:
        DataError: If there are no chunks.
    """
    if not chunks:
        raise DataError("`chunks` must hold at least one chunk to encode, got none.")
    return torch.cat([checkpoint(encode, chunk, use_reentrant=False) for chunk in chunks])
