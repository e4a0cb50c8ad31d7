"""What answers without a model score: the bar that a model has to pass.

Shape suffixes: C classes, D draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.domain.labels import CLASS_NAMES, NUM_CLASSES
from ktrdr_core.domain.result import Baselines

NUM_DRAWS = 1_000


def compute_baselines(y_N: NDArray[np.int64], train_class_counts: NDArray[np.int64], *, seed: int) -> Baselines:
    """Return the scores of constant and of random answers.

    The random answers are drawn by the training part's class shares, and their scores are means over 1,000 seeded
    draws of an answer to every row. The rows of one class are answered independently, so their hits are drawn as one
    binomial number: the same distribution as row by row.

    Args:
        y_N: True classes of the judged part, N at least 1.
        train_class_counts: Rows of each class in the training part, shape (C,), at least one row in all.
        seed: Of the draws; nothing else of them varies.

    Returns:
        `majority_accuracy` is the judged part's most frequent class, `train_majority_accuracy` the training part's,
        each answered to every judged row; a tie goes to the lower class. Balanced accuracy is the mean recall over the
        classes that occur.
    """
    counts_C = np.bincount(y_N, minlength=NUM_CLASSES)
    occurs_C = counts_C > 0
    shares_C = train_class_counts / train_class_counts.sum()
    hits_DC = np.random.default_rng(seed).binomial(counts_C, shares_C, size=(NUM_DRAWS, NUM_CLASSES))
    recall_DC = hits_DC[:, occurs_C] / counts_C[occurs_C]
    return {
        "majority_class": CLASS_NAMES[int(counts_C.argmax())],
        "majority_accuracy": float(counts_C.max() / len(y_N)),
        "train_majority_accuracy": float(counts_C[int(train_class_counts.argmax())] / len(y_N)),
        "random_accuracy": float(hits_DC.sum() / (NUM_DRAWS * len(y_N))),
        "random_balanced_accuracy": float(recall_DC.mean()),
    }
