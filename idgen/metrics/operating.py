"""From statistics of pairs to numbers: error rates, thresholds, how far the two kinds lie apart.

A pair is accepted from the threshold upwards. FMR, the false match rate, is the share of impostor pairs that
are accepted; FNMR, the false non-match rate, the share of genuine pairs that are not (ISO/IEC 19795-1).
Rates are exact at the borders of bins, a ten-thousandth of the cosine apart.

Shapes: K bins, P people, R resamples.
"""

from dataclasses import dataclass

import numpy as np

from idgen.metrics.scores import NUM_COARSE, PairStatistics, Scores

FMRS = (1e-2, 1e-3)
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Error rates at every border of a bin.

    Attributes:
        threshold: (K + 1,) cosines, rising.
        fmr: (K + 1,) falling from 1 to 0; NaN without impostor pairs.
        fnmr: (K + 1,) rising from 0 to 1; NaN without genuine pairs.
    """

    threshold: np.ndarray
    fmr: np.ndarray
    fnmr: np.ndarray


def error_rates(genuine: np.ndarray, impostor: np.ndarray) -> Rates:
    """Error rates from two histograms (..., K) over [-1, 1] -> rates (..., K + 1)."""

    def below(histogram: np.ndarray) -> np.ndarray:
        zero = np.zeros((*histogram.shape[:-1], 1))
        summed = np.concatenate([zero, np.cumsum(histogram, axis=-1, dtype=np.float64)], axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):  # no pairs: 0 / 0, NaN, as documented
            return summed / summed[..., -1:]

    edges = np.linspace(-1.0, 1.0, genuine.shape[-1] + 1)
    return Rates(threshold=edges, fmr=1 - below(impostor), fnmr=below(genuine))


def equal_error_rate(rates: Rates) -> tuple[np.ndarray, np.ndarray]:
    """EER and its threshold: where FMR and FNMR meet, linear between two borders.

    Returns:
        Rate and cosine, each of the leading shape of the rates; NaN without pairs of both kinds.
    """
    gap = rates.fnmr - rates.fmr  # rises from -1 to 1
    after = np.argmax(gap >= 0, axis=-1)
    before = np.maximum(after - 1, 0)

    def at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, index[..., None], axis=-1)[..., 0]

    low, high = at(gap, before), at(gap, after)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(high > low, -low / (high - low), 0.0)
    fnmr = at(rates.fnmr, before) + share * (at(rates.fnmr, after) - at(rates.fnmr, before))
    fmr = at(rates.fmr, before) + share * (at(rates.fmr, after) - at(rates.fmr, before))
    threshold = rates.threshold[before] + share * (rates.threshold[after] - rates.threshold[before])
    rate = (fnmr + fmr) / 2
    return rate, np.where(np.isnan(rate), NAN, threshold)


def fnmr_at(rates: Rates, fmr: float) -> tuple[np.ndarray, np.ndarray]:
    """FNMR at the lowest border at which FMR is at most ``fmr``, and that threshold; TAR@FAR is 1 - FNMR."""
    index = np.argmax(rates.fmr <= fmr + 1e-15, axis=-1)
    fnmr = np.take_along_axis(rates.fnmr, index[..., None], axis=-1)[..., 0]
    undefined = np.isnan(rates.fmr[..., 0])
    return np.where(undefined, NAN, fnmr), np.where(undefined, NAN, rates.threshold[index])


def area_under_curve(genuine: np.ndarray, impostor: np.ndarray) -> np.ndarray:
    """Probability that a genuine pair is more alike than an impostor pair, equals counting half.

    Pairs of one bin count as equal: off by at most half the chance that both fall into one bin.
    """
    below = np.cumsum(impostor, axis=-1, dtype=np.float64) - impostor
    with np.errstate(invalid="ignore", divide="ignore"):
        return (genuine * (below + impostor / 2)).sum(axis=-1) / (
            genuine.sum(axis=-1, dtype=np.float64) * impostor.sum(axis=-1, dtype=np.float64)
        )


def fisher_ratio(genuine: Scores, impostor: Scores) -> float:
    """``(mu_g - mu_i)^2 / (s_g^2 + s_i^2)``; infinite where neither spreads, NaN without pairs."""
    spread = genuine.std**2 + impostor.std**2
    apart = (genuine.mean - impostor.mean) ** 2
    if spread > 0 or np.isnan(spread):
        return apart / spread
    return float("inf") if apart > 0 else NAN


def d_prime(genuine: Scores, impostor: Scores) -> float:
    """``|mu_g - mu_i| / sqrt((s_g^2 + s_i^2) / 2)`` (Daugman 2000)."""
    return float(np.sqrt(2 * fisher_ratio(genuine, impostor)))


def best_mcc(genuine: np.ndarray, impostor: np.ndarray) -> tuple[float, float]:
    """The highest Matthews correlation over all borders, and its threshold; NaN without pairs of a kind."""
    num_genuine, num_impostor = float(genuine.sum()), float(impostor.sum())
    if not num_genuine or not num_impostor:
        return NAN, NAN
    rates = error_rates(genuine, impostor)
    hits, false = (1 - rates.fnmr) * num_genuine, rates.fmr * num_impostor
    misses, right = num_genuine - hits, num_impostor - false
    scale = np.sqrt((hits + false) * (hits + misses) * (right + false) * (right + misses))
    value = np.divide(hits * right - false * misses, scale, out=np.zeros_like(scale), where=scale > 0)
    best = int(value.argmax())
    return float(value[best]), float(rates.threshold[best])


def operating_points(pairs: PairStatistics) -> dict[str, float]:
    """Every number about the two kinds of pairs, by name; NaN where it is not defined.

    ``fnmr_at_fmr_0`` is exact: the share of genuine pairs not above the highest impostor.
    """
    genuine, impostor = pairs.genuine, pairs.impostor
    rates = error_rates(genuine.histogram, impostor.histogram)
    eer, eer_threshold = equal_error_rate(rates)
    numbers = {
        "genuine_mean": genuine.mean,
        "genuine_std": genuine.std,
        "genuine_lowest": genuine.lowest,
        "impostor_mean": impostor.mean,
        "impostor_std": impostor.std,
        "impostor_highest": impostor.highest,
        "eer": float(eer),
        "eer_threshold": float(eer_threshold),
        "auc": float(area_under_curve(genuine.histogram, impostor.histogram)),
        "fisher_ratio": fisher_ratio(genuine, impostor),
        "d_prime": d_prime(genuine, impostor),
    }
    for fmr in FMRS:
        fnmr, threshold = fnmr_at(rates, fmr)
        numbers[f"fnmr_at_fmr_{fmr:g}"] = float(fnmr)
        numbers[f"tar_at_far_{fmr:g}"] = 1 - float(fnmr)
        numbers[f"threshold_at_fmr_{fmr:g}"] = float(threshold)
    has_both = genuine.count > 0 and impostor.count > 0
    numbers["fnmr_at_fmr_0"] = pairs.genuine_within_impostors / genuine.count if has_both else NAN
    numbers["mcc"], numbers["mcc_threshold"] = best_mcc(genuine.histogram, impostor.histogram)
    return numbers


def bootstrap_intervals(
    pairs: PairStatistics, *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Intervals of the numbers by resampling people, never pairs.

    With a person drawn ``w_i`` times, genuine pairs count ``w_i`` and impostor pairs ``w_i w_j``. The latter
    is taken to first order (the projection of Hajek), ``w_i + w_j - 1``, which needs a histogram for each
    person only and not for each two. Bins are 0.002 wide here; each interval is shifted by the difference
    between the coarse and the exact number.

    Returns:
        (lower, upper) end for each name of `operating_points` that has one.
    """
    own, crossed = pairs.genuine.person_histogram, pairs.impostor.person_histogram
    people = np.flatnonzero(own.any(axis=1) | crossed.any(axis=1))
    own, crossed = own[people], crossed[people]
    if len(people) < 2:
        return {}
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(people), np.full(len(people), 1 / len(people)), size=num_resamples)
    genuine = weights @ own
    impostor = np.maximum(crossed.sum(axis=0) / 2 + (weights - 1.0) @ crossed, 0)
    drawn = _coarse_numbers(genuine, impostor)
    whole = _coarse_numbers(own.sum(axis=0)[None], crossed.sum(axis=0)[None] / 2)
    exact = operating_points(pairs)
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {}
    for name, values in drawn.items():
        values = values[np.isfinite(values)]
        if len(values) and np.isfinite(exact[name]):
            low, high = np.quantile(values - whole[name][0], tails) + exact[name]
            intervals[name] = (float(low), float(high))
    return intervals


def _coarse_numbers(genuine: np.ndarray, impostor: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of R pairs of coarse histograms (R, bins)."""
    rates = error_rates(genuine, impostor)
    middles = np.linspace(-1, 1, NUM_COARSE + 1)[:-1] + 1 / NUM_COARSE

    def moments(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            share = histogram / histogram.sum(axis=1, keepdims=True)
        mean = share @ middles
        return mean, np.maximum(share @ middles**2 - mean**2, 0)

    (mean_g, var_g), (mean_i, var_i) = moments(genuine), moments(impostor)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (mean_g - mean_i) ** 2 / (var_g + var_i)
    eer, eer_threshold = equal_error_rate(rates)
    numbers = {
        "genuine_mean": mean_g,
        "genuine_std": np.sqrt(var_g),
        "impostor_mean": mean_i,
        "impostor_std": np.sqrt(var_i),
        "eer": eer,
        "eer_threshold": eer_threshold,
        "auc": area_under_curve(genuine, impostor),
        "fisher_ratio": ratio,
        "d_prime": np.sqrt(2 * ratio),
    }
    for fmr in FMRS:
        fnmr, threshold = fnmr_at(rates, fmr)
        numbers[f"fnmr_at_fmr_{fmr:g}"], numbers[f"tar_at_far_{fmr:g}"] = fnmr, 1 - fnmr
        numbers[f"threshold_at_fmr_{fmr:g}"] = threshold
    return numbers
