#include "vmm/hypercalls.hpp"

namespace strata::vmm {

namespace {

constexpr std::uint64_t kVapicPollIrq = 1, kSendIpi = 10;
/// -KVM_ENOSYS, -KVM_EPERM, -KVM_EINVAL.
constexpr auto kNoSuchCall = static_cast<std::uint64_t>(-1000);
constexpr auto kNotPermitted = static_cast<std::uint64_t>(-1);
constexpr auto kInvalid = static_cast<std::uint64_t>(-22);

/// KVM_HC_SEND_IPI: a bitmap of APIC IDs from `first` on, and what goes into the ICR. Returns how
/// many took it.
std::uint64_t send_ipi(std::uint64_t low, std::uint64_t high, std::uint64_t first,
                       std::uint64_t icr, unsigned word_bits, devices::ApicBus& bus) {
  using devices::DeliveryMode;
  devices::ApicMessage message;
  message.wide = true;
  message.mode = static_cast<DeliveryMode>(icr >> 8 & 7);
  message.vector = static_cast<std::uint8_t>(icr);
  if (message.mode != DeliveryMode::fixed && message.mode != DeliveryMode::nmi) return kInvalid;
  std::uint64_t taken = 0;
  for (unsigned bit = 0; bit < 2 * word_bits; ++bit) {
    const std::uint64_t word = bit < word_bits ? low : high;
    if ((word >> (bit % word_bits) & 1) == 0) continue;
    const std::uint64_t id = first + bit;
    if (id >= 0xFFFFFFFF) break;  // all ones would be a broadcast
    message.destination = static_cast<std::uint32_t>(id);
    taken += bus.deliver(message);
  }
  return taken;
}

}  // namespace

std::uint64_t answer_hypercall(const cpu::VcpuState& state, devices::ApicBus& bus) {
  const bool is64 = state.segment[cpu::CS].long_mode() && (state.efer & cpu::efer::LMA) != 0;
  const auto argument = [&](cpu::Gpr reg) {
    return is64 ? state.gpr[reg] : state.gpr[reg] & 0xFFFFFFFF;
  };
  const bool real_mode = (state.cr0 & cpu::cr0::PE) == 0;
  if (!real_mode && (state.segment[cpu::SS].attributes >> 5 & 3) != 0) return kNotPermitted;
  switch (argument(cpu::RAX)) {
    case kVapicPollIrq:
      return 0;
    case kSendIpi:
      return send_ipi(argument(cpu::RBX), argument(cpu::RCX), argument(cpu::RDX),
                      argument(cpu::RSI), is64 ? 64 : 32, bus);
    default:
      return kNoSuchCall;
  }
}

}  // namespace strata::vmm
