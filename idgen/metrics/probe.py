"""A probe: can a yes-or-no label be read off a face vector?

Shapes: N faces, D width of a face vector.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from idgen.errors import MeasureError

# Chosen among by cross-validation. A recogniser's vectors lie on a sphere, where cosines of 0.2 to 0.6 tell
# people apart: kernels of about that width. A linear probe is bad at traits that recognisers learned to
# pass over.
GRID = {"C": [1.0, 10.0], "gamma": [0.5, 1.0, 2.0]}
FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A classifier of face vectors.

    Attributes:
        classifier: of scikit-learn.
        settings: what cross-validation chose.
        balanced_accuracy: in cross-validation, mean over both answers.
    """

    classifier: Any
    settings: dict[str, float]
    balanced_accuracy: float

    def says(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) -> (N,) booleans."""
        return self.classifier.predict(vectors)


def fit_probe(vectors: np.ndarray, truth: np.ndarray, *, seed: int = 0) -> Probe:
    """A support vector machine with both answers weighed alike (scikit-learn's ``SVC``).

    The kernel is ``exp(-gamma |x - y|^2)``; its width and the slack C are chosen by cross-validation.

    Args:
        vectors: (N, D), one a person, so that no person is on both sides of a fold.
        truth: (N,) booleans.
        seed: of the folds.

    Raises:
        MeasureError: if an answer occurs less often than there are folds, vectors are not finite, or
        scikit-learn
            is missing.
    """
    yes = truth.astype(bool)
    if min(yes.sum(), (~yes).sum()) < FOLDS:
        raise MeasureError(
            f"a probe learns from at least {FOLDS} people of both answers, "
            f"got yes for {int(yes.sum())} of {len(yes)}"
        )
    if not np.isfinite(vectors).all():
        raise MeasureError("a probe learns from finite vectors")
    try:
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
        from sklearn.svm import SVC
    except ImportError:
        raise MeasureError("the probe needs scikit-learn: `pip install 'idgen[eval]'`") from None
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    search = GridSearchCV(SVC(class_weight="balanced"), GRID, scoring="balanced_accuracy", cv=folds)
    search.fit(vectors, yes)
    return Probe(
        classifier=search.best_estimator_, settings=search.best_params_, balanced_accuracy=search.best_score_
    )
