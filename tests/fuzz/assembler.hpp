// An assembler of the little that sequences of random guests need.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

namespace strata::fuzz {

class Assembler {
 public:
  /// Code of `bits` (16, 32 or 64) goes to the end of `out`.
  Assembler(unsigned bits, std::vector<std::uint8_t>& out) : bits_{bits}, out_{out} {}
  [[nodiscard]] unsigned bits() const noexcept { return bits_; }
  [[nodiscard]] std::size_t size() const noexcept { return out_.size(); }

  void put(std::initializer_list<std::uint64_t> bytes) {
    for (const std::uint64_t b : bytes) out_.push_back(static_cast<std::uint8_t>(b));
  }
  void number(std::uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; ++i) out_.push_back(static_cast<std::uint8_t>(value >> 8 * i));
  }
  /// Replaces the bytes from `at` on by a number: for what is known later.
  void fix(std::size_t at, std::uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; ++i) out_[at + i] = static_cast<std::uint8_t>(value >> 8 * i);
  }
  /// mov reg, value with the widest immediate that the mode has.
  void load(unsigned reg, std::uint64_t value) {
    if (bits_ == 64 && value >> 32 != 0) {
      put({0x48, 0xB8 + reg});
      number(value, 8);
      return;
    }
    if (bits_ == 16) put({0x66});
    put({0xB8 + reg});
    number(value, 4);
  }
  void push(std::uint64_t value) {
    put({0x68});
    number(value, bits_ == 16 ? 2 : 4);
  }

 private:
  unsigned bits_;
  std::vector<std::uint8_t>& out_;
};

}  // namespace strata::fuzz
