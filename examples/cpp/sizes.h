// Sizes that a package gives as text, in its dimensions: "4*height*width", "b*((a//2))".
#pragma once

#include <cctype>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.h"

namespace soda {

using Dims = std::map<std::string, int64_t>;

// Reads sums, products, whole quotients and remainders, powers, and parentheses.
class SizeReader {
 public:
  SizeReader(const std::string& text, const Dims& dims) : text_(text), dims_(dims) {}

  int64_t read() {
    int64_t value = sum();
    if (next() != '\0') fail();
    return value;
  }

 private:
  int64_t sum() {
    int64_t value = product();
    for (;;) {
      if (take("+")) value += product();
      else if (take("-")) value -= product();
      else return value;
    }
  }

  int64_t product() {
    int64_t value = signed_power();
    for (;;) {
      if (take("//")) value = floor_div(value, signed_power());
      else if (take("*")) value *= signed_power();
      else if (take("%")) { int64_t by = signed_power(); value -= by * floor_div(value, by); }
      else return value;
    }
  }

  int64_t signed_power() {
    if (take("-")) return -signed_power();
    int64_t base = atom();
    if (!take("**")) return base;
    int64_t value = 1;
    for (int64_t times = signed_power(); times > 0; --times) value *= base;
    return value;
  }

  int64_t atom() {
    if (take("(")) {
      int64_t value = sum();
      if (!take(")")) fail();
      return value;
    }
    std::string word;
    next();
    while (at_ < text_.size() && (std::isalnum(text_[at_]) || text_[at_] == '_')) word += text_[at_++];
    if (word.empty()) fail();
    if (std::isdigit(word[0])) return std::stoll(word);
    auto found = dims_.find(word);
    if (found == dims_.end()) fail();
    return found->second;
  }

  char next() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  // "*" is not the beginning of "**".
  bool take(const std::string& sign) {
    next();
    if (text_.compare(at_, sign.size(), sign) != 0) return false;
    if (sign == "*" && text_.compare(at_, 2, "**") == 0) return false;
    at_ += sign.size();
    return true;
  }

  static int64_t floor_div(int64_t value, int64_t by) {
    if (by == 0) throw std::runtime_error("a size of the package divides by 0");
    int64_t quotient = value / by;
    return value % by != 0 && (value < 0) != (by < 0) ? quotient - 1 : quotient;
  }

  [[noreturn]] void fail() const { throw std::runtime_error("the package has a size that cannot be read: " + text_); }

  const std::string& text_;
  const Dims& dims_;
  size_t at_ = 0;
};

inline int64_t size_at(const json::Value& size, const Dims& dims) {
  return size.is_text() ? SizeReader(size.text, dims).read() : size.integer();
}

inline std::vector<int64_t> sizes_at(const json::Value& sizes, const Dims& dims) {
  std::vector<int64_t> found;
  for (const json::Value& size : sizes.items) found.push_back(size_at(size, dims));
  return found;
}

}  // namespace soda
