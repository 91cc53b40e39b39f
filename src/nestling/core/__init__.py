"""The nest itself in NumPy: dims, prefixes, codes, similarity, top-k, fingerprints."""

from nestling.core.checks import (
    BadRowPolicy,
    check_rows,
    check_unique_ids,
    distinct_rows,
    find_bad_rows,
)
from nestling.core.codes import (
    CODECS,
    Dtype,
    Int4Codec,
    Int8Codec,
    ScalarCodec,
    bytes_per_vector,
    pack_nibbles,
    pack_signs,
    unpack_nibbles,
    unpack_signs,
)
from nestling.core.dims import check_dim, check_dims, check_nesting_dims, default_nesting_dims
from nestling.core.fingerprint import Fingerprint, Space, check_same_space
from nestling.core.nested_top_k import NestedTopK, View, nested_top_k
from nestling.core.prefix import normalize, prefix_norms, take_prefix
from nestling.core.projection import Projection
from nestling.core.rotation import random_rotation, rotate_prefix
from nestling.core.similarity import cosine_scores, nested_pair_cosines, rescore
from nestling.core.topk import TopK, top_k

__all__ = [
    "CODECS",
    "BadRowPolicy",
    "Dtype",
    "Fingerprint",
    "Int4Codec",
    "Int8Codec",
    "NestedTopK",
    "Projection",
    "ScalarCodec",
    "Space",
    "TopK",
    "View",
    "bytes_per_vector",
    "check_dim",
    "check_dims",
    "check_nesting_dims",
    "check_rows",
    "check_same_space",
    "check_unique_ids",
    "cosine_scores",
    "default_nesting_dims",
    "distinct_rows",
    "find_bad_rows",
    "nested_pair_cosines",
    "nested_top_k",
    "normalize",
    "pack_nibbles",
    "pack_signs",
    "prefix_norms",
    "random_rotation",
    "rescore",
    "rotate_prefix",
    "take_prefix",
    "top_k",
    "unpack_nibbles",
    "unpack_signs",
]
