// A reader for JSON that soda_compile wrote: objects, arrays, strings, numbers, true, false and null.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace json {

struct Value {
  enum class Kind { null, boolean, number, string, array, object } kind = Kind::null;
  bool truth = false;
  double number = 0;
  std::string text;
  std::vector<Value> items;
  std::map<std::string, Value> fields;

  const Value& operator[](const std::string& name) const {
    auto found = fields.find(name);
    if (found == fields.end()) throw std::runtime_error("the package has no entry \"" + name + "\"");
    return found->second;
  }
  bool is_null() const { return kind == Kind::null; }
  bool is_text() const { return kind == Kind::string; }
  int64_t integer() const { return static_cast<int64_t>(number); }
  std::vector<int64_t> integers() const {
    std::vector<int64_t> result;
    for (const Value& item : items) result.push_back(item.integer());
    return result;
  }
};

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Value value() {
    switch (peek()) {
      case '{': return object();
      case '[': return array();
      case '"': return string();
      case 't': return word("true", Value{Value::Kind::boolean, true});
      case 'f': return word("false", Value{Value::Kind::boolean, false});
      case 'n': return word("null", Value{});
      default: return number();
    }
  }

 private:
  char peek() {
    while (at_ < text_.size() && std::string_view(" \n\t\r").find(text_[at_]) != std::string_view::npos) ++at_;
    if (at_ >= text_.size()) throw std::runtime_error("JSON ends too early");
    return text_[at_];
  }

  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!take(wanted)) throw std::runtime_error(std::string("JSON lacks ") + wanted);
  }

  Value word(std::string_view name, Value result) {
    if (text_.substr(at_, name.size()) != name) throw std::runtime_error("damaged JSON");
    at_ += name.size();
    return result;
  }

  Value object() {
    Value result{Value::Kind::object};
    expect('{');
    if (take('}')) return result;
    do {
      std::string name = string().text;
      expect(':');
      result.fields[name] = value();
    } while (take(','));
    expect('}');
    return result;
  }

  Value array() {
    Value result{Value::Kind::array};
    expect('[');
    if (take(']')) return result;
    do result.items.push_back(value());
    while (take(','));
    expect(']');
    return result;
  }

  Value string() {
    Value result{Value::Kind::string};
    expect('"');
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\') ++at_;  // names and paths have no escapes but quotes and backslashes
      result.text += text_.at(at_++);
    }
    expect('"');
    return result;
  }

  Value number() {
    size_t stop = text_.find_first_not_of("+-.0123456789eE", at_);
    std::string digits(text_.substr(at_, stop - at_));
    Value result{Value::Kind::number};
    result.number = std::stod(digits);
    at_ = stop;
    return result;
  }

  std::string_view text_;
  size_t at_ = 0;
};

inline Value parse(std::string_view text) { return Parser(text).value(); }

}  // namespace json
