// Random bytes for devices: the host's, or the same in every run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "devices/state_result.hpp"

namespace strata::devices {

class RandomBytes {
 public:
  RandomBytes() = default;
  RandomBytes(const RandomBytes&) = delete;
  RandomBytes& operator=(const RandomBytes&) = delete;
  virtual ~RandomBytes() = default;
  /// Any thread, but one at a time.
  virtual void fill(std::span<std::byte> bytes) noexcept = 0;
  /// Where the sequence stands, for a saved VM; null where no run has to repeat it.
  [[nodiscard]] virtual nlohmann::json save();
  [[nodiscard]] virtual StateResult load(const nlohmann::json& state);
};

/// getrandom(2).
class HostRandomBytes final : public RandomBytes {
 public:
  void fill(std::span<std::byte> bytes) noexcept override;
};

/// One fixed sequence (SplitMix64; public domain, S. Vigna), for exact runs. No secret may depend
/// on it.
class SeededRandomBytes final : public RandomBytes {
 public:
  void fill(std::span<std::byte> bytes) noexcept override;
  [[nodiscard]] nlohmann::json save() override;
  [[nodiscard]] StateResult load(const nlohmann::json& state) override;

 private:
  template <class Archive>
  void fields(Archive& a);
  std::uint64_t draws_ = 0;  ///< of 8 bytes
};

}  // namespace strata::devices
