// Which engines and backends this build has, and what combines: the one place that says so.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "mmu/expected.hpp"
#include "mmu/flush.hpp"
#include "mmu/frames.hpp"
#include "mmu/mmu.hpp"

namespace strata::vmm {

/// The engine that leaves translation to the host kernel, and what --mmu calls that: there is no
/// Mmu to make for it.
inline constexpr std::string_view kHostEngine = "kvm";
inline constexpr std::string_view kHostMmu = "host";
/// What --engine calls the choice of engine_choice.hpp.
inline constexpr std::string_view kAutoEngine = "auto";

/// One engine under one kind of table.
struct Combination {
  std::string_view engine;
  std::string_view mmu;      ///< as --mmu takes it
  std::string_view backend;  ///< the CMake name it is built from
};

/// Every combination this build can run, the preferred one of each engine first.
[[nodiscard]] const std::vector<Combination>& combinations();

/// Whether `engine` runs under `mmu` (for both "auto" included), and whether the words after its
/// name, as in "shadow,no-unsync,limit=8M", are known. The error names what would work.
[[nodiscard]] Expected<void, std::string> check_combination(std::string_view engine,
                                                            std::string_view mmu);

/// For --help: the words that may follow a name after --mmu. Empty if no backend takes any.
[[nodiscard]] std::string mmu_words_help();

/// "auto" resolved for `engine`; other names as they are. The combination has been checked.
[[nodiscard]] std::string resolve_mmu(std::string_view engine, std::string_view mmu);

/// A backend and what only it counts, for the statistics.
struct BuiltMmu {
  std::unique_ptr<Mmu> mmu;  ///< null: there was no frame for its root
  std::function<nlohmann::json()> details;
};

/// Makes the backend that `mmu` names (resolved and checked, not kHostMmu) for a VM with
/// `memory_bytes` of RAM.
[[nodiscard]] BuiltMmu make_mmu(std::string_view mmu, P2m& p2m, FrameSource& frames,
                                FlushDomain& domain, unsigned vcpus, std::uint64_t memory_bytes);

}  // namespace strata::vmm
