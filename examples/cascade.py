"""Answer with a short prefix where it is sure, and with a longer one where it is not."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from nestling.measure import (
    WidthAnswers,
    equal_fixed_width,
    evaluate_cascade,
    fit_greedy_thresholds,
    fit_thresholds,
)

DIMS = (2, 4, 8, 16, 32, 64)


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    train, validation, test = np.split(order, [600, 1200])
    # The leading components carry most: a nested embedding that needs no training.
    vectors = PCA(n_components=DIMS[-1], random_state=0).fit(images[train]).transform(images) / 16
    heads = {
        dim: LogisticRegression(max_iter=1000).fit(vectors[train, :dim], labels[train])
        for dim in DIMS
    }

    def answer(split: np.ndarray) -> WidthAnswers:
        logits = {dim: head.decision_function(vectors[split, :dim]) for dim, head in heads.items()}
        return WidthAnswers.of_logits(logits, labels[split])

    fitted, new = answer(validation), answer(test)
    for dim, accuracy in new.accuracy_by_dim.items():
        print(f"{dim:2}-d alone      accuracy {accuracy:.3f}")
    for name, cascade in (
        ("greedy, as in the paper", fit_greedy_thresholds(fitted)),
        ("joint, width at exit", fit_thresholds(fitted, cost="dim", max_loss=0.01)),
        ("joint, sum of widths", fit_thresholds(fitted, cost="cumulative_dim", max_loss=0.01)),
    ):
        outcome = evaluate_cascade(cascade, new)
        fixed = equal_fixed_width(outcome, new)
        print(
            f"\n{name}: {cascade.to_json()['thresholds']}\n"
            f"  accuracy {outcome.accuracy:.3f}, mean dims {outcome.mean_dim:.1f}, "
            f"mean dims of all heads tried {outcome.mean_cumulative_dim:.1f}"
        )
        if fixed is not None:
            print(
                f"  as good alone: {fixed.dim}-d ({fixed.accuracy:.3f}), "
                f"{fixed.dim_ratio:.2f}x and {fixed.cumulative_ratio:.2f}x as wide"
            )


if __name__ == "__main__":
    main()
