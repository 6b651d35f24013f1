// Little-endian fields in byte ranges: reads that cannot leave a file, writes into tables.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace strata::boot {

/// A range of a file. Offsets come from the file itself, so every access is checked.
class ByteView {
 public:
  constexpr ByteView() noexcept = default;
  constexpr explicit ByteView(std::span<const std::byte> bytes) noexcept : bytes_{bytes} {}

  [[nodiscard]] std::uint64_t size() const noexcept { return bytes_.size(); }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

  /// The range of `length` bytes at `offset`, if all of it is there.
  [[nodiscard]] std::optional<ByteView> sub(std::uint64_t offset,
                                            std::uint64_t length) const noexcept {
    if (offset > bytes_.size() || length > bytes_.size() - offset) return std::nullopt;
    return ByteView{bytes_.subspan(offset, length)};
  }

  /// The little-endian number at `offset`, if all of it is there.
  template <std::unsigned_integral T>
  [[nodiscard]] std::optional<T> at(std::uint64_t offset) const noexcept {
    const auto range = sub(offset, sizeof(T));
    if (!range) return std::nullopt;
    T value;
    std::memcpy(&value, range->bytes_.data(), sizeof value);
    return value;
  }

  /// The same for offsets that the caller has shown to be inside; 0 if it was wrong.
  template <std::unsigned_integral T>
  [[nodiscard]] T get(std::uint64_t offset) const noexcept {
    return at<T>(offset).value_or(T{0});
  }

  [[nodiscard]] bool starts_with(std::string_view magic) const noexcept {
    return bytes_.size() >= magic.size() &&
           std::memcmp(bytes_.data(), magic.data(), magic.size()) == 0;
  }

 private:
  std::span<const std::byte> bytes_;
};

/// Stores `value` at `offset` of `out`, which must be large enough.
template <std::unsigned_integral T>
void put(std::span<std::byte> out, std::size_t offset, T value) noexcept {
  std::memcpy(out.subspan(offset, sizeof value).data(), &value, sizeof value);
}

/// Appends `value` to `out`.
template <std::unsigned_integral T>
void append(std::vector<std::byte>& out, T value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof value);
  put(std::span{out}, at, value);
}

[[nodiscard]] inline std::span<const std::byte> as_bytes(std::string_view text) noexcept {
  return std::as_bytes(std::span{text.data(), text.size()});
}

}  // namespace strata::boot
