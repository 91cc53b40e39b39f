"""Options that say how an index searches: a plan file, or its stages one by one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from nestling.cli.options import Decorator
from nestling.core import Dtype, Space
from nestling.search import ENGINES, EngineChoice, Plan, Stage, engine_class


class StageParameter(click.ParamType[Stage]):
    """One stage of a plan."""

    name = "DIM:DTYPE[:KEEP]"

    def convert(
        self, value: str | Stage, param: click.Parameter | None, ctx: click.Context | None
    ) -> Stage:
        """Parse "64:int8:200"."""
        if isinstance(value, Stage):
            return value
        try:
            dim, dtype, *kept = value.split(":")
            sizes: list[int | None] = [int(size) for size in kept]
            (shortlist_size,) = sizes or [None]
            return Stage(dim=int(dim), dtype=Dtype(dtype), shortlist_size=shortlist_size)
        except ValueError:
            self.fail(
                f"needs a width, a number format ({', '.join(Dtype)}) and, but for the last stage, "
                f"how many rows to keep, like 64:int8:200, got {value!r}.",
                param,
                ctx,
            )


class EngineParameter(click.ParamType[EngineChoice]):
    """An engine and its settings."""

    name = "NAME[:SETTING=N,...]"

    def convert(
        self, value: str | EngineChoice, param: click.Parameter | None, ctx: click.Context | None
    ) -> EngineChoice:
        """Parse "graph:window=80,degree=32"."""
        if isinstance(value, EngineChoice):
            return value
        name, _, rest = value.partition(":")
        if name not in ENGINES:
            self.fail(f"knows {', '.join(ENGINES)}, got {name!r}.", param, ctx)
        try:
            pairs = [pair.split("=") for pair in rest.split(",") if pair]
            settings = {key.strip(): int(number) for key, number in pairs}
        except ValueError:
            self.fail(
                f"needs settings that are whole numbers, like graph:window=80, got {value!r}.",
                param,
                ctx,
            )
        engine = engine_class(name)
        known = {**engine.build_settings, **engine.search_settings}
        if unknown := [key for key in settings if key not in known]:
            self.fail(
                f"{name} has no setting {unknown[0]!r}. It takes {', '.join(known) or 'none'}.",
                param,
                ctx,
            )
        return EngineChoice(
            name=name,
            build={key: settings[key] for key in settings if key in engine.build_settings},
            search={key: settings[key] for key in settings if key in engine.search_settings},
        )


def plan_options(function: Callable[..., None]) -> Callable[..., None]:
    """How to search: `plan_file`, or `stages` and `engine`."""
    options: Sequence[Decorator] = (
        click.option(
            "--plan",
            "plan_file",
            type=click.Path(path_type=Path),
            metavar="PLAN.json",
            help="From `nestling choose`.",
        ),
        click.option(
            "--stage",
            "stages",
            type=StageParameter(),
            multiple=True,
            help="Instead of --plan: a stage, from the first to the last, e.g. "
            "--stage 64:int8:200 --stage 1024:float16.",
        ),
        click.option(
            "--engine",
            type=EngineParameter(),
            help="With --stage: what searches the first stage, e.g. graph:window=80.  "
            "[default: flat, the exact scan]",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def read_plan(
    plan_file: Path | None,
    stages: Sequence[Stage],
    engine: EngineChoice | None,
    *,
    space: Space,
) -> Plan | None:
    """Return the plan that `plan_options` name, or None if they name none.

    Raises:
        click.UsageError: If both a file and stages are given, or an engine without stages.
        DimensionError, FormatError: If the stages make no plan.
    """
    if plan_file is not None and (stages or engine):
        raise click.UsageError("give --plan, or --stage and --engine, not both.")
    if plan_file is not None:
        return Plan.load(plan_file)
    if not stages:
        if engine is not None:
            raise click.UsageError("--engine needs at least one --stage, e.g. --stage 64:int8.")
        return None
    return Plan(
        stages=tuple(stages),
        embed_dim=space.embed_dim,
        space=space,
        evidence={},
        engine=engine or EngineChoice(),
    )
