// Slow paths of memory access: TLB misses, page-crossing, MMIO, traced tables, pages with code.
#include <algorithm>

#include "engines/interp/core.hpp"

namespace strata::interp {

/// One page's worth of an access, resolved.
struct Core::Place {
  std::byte* host = nullptr;  ///< null: MMIO, or a store to be dropped
  PA pa{};
  bool mmio = false;
  bool traced = false;
  bool code = false;
};

bool Core::record_exception(std::uint8_t vector, std::optional<std::uint32_t> error) noexcept {
  exception = {};
  exception.valid = true;
  exception.vector = vector;
  exception.has_error = error.has_value();
  exception.error = error.value_or(0);
  recorded_ = Leave::exception;
  return false;
}

bool Core::record_exit(engine::Exit exit) noexcept {
  exit_ = std::move(exit);
  recorded_ = Leave::exit;
  return false;
}

bool Core::record_fault(const Fault& f, Access access) {
  switch (f.kind) {
    case FaultKind::page_fault:
      record_exception(cpu::PF, f.error_code);
      exception.cr2 = f.va.value();
      ++counters.page_faults;
      // A page fault drops what the TLB holds for its address (SDM 3A 4.10.4.1): a stale answer for
      // another kind of access must not outlive it.
      if (tlb_.forget(f.va)) {
        fetched_.flush_page(f.va);
        ++generation_;
      }
      return false;
    case FaultKind::retry:
      recorded_ = Leave::retry;
      return false;
    case FaultKind::paused:
      return record_exit({.kind = engine::ExitKind::paused, .pa = f.pa});
    case FaultKind::poisoned:
      return record_exception(cpu::MC, std::nullopt);
    case FaultKind::out_of_memory:
      return record_exit({.kind = engine::ExitKind::out_of_memory, .pa = f.pa});
    case FaultKind::mmio:
    case FaultKind::rom_write:
      break;  // locate() turns these into places
  }
  return record_exit({.kind = engine::ExitKind::internal_error,
                      .pa = f.pa,
                      .reason = access.kind == AccessKind::execute
                                    ? "the guest executes from an address without memory"
                                    : "unexpected fault of an access"});
}

Expected<Translation, Fault> Core::ask_mmu(VA va, Access access) {
  for (;;) {
    quiesce();
    auto t = env.mmu->translate(env.id, va, access);
    // The call may itself have moved the page (demand-zero, unshare) or begun to trace one; and
    // what another thread took away meanwhile may be gone already. Only an answer that no
    // invalidation followed is safe to use.
    if (!process_invalidations()) return t;
  }
}

bool Core::locate(std::uint64_t va, Access access, Place& place) {
  const VA address{va};
  const TlbMode mode = mode_of(access);
  const bool write = access.kind == AccessKind::write;
  const TlbEntry& e = tlb_.slot(mode, address, pcid);
  const std::uint64_t tag = Tlb::tag(address, pcid);
  if ((write ? e.write_tag : e.read_tag) == tag) {
    place.host = reinterpret_cast<std::byte*>(va + e.addend);
    place.pa = PA{(e.pa_and_flags & ~kPageMask) | address.page_offset()};
    return true;
  }
  if (!canonical(va)) return record_exception(cpu::GP, 0);
  ++counters.tlb_misses;
  const auto t = ask_mmu(address, access);
  if (!t) {
    const Fault& f = t.error();
    place.pa = f.pa;
    if (f.kind == FaultKind::rom_write) return true;
    if (f.kind != FaultKind::mmio) return record_fault(f, access);
    place.mmio = true;
    return true;
  }
  const PPN ppn = page_of(t->pa);
  place.pa = t->pa + address.page_offset();
  place.host = env.window.host(t->page) + address.page_offset();
  place.traced = t->traced;
  const bool unannounced = (write || t->writable) && group_->code_pages.claim_write(ppn, env.id);
  place.code = write && !unannounced;
  tlb_.fill(mode, address, pcid, *t, env.window.host(t->page), unannounced);
  if (breakpoints.data && page_watched(va)) tlb_.forget(mode, address, pcid);
  return true;
}

bool Core::mmio_load(PA pa, void* out, unsigned size) {
  auto* to = static_cast<std::byte*>(out);
  for (unsigned done = 0; done < size;) {
    const unsigned piece = std::bit_floor(std::min(size - done, 8U));
    const PA at = pa + done;
    if (mmio.cursor == mmio.count) {
      return record_exit({.kind = engine::ExitKind::mmio_read,
                          .size = static_cast<std::uint8_t>(piece),
                          .pa = at});
    }
    const MmioLog::Access& a = mmio.done[mmio.cursor++];
    std::memcpy(to + done, &a.value, piece);
    done += piece;
  }
  return true;
}

bool Core::mmio_store(PA pa, const void* data, unsigned size) {
  const auto* from = static_cast<const std::byte*>(data);
  for (unsigned done = 0; done < size;) {
    const unsigned piece = std::bit_floor(std::min(size - done, 8U));
    if (mmio.cursor == mmio.count) {
      engine::Exit exit{.kind = engine::ExitKind::mmio_write,
                        .size = static_cast<std::uint8_t>(piece),
                        .pa = pa + done};
      std::memcpy(&exit.data, from + done, piece);
      return record_exit(std::move(exit));
    }
    ++mmio.cursor;
    done += piece;
  }
  return true;
}

namespace {

/// Copies with one access where the size is a natural one, as the processor would.
void copy_natural(void* to, const void* from, unsigned size) {
  switch (size) {
    case 1:
      guest::copy(to, from, 1);
      break;
    case 2:
      guest::copy(to, from, 2);
      break;
    case 4:
      guest::copy(to, from, 4);
      break;
    case 8:
      guest::copy(to, from, 8);
      break;
    default:
      guest::copy(to, from, size);
  }
}

}  // namespace

bool Core::place_load(const Place& p, void* out, unsigned size) {
  if (p.mmio) return mmio_load(p.pa, out, size);
  copy_natural(out, p.host, size);
  return true;
}

bool Core::place_store(const Place& p, const void* data, unsigned size) {
  if (p.mmio) return mmio_store(p.pa, data, size);
  if (p.host == nullptr) return true;  // ROM: the store is dropped
  if (p.traced) env.mmu->traced_store_begins(env.id);
  copy_natural(p.host, data, size);
  if (p.traced) traced_store_done(p.pa, size);
  if (p.code) code_written(p.pa, size);
  return true;
}

template <class Transfer>
bool Core::each_place(std::uint64_t va, unsigned size, Access access, Transfer&& transfer) {
  const auto head =
      static_cast<unsigned>(std::min<std::uint64_t>(size, kPageSize - (va & kPageMask)));
  for (;;) {
    const std::uint64_t before = places_;
    Place first;
    if (!locate(va, access, first)) return false;
    if (head == size) return transfer(first, 0U, size);
    Place second;
    if (!locate(wrap_va(va + head), access, second)) return false;
    if (places_ != before) continue;  // the first may have moved, or have to be announced
    return transfer(first, 0U, head) && transfer(second, head, size - head);
  }
}

Core::Refill Core::refill(std::uint64_t va, unsigned size, bool write) {
  // Alone in its page and canonical; what is not is the interpreter's to refuse as it must be.
  if ((va & kPageMask) + size > kPageSize || !canonical(va)) return Refill::interpret;
  const Access access{write ? AccessKind::write : AccessKind::read, cpl == 3, ac()};
  recorded_ = Leave::look_up;
  Place place;
  if (!locate(va, access, place)) return Refill::refused;
  return cached(va, write) ? Refill::filled : Refill::interpret;
}

bool Core::refill_unasked(std::uint64_t va) {
  if (cached(va, false)) return true;
  if (!canonical(va) || breakpoints.data) return false;
  const VA address{va};
  const Access access{AccessKind::read, cpl == 3, ac(), true};
  const auto t = ask_mmu(address, access);
  if (!t) return false;
  const bool unannounced = t->writable && group_->code_pages.claim_write(page_of(t->pa), env.id);
  tlb_.fill(mode_of(access), address, pcid, *t, env.window.host(t->page), unannounced);
  return true;
}

bool Core::load_slow(std::uint64_t va, void* out, unsigned size, Access access) {
  if (breakpoints.data) note_access(va, size, false);
  auto* to = static_cast<std::byte*>(out);
  return each_place(va, size, access, [&](const Place& p, unsigned offset, unsigned bytes) {
    return place_load(p, to + offset, bytes);
  });
}

bool Core::store_slow(std::uint64_t va, const void* data, unsigned size, Access access) {
  if (breakpoints.data) note_access(va, size, true);
  const auto* from = static_cast<const std::byte*>(data);
  return each_place(va, size, access, [&](const Place& p, unsigned offset, unsigned bytes) {
    return place_store(p, from + offset, bytes);
  });
}

bool Core::load_bytes(std::uint64_t va, void* out, unsigned size) {
  const TlbEntry& e = dtlb[tlb_index(va, pcid)];
  if (e.read_tag == (((va + size - 1) & ~kPageMask) | pcid)) [[likely]] {
    guest::copy(out, reinterpret_cast<const void*>(va + e.addend), size);
    return true;
  }
  return load_slow(va, out, size, {AccessKind::read, cpl == 3, ac()});
}

bool Core::store_bytes(std::uint64_t va, const void* data, unsigned size) {
  const TlbEntry& e = dtlb[tlb_index(va, pcid)];
  if (e.write_tag == (((va + size - 1) & ~kPageMask) | pcid)) [[likely]] {
    guest::copy(reinterpret_cast<void*>(va + e.addend), data, size);
    return true;
  }
  return store_slow(va, data, size, {AccessKind::write, cpl == 3, ac()});
}

bool Core::check_store(std::uint64_t va, unsigned size) {
  return each_place(va, size, {AccessKind::write, cpl == 3, ac()},
                    [](const Place&, unsigned, unsigned) { return true; });
}

const std::byte* Core::read_span(std::uint64_t va, std::uint64_t& available) {
  if (breakpoints.data) return nullptr;
  Place place;
  if (!locate(va, {AccessKind::read, cpl == 3, ac()}, place)) {
    exception.valid = false;  // the element-wise path will meet it again
    return nullptr;
  }
  available = kPageSize - (va & kPageMask);
  return place.mmio ? nullptr : place.host;
}

std::byte* Core::write_span(std::uint64_t va, std::uint64_t& available) {
  if (breakpoints.data) return nullptr;
  Place place;
  if (!locate(va, {AccessKind::write, cpl == 3, ac()}, place)) {
    exception.valid = false;
    return nullptr;
  }
  available = kPageSize - (va & kPageMask);
  return place.mmio || place.traced || place.code ? nullptr : place.host;
}

bool Core::rmw_begin_slow(std::uint64_t va, unsigned size, Rmw& m) {
  const Access access{AccessKind::write, cpl == 3, ac()};
  if (breakpoints.data) note_access(va, size, true);
  if ((va & kPageMask) + size <= kPageSize) {
    Place place;
    if (!locate(va, access, place)) return false;
    if (place.host != nullptr) {
      m.host = place.host;
      m.pa = place.pa;
      m.traced = place.traced;
      if (m.traced) env.mmu->traced_store_begins(env.id);  // until rmw_end()
      m.code = place.code;
      m.size = place.traced || place.code ? size : 0;
      return true;
    }
  }
  return rmw_begin_copy(va, size, m);  // MMIO, ROM or page-crossing
}

bool Core::rmw_begin_copy(std::uint64_t va, unsigned size, Rmw& m) {
  // With write access checked first, the load can only fail for reasons of its own.
  if (!check_store(va, size)) return false;
  m.va = va;
  m.bounced = true;
  m.size = size;
  m.host = m.bounce.data();
  return load_slow(va, m.bounce.data(), size, {AccessKind::read, cpl == 3, ac()});
}

bool Core::rmw_end_slow(Rmw& m) {
  if (m.bounced) {
    return store_slow(m.va, m.bounce.data(), m.size, {AccessKind::write, cpl == 3, ac()});
  }
  if (m.traced) traced_store_done(m.pa, m.size);
  if (m.code) code_written(m.pa, m.size);
  return true;
}

void Core::traced_store_done(PA pa, std::uint64_t length) {
  env.mmu->guest_wrote(pa, length);
  env.mmu->traced_store_ends(env.id);
}

void Core::code_written(PA pa, std::uint64_t length) {
  drop_code(pa, length);
  group_->code_written(env.id, pa, length);
}

void Core::drop_code(PA pa, std::uint64_t length) {
  std::size_t dropped = accelerator_ ? accelerator_->drop(pa, length) : 0;
  dropped += blocks_.drop(pa, length, [this](PPN ppn) {
    if (accelerator_ && accelerator_->has_code(ppn)) {
      blocks_.claim(ppn);
    } else {
      group_->code_pages.release_code(ppn, env.id);
    }
  });
  counters.blocks_invalidated += dropped;
  // The jump cache must not lead back into a dropped block.
  if (dropped != 0) ++generation_;
}

void Core::drop_all_code() {
  std::vector<PPN> pages;
  blocks_.for_each_page([&](PPN ppn) { pages.push_back(ppn); });
  for (const PPN ppn : pages) drop_code(address_of(ppn), kPageSize);
}

}  // namespace strata::interp
