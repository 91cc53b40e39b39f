"""What the stored code of an embedding decodes to, with gradients as if it were the embedding."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nestling.core import CODECS, Dtype, check_dim, random_rotation
from nestling.errors import TrainingError

CODED = (*CODECS, Dtype.BINARY, Dtype.ROTATED_BINARY)
"""The formats that lose enough to be trained for."""

WIDEST = 2.0
"""A coordinate beyond this many times the usual size of its dimension has a sign that is settled."""


def straight_through(
    embeddings: Float[Tensor, "rows full"],
    dtype: Dtype,
    *,
    dim: int | None = None,
    scale: Float[Tensor, " dim"] | None = None,
) -> Float[Tensor, "rows dim"]:
    """Return what the codes of the rows decode to; gradients pass through the rounding.

    The straight-through estimator (Bengio et al. 2013, arXiv:1308.3432). The forward value is that of
    `nestling.core`, to the bit for int8, int4 and binary; backward, with s the scale of a dimension,

        int8, int4       y = s clip(round(x / s))      dy/dx = 1, and 0 where it is clipped
        binary           y = sign(x)                   dy/dx = 1/s where |x| <= 2 s, else 0
        rotated-binary   y = sign(x R) R^T             as for binary, between x R and y R

    s is a constant: no gradient goes through it. For signs it is the root mean square of the
    dimension, in which they are the identity on x / s: a sign has no size, so the gradient
    does not depend on the size of the embeddings either. The range is that of Hubara et al. 2016
    (arXiv:1609.07061), which is 1 there, on batch-normalised values.

    Codes are those of the rows as they come: give unit rows where unit rows are stored. Codes nest:
    those of the full width, cut, are those of the prefix; rotated-binary is per width, and turned
    back so that it is scored against queries that are not turned.

    Args:
        embeddings: Rows; float32 at least is what is coded.
        dtype: int8, int4, binary or rotated-binary.
        dim: Cut the rows to this width before; None takes the full one.
        scale: s per dimension (of x R for rotated-binary); None takes it from these rows, as the
            codecs of `nestling.core` are calibrated. Values that are not finite are 0 there.

    Raises:
        TrainingError: If `dtype` has no codes.
        DimensionError: If `dim` is outside [1, full].
    """
    (dtype,) = check_coded("dtype", [dtype])
    wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    prefix = wide[:, : check_dim(wide.shape[1] if dim is None else dim, wide.shape[1])]
    if dtype in CODECS:
        return _rounded(prefix, dtype, scale)
    if dtype is Dtype.BINARY:
        return _signs(prefix, scale)
    rotation = torch.tensor(random_rotation(prefix.shape[1])).to(prefix)
    # Autocast would turn in half precision, and other signs would be stored.
    with torch.autocast(prefix.device.type, enabled=False):
        return _signs(prefix @ rotation, scale) @ rotation.T


def check_coded(name: str, dtypes: Sequence[Dtype]) -> tuple[Dtype, ...]:
    """Return the formats, or raise a `TrainingError` unless all are codes and none is there twice."""
    if len(set(dtypes)) < len(dtypes) or not set(dtypes) <= set(CODED):
        raise TrainingError(
            f"`{name}` must be among {', '.join(CODED)}, each once, got {','.join(dtypes)}. Float formats "
            f"need no training."
        )
    return tuple(Dtype(dtype) for dtype in dtypes)


def _rounded(rows: Tensor, dtype: Dtype, scale: Tensor | None) -> Tensor:
    codec = CODECS[dtype]
    values = rows.detach()
    if scale is None:
        finite = values.nan_to_num(0, 0, 0).cpu().numpy()
        scale = torch.from_numpy(codec.calibrate(finite).scale).to(rows.device)
    steps = (values / scale).round_()
    codes = steps.clamp(-codec.largest_code, codec.largest_code)
    # In float32, as it is decoded.
    decoded = (codes.float() * scale.detach().float()).to(rows.dtype)
    return _InPlaceOf.apply(rows, decoded, (codes == steps).to(rows.dtype))


def _signs(rows: Tensor, scale: Tensor | None) -> Tensor:
    values = rows.detach()
    if scale is None:
        sizes = values.nan_to_num(0, 0, 0).square().mean(0).sqrt_()
        scale = torch.where(sizes == 0, 1, sizes)
    slope = (values.abs() <= WIDEST * scale).to(rows.dtype) / scale.detach()
    return _InPlaceOf.apply(rows, (values > 0).to(rows.dtype) * 2 - 1, slope)


class _InPlaceOf(torch.autograd.Function):
    """The second argument, with the gradient of the first, times the third."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, decoded: Tensor, slope: Tensor) -> Tensor:
        """Return the decoded values."""
        ctx.save_for_backward(slope)
        return decoded

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """Hand the gradient on."""
        (slope,) = ctx.saved_tensors
        return upstream * slope, None, None
