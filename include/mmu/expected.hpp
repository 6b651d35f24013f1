// A value or the reason why there is none. std::expected is C++23 and clang-tidy 14 cannot see
// libstdc++'s, so this is the small part of it that Strata uses.
#pragma once

#include <utility>
#include <variant>

namespace strata {

template <class E>
struct Unexpected {
  E error;
};
template <class E>
Unexpected(E) -> Unexpected<E>;

/// Either a `T` or an `E`. Reading the side that is not there is a bug of ours and terminates.
template <class T, class E>
class [[nodiscard]] Expected {
 public:
  constexpr Expected(T value) : state_{std::in_place_index<0>, std::move(value)} {}
  constexpr Expected(Unexpected<E> u) : state_{std::in_place_index<1>, std::move(u.error)} {}

  [[nodiscard]] constexpr bool has_value() const noexcept { return state_.index() == 0; }
  constexpr explicit operator bool() const noexcept { return has_value(); }
  [[nodiscard]] constexpr T& value() & noexcept { return *std::get_if<0>(&state_); }
  [[nodiscard]] constexpr const T& value() const& noexcept { return *std::get_if<0>(&state_); }
  [[nodiscard]] constexpr T&& value() && noexcept { return std::move(*std::get_if<0>(&state_)); }
  [[nodiscard]] constexpr T& operator*() & noexcept { return value(); }
  [[nodiscard]] constexpr const T& operator*() const& noexcept { return value(); }
  [[nodiscard]] constexpr T&& operator*() && noexcept { return std::move(*this).value(); }
  [[nodiscard]] constexpr T* operator->() noexcept { return std::get_if<0>(&state_); }
  [[nodiscard]] constexpr const T* operator->() const noexcept { return std::get_if<0>(&state_); }
  [[nodiscard]] constexpr const E& error() const noexcept { return *std::get_if<1>(&state_); }

 private:
  std::variant<T, E> state_;
};

template <class E>
class [[nodiscard]] Expected<void, E> {
 public:
  constexpr Expected() noexcept = default;
  constexpr Expected(Unexpected<E> u) : state_{std::in_place_index<1>, std::move(u.error)} {}

  [[nodiscard]] constexpr bool has_value() const noexcept { return state_.index() == 0; }
  constexpr explicit operator bool() const noexcept { return has_value(); }
  [[nodiscard]] constexpr const E& error() const noexcept { return *std::get_if<1>(&state_); }

 private:
  std::variant<std::monostate, E> state_;
};

}  // namespace strata
