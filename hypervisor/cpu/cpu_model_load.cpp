// Making a CpuModel: the model file, then what this host can not give is taken away.
#include <algorithm>
#include <bit>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "cpu/builtin_models.hpp"
#include "cpu/cpu_model.hpp"
#include "cpu/features.hpp"

namespace strata::cpu {
namespace {

using Json = nlohmann::json;

constexpr std::pair<std::string_view, unsigned> kKvmFeatures[] = {
    // Bits of leaf 40000001h (Linux, Documentation/virt/kvm/x86/cpuid.rst). What needs a partner in
    // the VMM that Strata does not have (steal time, async page faults, PV EOI) has no name here.
    {"clocksource", 0},
    {"nop_io_delay", 1},
    {"clocksource2", 3},
    {"clocksource_stable", 24},
};

Unexpected<ModelError> fail(std::string message) {
  return Unexpected<ModelError>{ModelError{"CPU model: " + std::move(message)}};
}

}  // namespace

/// Fills a CpuModel from JSON; the first problem found is kept.
struct ModelBuilder {
  CpuModel model;
  std::string problem;

  bool bad(std::string what) {
    if (problem.empty()) problem = std::move(what);
    return false;
  }

  std::uint64_t number(const Json& object, const char* key, std::uint64_t min, std::uint64_t max,
                       std::optional<std::uint64_t> otherwise = std::nullopt) {
    const auto it = object.find(key);
    if (it == object.end() && otherwise) return *otherwise;
    const bool fits = it != object.end() && it->is_number_unsigned() &&
                      it->get<std::uint64_t>() >= min && it->get<std::uint64_t>() <= max;
    if (fits) return it->get<std::uint64_t>();
    bad("\"" + std::string{key} + "\" must be a whole number from " + std::to_string(min) + " to " +
        std::to_string(max));
    return min;
  }

  std::string text(const Json& object, const char* key, std::size_t min, std::size_t max) {
    const auto it = object.find(key);
    if (it != object.end() && it->is_string()) {
      auto value = it->get<std::string>();
      if (value.size() >= min && value.size() <= max) return value;
    }
    bad("\"" + std::string{key} + "\" must be a string of " + std::to_string(min) + " to " +
        std::to_string(max) + " characters");
    return {};
  }

  /// The array under `key`, or an empty one.
  Json array(const Json& object, const char* key, bool required) {
    const auto it = object.find(key);
    if (it != object.end() && it->is_array()) return *it;
    if (required || it != object.end()) bad("\"" + std::string{key} + "\" must be a list");
    return Json::array();
  }

  void check_keys(const Json& object, std::initializer_list<std::string_view> known,
                  std::string_view where) {
    for (const auto& item : object.items()) {
      if (std::find(known.begin(), known.end(), item.key()) == known.end()) {
        bad("unknown key \"" + item.key() + "\" in " + std::string{where});
      }
    }
  }

  void identity(const Json& json) {
    check_keys(json,
               {"name", "why", "vendor", "family", "model", "stepping", "microcode", "brand",
                "physical_address_bits", "features", "kvm_features", "caches"},
               "the model");
    model.name_ = text(json, "name", 1, 64);
    model.vendor_ = text(json, "vendor", 12, 12);
    model.brand_ = text(json, "brand", 0, 47);
    // CPUID.1:EAX has room for family 15 + 255, model 255, stepping 15.
    model.family_ = static_cast<unsigned>(number(json, "family", 1, 270));
    model.model_ = static_cast<unsigned>(number(json, "model", 0, 255));
    model.stepping_ = static_cast<unsigned>(number(json, "stepping", 0, 15));
    model.microcode_ = number(json, "microcode", 0, 0xFFFFFFFF, 0) << 32;
    model.physical_bits_ = static_cast<unsigned>(number(json, "physical_address_bits", 36, 52));
    const bool has_extended_model = model.family_ == 6 || model.family_ >= 15;
    if (model.model_ > 15 && !has_extended_model) {
      bad("\"model\" above 15 exists in family 6 and from family 15 on only");
    }
  }

  void features(const Json& json) {
    for (const Json& entry : array(json, "features", true)) {
      if (!entry.is_string()) {
        bad("\"features\" must hold strings");
        continue;
      }
      const auto feature = feature_named(entry.get<std::string>());
      if (!feature) {
        bad("unknown feature \"" + entry.get<std::string>() + "\"");
      } else {
        model.features_.set(static_cast<std::size_t>(*feature));
      }
    }
    check_needs();
    for (const Json& entry : array(json, "kvm_features", false)) kvm_feature(entry);
  }

  void check_needs() {
    for (const FeatureInfo& info : feature_table()) {
      if (model.has(info.feature) && info.needs && !model.has(*info.needs)) {
        bad("feature \"" + std::string{info.name} + "\" needs \"" +
            std::string{name_of(*info.needs)} + "\"");
      }
    }
  }

  /// "+rdpid,-pcid,vendor=AuthenticAMD"
  void change(std::string_view changes) {
    while (!changes.empty()) {
      const std::size_t comma = std::min(changes.find(','), changes.size());
      change_one(changes.substr(0, comma));
      changes.remove_prefix(std::min(comma + 1, changes.size()));
    }
    drop_unmet_needs([this](Feature f) { model.features_.reset(static_cast<std::size_t>(f)); });
  }

  void change_one(std::string_view item) {
    constexpr std::string_view kVendor = "vendor=";
    if (item.starts_with(kVendor)) {
      model.vendor_ = item.substr(kVendor.size());
      if (model.vendor_.size() != 12) bad("a vendor has 12 characters, as in GenuineIntel");
      return;
    }
    if (item == "+vmware_backdoor" || item == "-vmware_backdoor") {
      model.vmware_backdoor_ = item.front() == '+';
      return;
    }
    const auto feature = item.empty() ? std::nullopt : feature_named(item.substr(1));
    if (!feature || (item.front() != '+' && item.front() != '-')) {
      bad("\"" + std::string{item} + "\" is not +FEATURE, -FEATURE or vendor=V");
      return;
    }
    model.features_.set(static_cast<std::size_t>(*feature), item.front() == '+');
  }

  /// Needs can be several deep.
  template <class Drop>
  void drop_unmet_needs(Drop&& drop_one) {
    for (bool changed = true; changed;) {
      changed = false;
      for (const FeatureInfo& info : feature_table()) {
        if (model.has(info.feature) && info.needs && !model.has(*info.needs)) {
          drop_one(info.feature);
          changed = true;
        }
      }
    }
  }

  void kvm_feature(const Json& entry) {
    for (const auto& [name, bit] : kKvmFeatures) {
      if (entry.is_string() && entry.get<std::string>() == name) {
        model.kvm_features_ |= 1U << bit;
        return;
      }
    }
    bad("unknown entry in \"kvm_features\": " +
        entry.dump(-1, ' ', true, Json::error_handler_t::replace));
  }

  void caches(const Json& json) {
    const Json list = array(json, "caches", true);
    if (list.size() > 8) bad("\"caches\" must have at most 8 entries");
    for (const Json& entry : list) {
      if (!entry.is_object()) {
        bad("\"caches\" must hold objects");
        continue;
      }
      cache(entry);
    }
  }

  void cache(const Json& entry) {
    check_keys(entry, {"level", "type", "kib", "ways", "line", "shared"}, "a cache");
    CpuModel::Cache c;
    c.level = static_cast<unsigned>(number(entry, "level", 1, 7));
    const std::string type = text(entry, "type", 1, 16);
    c.type = type == "data" ? 1 : type == "instruction" ? 2 : 3;
    if (c.type == 3 && type != "unified") {
      bad("a cache's \"type\" must be \"data\", \"instruction\" or \"unified\"");
    }
    const std::uint64_t kib = number(entry, "kib", 1, 1 << 20);
    c.ways = static_cast<std::uint32_t>(number(entry, "ways", 1, 1024));
    c.line = static_cast<std::uint32_t>(number(entry, "line", 16, 4096));
    if (const auto it = entry.find("shared"); it != entry.end()) {
      if (!it->is_boolean()) bad("a cache's \"shared\" must be true or false");
      c.shared = it->is_boolean() && it->get<bool>();
    }
    const std::uint64_t way_bytes = std::uint64_t{c.ways} * c.line;
    if (!std::has_single_bit(c.line)) bad("a cache's \"line\" must be a power of two");
    if ((kib * 1024) % way_bytes != 0) bad("a cache's size must be a multiple of ways x line");
    c.sets = std::max<std::uint32_t>(1, static_cast<std::uint32_t>(kib * 1024 / way_bytes));
    model.caches_.push_back(c);
  }

  static bool host_offers(const FeatureInfo& info, const HostCpu& host) {
    if (info.provider == Provider::engine) return true;
    if (info.provider == Provider::host_avx) {
      constexpr std::uint64_t kVectors = xstate::kSse | xstate::kAvx;
      if ((host.xcr0() & kVectors) != kVectors) return false;
    }
    return (select(host.cpuid(info.leaf, info.subleaf), info.reg) >> info.bit & 1) != 0;
  }

  void drop(Feature feature) {
    model.features_.reset(static_cast<std::size_t>(feature));
    model.masked_.push_back(feature);
  }

  void apply_host(const HostCpu& host) {
    for (const FeatureInfo& info : feature_table()) {
      if (model.has(info.feature) && !host_offers(info, host)) drop(info.feature);
    }
    drop_unmet_needs([this](Feature f) { drop(f); });
    // The hardware's XSAVE decides where PKRU is, and it differs between vendors (2688 behind
    // Intel's AVX-512 and MPX components, 2432 on AMD): a guest on KVM must be told the host's.
    const CpuidResult pkru = host.cpuid(0xD, 9);
    if (pkru.eax == 8 && pkru.ebx >= 832 && pkru.ebx <= 4096) model.pkru_offset_ = pkru.ebx;
  }
};

Expected<CpuModel, ModelError> CpuModel::from_json(std::string_view text,
                                                   const ModelOptions& options) {
  return from_json(text, {}, options);
}

Expected<CpuModel, ModelError> CpuModel::from_json(std::string_view text, std::string_view changes,
                                                   const ModelOptions& options) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, false);
  if (json.is_discarded()) return fail("the text is not JSON");
  if (!json.is_object()) return fail("the JSON text must be an object");
  ModelBuilder builder{CpuModel{}, {}};
  builder.identity(json);
  builder.features(json);
  builder.caches(json);
  builder.change(changes);
  if (!builder.problem.empty()) return fail(builder.problem);
  builder.apply_host(options.host != nullptr ? *options.host : host_cpu());
  builder.model.tsc_khz_ = options.tsc_khz;
  builder.model.apic_khz_ = options.apic_khz;
  return std::move(builder.model);
}

Expected<CpuModel, ModelError> CpuModel::by_name(std::string_view name,
                                                 const ModelOptions& options) {
  const std::size_t comma = std::min(name.find(','), name.size());
  const std::string_view changes = name.substr(std::min(comma + 1, name.size()));
  name = name.substr(0, comma);
  for (const BuiltinModel& builtin : builtin_models()) {
    if (builtin.name == name) return from_json(builtin.json, changes, options);
  }
  std::string known;
  for (const BuiltinModel& builtin : builtin_models()) {
    known += (known.empty() ? "" : ", ") + std::string{builtin.name};
  }
  return fail("there is no model \"" + std::string{name} + "\"; known: " + known);
}

std::vector<std::string_view> CpuModel::names() {
  std::vector<std::string_view> all;
  for (const BuiltinModel& builtin : builtin_models()) all.push_back(builtin.name);
  return all;
}

}  // namespace strata::cpu
