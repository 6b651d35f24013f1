#include "vmm/host_engine.hpp"

#include <fmt/format.h>

#ifdef STRATA_HAS_KVM
#include "engines/kvm/self_test.hpp"
#include "engines/kvm/vcpu.hpp"
#endif

namespace strata::vmm {

#ifdef STRATA_HAS_KVM
namespace {

Unexpected<ConfigError> bad(const kvm::KvmError& error) {
  return {ConfigError{fmt::format("--engine kvm: {}", error.message)}};
}

class KvmEngine final : public HostEngine {
 public:
  KvmEngine(std::unique_ptr<kvm::Machine> machine, std::string remark)
      : machine_{std::move(machine)}, remark_{std::move(remark)} {}

  Expected<std::unique_ptr<engine::Vcpu>, ConfigError> make_vcpu(
      VcpuId id, engine::InterruptSource& interrupts) override {
    auto vcpu = machine_->add_vcpu(id, interrupts);
    if (!vcpu) return bad(vcpu.error());
    return std::move(*vcpu);
  }
  void start() override { machine_->start(); }
  std::vector<unsigned long> ioctls() const override { return kvm::Machine::ioctls(); }
  const std::string& remark() const noexcept override { return remark_; }
  nlohmann::json details() const override {
    const kvm::WindowStats s = machine_->window().stats();
    return {{"slots", machine_->window().slots().size()},
            {"touches_served", s.served},
            {"pages_vacated", s.vacated},
            {"pages_read_only", s.downgrades},
            {"entries_retried", s.retries}};
  }

 private:
  std::unique_ptr<kvm::Machine> machine_;
  std::string remark_;
};

}  // namespace

Expected<std::unique_ptr<HostEngine>, ConfigError> HostEngine::create(const Environment& e,
                                                                      const boot::MemoryMap& map) {
  auto remark = kvm::check_host();
  if (!remark) return bad(remark.error());
  std::vector<kvm::Slot> slots;
  for (const boot::Region& region : map.backed()) {
    slots.push_back({{page_of(region.start), region.bytes >> kPageShift}});
  }
  auto machine = kvm::Machine::create(
      {.memory = e.memory, .model = e.model, .tsc = e.tsc, .vcpus = e.vcpus}, std::move(slots));
  if (!machine) return bad(machine.error());
  return std::unique_ptr<HostEngine>{
      std::make_unique<KvmEngine>(std::move(*machine), std::move(*remark))};
}

std::string HostEngine::lack() { return kvm::first_lack(); }

#else

std::string HostEngine::lack() { return "not built in"; }

Expected<std::unique_ptr<HostEngine>, ConfigError> HostEngine::create(
    const Environment& /*environment*/, const boot::MemoryMap& /*map*/) {
  return Unexpected{ConfigError{"--engine: 'kvm' is not built in"}};
}

#endif

}  // namespace strata::vmm
