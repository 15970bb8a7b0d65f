"""What samples in a row are worth: calls that follow one another are alike."""

from __future__ import annotations

import math

import numpy as np

from edgekit.values import Array


def long_run_variance(series: Array) -> float:
    """n times the variance of the mean of n successive samples, for large n.

    The series is taken for autoregressive, x_t = sum_i phi_i x_(t-i) + e_t; then it is
    var(e) / (1 - sum phi)^2, the spectral density at frequency zero (Berk, "Consistent
    autoregressive spectral estimates", Annals of Statistics 2, 1974; den Haan and Levin's VARHAC).
    The phi are Yule and Walker's, by Levinson's recursion; their number, up to 10 log10(n), is
    that of the smallest AIC. For independent samples it is the variance; for a constant zero.
    """
    n = len(series)
    most = min(int(10 * math.log10(max(n, 1))), n // 5)
    correlations = autocovariances(series, most)
    error = float(correlations[0])
    if error <= 0:
        return 0.0
    best, found = n * math.log(error), error * n / max(n - 1, 1)
    phi = np.zeros(0)
    for order in range(1, most + 1):
        reflection = float(correlations[order] - phi @ correlations[order - 1 : 0 : -1]) / error
        phi = np.append(phi - reflection * phi[::-1], reflection)
        error *= 1 - reflection**2
        if error <= 1e-12 * correlations[0]:
            break
        aic = n * math.log(error) + 2 * order
        if aic < best:
            degrees = max(n - order - 1, 1)
            best, found = aic, error * n / degrees / (1 - float(phi.sum())) ** 2
    return found


def autocovariances(series: Array, most: int) -> Array:
    """sum_t (x_t - mean)(x_(t+k) - mean) / n for the lags k = 0 .. most."""
    n = len(series)
    centred = np.asarray(series, np.float64) - np.mean(series)
    # A constant's mean may differ from it by a rounding.
    centred[np.abs(centred) <= 1e-12 * np.abs(series).max()] = 0.0
    size = 1 << (n + most).bit_length()
    power = np.abs(np.fft.rfft(centred, size)) ** 2
    sums: Array = np.fft.irfft(power, size)[: most + 1] / n
    return sums


def effective_samples(series: Array) -> float:
    """As many independent samples would know the mean as well; n for a constant, at most n."""
    variance = float(np.var(series))
    if not (in_the_long_run := long_run_variance(series)):
        return float(len(series))
    return min(len(series), len(series) * variance / in_the_long_run)
