// What other threads and vCPUs have asked of a vCPU: invalidations, written code, write access
// given up. Posted under a lock, raised as attention, carried out between blocks.
#include <thread>

#include "engines/interp/core.hpp"

namespace strata::interp {

namespace {

/// A mailbox with more entries than this says "everything" instead: its owner may be asleep for
/// long.
constexpr std::size_t kMailboxEntries = 64;

}  // namespace

void Core::invalidate(const Invalidation& what, Epoch epoch) noexcept {
  {
    const std::lock_guard guard{mailbox_lock_};
    mailbox_.all = mailbox_.all || what.all;
    mailbox_.ranges.insert(mailbox_.ranges.end(), what.ranges.begin(), what.ranges.end());
    mailbox_epoch_ = epoch;
  }
  attend(attention::kInvalidate);
}

void Core::memory_written(PA pa, std::uint64_t length) noexcept {
  {
    const std::lock_guard guard{mailbox_lock_};
    if (mailbox_written_.size() < kMailboxEntries) {
      mailbox_written_.emplace_back(pa, length);
    } else {
      mailbox_all_written_ = true;
    }
  }
  attend(attention::kCodeWritten);
}

std::uint64_t Core::post_revocation(PPN ppn) noexcept {
  std::uint64_t number = 0;
  {
    const std::lock_guard guard{mailbox_lock_};
    if (mailbox_revoked_.size() < kMailboxEntries) {
      mailbox_revoked_.push_back(ppn);
    } else {
      mailbox_all_revoked_ = true;
    }
    number = ++revocations_;
  }
  attend(attention::kInvalidate);
  return number;
}

void Core::quiesce() noexcept {
  passed_.store(~0ULL, std::memory_order_release);
  revoked_.store(~0ULL, std::memory_order_release);
}

void Core::step_outside() noexcept {
  quiesce();
  group_->end(env.id);
}

void Core::step_inside() noexcept {
  group_->begin(env.id);
  process_invalidations();
}

const Uop* Core::rest(const Uop* u) noexcept {
  // Most PAUSEs wait for a vCPU that runs; the many in a row wait for one that the host does not.
  constexpr unsigned kPausesPerRest = 64;
  if (env.vcpus == 1 || ++pauses_ < kPausesPerRest) return u + 1;
  pauses_ = 0;
  step_outside();
  std::this_thread::yield();
  step_inside();
  return finish(u);
}

bool Core::process_invalidations() noexcept {
  Invalidation what;
  std::vector<std::pair<PA, std::uint64_t>> written;
  std::vector<PPN> revoked;
  bool all_written = false;
  bool all_revoked = false;
  // Before the mailbox is emptied: what is posted from then on raises the flag again.
  attention_flags.fetch_and(~(attention::kInvalidate | attention::kCodeWritten),
                            std::memory_order_acq_rel);
  {
    const std::lock_guard guard{mailbox_lock_};
    what = std::exchange(mailbox_, {});
    written = std::exchange(mailbox_written_, {});
    revoked = std::exchange(mailbox_revoked_, {});
    all_written = std::exchange(mailbox_all_written_, false);
    all_revoked = std::exchange(mailbox_all_revoked_, false);
    passed_.store(mailbox_epoch_, std::memory_order_release);
    revoked_.store(revocations_, std::memory_order_release);
  }
  const bool revocations = all_revoked || !revoked.empty();
  const bool codes = all_written || !written.empty();
  if (!what.all && what.ranges.empty() && !codes && !revocations) return false;
  for (const auto& [pa, length] : written) drop_code(pa, length);
  if (all_written) drop_all_code();
  for (const PPN ppn : revoked) revoke_writes(ppn);
  // Which pages they were is not known: this vCPU goes on counting as a writer of them.
  if (all_revoked) tlb_.revoke_all_writes();
  if (what.all) {
    tlb_.flush_all();
  } else if (!what.ranges.empty()) {
    tlb_.flush_physical(what.ranges);
  }
  if (what.all || !what.ranges.empty()) {
    ++generation_;
    if (what.all || blocks_.any_code_in(what.ranges)) fetched_.flush_all();
  }
  ++places_;
  return true;
}

}  // namespace strata::interp
