// Executable memory that is never writable and executable through the same mapping.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace strata::interp {

/// Append-only, plus one scratch slot that is overwritten. Not thread-safe.
class ThunkArena {
 public:
  static constexpr std::size_t kScratchBytes = 256;

  /// An arena without memory if the host refuses it; append() then returns null.
  explicit ThunkArena(std::size_t bytes) noexcept;
  ThunkArena(const ThunkArena&) = delete;
  ThunkArena& operator=(const ThunkArena&) = delete;
  ~ThunkArena();

  /// Copies code; its address to call, or null if it does not fit.
  [[nodiscard]] const std::byte* append(std::span<const std::byte> code) noexcept;
  /// Copies code into the scratch slot; valid until the next call, on this thread only.
  [[nodiscard]] const std::byte* scratch(std::span<const std::byte> code) noexcept;

  [[nodiscard]] std::size_t used() const noexcept { return used_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  std::size_t size_ = 0;
  std::size_t used_ = 0;
  std::byte* writable_ = nullptr;    ///< a mapping of the same pages, read and write
  std::byte* executable_ = nullptr;  ///< read and execute
};

}  // namespace strata::interp
