"""Verification of pairs: is this the same person? Accuracy over folds with disjoint people.

Shapes: P pairs. Similarities are cosines, larger means more alike.
"""

import numpy as np


def best_threshold(similarity: np.ndarray, same: np.ndarray) -> float:
    """The threshold that decides the most pairs rightly ("same" from the threshold upwards).

    Args:
        similarity: (P,) cosines.
        same: (P,) true where a pair shows one person.

    Returns:
        The middle between the two neighbouring similarities; the lowest one where several are equally good.
    """
    order = np.argsort(similarity, kind="stable")
    values, truth = similarity[order].astype(np.float64), same[order].astype(bool)
    # Cutting before position k calls k pairs different; right are the impostors below and the genuine above.
    impostors_below = np.concatenate([[0], np.cumsum(~truth)])
    genuine_above = truth.sum() - np.concatenate([[0], np.cumsum(truth)])
    cuts = np.concatenate([[values[0] - 1e-6], (values[1:] + values[:-1]) / 2, [values[-1] + 1e-6]])
    allowed = np.concatenate([[True], values[1:] > values[:-1], [True]])  # equal values cannot be cut apart
    return float(cuts[np.argmax(np.where(allowed, impostors_below + genuine_above, -1))])


def accuracy_at(similarity: np.ndarray, same: np.ndarray, threshold: float) -> float:
    """Share of pairs decided rightly, in [0, 1]."""
    return float(np.mean((similarity >= threshold) == same.astype(bool)))


def fold_accuracies(similarity: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Accuracy of each fold at the threshold that is best on all other folds, as in the protocol of LFW.

    Huang et al. 2007, "Labeled Faces in the Wild", on view 2. Their mean is the number that is reported.

    Args:
        similarity: (P,) cosines.
        same: (P,) true where a pair shows one person.
        fold: (P,) number of the fold; at least two folds.

    Returns:
        (number of folds,) accuracies in [0, 1], in the order of the fold numbers.

    Raises:
        ValueError: if there is only one fold.
    """
    numbers = np.unique(fold)
    if len(numbers) < 2:
        raise ValueError(f"the threshold comes from the other folds, so two are needed, got {len(numbers)}")
    return np.array([
        accuracy_at(
            similarity[fold == n],
            same[fold == n],
            best_threshold(similarity[fold != n], same[fold != n]),
        )
        for n in numbers
    ])  # fmt: skip
