// Guest memory as one array, which refuses what lies outside and can fail on request.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "boot/memory_sink.hpp"

namespace strata::boot::test {

class TestMemory final : public MemorySink {
 public:
  explicit TestMemory(std::size_t bytes) : bytes_(bytes, std::byte{0xEE}) {}

  Result<void> write(PA pa, std::span<const std::byte> data) override {
    if (auto ok = check(pa, data.size()); !ok) return ok;
    std::copy(data.begin(), data.end(), bytes_.begin() + static_cast<std::ptrdiff_t>(pa.value()));
    return {};
  }
  Result<void> zero(PA pa, std::uint64_t length) override {
    if (auto ok = check(pa, length); !ok) return ok;
    std::fill_n(bytes_.begin() + static_cast<std::ptrdiff_t>(pa.value()), length, std::byte{0});
    return {};
  }

  /// The call with this number, from 0, fails.
  void fail_at(unsigned call) { fail_at_ = call; }
  [[nodiscard]] unsigned calls() const { return calls_; }
  [[nodiscard]] std::span<const std::byte> from(std::uint64_t pa) const {
    return std::span{bytes_}.subspan(pa);
  }

 private:
  Result<void> check(PA pa, std::uint64_t length) {
    if (calls_++ == fail_at_) return fail("injected");
    if (pa.value() > bytes_.size() || length > bytes_.size() - pa.value()) {
      return fail("outside memory");
    }
    return {};
  }

  std::vector<std::byte> bytes_;
  unsigned calls_ = 0;
  unsigned fail_at_ = std::numeric_limits<unsigned>::max();
};

}  // namespace strata::boot::test
