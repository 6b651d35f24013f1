// The backends of this build, by the names --mmu knows, and the example.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "mmu/flush.hpp"
#include "mmu/frames.hpp"
#include "mmu/mmu.hpp"
#include "mmu/p2m.hpp"
#include "tableless.hpp"
#ifdef STRATA_HAS_NESTED
#include "nested/nested_mmu.hpp"
#endif
#ifdef STRATA_HAS_SHADOW
#include "shadow/shadow.hpp"
#endif

namespace strata::conformance {

/// Remembers which frames hold tables of a backend, so that a test can get at them.
class RecordingFrames final : public FrameSource {
 public:
  explicit RecordingFrames(FrameSource& inner) : inner_{&inner} {}
  Expected<MPN, OutOfFrames> allocate(FrameKind kind) override {
    auto frame = inner_->allocate(kind);
    if (frame) tables.push_back(*frame);
    return frame;
  }
  void release(MPN mpn, FrameKind kind) noexcept override {
    std::erase(tables, mpn);
    inner_->release(mpn, kind);
  }
  [[nodiscard]] MachineWindow window() const noexcept override { return inner_->window(); }
  [[nodiscard]] std::array<std::uint64_t, kFrameKinds> in_use() const noexcept override {
    return inner_->in_use();
  }
  std::vector<MPN> tables;

 private:
  FrameSource* inner_;
};

/// The example of docs/adding-a-backend.md: it has no tables of its own.
inline constexpr std::string_view kTableless = "tableless";

/// `shadow` with every technique that can be turned off turned off.
inline constexpr std::string_view kPlainShadow = "shadow_plain";

inline std::vector<std::string_view> backends() {
  return {
      kTableless,
#ifdef STRATA_HAS_NESTED
      "ept",      "npt",
#endif
#ifdef STRATA_HAS_SHADOW
      "shadow",   kPlainShadow,
#endif
  };
}

/// `caches`: the nested walker's own.
inline std::unique_ptr<Mmu> make_backend(std::string_view name, P2m& p2m, FrameSource& frames,
                                         [[maybe_unused]] FlushDomain& domain,
                                         [[maybe_unused]] bool caches) {
  if (name == kTableless) {
    return std::make_unique<example::TablelessMmu>(p2m, frames.window(), 8);
  }
#ifdef STRATA_HAS_NESTED
  if (name == "ept" || name == "npt") {
    nested::NestedOptions options;
    options.guest_caches = options.nested_tlb = options.nested_caches = caches;
    return nested::make_nested(name == "ept" ? nested::Format::ept : nested::Format::npt, p2m,
                               frames, domain, options);
  }
#endif
#ifdef STRATA_HAS_SHADOW
  if (name == "shadow") return shadow::make_shadow(p2m, frames, domain, {});
  if (name == kPlainShadow) {
    return shadow::make_shadow(p2m, frames, domain, shadow::plain_options());
  }
#endif
  return nullptr;
}

}  // namespace strata::conformance
