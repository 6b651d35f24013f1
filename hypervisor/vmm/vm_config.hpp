// What a VM is made of, as the user says it: on the command line or in a JSON file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mmu/expected.hpp"

namespace strata::vmm {

/// One line for the user: which option or file, what is wrong with it, and what would be right.
struct ConfigError {
  std::string message;
};

/// Most vCPUs a VM can have.
inline constexpr unsigned kMaxVcpus = 8;

/// Lock-step; see docs/record-and-replay.md.
struct CheckConfig {
  std::string target;                  ///< ENGINE[,MMU] of the second VM; empty: there is none
  std::uint64_t every = 0;             ///< instructions between two comparisons; 0: a block
  std::uint64_t from = 0;              ///< the first instruction count at which to compare
  std::optional<std::uint64_t> until;  ///< ... and at which the run ends
  std::optional<std::uint64_t> page;   ///< address of a page of memory to compare each time
};

/// Most disks a VM can have.
inline constexpr std::size_t kMaxDisks = 16;

/// A disk, as --disk names it: PATH[,ro][,overlay=FILE]. See docs/storage.md.
struct DiskConfig {
  std::string path;
  bool read_only = false;
  std::string overlay;  ///< changes go there; empty: to the disk itself
};

/// The keys of `strata run` and of a config file. Paths are as given.
struct VmConfig {
  std::string kernel;
  std::string initrd;  ///< empty: none
  std::string append;
  std::uint64_t memory_bytes = 512ULL << 20;
  unsigned cpus = 1;
  std::string engine = "auto";
  std::string engine_reason;  ///< why it is that one; settle_engine() writes it, no key of a file
  std::string mmu = "auto";
  std::string windows = "auto";  ///< of engine bt, in the host's own MMU: "auto", "never", "always"
  std::uint64_t code_cache_bytes = 8ULL << 20;  ///< of engine bt, for each vCPU
  std::string cpu_model = "default";
  std::string serial = "stdio";  ///< "stdio", "null", or a file
  /// "serial", or "virtio": also a virtio console, which takes the user's input then and puts its
  /// output where `serial` says, as the serial port does.
  std::string console = "serial";
  std::string stats;           ///< JSON is written here at the end; empty: nowhere
  double timeout_seconds = 0;  ///< 0: none
  std::optional<std::uint16_t> debug_exit_port;  ///< `test_devices` implies 0xF4
  std::vector<DiskConfig> disks;                 ///< virtio disks, in the order of their PCI slots
  bool rng = true;                               ///< with disks: a virtio entropy device
  bool test_devices = false;  ///< fw_cfg and pc-testdev, as kvm-unit-tests expect them
  /// "host", or "instructions" with an optional rate: ":MHZ". See docs/record-and-replay.md.
  std::string clock = "host";
  std::string record;                    ///< everything that reaches the vCPUs is logged here
  std::string load;                      ///< a saved VM to go on with, instead of a kernel
  std::string save;                      ///< where a saved VM is written
  std::optional<std::uint64_t> save_at;  ///< instruction count at which it is
  CheckConfig check;
};

/// The option of `config` for which the engine must stop at exact counts; empty: there is none.
[[nodiscard]] std::string_view exact_option(const VmConfig& config);

/// The second VM's engine and MMU.
struct CheckTarget {
  std::string engine;
  std::string mmu;
};
/// What `config.check.target` says; an MMU that is left out is the first VM's.
[[nodiscard]] CheckTarget check_target(const VmConfig& config);

/// "512M", "2G", "4096K", "1T" or a plain number of MiB. Errors name `option` and say what would be
/// right.
[[nodiscard]] Expected<std::uint64_t, ConfigError> parse_memory(
    std::string_view text, std::string_view option = "--memory");

/// "disk.raw,ro" and the like. Errors say what would be right.
[[nodiscard]] Expected<DiskConfig, ConfigError> parse_disk(std::string_view text);

/// Applies a config file's JSON text to `config`; `source` names the file in errors. Unknown keys
/// and wrong types are errors.
[[nodiscard]] Expected<void, ConfigError> apply_json(std::string_view text, std::string_view source,
                                                     VmConfig& config);

/// Ticks a microsecond of an instruction-count clock; 0: the host's clock. Errors say what would be
/// right.
[[nodiscard]] Expected<std::uint64_t, ConfigError> parse_clock(std::string_view text);

/// Checks what can be checked without building the VM: engine, mmu and model names, cpus, memory.
[[nodiscard]] Expected<void, ConfigError> validate(const VmConfig& config);

}  // namespace strata::vmm
