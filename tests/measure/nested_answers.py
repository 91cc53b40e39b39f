"""Logits of nested heads that behave as trained ones do: wider is better, and mostly agrees."""

import numpy as np

from nestling.measure.cascade import WidthAnswers


def make_logits(
    num_inputs: int, dims: tuple[int, ...], seed: int
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    hardness = generator.standard_normal(num_inputs)
    labels = generator.integers(0, 20, num_inputs)
    shared = generator.standard_normal((num_inputs, 20))
    logits = {}
    for place, dim in enumerate(dims):
        own = 0.6 * shared + 0.8 * generator.standard_normal((num_inputs, 20))
        own[np.arange(num_inputs), labels] += 2.0 + 1.2 * np.log2(1 + place) - hardness
        logits[dim] = 1.3 * own
    return logits, labels


def make_answers(num_inputs: int, dims: tuple[int, ...], seed: int) -> WidthAnswers:
    return WidthAnswers.of_logits(*make_logits(num_inputs, dims, seed))


def random_answers(num_inputs: int, dims: tuple[int, ...], seed: int) -> WidthAnswers:
    """No structure at all, and many equal confidences."""
    generator = np.random.default_rng(seed)
    shape = (len(dims), num_inputs)
    return WidthAnswers(
        dims=dims,
        confidences=generator.integers(1, 12, shape) / 11.0,
        is_correct=generator.random(shape) < generator.random((len(dims), 1)),
    )
