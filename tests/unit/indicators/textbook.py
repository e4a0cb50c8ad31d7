"""Slow indicators in plain Python, one bar at a time, each written from its published definition.

Every function takes lists and returns the list of each output, NaN where the definition has no value yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

NAN = math.nan
Values = list[float]


@dataclass
class Series:
    open: Values
    high: Values
    low: Values
    close: Values
    volume: Values

    @property
    def typical(self) -> Values:
        return [(h + l + c) / 3 for h, l, c in zip(self.high, self.low, self.close, strict=True)]


def windows(values: Values, period: int) -> list[Values | None]:
    return [values[t - period + 1 : t + 1] if t >= period - 1 else None for t in range(len(values))]


def mean(values: Values) -> float:
    return math.fsum(values) / len(values)


def skip_nan(values: Values) -> int:
    return next((i for i, value in enumerate(values) if not math.isnan(value)), len(values))


def sma(values: Values, period: int) -> Values:
    first = skip_nan(values)
    return [NAN] * first + [NAN if w is None else mean(w) for w in windows(values[first:], period)]


def ema(values: Values, period: int) -> Values:
    """Begins with the mean of the first `period` values; smoothing 2 / (period + 1)."""
    first = skip_nan(values) + period - 1
    result = [NAN] * min(first, len(values))
    for t in range(first, len(values)):
        if t == first:
            result.append(mean(values[t - period + 1 : t + 1]))
        else:
            result.append(2 / (period + 1) * values[t] + (1 - 2 / (period + 1)) * result[-1])
    return result


def wma(values: Values, period: int) -> Values:
    weights = range(1, period + 1)
    return [
        NAN if w is None else math.fsum(k * x for k, x in zip(weights, w, strict=True)) / sum(weights)
        for w in windows(values, period)
    ]


def dema(values: Values, period: int) -> Values:
    once = ema(values, period)
    return [2 * a - b for a, b in zip(once, ema(once, period), strict=True)]


def tema(values: Values, period: int) -> Values:
    once = ema(values, period)
    twice = ema(once, period)
    return [3 * a - 3 * b + c for a, b, c in zip(once, twice, ema(twice, period), strict=True)]


def kama(values: Values, period: int) -> Values:
    result = [NAN] * min(period, len(values))
    before = values[min(period, len(values)) - 1]
    for t in range(period, len(values)):
        path = math.fsum(abs(b - a) for a, b in pairwise(values[t - period : t + 1]))
        way = abs(values[t] - values[t - period])
        efficiency = way / path if path else 1.0
        smoothing = (efficiency * (2 / 3 - 2 / 31) + 2 / 31) ** 2
        before += smoothing * (values[t] - before)
        result.append(before)
    return result


def distance_from_ma(values: Values, period: int) -> Values:
    return [100 * (x - m) / m for x, m in zip(values, sma(values, period), strict=True)]


def rsi(values: Values, period: int) -> Values:
    """Wilder 1978: the first averages are plain means of `period` changes, then (before x (n - 1) + new) / n."""
    changes = [after - before for before, after in pairwise(values)]
    result = [NAN] * min(period, len(values))
    gain = math.fsum(max(change, 0) for change in changes[:period]) / period
    loss = math.fsum(max(-change, 0) for change in changes[:period]) / period
    for t in range(period, len(values)):
        if t > period:
            gain = (gain * (period - 1) + max(changes[t - 1], 0)) / period
            loss = (loss * (period - 1) + max(-changes[t - 1], 0)) / period
        result.append(50.0 if gain + loss == 0 else 100 - 100 / (1 + gain / loss) if loss else 100.0)
    return result


def stochrsi(values: Values, period: int, stoch_period: int, k_smoothing: int, d_period: int) -> tuple[Values, Values]:
    index = rsi(values, period)
    raw: Values = []
    for w in windows(index, stoch_period):
        if w is None or math.isnan(w[0]):
            raw.append(NAN)
        else:
            span = max(w) - min(w)
            raw.append(100 * (w[-1] - min(w)) / span if span > 1e-9 else 50.0)
    k = sma(raw, k_smoothing)
    return k, sma(k, d_period)


def macd(values: Values, fast: int, slow: int, signal: int) -> tuple[Values, Values, Values]:
    """Both averages begin at bar slow - 1, each with the mean of its own last bars up to there, as TA-Lib does."""
    head = [NAN] * min(slow - fast, len(values))
    fast_average = head + ema(values[slow - fast :], fast)
    line = [f - s for f, s in zip(fast_average, ema(values, slow), strict=True)]
    signal_line = ema(line, signal)
    return line, signal_line, [a - b for a, b in zip(line, signal_line, strict=True)]


def ppo(values: Values, fast: int, slow: int, signal: int) -> tuple[Values, Values, Values]:
    line = [100 * (f - s) / s for f, s in zip(ema(values, fast), ema(values, slow), strict=True)]
    signal_line = ema(line, signal)
    return line, signal_line, [a - b for a, b in zip(line, signal_line, strict=True)]


def trix(values: Values, period: int) -> Values:
    thrice = ema(ema(ema(values, period), period), period)
    return [NAN] + [100 * (b - a) / a for a, b in pairwise(thrice)]


def roc(values: Values, period: int) -> Values:
    return [NAN if t < period else 100 * (x - values[t - period]) / values[t - period] for t, x in enumerate(values)]


def momentum(values: Values, period: int) -> Values:
    return [NAN if t < period else x - values[t - period] for t, x in enumerate(values)]


def cmo(values: Values, period: int) -> Values:
    """Rises less falls over both; RSI is rises over both."""
    return [100 * (index / 100 - (1 - index / 100)) for index in rsi(values, period)]


def stoch(s: Series, k_period: int, k_smoothing: int, d_period: int) -> tuple[Values, Values]:
    raw: Values = []
    for h, l, c in zip(windows(s.high, k_period), windows(s.low, k_period), s.close, strict=True):
        if h is None or l is None:
            raw.append(NAN)
        else:
            raw.append(100 * (c - min(l)) / (max(h) - min(l)) if max(h) > min(l) else 50.0)
    k = sma(raw, k_smoothing)
    return k, sma(k, d_period)


def williams_r(s: Series, period: int) -> Values:
    result: Values = []
    for h, l, c in zip(windows(s.high, period), windows(s.low, period), s.close, strict=True):
        if h is None or l is None:
            result.append(NAN)
        else:
            result.append(-100 * (max(h) - c) / (max(h) - min(l)) if max(h) > min(l) else -50.0)
    return result


def cci(s: Series, period: int) -> Values:
    result: Values = []
    for w in windows(s.typical, period):
        if w is None:
            result.append(NAN)
        elif max(w) == min(w):
            result.append(0.0)
        else:
            middle = mean(w)
            result.append((w[-1] - middle) / (0.015 * mean([abs(x - middle) for x in w])))
    return result


def fisher(s: Series, period: int) -> tuple[Values, Values]:
    """Ehlers' EasyLanguage, line by line."""
    median = [(h + l) / 2 for h, l in zip(s.high, s.low, strict=True)]
    value, fish = 0.0, 0.0
    result: Values = []
    trigger: Values = []
    for w in windows(median, period):
        if w is None:
            result.append(NAN)
            trigger.append(NAN)
            continue
        place = (w[-1] - min(w)) / (max(w) - min(w)) if max(w) > min(w) else 0.5
        value = 0.33 * 2 * (place - 0.5) + 0.67 * value
        if value > 0.99:
            value = 0.999
        if value < -0.99:
            value = -0.999
        trigger.append(result[-1] if result else NAN)
        fish = 0.5 * math.log((1 + value) / (1 - value)) + 0.5 * fish
        result.append(fish)
    return result, trigger


def rvi(s: Series, period: int) -> tuple[Values, Values]:
    def weighted(values: Values, t: int) -> float:
        return (values[t] + 2 * values[t - 1] + 2 * values[t - 2] + values[t - 3]) / 6 if t >= 3 else NAN

    bodies = [c - o for c, o in zip(s.close, s.open, strict=True)]
    ranges = [h - l for h, l in zip(s.high, s.low, strict=True)]
    index: Values = []
    for t in range(len(bodies)):
        if t < period + 2:
            index.append(NAN)
            continue
        num = math.fsum(weighted(bodies, i) for i in range(t - period + 1, t + 1))
        den = math.fsum(weighted(ranges, i) for i in range(t - period + 1, t + 1))
        index.append(num / den if den else 0.0)
    return index, [weighted(index, t) for t in range(len(index))]


def true_ranges(s: Series) -> Values:
    return [
        max(h - l, abs(h - before), abs(l - before))
        for h, l, before in zip(s.high[1:], s.low[1:], s.close[:-1], strict=True)
    ]


def atr(s: Series, period: int) -> Values:
    ranges = true_ranges(s)
    result = [NAN] * min(period, len(s.close))
    for t in range(period, len(s.close)):
        if t == period:
            result.append(mean(ranges[:period]))
        else:
            result.append((result[-1] * (period - 1) + ranges[t - 1]) / period)
    return result


def natr(s: Series, period: int) -> Values:
    return [100 * a / c for a, c in zip(atr(s, period), s.close, strict=True)]


def adx(s: Series, period: int) -> tuple[Values, Values, Values]:
    """Wilder's sums: the first of period - 1 bars (TA-Lib), then before - before / n + new; ADX begins with a mean."""
    num_bars = len(s.close)
    ups, downs = [0.0], [0.0]
    for t in range(1, num_bars):
        up, down = s.high[t] - s.high[t - 1], s.low[t - 1] - s.low[t]
        ups.append(up if up > down and up > 0 else 0.0)
        downs.append(down if down > up and down > 0 else 0.0)
    ranges = [0.0, *true_ranges(s)]
    up_sum, down_sum, range_sum = (math.fsum(x[1:period]) for x in (ups, downs, ranges))
    plus, minus, dx = [NAN] * num_bars, [NAN] * num_bars, [NAN] * num_bars
    for t in range(period, num_bars):
        up_sum += ups[t] - up_sum / period
        down_sum += downs[t] - down_sum / period
        range_sum += ranges[t] - range_sum / period
        plus[t] = 100 * up_sum / range_sum if range_sum else 0.0
        minus[t] = 100 * down_sum / range_sum if range_sum else 0.0
        total = plus[t] + minus[t]
        dx[t] = 100 * abs(plus[t] - minus[t]) / total if total else NAN  # NAN: nothing to add
    result = [NAN] * num_bars
    for t in range(2 * period - 1, num_bars):
        if t == 2 * period - 1:
            result[t] = math.fsum(x for x in dx[period : t + 1] if not math.isnan(x)) / period
        else:
            result[t] = result[t - 1] if math.isnan(dx[t]) else (result[t - 1] * (period - 1) + dx[t]) / period
    return result, plus, minus


def aroon(s: Series, period: int) -> tuple[Values, Values, Values]:
    ups: Values = []
    downs: Values = []
    for h, l in zip(windows(s.high, period + 1), windows(s.low, period + 1), strict=True):
        if h is None or l is None:
            up = down = NAN
        elif max(h) == min(l):
            up = down = 50.0
        else:
            up = 100 * max(i for i, x in enumerate(h) if x == max(h)) / period
            down = 100 * max(i for i, x in enumerate(l) if x == min(l)) / period
        ups.append(up)
        downs.append(down)
    return [u - d for u, d in zip(ups, downs, strict=True)], ups, downs


def ichimoku(
    s: Series, conversion_period: int, base_period: int, span_period: int, displacement: int
) -> tuple[Values, Values, Values, Values, Values]:
    def middle(t: int, period: int) -> float:
        if t < period - 1:
            return NAN
        return (max(s.high[t - period + 1 : t + 1]) + min(s.low[t - period + 1 : t + 1])) / 2

    rows = []
    for t, close in enumerate(s.close):
        then = t - displacement
        a = (middle(then, conversion_period) + middle(then, base_period)) / 2 if then >= 0 else NAN
        b = middle(then, span_period) if then >= 0 else NAN
        cloud = NAN if math.isnan(a + b) else 1.0 if close > max(a, b) else -1.0 if close < min(a, b) else 0.0
        rows.append((middle(t, conversion_period), middle(t, base_period), a, b, cloud))
    conversion, base, span_a, span_b, clouds = (list(column) for column in zip(*rows, strict=True))
    return conversion, base, span_a, span_b, clouds


def parabolic_sar(s: Series, step: float, maximum: float) -> Values:
    """Wilder 1978; the first trend is down if the second bar's low fell by more than its high rose, as in TA-Lib."""
    if len(s.high) < 2:
        return [NAN] * len(s.high)
    rise, fall = s.high[1] - s.high[0], s.low[0] - s.low[1]
    is_long = not (fall > 0 and fall > rise)
    stop = s.low[0] if is_long else s.high[0]
    extreme = s.high[1] if is_long else s.low[1]
    speed = step
    result = [NAN]
    for t in range(1, len(s.high)):
        high, low = s.high[t], s.low[t]
        # The second bar stands in for the one before it: the stop of the start is not checked against it.
        last_high, last_low = (s.high[t - 1], s.low[t - 1]) if t > 1 else (high, low)
        if (is_long and low <= stop) or (not is_long and high >= stop):
            is_long = not is_long
            stop = min(extreme, last_low, low) if is_long else max(extreme, last_high, high)
            result.append(stop)
            speed = step
            extreme = high if is_long else low
        else:
            result.append(stop)
            if (is_long and high > extreme) or (not is_long and low < extreme):
                extreme = high if is_long else low
                speed = min(speed + step, maximum)
        stop += speed * (extreme - stop)
        stop = min(stop, last_low, low) if is_long else max(stop, last_high, high)
    return result


def supertrend(s: Series, period: int, multiplier: float) -> tuple[Values, Values]:
    ranges = atr(s, period)
    lines: Values = []
    directions: Values = []
    upper = lower = NAN
    direction = 1.0
    for t, close in enumerate(s.close):
        if t < period:
            lines.append(NAN)
            directions.append(NAN)
            continue
        median = (s.high[t] + s.low[t]) / 2
        new_upper, new_lower = median + multiplier * ranges[t], median - multiplier * ranges[t]
        if t > period:
            new_upper = new_upper if new_upper < upper or s.close[t - 1] > upper else upper
            new_lower = new_lower if new_lower > lower or s.close[t - 1] < lower else lower
        upper, lower = new_upper, new_lower
        if t == period:
            direction = 1.0 if close > upper or not close < lower else -1.0
        elif direction < 0 and close > upper:
            direction = 1.0
        elif direction > 0 and close < lower:
            direction = -1.0
        lines.append(lower if direction > 0 else upper)
        directions.append(direction)
    return lines, directions


def deviations(values: Values, period: int) -> Values:
    return [
        NAN if w is None else math.sqrt(math.fsum((x - mean(w)) ** 2 for x in w) / period) if max(w) > min(w) else 0.0
        for w in windows(values, period)
    ]


def bbands(values: Values, period: int, num_std: float) -> tuple[Values, Values, Values, Values, Values]:
    middle = sma(values, period)
    half = [num_std * x for x in deviations(values, period)]
    upper = [m + x for m, x in zip(middle, half, strict=True)]
    lower = [m - x for m, x in zip(middle, half, strict=True)]
    places = [place(x, a, b) for x, a, b in zip(values, lower, upper, strict=True)]
    return middle, upper, lower, places, [2 * x / m for m, x in zip(middle, half, strict=True)]


def bollinger_band_width(values: Values, period: int, num_std: float) -> Values:
    return bbands(values, period, num_std)[4]


def place(value: float, lower: float, upper: float) -> float:
    return 0.5 if lower == upper else (value - lower) / (upper - lower)


def keltner(s: Series, period: int, atr_period: int, multiplier: float) -> tuple[Values, Values, Values, Values]:
    middle = ema(s.close, period)
    half = [multiplier * x for x in atr(s, atr_period)]
    upper = [m + x for m, x in zip(middle, half, strict=True)]
    lower = [m - x for m, x in zip(middle, half, strict=True)]
    return middle, upper, lower, [place(c, a, b) for c, a, b in zip(s.close, lower, upper, strict=True)]


def donchian(s: Series, period: int) -> tuple[Values, Values, Values, Values, Values]:
    upper = [NAN if w is None else max(w) for w in windows(s.high, period)]
    lower = [NAN if w is None else min(w) for w in windows(s.low, period)]
    middle = [(a + b) / 2 for a, b in zip(lower, upper, strict=True)]
    places = [place(c, a, b) for c, a, b in zip(s.close, lower, upper, strict=True)]
    return middle, upper, lower, places, [(b - a) / m for a, b, m in zip(lower, upper, middle, strict=True)]


def squeeze_intensity(s: Series, period: int, num_std: float, multiplier: float) -> Values:
    result: Values = []
    for deviation, average in zip(deviations(s.close, period), atr(s, period), strict=True):
        if math.isnan(deviation + average):
            result.append(NAN)
        else:
            result.append(max(0.0, 1 - num_std * deviation / (multiplier * average)) if average else 0.0)
    return result


def mfi(s: Series, period: int) -> Values:
    typical = s.typical
    result: Values = []
    for t in range(len(typical)):
        if t < period:
            result.append(NAN)
            continue
        bars = range(t - period + 1, t + 1)
        rises = math.fsum(typical[i] * s.volume[i] for i in bars if typical[i] > typical[i - 1])
        falls = math.fsum(typical[i] * s.volume[i] for i in bars if typical[i] < typical[i - 1])
        result.append(100 * rises / (rises + falls) if rises + falls else 50.0)
    return result


def obv(s: Series) -> Values:
    total = s.volume[0]
    result = [total]
    for t in range(1, len(s.close)):
        change = s.close[t] - s.close[t - 1]
        total += s.volume[t] if change > 0 else -s.volume[t] if change < 0 else 0
        result.append(total)
    return result


def vwap(s: Series, period: int) -> Values:
    typical = s.typical
    result: Values = []
    for t in range(len(typical)):
        bars = range(t - period + 1, t + 1)
        if t < period - 1:
            result.append(NAN)
            continue
        volume = math.fsum(s.volume[i] for i in bars)
        traded = math.fsum(typical[i] * s.volume[i] for i in bars)
        result.append(traded / volume if volume else mean([typical[i] for i in bars]))
    return result


def volume_ratio(s: Series, period: int) -> Values:
    return [NAN if w is None else w[-1] / mean(w) if max(w) > 0 else 1.0 for w in windows(s.volume, period)]


def money_flow_volumes(s: Series) -> Values:
    return [
        ((c - l) - (h - c)) / (h - l) * v if h > l else 0.0
        for h, l, c, v in zip(s.high, s.low, s.close, s.volume, strict=True)
    ]


def ad_line(s: Series) -> Values:
    flows = money_flow_volumes(s)
    return [math.fsum(flows[: t + 1]) for t in range(len(flows))]


def cmf(s: Series, period: int) -> Values:
    return [
        NAN if f is None or v is None else math.fsum(f) / math.fsum(v) if max(v) > 0 else 0.0
        for f, v in zip(windows(money_flow_volumes(s), period), windows(s.volume, period), strict=True)
    ]
