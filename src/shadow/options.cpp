#include "shadow/options.hpp"

#include <array>

namespace strata::shadow {

std::span<const Technique> techniques() noexcept {
  static constexpr std::array kTechniques{
      Technique{"unsync", "leaf tables out of sync until the vCPU flushes",
                [](ShadowOptions& o) { o.unsync = false; }},
      Technique{"flood", "unshadowing of tables under write floods",
                [](ShadowOptions& o) { o.write_flood_limit = 0; }},
      Technique{"prefetch", "mapping of neighbours on a miss",
                [](ShadowOptions& o) { o.prefetch = false; }},
      Technique{"global", "global pages stay good when CR3 is loaded",
                [](ShadowOptions& o) { o.global_pages = false; }},
      Technique{"pcid", "tables stay good when a PCID comes back without a flush",
                [](ShadowOptions& o) { o.pcid = false; }},
      Technique{"large", "2 MiB shadow entries", [](ShadowOptions& o) { o.large_pages = false; }},
  };
  return kTechniques;
}

ShadowOptions plain_options() {
  ShadowOptions options;
  for (const Technique& t : techniques()) t.turn_off(options);
  return options;
}

}  // namespace strata::shadow
