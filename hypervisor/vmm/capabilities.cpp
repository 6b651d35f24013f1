#include "vmm/capabilities.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "vmm/vm_config.hpp"

#ifdef STRATA_HAS_NESTED
#include "nested/nested_mmu.hpp"
#endif
#ifdef STRATA_HAS_SHADOW
#include "shadow/shadow.hpp"
#endif

namespace strata::vmm {

namespace {

/// A kind of table, as in Combination.
struct Tables {
  std::string_view mmu;
  std::string_view backend;
};

/// Every engine that asks an Mmu for its translations works with every backend.
std::vector<Combination> make_combinations() {
  const std::vector<Tables> tables{
#ifdef STRATA_HAS_NESTED
      {"ept", "nested"},
      {"npt", "nested"},
#endif
#ifdef STRATA_HAS_SHADOW
      {"shadow", "shadow"},
#endif
  };
  const std::vector<std::string_view> engines{
      "interp",
#ifdef STRATA_HAS_BT
      "bt",
#endif
  };
  std::vector<Combination> all;
  for (const std::string_view engine : engines) {
    for (const Tables& t : tables) all.push_back({engine, t.mmu, t.backend});
  }
#ifdef STRATA_HAS_KVM
  all.push_back({kHostEngine, kHostMmu, "the host kernel's"});
#endif
  return all;
}

}  // namespace

const std::vector<Combination>& combinations() {
  static const std::vector<Combination> kCombinations = make_combinations();
  return kCombinations;
}

namespace {

/// What --mmu says: the name, and the words after it.
struct MmuChoice {
  std::string_view name;
  std::vector<std::string_view> words;
};

MmuChoice parse_choice(std::string_view mmu) {
  MmuChoice choice;
  choice.name = mmu.substr(0, mmu.find(','));
  while (choice.name.size() != mmu.size() && mmu.find(',') != std::string_view::npos) {
    mmu.remove_prefix(mmu.find(',') + 1);
    choice.words.push_back(mmu.substr(0, mmu.find(',')));
  }
  return choice;
}

#ifdef STRATA_HAS_SHADOW
Unexpected<std::string> unknown_word(std::string_view word) {
  std::string known;
  for (const shadow::Technique& t : shadow::techniques()) known += fmt::format(" no-{},", t.name);
  return Unexpected<std::string>{
      fmt::format("--mmu: shadow does not know '{}'; it takes:{} limit=SIZE", word, known)};
}

Expected<shadow::ShadowOptions, std::string> shadow_options(const MmuChoice& choice) {
  constexpr std::string_view kNo = "no-";
  constexpr std::string_view kLimit = "limit=";
  shadow::ShadowOptions options;
  options.memory_limit = 0;  // not said
  for (const std::string_view word : choice.words) {
    if (word.substr(0, kLimit.size()) == kLimit) {
      const auto bytes = parse_memory(word.substr(kLimit.size()));
      if (!bytes || *bytes == 0) {
        return Unexpected<std::string>{
            fmt::format("--mmu: '{}' is not a size; use for example limit=8M", word)};
      }
      options.memory_limit = *bytes;
      continue;
    }
    const auto all = shadow::techniques();
    const auto found = std::find_if(all.begin(), all.end(), [&](const shadow::Technique& t) {
      return word.substr(0, kNo.size()) == kNo && word.substr(kNo.size()) == t.name;
    });
    if (found == all.end()) return unknown_word(word);
    found->turn_off(options);
  }
  return options;
}
#endif

Expected<void, std::string> check_words(const MmuChoice& choice) {
#ifdef STRATA_HAS_SHADOW
  if (choice.name == "shadow") {
    const auto options = shadow_options(choice);
    if (!options) return Unexpected<std::string>{options.error()};
    return {};
  }
#endif
  if (choice.words.empty()) return {};
  return Unexpected<std::string>{
      fmt::format("--mmu: '{}' takes no '{}'; shadow has options", choice.name, choice.words[0])};
}

}  // namespace

Expected<void, std::string> check_combination(std::string_view engine, std::string_view mmu_words) {
  const MmuChoice choice = parse_choice(mmu_words);
  const std::string_view mmu = choice.name;
  std::string works;
  std::string engines;
  bool engine_known = false;
  for (const Combination& c : combinations()) {
    if (engines.find(c.engine) == std::string::npos) engines += fmt::format(" {},", c.engine);
    if (engine != kAutoEngine && c.engine != engine) continue;
    engine_known = true;
    if (mmu == "auto" || c.mmu == mmu) return check_words(choice);
    if (works.find(c.mmu) == std::string::npos) works += fmt::format(" {},", c.mmu);
  }
  if (!engine_known) {
    return Unexpected<std::string>{
        fmt::format("--engine: '{}' is not built in; this build has:{} auto", engine, engines)};
  }
  return Unexpected<std::string>{fmt::format(
      "--mmu: '{}' does not work with engine {}; this build has:{} auto", mmu, engine, works)};
}

std::string mmu_words_help() {
  std::string help;
#ifdef STRATA_HAS_SHADOW
  help = "; shadow may be followed by ,limit=SIZE (bytes of shadow tables [RAM/32]) and by";
  for (const shadow::Technique& t : shadow::techniques()) {
    help += fmt::format(" ,no-{} ({})", t.name, t.meaning);
  }
#endif
  return help;
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
BuiltMmu make_shadow_mmu(P2m& p2m, FrameSource& frames, FlushDomain& domain,
                         const shadow::ShadowOptions& options) {
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
                                  {"fragmented", s.fragmented},
                                  {"limit_bytes", s.limit_bytes},
                                  {"unsyncs", s.unsyncs},
                                  {"unsync_now", s.unsync_now},
                                  {"resyncs", s.resyncs},
                                  {"outdated", s.outdated},
                                  {"prefetched", s.prefetched},
                                  {"prefetch_used", s.prefetch_used}};
          }};
}
#endif

}  // namespace

BuiltMmu make_mmu(std::string_view mmu, P2m& p2m, FrameSource& frames, FlushDomain& domain,
                  unsigned vcpus, [[maybe_unused]] std::uint64_t memory_bytes) {
#ifdef STRATA_HAS_NESTED
  if (mmu == "ept") return make_nested_mmu(nested::Format::ept, p2m, frames, domain, vcpus);
  if (mmu == "npt") return make_nested_mmu(nested::Format::npt, p2m, frames, domain, vcpus);
#endif
#ifdef STRATA_HAS_SHADOW
  const MmuChoice choice = parse_choice(mmu);
  if (choice.name == "shadow") {
    auto options = shadow_options(choice);
    if (!options) std::abort();  // check_combination() comes first
    options->max_vcpus = vcpus;
    if (options->memory_limit == 0) {
      options->memory_limit = shadow::default_memory_limit(memory_bytes);
    }
    return make_shadow_mmu(p2m, frames, domain, *options);
  }
#endif
  std::abort();  // check_combination() comes first
}

}  // namespace strata::vmm
