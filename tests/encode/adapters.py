"""Adapter folders, saved by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from nestling.core import Fingerprint
from nestling.encode import AdaptedEncoder
from nestling.encode.nest import open_unstamped
from nestling.encode.nest_manifest import NestManifest
from nestling.encode.vector_map import OrthogonalMap, ResidualMap, VectorMap, save_map


def rotation(embed_dim: int, *, seed: int = 0) -> OrthogonalMap:
    generator = np.random.default_rng(seed)
    return OrthogonalMap(np.linalg.qr(generator.standard_normal((embed_dim, embed_dim)))[0])


def residual(embed_dim: int, *, hidden: int = 5, seed: int = 0) -> ResidualMap:
    generator = np.random.default_rng(seed)
    shapes = {
        "inner": (embed_dim, hidden),
        "inner_bias": (hidden,),
        "outer": (hidden, embed_dim),
        "outer_bias": (embed_dim,),
    }
    return ResidualMap(
        **{
            name: generator.standard_normal(shape).astype(np.float32)
            for name, shape in shapes.items()
        }
    )


def save_adapter(
    folder: Path,
    parent: Fingerprint,
    vector_map: VectorMap | None = None,
    *,
    method: str = "random",
) -> str:
    """Write a stamped adapter and return its URI."""
    embed_dim = parent.space.embed_dim
    folder.mkdir(parents=True, exist_ok=True)
    save_map(folder, vector_map or rotation(embed_dim))
    manifest = NestManifest(
        kind="adapter",
        model=f"{parent.space.model}, nested",
        embed_dim=embed_dim,
        nesting_dims=(2, embed_dim),
        training={"method": method},
        parent=parent,
    )
    manifest.save(folder)
    opened = open_unstamped(folder, manifest)
    assert isinstance(opened, AdaptedEncoder)
    replace(manifest, fingerprint=opened.fingerprint).save(folder)
    return f"nest:{folder}"
