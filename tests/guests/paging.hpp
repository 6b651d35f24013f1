// The guest's page tables: four levels, below 4 GiB identity-mapped by start.S.
#pragma once

#include <cstdint>

namespace guest {

inline constexpr std::uint64_t kPresent = 1U << 0, kWritable = 1U << 1, kUser = 1U << 2,
                               kAccessed = 1U << 5, kDirty = 1U << 6, kLarge = 1U << 7,
                               kNoExecute = 1ULL << 63;
inline constexpr std::uint64_t kPage = 4096, kLargePage = 2U << 20;

/// A fresh page of zeroes, identity-mapped. Never freed.
[[nodiscard]] std::uint64_t allocate_page();
/// The same of 2 MiB.
[[nodiscard]] std::uint64_t allocate_large_page();
/// The leaf entry of `address` (a 4 KiB page's); tables on the way are made, open to all accesses.
[[nodiscard]] volatile std::uint64_t& entry_of(std::uint64_t address);
/// The level-2 entry.
[[nodiscard]] volatile std::uint64_t& large_entry_of(std::uint64_t address);
/// Maps one page and invalidates what the processor may remember.
void map(std::uint64_t address, std::uint64_t frame, std::uint64_t bits);

[[nodiscard]] inline volatile std::uint64_t& word(std::uint64_t address) {
  return *reinterpret_cast<volatile std::uint64_t*>(address);
}

}  // namespace guest
