// Processors that we did not write, for the tests: QEMU's TCG (with SVM) and Bochs (with VMX),
// which run the kernels of kernel/ over the memory of the machine that is judged.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "mmu/address.hpp"
#include "mmu/frames.hpp"
#include "protocol.hpp"

namespace strata::judged {

/// The memory of the judge, a sparse file: byte n of it is machine address n, as in the machine
/// that is judged. Not thread-safe.
class JudgeMemory {
 public:
  static constexpr std::uint64_t kBytes = 2ULL << 30;

  /// Makes the file. Throws std::runtime_error.
  JudgeMemory();
  ~JudgeMemory();
  JudgeMemory(const JudgeMemory&) = delete;
  JudgeMemory& operator=(const JudgeMemory&) = delete;

  /// Copies the frame of `window` to the same address.
  void put(MachineWindow window, MPN frame);
  /// The first words of `frame` that are not what `window` has, as text; empty if it is the same.
  [[nodiscard]] std::string difference(MachineWindow window, MPN frame) const;
  [[nodiscard]] Mailbox& mailbox() noexcept;
  /// What put() wrote.
  [[nodiscard]] const std::vector<MPN>& frames() const noexcept { return frames_; }
  [[nodiscard]] std::byte* base() const noexcept { return base_; }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  [[nodiscard]] std::byte* at(MPN frame) const;
  std::string path_;
  std::byte* base_ = nullptr;
  std::vector<MPN> frames_;
};

/// Where `program` is, or an empty string.
[[nodiscard]] std::string find_judge(const std::string& program);

/// Has QEMU's processor make `probes` and fills their answers in. Fails the test if it does not.
void judge_by_qemu(JudgeMemory& memory, std::vector<Probe>& probes);

/// Has Bochs's processor make `probes`, fills their answers in, and brings `frames` back into
/// `memory`. Fails the test if it does not.
void judge_by_bochs(JudgeMemory& memory, std::vector<Probe>& probes,
                    const std::vector<MPN>& frames);

}  // namespace strata::judged
