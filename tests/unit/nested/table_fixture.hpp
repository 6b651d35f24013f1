// A fixture for tests of both table formats.
#pragma once

#include <gtest/gtest.h>

#include <memory>

#include "guest_builder.hpp"

namespace strata::nested::test {

inline constexpr std::uint64_t k2M = kLargePageSize;
inline constexpr std::uint64_t k1G = kHugePageSize;
inline constexpr std::uint64_t kAddress = 0xFFFFFFFFFF000;

class TableFixture : public testing::TestWithParam<Format> {
 protected:
  [[nodiscard]] bool ept() const { return GetParam() == Format::ept; }
  [[nodiscard]] std::uint64_t accessed() const { return ept() ? 1U << 8 : 1U << 5; }
  [[nodiscard]] std::uint64_t dirty() const { return ept() ? 1U << 9 : 1U << 6; }
  /// A VM without guest paging: translate() is the nested table alone.
  static std::unique_ptr<Vm> flat(NestedOptions options = kNoCaches) {
    auto vm = std::make_unique<Vm>(GetParam(), options);
    vm->p2m.set(0, kGuestBytes >> kPageShift, PageState::private_page);
    vm->use(vm->context(PagingMode::off));
    return vm;
  }
  /// The same with 2 MiB runs everywhere.
  static std::unique_ptr<Vm> flat_runs(NestedOptions options = kNoCaches,
                                       unsigned shift = kLargePageShift) {
    auto vm = flat(options);
    vm->p2m.set(0, kGuestBytes >> kPageShift, PageState::private_page, shift);
    return vm;
  }
};
inline const auto kFormats = testing::Values(Format::ept, Format::npt);
inline const auto kFormatName = [](const testing::TestParamInfo<Format>& p) {
  return p.param == Format::ept ? "ept" : "npt";
};

}  // namespace strata::nested::test
