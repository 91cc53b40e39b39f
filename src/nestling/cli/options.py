"""Options that several verbs share, each said once."""

from collections.abc import Callable, Collection
from pathlib import Path

import click
from click.core import ParameterSource

from nestling.core import Dtype

DEBUG_KEY = "nestling.debug"
"""Where --debug is kept for the whole call, whichever verb it was given to."""

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class IntList(click.ParamType[tuple[int, ...]]):
    """Whole numbers, comma-separated."""

    name = "N,N,..."

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse "8,16,32"."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(
                f"needs whole numbers separated by commas, like 8,16,32, got {value!r}.", param, ctx
            )


class FloatList(click.ParamType[tuple[float, ...]]):
    """Numbers, comma-separated."""

    name = "X,X,..."

    def convert(
        self,
        value: str | tuple[float, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[float, ...]:
        """Parse "4,2,1,1"."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(
                f"needs numbers separated by commas, like 4,2,1,1, got {value!r}.", param, ctx
            )


class DtypeList(click.ParamType[tuple[Dtype, ...]]):
    """Number formats, comma-separated."""

    name = "DTYPE,..."

    def convert(
        self,
        value: str | tuple[Dtype, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[Dtype, ...]:
        """Parse "float32,int8"."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(Dtype(part) for part in value.split(","))
        except ValueError:
            self.fail(f"knows {', '.join(Dtype)}, got {value!r}.", param, ctx)


class OutputPath(click.Path):
    """A path to write to."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)


def model_option(*, required: bool) -> Decorator:
    """The model to encode with."""
    return click.option(
        "--model",
        required=required,
        metavar="MODEL",
        help="static:wordllama | st:PATH_OR_HUB_ID | openai:NAME | onnx:DIR | nest:DIR | vectors:FILE",
    )


def encoder_options(function: Callable[..., None]) -> Callable[..., None]:
    """What some encoders need to know besides their name."""
    function = click.option(
        "--base-url",
        metavar="URL",
        help="Endpoint for openai: models, or adapters of them; the key comes from OPENAI_API_KEY.",
    )(function)
    return click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Read at most N tokens of a text.  [default: the model's own limit]",
    )(function)


bad_rows_option = click.option(
    "--bad-rows",
    type=click.Choice(["error", "drop"]),
    default="error",
    show_default=True,
    help="Vectors that are zero, NaN or infinite: refuse them by name, or leave them out.",
)
spread_out_option = click.option(
    "--spread-out",
    "spread_out_weight",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="X",
    help="Weight of holding what does not belong together as far apart as random vectors.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what stands at --out.")
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."
)


LOOP_CHOICES = ("learning_rate", "seed", "early_stop_dim", "patience", "precision")
"""Options of a training that are fields of `LoopOptions` by the same name."""

_LOOP_OPTIONS = (
    click.option(
        "--early-stop-dim",
        type=click.IntRange(min=1),
        metavar="N",
        help="Stop when this width no longer gets better on what is held out.",
    ),
    click.option(
        "--patience",
        type=click.IntRange(min=1),
        default=2,
        show_default=True,
        help="Epochs to wait for that.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Number format of the products in training.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Same seed, same model.",
    ),
)


def loop_options(function: Callable[..., None]) -> Callable[..., None]:
    """How every training may be stopped early, how precise it is, and its seed."""
    for option in reversed(_LOOP_OPTIONS):
        function = option(function)
    return function


def refuse_given(ctx: click.Context, names: Collection[str], needs: str) -> None:
    """Refuse options that were given, but mean nothing beside the others.

    Args:
        ctx: Of the command.
        names: Of the options' values.
        needs: What they would need, in words.

    Raises:
        click.UsageError: Naming the first of them.
    """
    for option in ctx.command.params:
        source = None if option.name is None else ctx.get_parameter_source(option.name)
        if option.name in names and source is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[0]} needs {needs}.")


def _remember_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[DEBUG_KEY] = value


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_remember_debug,
    help="Show a traceback on errors.",
)
