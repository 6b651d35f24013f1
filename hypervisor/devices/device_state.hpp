// Device state in and out of a saved VM. A device lists its fields once, in a function template
// `fields(archive)`; StateWriter makes a JSON object of them and StateReader checks and takes them
// back. What is read is hostile: every value's type and range is checked before it is stored.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "devices/state_result.hpp"

namespace strata::devices {

namespace detail {

template <class T>
constexpr std::uint64_t max_of() noexcept {
  if constexpr (std::is_same_v<T, bool>) {
    return 1;
  } else {
    return static_cast<std::uint64_t>(std::numeric_limits<T>::max());
  }
}

}  // namespace detail

/// Builds the JSON object of a device. Integers of either sign are stored as unsigned 64-bit ones.
class StateWriter {
 public:
  static constexpr bool kReads = false;

  /// An integer or bool. `limit`: the largest value that is allowed back in.
  template <class T>
  requires std::is_integral_v<T>
  void operator()(const char* key, const T& value, std::uint64_t /*limit*/ = 0) {
    object_[key] = static_cast<std::uint64_t>(value);
  }
  /// An enumeration whose values are 0 .. last.
  template <class E>
  requires std::is_enum_v<E>
  void operator()(const char* key, const E& value, E /*last*/) {
    object_[key] = static_cast<std::uint64_t>(value);
  }
  template <class T>
  void operator()(const char* key, const std::optional<T>& value, std::uint64_t /*limit*/ = 0) {
    if (value) object_[key] = static_cast<std::uint64_t>(*value);
  }
  template <class T, std::size_t N>
  requires std::is_integral_v<T>
  void operator()(const char* key, const std::array<T, N>& values) {
    nlohmann::json list = nlohmann::json::array();
    for (const T& v : values) list.push_back(static_cast<std::uint64_t>(v));
    object_[key] = std::move(list);
  }
  template <class T>
  void operator()(const char* key, const std::vector<T>& values) {
    object_[key] = values;
  }
  void operator()(const char* key, const std::deque<std::uint8_t>& bytes, std::size_t /*limit*/) {
    object_[key] = nlohmann::json::binary(std::vector<std::uint8_t>(bytes.begin(), bytes.end()));
  }
  /// A part with fields of its own.
  template <class Part>
  void part(const char* key, const Part& part) {
    StateWriter inner;
    const_cast<Part&>(part).fields(inner);  // the same template reads and writes
    object_[key] = std::move(inner).take();
  }
  /// A condition that the fields together have to meet; for readers.
  void require(const char* /*key*/, bool /*holds*/) noexcept {}
  [[nodiscard]] nlohmann::json take() && { return std::move(object_); }

 private:
  nlohmann::json object_ = nlohmann::json::object();
};

/// Takes fields out of a JSON object. The first thing wrong is kept; fields after it keep what they
/// had, and the device must not be used.
class StateReader {
 public:
  static constexpr bool kReads = true;

  /// `where` names the object in errors. `object` must outlive the reader.
  StateReader(const nlohmann::json& object, std::string where)
      : object_{object}, where_{std::move(where)} {
    if (!object_.is_object()) fail("", "is not an object");
  }

  template <class T>
  requires std::is_integral_v<T>
  void operator()(const char* key, T& value, std::uint64_t limit = detail::max_of<T>()) {
    if (const auto v = number(key, limit)) value = static_cast<T>(*v);
  }
  /// Signed numbers use all 64 bits.
  void operator()(const char* key, std::int64_t& value, std::uint64_t limit = ~0ULL) {
    if (const auto v = number(key, limit)) value = static_cast<std::int64_t>(*v);
  }
  template <class E>
  requires std::is_enum_v<E>
  void operator()(const char* key, E& value, E last) {
    if (const auto v = number(key, static_cast<std::uint64_t>(last))) value = static_cast<E>(*v);
  }
  template <class T>
  void operator()(const char* key, std::optional<T>& value,
                  std::uint64_t limit = detail::max_of<T>()) {
    value.reset();
    if (error_ || !object_.contains(key)) return;
    if (const auto v = number(key, limit)) value = static_cast<T>(*v);
  }
  template <class T, std::size_t N>
  requires std::is_integral_v<T>
  void operator()(const char* key, std::array<T, N>& values) { take_list(key, values); }
  /// As many as there are already.
  template <class T>
  void operator()(const char* key, std::vector<T>& values) {
    take_list(key, values);
  }
  void operator()(const char* key, std::deque<std::uint8_t>& bytes, std::size_t limit) {
    const nlohmann::json* data = member(key);
    if (data == nullptr) return;
    if (!data->is_binary() || data->get_binary().size() > limit)
      return fail(key, "is out of range");
    bytes.assign(data->get_binary().begin(), data->get_binary().end());
  }
  template <class Part>
  void part(const char* key, Part& part) {
    const nlohmann::json* inner = member(key);
    if (inner == nullptr) return;
    StateReader reader{*inner, where_ + "." + key};
    part.fields(reader);
    if (!error_ && reader.error_) error_ = reader.error_;
  }
  void require(const char* key, bool holds) {
    if (!error_ && !holds) fail(key, "does not go with the rest");
  }

  [[nodiscard]] StateResult result() const {
    if (error_) return Unexpected{StateError{*error_}};
    return {};
  }
  [[nodiscard]] bool ok() const noexcept { return !error_; }

 private:
  void fail(const std::string& key, const char* what) {
    if (!error_) error_ = where_ + (key.empty() ? "" : "." + key) + " " + what;
  }
  template <class List>
  void take_list(const char* key, List& values) {
    using T = typename List::value_type;
    const nlohmann::json* list = member(key);
    if (list == nullptr) return;
    if (!list->is_array() || list->size() != values.size()) {
      return fail(key, "has the wrong length");
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto v = to_number(key, (*list)[i], detail::max_of<T>());
      if (!v) return;
      values[i] = static_cast<T>(*v);
    }
  }
  const nlohmann::json* member(const char* key) {
    if (error_) return nullptr;
    const auto it = object_.find(key);
    if (it != object_.end()) return &*it;
    fail(key, "is missing");
    return nullptr;
  }
  std::optional<std::uint64_t> to_number(const char* key, const nlohmann::json& v,
                                         std::uint64_t limit) {
    if (v.is_number_unsigned() && v.get<std::uint64_t>() <= limit) return v.get<std::uint64_t>();
    fail(key, "is out of range");
    return std::nullopt;
  }
  std::optional<std::uint64_t> number(const char* key, std::uint64_t limit) {
    const nlohmann::json* v = member(key);
    return v == nullptr ? std::nullopt : to_number(key, *v, limit);
  }

  const nlohmann::json& object_;
  std::string where_;
  std::optional<std::string> error_;
};

}  // namespace strata::devices
