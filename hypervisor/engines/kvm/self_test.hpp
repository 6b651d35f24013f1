// Whether this host's /dev/kvm can run guests: some emulate supervisor code, slowly and in part.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engines/kvm/host_kvm.hpp"

namespace strata::kvm {

/// One thing a guest needs, tried on a guest of a few instructions.
struct SelfTestPart {
  std::string_view name;
  bool required = true;  ///< no guest runs without it
  std::string failure;   ///< empty: it works
};

/// Runs every part in a VM of its own; some milliseconds, seconds where KVM does not come back.
/// Error: there is no KVM to try.
[[nodiscard]] Expected<std::vector<SelfTestPart>, KvmError> self_test();

/// The parts as a verdict. Error: what is missing, in one line. Otherwise a line about what works
/// only in part, or nothing.
[[nodiscard]] Expected<std::string, KvmError> verdict(const std::vector<SelfTestPart>& parts);

/// The first part that fails, required or not, or why there is no KVM to try: a few words. Empty:
/// all parts work.
[[nodiscard]] std::string first_lack();

/// self_test() and verdict() of it.
[[nodiscard]] Expected<std::string, KvmError> check_host();

}  // namespace strata::kvm
