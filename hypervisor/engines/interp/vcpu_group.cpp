#include "engines/interp/vcpu_group.hpp"

#include <new>
#include <thread>

#include "engines/interp/core.hpp"

namespace strata::interp {

CodePages::CodePages(std::uint64_t pages)
    : pages_{pages},
      words_{static_cast<std::uint16_t*>(std::calloc(pages, sizeof(std::uint16_t)))} {
  if (pages_ != 0 && words_ == nullptr) throw std::bad_alloc{};
}

void VcpuGroup::code_written(VcpuId self, PA pa, std::uint64_t length) noexcept {
  const VcpuMask mask = code_pages.coders(page_of(pa));
  for (VcpuId id = 0; id < kMaxGroup; ++id) {
    if (id == self || (mask >> id & 1) == 0 || cores_[id] == nullptr) continue;
    cores_[id]->memory_written(pa, length);
  }
}

void VcpuGroup::revoke_writes(VcpuMask writers, PPN ppn) noexcept {
  std::array<std::uint64_t, kMaxGroup> sequence{};
  for (VcpuId id = 0; id < kMaxGroup; ++id) {
    if ((writers >> id & 1) != 0 && cores_[id] != nullptr) {
      sequence[id] = cores_[id]->post_revocation(ppn);
    }
  }
  for (VcpuId id = 0; id < kMaxGroup; ++id) {
    if (sequence[id] == 0) continue;
    while (cores_[id]->revoked() < sequence[id]) std::this_thread::yield();
  }
}

// begin() and stop_others() each store their own flag before they look at the other's (all of it
// sequentially consistent): one of them sees the other.

void VcpuGroup::begin(VcpuId self) noexcept {
  inside_[self].store(true);
  while (must_park(self)) {
    inside_[self].store(false);
    while (must_park(self)) std::this_thread::yield();
    inside_[self].store(true);
  }
}

void VcpuGroup::stop_others(VcpuId self) noexcept {
  owner_.store(static_cast<int>(self));
  for (VcpuId id = 0; id < kMaxGroup; ++id) {
    if (id != self && cores_[id] != nullptr) cores_[id]->park();
  }
  for (VcpuId id = 0; id < kMaxGroup; ++id) {
    while (id != self && inside_[id].load()) std::this_thread::yield();
  }
}

void VcpuGroup::resume_others() noexcept { owner_.store(kNobody); }

Exclusive::Exclusive(Core& core) : group_{core.group()} {
  // Whoever has its turn waits for this vCPU to be outside, and those it waits for may wait for
  // this vCPU's epoch.
  core.step_outside();
  group_.turn_.lock();
  group_.stop_others(core.env.id);
  core.step_inside();
}

Exclusive::~Exclusive() {
  group_.resume_others();
  group_.turn_.unlock();
}

}  // namespace strata::interp
