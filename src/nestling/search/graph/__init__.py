"""A graph of near rows over a tier: how it is built, and how it is walked."""
