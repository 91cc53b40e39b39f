"""Every error nestling raises on purpose.

A leaf also inherits the builtin a caller would expect, so both spellings of `except` work:

    NestlingError
    ├── DimensionError      (ValueError)   a width or a list of widths breaks a rule
    ├── VectorError         (ValueError)   NaN, infinite or zero rows; wrong shape
    ├── DataError           (ValueError)   a file, a task or judgements that cannot be used
    ├── FormatError         (ValueError)   a nestling file is damaged or of a newer version
    ├── FingerprintError    (ValueError)   vectors of two spaces would be compared
    ├── EvidenceError       (ValueError)   results that cannot carry a certificate
    ├── EncoderError        (RuntimeError) a model or an endpoint did not deliver
    ├── TrainingError       (RuntimeError) a training run that cannot go on, or cannot be continued
    ├── WriteError          (OSError)      a folder that cannot be written, a disk that is full
    └── MissingExtraError   (ImportError)  an optional part is not installed

A message names the argument in backticks, the rule, the value got, and the next thing to do.
"""


class NestlingError(Exception):
    """Base of every error that nestling raises on purpose."""


class DimensionError(NestlingError, ValueError):
    """A width, or a list of widths, breaks a rule."""


class VectorError(NestlingError, ValueError):
    """Vectors of the wrong shape, or rows that cannot be compared."""


class DataError(NestlingError, ValueError):
    """A file, a task or judgements that cannot be used."""


class FormatError(NestlingError, ValueError):
    """A file that nestling wrote is damaged, or newer than this version reads."""


class FingerprintError(NestlingError, ValueError):
    """Vectors of two different spaces would be compared."""


class EvidenceError(NestlingError, ValueError):
    """Results that cannot carry the certificate asked for."""


class EncoderError(NestlingError, RuntimeError):
    """A model or an endpoint did not deliver what it promised."""


class TrainingError(NestlingError, RuntimeError):
    """A training run that cannot go on, or a checkpoint that cannot be continued."""


class WriteError(NestlingError, OSError):
    """A folder that cannot be written, or a disk that is full."""


class MissingExtraError(NestlingError, ImportError):
    """An optional part of nestling is not installed.

    Attributes:
        package: The package that could not be imported.
        extra: The extra that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(
            f"this needs the package `{package}`, which is not installed. "
            f"Install it with: pip install 'nestling[{extra}]'"
        )
