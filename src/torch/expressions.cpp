// Searches for the expressions of sizes that give some numbers.

#include "expressions.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace {

// The maximum number of divisors of one size that are listed. More than one is ambiguous anyway.
constexpr int64_t MAX_DIVISORS = 4;

// Wraps on overflow. So large a product is not a number of a program.
int64_t times(int64_t a, int64_t b) { return int64_t(uint64_t(a) * uint64_t(b)); }
int64_t plus(int64_t a, int64_t b) { return int64_t(uint64_t(a) + uint64_t(b)); }

int64_t floor_of(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

Numbers zip(const Numbers &a, const Numbers &b, int64_t (*with)(int64_t, int64_t)) {
  Numbers result;
  for (size_t k = 0; k < a.size(); k++)
    result.push_back(with(a[k], b[k]));
  return result;
}

// Solves `wanted[k] == scale * base[k] + offset` for all k in whole numbers.
std::optional<std::pair<int64_t, int64_t>> linear(const Numbers &wanted, const Numbers &base) {
  std::optional<int64_t> scale;
  for (size_t k = 1; k < base.size() && !scale; k++)
    if (base[k] != base[0]) {
      int64_t rise, run;
      if (__builtin_sub_overflow(wanted[k], wanted[0], &rise) || __builtin_sub_overflow(base[k], base[0], &run))
        return {};
      // The only quotient that overflows.
      if (rise == std::numeric_limits<int64_t>::min() && run == -1)
        return {};
      if (rise % run != 0)
        return {};
      scale = rise / run;
    }
  if (!scale || *scale == 0)
    return {};
  int64_t offset = plus(wanted[0], times(-1, times(*scale, base[0])));
  for (size_t k = 0; k < base.size(); k++)
    if (wanted[k] != plus(times(*scale, base[k]), offset))
      return {};
  return std::make_pair(*scale, offset);
}

// Returns the divisors that give `wanted` from `size`, rounded down or up.
void divisors(const Numbers &wanted, const Numbers &size, int place, bool up, std::vector<Expression> &found) {
  int64_t low = 2, high = std::numeric_limits<int64_t>::max();
  for (size_t k = 0; k < size.size(); k++) {
    const int64_t n = size[k], w = wanted[k];
    if (w < 0 || n < w)
      return;
    low = std::max(low, up ? (w == 0 ? low : (n - 1) / w + 1) : n / (w + 1) + 1);
    high = std::min(high, up ? (w <= 1 ? high : (n - 1) / (w - 1)) : (w == 0 ? high : n / w));
  }
  if (high == std::numeric_limits<int64_t>::max())
    return;
  for (int64_t divisor = low; divisor <= std::min(high, low + MAX_DIVISORS); divisor++) {
    Expression e{{place}, 1, divisor, up};
    bool exact = true, fits = true;
    for (size_t k = 0; k < size.size(); k++) {
      exact &= size[k] % divisor == 0;
      fits &= (size[k] + (up ? divisor - 1 : 0)) / divisor == wanted[k];
    }
    if (fits && !exact)
      found.push_back(e);
  }
}

} // namespace

int64_t Expression::value(const std::vector<int64_t> &sizes) const {
  int64_t result = scale;
  for (int factor : factors)
    result = times(result, sizes[factor]);
  if (divisor != 1)
    result = up ? times(-1, floor_of(times(-1, result), divisor)) : floor_of(result, divisor);
  return plus(plus(result, summand ? sizes[*summand] : 0), offset);
}

std::vector<int64_t> sizes_of(const std::vector<Size> &sizes, size_t input) {
  std::vector<int64_t> values;
  for (const auto &size : sizes)
    values.push_back(size.values[input]);
  return values;
}

std::array<std::vector<Expression>, KINDS> fitting(const Numbers &numbers, const std::vector<Size> &all, size_t given) {
  std::array<std::vector<Expression>, KINDS> found;
  const auto first = [&](const Numbers &values) { return Numbers(values.begin(), values.begin() + given); };
  const Numbers wanted = first(numbers);
  std::vector<Numbers> sizes;
  for (const auto &size : all)
    sizes.push_back(first(size.values));
  const auto multiple_of = [&](const Numbers &base) -> std::optional<int64_t> {
    auto fit = linear(wanted, base);
    return fit && fit->second == 0 ? std::optional(fit->first) : std::nullopt;
  };
  const int n = int(sizes.size());
  for (int i = 0; i < n; i++) {
    if (auto fit = linear(wanted, sizes[i])) {
      auto [scale, offset] = *fit;
      auto kind = offset == 0 ? (scale == 1 ? EQUAL : COMPUTED) : scale == 1 ? SHIFTED : AFFINE;
      found[kind].push_back({{i}, scale, 1, false, {}, offset});
    }
    if (auto fit = linear(sizes[i], wanted); fit && fit->second == 0 && fit->first > 1)
      found[COMPUTED].push_back({{i}, 1, fit->first});
    divisors(wanted, sizes[i], i, false, found[DIVIDED]);
    divisors(wanted, sizes[i], i, true, found[DIVIDED]);
    for (int j = i; j < n; j++) {
      const Numbers product = zip(sizes[i], sizes[j], times);
      if (auto scale = multiple_of(product))
        found[COMPUTED].push_back({{i, j}, *scale});
      if (auto fit = linear(product, wanted); fit && fit->second == 0 && fit->first > 1)
        found[COMPUTED].push_back({{i, j}, 1, fit->first});
      if (zip(sizes[i], sizes[j], plus) == wanted && j != i)
        found[COMPUTED].push_back({{i}, 1, 1, false, j});
      for (int k = j; k < n; k++)
        if (auto scale = multiple_of(zip(product, sizes[k], times)))
          found[COMPUTED].push_back({{i, j, k}, *scale});
    }
  }
  return found;
}
