// The host's processor as the oracle of unprivileged instructions: runs a few bytes of machine code
// with all general registers, flags and a window of memory under the test's control, at the same
// addresses that the guest uses, and reports where it stopped and why.
#pragma once

#include <sys/mman.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace strata::interp::test {

/// Registers before and after, and how it ended.
struct NativeState {
  std::array<std::uint64_t, 16> gpr{};
  std::uint64_t rflags = 2;
  std::uint64_t rip = 0;
  /// -1: the code ran to its end; else the exception's vector, with rip at the instruction.
  int vector = -1;
  std::uint64_t error = 0;  ///< of a page fault
  std::uint64_t cr2 = 0;
};

/// Maps code and data at fixed addresses below 4 MiB, where test binaries leave room and where the
/// guest's flat memory is. One at a time.
class NativeOracle {
 public:
  static constexpr std::uint64_t kCode = 0x200000;     ///< two pages
  static constexpr std::uint64_t kContext = 0x210000;  ///< one page, private
  static constexpr std::uint64_t kData = 0x220000;  ///< kWritable pages, one read-only, one absent
  static constexpr unsigned kWritable = 4;
  static constexpr std::uint64_t kReadOnly = kData + kWritable * 4096;
  static constexpr std::uint64_t kAbsent = kReadOnly + 4096;

  NativeOracle();
  ~NativeOracle();
  NativeOracle(const NativeOracle&) = delete;
  NativeOracle& operator=(const NativeOracle&) = delete;

  /// Data window: writable and read-only pages.
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  /// Changes the content of the read-only page.
  void fill_read_only(const std::byte* bytes);

  /// Runs the code at `at` (kCode plus something) and fills in `state`.
  /// `bits` 32: as compatibility-mode code, with eight registers of 32 bits.
  void run(std::span<const std::uint8_t> code, std::uint64_t at, NativeState& state,
           unsigned bits = 64);

 private:
  std::byte* code_ = nullptr;
  std::byte* data_ = nullptr;
};

}  // namespace strata::interp::test
