"""Models that are trained nested."""

__all__: list[str] = []
