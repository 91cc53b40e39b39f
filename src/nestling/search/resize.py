"""Other tiers and another engine from the stored vectors: nothing is encoded again."""

from dataclasses import replace

from nestling.search.build import nesting_dims
from nestling.search.derive import (
    Work,
    checked_settings,
    derive_engine,
    derive_tiers,
    without_derived,
)
from nestling.search.funnel import check_plan
from nestling.search.manifest import Manifest
from nestling.search.plan import Plan
from nestling.search.snapshot import Snapshot


def resize_generation(work: Work, snapshot: Snapshot, plan: Plan) -> Manifest:
    """Write what another plan needs; tiers and an engine that exist already are kept.

    Args:
        work: Where and how; the folder is locked.
        snapshot: The newest generation.
        plan: The funnel to run from now on.

    Returns:
        What to save.

    Raises:
        DimensionError, FingerprintError, FormatError: If the plan does not fit the vectors.
        FormatError: If a stored vector is damaged.
    """
    before = snapshot.manifest
    check_plan(plan, before.fingerprint)
    checked_settings(plan)
    manifest = replace(
        without_derived(before),
        generation=work.generation,
        nesting_dims=nesting_dims(plan, before.nesting_dims),
    )
    manifest = derive_tiers(work, manifest, plan, snapshot.vectors, reused=before)
    manifest = derive_engine(work, manifest, snapshot.vectors, reused=before)
    catalogue = snapshot.catalogue.write(before.catalogue, generation=work.generation)
    return replace(manifest, catalogue=catalogue)
