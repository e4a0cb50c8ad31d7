"""Whether probabilities mean what they say.

Shape suffixes: N rows, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.domain.labels import NUM_CLASSES
from ktrdr_core.domain.result import Calibration, CalibrationBin

NUM_BINS = 15


def compute_calibration(
    probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64], y_N: NDArray[np.int64]
) -> Calibration:
    """Return the expected calibration error, the bins it is made of, and the Brier score.

    The error is the mean over rows of the distance between a bin's mean confidence and its accuracy, with 15 bins of
    equal width; confidence is the probability of the class answered. 1 is in the last bin.

    Args:
        probabilities_NC: Shape (N, C), rows summing to 1, no NaN; N at least 1.
        classes_N: The class answered at each row (that of the largest probability).
        y_N: True classes.

    Returns:
        All 15 bins, an empty one with zeros. The Brier score is in [0, 2]: 0 for certain and right, 2 for certain and
        wrong.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, 2017; G. W. Brier, Verification of Forecasts
    Expressed in Terms of Probability, 1950.
    """
    num_rows = len(y_N)
    confidence_N = probabilities_NC[np.arange(num_rows), classes_N]
    is_right_N = (classes_N == y_N).astype(np.float64)
    edges = np.arange(NUM_BINS + 1) / NUM_BINS
    bin_N = np.searchsorted(edges[1:-1], confidence_N, side="right")
    counts, confidences, hits = (
        np.bincount(bin_N, weights=weights, minlength=NUM_BINS) for weights in (None, confidence_N, is_right_N)
    )
    bins: list[CalibrationBin] = [
        {
            "lower": float(edges[index]),
            "upper": float(edges[index + 1]),
            "count": int(counts[index]),
            "mean_confidence": float(confidences[index] / max(counts[index], 1)),
            "accuracy": float(hits[index] / max(counts[index], 1)),
        }
        for index in range(NUM_BINS)
    ]
    squares_NC = (probabilities_NC - np.eye(NUM_CLASSES)[y_N]) ** 2
    return {
        "expected_calibration_error": float(np.abs(confidences - hits).sum() / num_rows),
        "brier_score": float(squares_NC.sum(axis=1).mean()),
        "bins": bins,
    }
