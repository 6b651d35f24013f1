#include "vmm/capabilities.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#ifdef STRATA_HAS_NESTED
#include "nested/nested_mmu.hpp"
#endif
#ifdef STRATA_HAS_SHADOW
#include "shadow/shadow.hpp"
#endif

namespace strata::vmm {

const std::vector<Combination>& combinations() {
  static const std::vector<Combination> kCombinations{
#ifdef STRATA_HAS_NESTED
      {"interp", "ept", "nested"},
      {"interp", "npt", "nested"},
#endif
#ifdef STRATA_HAS_SHADOW
      {"interp", "shadow", "shadow"},
#endif
  };
  return kCombinations;
}

Expected<void, std::string> check_combination(std::string_view engine, std::string_view mmu) {
  std::string works;
  bool engine_known = false;
  for (const Combination& c : combinations()) {
    if (c.engine != engine) continue;
    engine_known = true;
    if (mmu == "auto" || c.mmu == mmu) return {};
    works += fmt::format(" {},", c.mmu);
  }
  if (!engine_known) {
    return Unexpected<std::string>{
        fmt::format("--engine: '{}' is not built in; this build has: interp", engine)};
  }
  return Unexpected<std::string>{fmt::format(
      "--mmu: '{}' does not work with engine {}; this build has:{} auto", mmu, engine, works)};
}

std::string resolve_mmu(std::string_view engine, std::string_view mmu) {
  if (mmu != "auto") return std::string{mmu};
  // The first combination of an engine is the one measured to be fastest for it (docs/).
  const auto found = std::find_if(combinations().begin(), combinations().end(),
                                  [&](const Combination& c) { return c.engine == engine; });
  return found == combinations().end() ? std::string{} : std::string{found->mmu};
}

namespace {

#ifdef STRATA_HAS_NESTED
BuiltMmu make_nested_mmu(nested::Format format, P2m& p2m, FrameSource& frames, FlushDomain& domain,
                         unsigned vcpus) {
  nested::NestedOptions options;
  options.max_vcpus = vcpus;
  auto mmu = nested::make_nested(format, p2m, frames, domain, options);
  const nested::NestedMmu* view = mmu.get();
  return {std::move(mmu), [view] {
            const nested::NestedStats s = view->nested_stats();
            return nlohmann::json{{"references_per_walk", s.references},
                                  {"guest_cache_hits", s.guest_cache_hits},
                                  {"nested_tlb_hits", s.nested_tlb_hits},
                                  {"nested_cache_hits", s.nested_cache_hits},
                                  {"leaves_4k", s.leaves_4k},
                                  {"leaves_2m", s.leaves_2m},
                                  {"leaves_1g", s.leaves_1g},
                                  {"splits", s.splits},
                                  {"joins", s.joins},
                                  {"tables", s.tables}};
          }};
}
#endif

#ifdef STRATA_HAS_SHADOW
BuiltMmu make_shadow_mmu(P2m& p2m, FrameSource& frames, FlushDomain& domain, unsigned vcpus) {
  shadow::ShadowOptions options;
  options.max_vcpus = vcpus;
  auto mmu = shadow::make_shadow_backend(p2m, frames, domain, options);
  const shadow::ShadowBackend* view = mmu.get();
  return {std::move(mmu), [view] {
            const shadow::ShadowStats s = view->shadow_stats();
            return nlohmann::json{{"pages", s.pages},
                                  {"roots", s.roots},
                                  {"mappings", s.mappings},
                                  {"rmap_bytes", s.rmap_bytes},
                                  {"metadata_bytes", s.metadata_bytes},
                                  {"zaps", s.zaps},
                                  {"traces", s.traces},
                                  {"traced_writes", s.traced_writes},
                                  {"floods", s.floods},
                                  {"root_hits", s.root_hits},
                                  {"root_misses", s.root_misses},
                                  {"evictions", s.evictions},
                                  {"large_leaves", s.large_leaves},
                                  {"fragmented", s.fragmented}};
          }};
}
#endif

}  // namespace

BuiltMmu make_mmu(std::string_view mmu, P2m& p2m, FrameSource& frames, FlushDomain& domain,
                  unsigned vcpus) {
#ifdef STRATA_HAS_NESTED
  if (mmu == "ept") return make_nested_mmu(nested::Format::ept, p2m, frames, domain, vcpus);
  if (mmu == "npt") return make_nested_mmu(nested::Format::npt, p2m, frames, domain, vcpus);
#endif
#ifdef STRATA_HAS_SHADOW
  if (mmu == "shadow") return make_shadow_mmu(p2m, frames, domain, vcpus);
#endif
  std::abort();  // check_combination() comes first
}

}  // namespace strata::vmm
