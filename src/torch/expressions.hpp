// Expressions of the inputs' sizes.

#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

using Numbers = std::vector<int64_t>; // one for every traced input

// The size of an input, which differs between the examples.
struct Size {
  size_t input;
  int64_t dim;
  Numbers values;
};

// scale * factors / divisor + summand + offset, of sizes by their place. The division rounds down or up.
struct Expression {
  std::vector<int> factors;
  int64_t scale = 1, divisor = 1;
  bool up = false;
  std::optional<int> summand;
  int64_t offset = 0;

  // Returns the number for these sizes.
  int64_t value(const std::vector<int64_t> &sizes) const;
};

// The sizes of one of the inputs.
std::vector<int64_t> sizes_of(const std::vector<Size> &sizes, size_t input);

// The kinds of expressions, from the least to the most likely to fit by chance. They are tried in this order.
enum Kind {
  EQUAL,    // a size
  COMPUTED, // a multiple, a product, a part without a remainder, a sum of two
  DIVIDED,  // a part, with a remainder in some example
  SHIFTED,  // a size plus a number: easily fits two examples
  AFFINE,   // a multiple plus a number: fits any two examples
  KINDS
};

// Returns all expressions that give the first `given` numbers, by kind.
std::array<std::vector<Expression>, KINDS> fitting(const Numbers &wanted, const std::vector<Size> &sizes, size_t given);
