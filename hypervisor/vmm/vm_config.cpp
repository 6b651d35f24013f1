#include "vmm/vm_config.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "boot/machine_layout.hpp"
#include "vmm/capabilities.hpp"

namespace strata::vmm {

namespace {

Unexpected<ConfigError> bad(std::string message) { return {ConfigError{std::move(message)}}; }

Unexpected<ConfigError> bad_memory(std::string_view text, std::string_view option) {
  return bad(
      fmt::format("{}: '{}' is not a size; use for example 512M, 2G or 4096K", option, text));
}

std::uint64_t host_memory_bytes() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page = sysconf(_SC_PAGESIZE);
  return static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page);
}

using Json = nlohmann::json;

/// Reads one key of the expected type into `out`.
template <class T>
Expected<void, ConfigError> take(const Json& value, std::string_view source, const std::string& key,
                                 T& out) {
  try {
    value.get_to(out);
    return {};
  } catch (const Json::exception&) {
    return bad(fmt::format("{}: '{}' has the wrong type ({}); see strata run --help", source, key,
                           value.type_name()));
  }
}

Expected<void, ConfigError> take_size(const Json& value, std::string_view source,
                                      std::string_view key, std::uint64_t& out) {
  if (!value.is_string() && !value.is_number_unsigned()) {
    return bad(fmt::format("{}: '{}' must be a size such as \"512M\"", source, key));
  }
  const auto bytes = parse_memory(
      value.is_string() ? value.get<std::string>() : std::to_string(value.get<std::uint64_t>()),
      fmt::format("--{}", key));
  if (!bytes) return bad(fmt::format("{}: {}", source, bytes.error().message));
  out = *bytes;
  return {};
}

Expected<void, ConfigError> take_disks(const Json& value, std::string_view source,
                                       VmConfig& config) {
  std::vector<std::string> texts;
  if (auto done = take(value, source, "disks", texts); !done) return done;
  for (const std::string& text : texts) {
    auto disk = parse_disk(text);
    if (!disk) return bad(fmt::format("{}: {}", source, disk.error().message));
    config.disks.push_back(std::move(*disk));
  }
  return {};
}

Expected<void, ConfigError> take_key(const std::string& key, const Json& value,
                                     std::string_view source, VmConfig& config) {
  if (key == "memory") return take_size(value, source, key, config.memory_bytes);
  if (key == "code-cache") return take_size(value, source, key, config.code_cache_bytes);
  if (key == "cpus") {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > 1024) {
      return bad(fmt::format("{}: 'cpus' must be a small positive number", source));
    }
    return take(value, source, key, config.cpus);
  }
  if (key == "disks") return take_disks(value, source, config);
  if (key == "rng") return take(value, source, key, config.rng);
  if (key == "timeout") return take(value, source, key, config.timeout_seconds);
  if (key == "test-devices") return take(value, source, key, config.test_devices);
  if (key == "debug-exit-port") {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > 0xFFFF) {
      return bad(fmt::format("{}: 'debug-exit-port' must be a port number", source));
    }
    config.debug_exit_port = value.get<std::uint16_t>();
    return {};
  }
  std::string* text = key == "kernel"      ? &config.kernel
                      : key == "initrd"    ? &config.initrd
                      : key == "append"    ? &config.append
                      : key == "engine"    ? &config.engine
                      : key == "mmu"       ? &config.mmu
                      : key == "windows"   ? &config.windows
                      : key == "cpu-model" ? &config.cpu_model
                      : key == "serial"    ? &config.serial
                      : key == "console"   ? &config.console
                      : key == "stats"     ? &config.stats
                      : key == "clock"     ? &config.clock
                      : key == "record"    ? &config.record
                      : key == "load"      ? &config.load
                      : key == "save"      ? &config.save
                      : key == "check"     ? &config.check.target
                                           : nullptr;
  if (text == nullptr) {
    return bad(fmt::format("{}: unknown key '{}'; the keys are the long options of strata run",
                           source, key));
  }
  return take(value, source, key, *text);
}

}  // namespace

Expected<std::uint64_t, ConfigError> parse_memory(std::string_view text, std::string_view option) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit = text.substr(static_cast<std::size_t>(end - text.data()));
  if (error != std::errc{} || unit.size() > 1) return bad_memory(text, option);
  unsigned shift = 20;
  switch (unit.empty() ? 'M' : unit.front()) {
    case 'k':
    case 'K':
      shift = 10;
      break;
    case 'm':
    case 'M':
      shift = 20;
      break;
    case 'g':
    case 'G':
      shift = 30;
      break;
    case 't':
    case 'T':
      shift = 40;
      break;
    default:
      return bad_memory(text, option);
  }
  if (number > (1ULL << 52 >> shift)) {
    return bad(fmt::format("{}: {} is more than a VM can have", option, text));
  }
  return number << shift;
}

Expected<DiskConfig, ConfigError> parse_disk(std::string_view text) {
  constexpr std::string_view kOverlay = "overlay=";
  DiskConfig disk;
  std::size_t at = text.find(',');
  disk.path = text.substr(0, at);
  while (at != std::string_view::npos) {
    const std::size_t next = text.find(',', at + 1);
    const std::string_view word = text.substr(
        at + 1, next == std::string_view::npos ? std::string_view::npos : next - at - 1);
    if (word == "ro") {
      disk.read_only = true;
    } else if (word.starts_with(kOverlay) && word.size() > kOverlay.size()) {
      disk.overlay = word.substr(kOverlay.size());
    } else {
      return bad(fmt::format("--disk: '{}' is not ro or overlay=FILE", word));
    }
    at = next;
  }
  if (disk.path.empty()) return bad("--disk: name a file: PATH[,ro][,overlay=FILE]");
  return disk;
}

Expected<void, ConfigError> apply_json(std::string_view text, std::string_view source,
                                       VmConfig& config) {
  const Json json = Json::parse(text, nullptr, false, true);
  if (json.is_discarded()) return bad(fmt::format("{}: not valid JSON", source));
  if (!json.is_object()) {
    return bad(fmt::format("{}: must be an object such as {{\"kernel\": \"vmlinuz\"}}", source));
  }
  for (const auto& [key, value] : json.items()) {
    if (auto done = take_key(key, value, source, config); !done) return done;
  }
  return {};
}

Expected<std::uint64_t, ConfigError> parse_clock(std::string_view text) {
  constexpr std::string_view kInstructions = "instructions";
  constexpr std::uint64_t kDefaultMhz = 1000, kMostMhz = 1'000'000;
  if (text == "host") return std::uint64_t{0};
  if (text == kInstructions) return kDefaultMhz;
  std::uint64_t mhz = 0;
  if (text.starts_with(kInstructions) && text.substr(kInstructions.size()).starts_with(':')) {
    const std::string_view rate = text.substr(kInstructions.size() + 1);
    const auto [end, error] = std::from_chars(rate.data(), rate.data() + rate.size(), mhz);
    if (error == std::errc{} && end == rate.data() + rate.size() && mhz != 0 && mhz <= kMostMhz) {
      return mhz;
    }
  }
  return bad(fmt::format("--clock: '{}' is not host, instructions or instructions:MHZ", text));
}

namespace {

/// The options of record, save and load.
Expected<void, ConfigError> validate_exact(const VmConfig& config) {
  if (const auto clock = parse_clock(config.clock); !clock) return Unexpected{clock.error()};
  if (config.save_at && config.save.empty()) return bad("--save-at: --save must name a file");
  if (const auto option = exact_option(config); !option.empty() && config.engine == kHostEngine) {
    return bad(
        fmt::format("--engine: {} does not stop at exact counts, which {} needs; interp and "
                    "bt do",
                    config.engine, option));
  }
  if (!config.check.target.empty()) {
    if (!config.record.empty()) return bad("--check: can not be together with --record");
    const CheckTarget target = check_target(config);
    if (target.engine == kHostEngine) return bad("--check: kvm does not stop at exact counts");
    if (target.engine == kAutoEngine) return bad("--check: name the second VM's engine");
    if (const auto fits = check_combination(target.engine, target.mmu); !fits) {
      return bad("--check: " + fits.error());
    }
  }
  if (config.test_devices && !(config.save.empty() && config.load.empty())) {
    return bad("--test-devices: have no state that --save or --load could keep");
  }
  if (!config.load.empty() && !config.kernel.empty()) {
    return bad("--load: a saved VM has its kernel already; leave --kernel out");
  }
  return {};
}

Expected<void, ConfigError> validate_windows(const VmConfig& config) {
  const std::string& use = config.windows;
  if (use != "auto" && use != "never" && use != "always") {
    return bad(fmt::format("--windows: '{}' is not auto, never or always", use));
  }
  if (use != "auto" && config.engine != "bt") {
    return bad(
        fmt::format("--windows: only engine bt has windows, and --engine is {}; add "
                    "--engine bt or leave --windows out",
                    config.engine));
  }
  return {};
}

/// Code has to lie below 2 GiB, as does all that it refers to.
Expected<void, ConfigError> validate_code_cache(const VmConfig& config) {
  constexpr std::uint64_t kLeast = 1ULL << 20, kMostOfAll = 512ULL << 20;
  const std::uint64_t bytes = config.code_cache_bytes;
  if (bytes < kLeast || bytes > kMostOfAll / std::max(config.cpus, 1U)) {
    return bad(
        fmt::format("--code-cache: from {} MiB to {} MiB for all vCPUs together are possible",
                    kLeast >> 20, kMostOfAll >> 20));
  }
  return {};
}

Expected<void, ConfigError> validate_console(const VmConfig& config) {
  if (config.console == "serial") return {};
  if (config.console != "virtio") {
    return bad(fmt::format("--console: '{}' is not serial or virtio", config.console));
  }
  const std::string_view exact = exact_option(config);
  if (exact.empty()) return {};
  return bad(
      fmt::format("--console: virtio takes input at any time, which {} can not repeat; use "
                  "serial",
                  exact));
}

}  // namespace

std::string_view exact_option(const VmConfig& config) {
  if (!config.check.target.empty()) return "--check";  // implies a clock
  if (!config.record.empty()) return "--record";
  if (!config.save.empty()) return "--save";
  if (config.clock != "host") return "--clock";
  return {};
}

CheckTarget check_target(const VmConfig& config) {
  const std::string& text = config.check.target;
  const std::size_t comma = text.find(',');
  if (comma == std::string::npos) return {text, config.mmu};
  return {text.substr(0, comma), text.substr(comma + 1)};
}

Expected<void, ConfigError> validate(const VmConfig& config) {
  if (auto exact = validate_exact(config); !exact) return exact;
  if (config.kernel.empty() && config.load.empty()) {
    return bad("--kernel is missing: name a vmlinux, bzImage or other PVH kernel");
  }
  if (config.cpus == 0 || config.cpus > kMaxVcpus) {
    return bad(
        fmt::format("--cpus: {} vCPUs are not possible; use 1 to {}", config.cpus, kMaxVcpus));
  }
  if (const auto fits = check_combination(config.engine, config.mmu); !fits) {
    return bad(fits.error());
  }
  if (auto windows = validate_windows(config); !windows) return windows;
  if (auto room = validate_code_cache(config); !room) return room;
  if (auto console = validate_console(config); !console) return console;
  if (config.disks.size() > kMaxDisks) {
    return bad(fmt::format("--disk: {} disks are too many; {} are possible", config.disks.size(),
                           kMaxDisks));
  }
  if (config.timeout_seconds < 0 || config.timeout_seconds > 1e9) {
    return bad("--timeout: must be a number of seconds, 0 for none");
  }
  const std::uint64_t memory = config.memory_bytes;
  if (memory % 4096 != 0 || memory < boot::layout::kMinRam || memory > boot::layout::kMaxRam) {
    return bad(
        fmt::format("--memory: {} bytes is not possible; use {} MiB to {} GiB in 4 KiB steps",
                    memory, boot::layout::kMinRam >> 20, boot::layout::kMaxRam >> 30));
  }
  if (memory > host_memory_bytes()) {
    return bad(fmt::format("--memory: the host has {} MiB, the VM would need {} MiB",
                           host_memory_bytes() >> 20, memory >> 20));
  }
  return {};
}

}  // namespace strata::vmm
