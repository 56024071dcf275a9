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


def decided_rightly(similarity: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Which pairs are decided rightly by the threshold that is best on all other folds: (P,) true or false.

    Args:
        similarity: (P,) cosines.
        same: (P,) true where a pair shows one person.
        fold: (P,) number of the fold; at least two folds.

    Raises:
        ValueError: if there is only one fold.
    """
    right, truth = np.zeros(len(similarity), bool), same.astype(bool)
    for number in _fold_numbers(fold):
        mine = fold == number
        threshold = best_threshold(similarity[~mine], truth[~mine])
        right[mine] = (similarity[mine] >= threshold) == truth[mine]
    return right


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
    return fold_means(decided_rightly(similarity, same, fold), fold)


def fold_means(right: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Mean of each fold: (P,) and (P,) -> (number of folds,), in the order of the fold numbers."""
    return np.array([right[fold == number].mean() for number in np.unique(fold)])


def _fold_numbers(fold: np.ndarray) -> np.ndarray:
    """The folds there are, if they can judge each other."""
    numbers = np.unique(fold)
    if len(numbers) < 2:
        raise ValueError(f"the threshold comes from the other folds, so two are needed, got {len(numbers)}")
    return numbers


# The grid of insightface's harness: squared distances of unit vectors, 0 to 4.
GRID = np.arange(0, 4, 0.01)


def contiguous_folds(num_pairs: int, num_folds: int = 10) -> np.ndarray:
    """Folds of neighbouring pairs, the first ones larger by one where it does not come out even: (P,)."""
    sizes = np.full(num_folds, num_pairs // num_folds)
    sizes[: num_pairs % num_folds] += 1
    return np.repeat(np.arange(num_folds), sizes)


def grid_decided_rightly(similarity: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """`decided_rightly` with the thresholds of insightface's grid: comparable with published tables.

    A pair is accepted where ``|a - b|^2 = 2 - 2 cos`` lies below the threshold. Of the 400 thresholds the
    first one that is best on all other folds counts.

    Args:
        similarity: (P,) cosines of unit vectors.
        same: (P,) true where a pair shows one person.
        fold: (P,) number of the fold; at least two folds.

    Raises:
        ValueError: if there is only one fold.
    """
    by_threshold = (2 - 2 * similarity[None] < GRID[:, None]) == same.astype(bool)[None]  # (thresholds, P)
    right = np.zeros(len(similarity), bool)
    for number in _fold_numbers(fold):
        best = np.argmax(by_threshold[:, fold != number].mean(axis=1))
        right[fold == number] = by_threshold[best, fold == number]
    return right


def standard_error(accuracies: np.ndarray) -> float:
    """Standard error of the mean over folds: ``std / sqrt(F)``, the population's std, as LFW reports it."""
    return float(accuracies.std() / np.sqrt(len(accuracies)))


def roc(similarity: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every operating point of a list of pairs: FAR, TAR and threshold, (T,) each, from strict to lenient.

    Raises:
        ValueError: if all pairs are of one kind.
    """
    truth = same.astype(bool)
    if truth.all() or not truth.any():
        raise ValueError("pairs of one person and of two people are needed")
    values = np.unique(similarity)[::-1]
    genuine, impostor = np.sort(similarity[truth]), np.sort(similarity[~truth])
    tar = 1 - np.searchsorted(genuine, values, side="left") / len(genuine)
    far = 1 - np.searchsorted(impostor, values, side="left") / len(impostor)
    zero = np.zeros(1)
    return np.append(zero, far), np.append(zero, tar), np.append(values[:1] + 1e-6, values)


def tar_at_far(similarity: np.ndarray, same: np.ndarray, max_far: float) -> tuple[float, float]:
    """The highest share of genuine pairs accepted at a FAR of at most ``max_far``, and its threshold."""
    far, tar, threshold = roc(similarity, same)
    best = int(np.flatnonzero(far <= max_far + 1e-12)[-1])
    return float(tar[best]), float(threshold[best])
