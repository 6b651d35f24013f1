// VMware's backdoor, for models that offer it (CpuModel::vmware_backdoor): a port and counters that
// answer at every privilege level.
#pragma once

#include <cstdint>

namespace strata::interp::vmware {

inline constexpr std::uint16_t kPort = 0x5658;
inline constexpr std::uint32_t kMagic = 0x564D5868;  ///< EAX of a call
inline constexpr std::uint16_t kGetVersion = 0x0A;   ///< CX of a call
inline constexpr std::uint32_t kVersion = 6;
/// RDPMC's ECX: the host's TSC, and nanoseconds as the host and as the guest see them.
inline constexpr std::uint32_t kHostTsc = 0x10000, kApparentTime = 0x10002;

}  // namespace strata::interp::vmware
