// The machine that is judged: guest memory with tables of one mode, pages of every kind of right in
// them, stubs that make accesses, and a backend over it all.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backends.hpp"
#include "judge.hpp"
#include "machine/test_support.hpp"

namespace strata::judged {

/// One access by one guest, and what was found out about it.
struct Case {
  VA va{};
  Access access{};
  PagingContext context{};
};

class JudgedGuest {
 public:
  static constexpr std::uint64_t kRamBytes = 32ULL << 20;
  /// Where the stubs lie for supervisor and user code.
  static constexpr std::uint64_t kStubPa = 0x20'0000, kSupervisorStub = 0x6000'0000,
                                 kUserStub = 0x6010'0000;
  static constexpr std::uint64_t kData = 0x7000'0000, kDataPa = 0x40'0000;
  static constexpr std::uint64_t kLarge = 0x4040'0000, kLargePa = 0x80'0000;
  /// In every data page: a tag, a word to store to, code.
  static constexpr std::uint64_t kStoreOffset = 8, kCodeOffset = 16;

  JudgedGuest(std::string_view backend, PagingMode mode)
      : machine{kRamBytes >> 20, 0, kReserved >> kPageShift},
        frames{machine.frames},
        mmu{conformance::make_backend(backend, machine.p2m, frames, machine.domain, false)},
        mode_{mode},
        // VMMCALL of the one, VMCALL of the other.
        call_{backend == "ept" ? 0xC1'010FU : 0xD9'010FU},
        listener_{*mmu} {
    machine.guest.add_listener(listener_);
    build();
  }
  ~JudgedGuest() { machine.guest.remove_listener(listener_); }
  JudgedGuest(const JudgedGuest&) = delete;
  JudgedGuest& operator=(const JudgedGuest&) = delete;

  [[nodiscard]] PagingContext context() const { return context_; }
  [[nodiscard]] std::uint64_t cr3() const { return cr3_.value(); }
  [[nodiscard]] bool wide() const { return mode_ != PagingMode::i386; }
  [[nodiscard]] const std::vector<VA>& pages() const { return pages_; }
  /// Maps one more 4 KiB page.
  VA map_page(PA pa, std::uint64_t marks) {
    return add(kData, pages_.size() * kPageSize, pa, marks);
  }

  /// Every page x kind x privilege under each of `contexts`.
  [[nodiscard]] std::vector<Case> cases(const std::vector<PagingContext>& contexts) const {
    std::vector<Case> all;
    for (const PagingContext& c : contexts) {
      for (const VA va : pages_) {
        for (const AccessKind kind : {AccessKind::read, AccessKind::write, AccessKind::execute}) {
          const std::uint64_t offset = kind == AccessKind::read    ? 0
                                       : kind == AccessKind::write ? kStoreOffset
                                                                   : kCodeOffset;
          for (const bool user : {true, false}) {
            for (const bool ac : {false, true}) {
              all.push_back({va + offset, {kind, user, ac}, c});
            }
          }
        }
      }
    }
    return all;
  }
  /// The code that makes `access`.
  [[nodiscard]] VA stub(Access access) const {
    return VA{(access.user ? kUserStub : kSupervisorStub) + base_ +
              64 * static_cast<unsigned>(access.kind)};
  }
  /// The registers of a guest that makes the access with its own tables.
  [[nodiscard]] Probe probe(const Case& c, std::uint64_t value) const {
    const PagingContext& p = c.context;
    const bool long_mode = mode_ == PagingMode::long4;
    Probe out{};
    out.va = c.va.value();
    out.rip = stub(c.access).value();
    out.value = value;
    out.cr0 = 0x8000'0031U | (p.wp ? 1U << 16 : 0);
    out.cr3 = cr3_.value();
    out.cr4 = (wide() ? 0x20U : 0) | (p.pse ? 0x10U : 0) | (p.pge ? 0x80U : 0) |
              (p.smep ? 1U << 20 : 0) | (p.smap ? 1U << 21 : 0) | (p.pke ? 1U << 22 : 0);
    out.efer = 0x1000U | (p.nxe ? 0x800U : 0) | (long_mode ? 0x500U : 0);
    out.rflags = 2U | (c.access.ac ? 1U << 18 : 0);
    out.pkru = p.pkru;
    std::copy(p.pdpte.begin(), p.pdpte.end(), out.pdpte);
    out.user = c.access.user ? 1 : 0;
    out.long_mode = long_mode ? 1 : 0;
    return out;
  }

  /// Every frame that a walk or an access can reach: tables of backend and guest, and data.
  [[nodiscard]] std::vector<MPN> reachable() {
    std::vector<MPN> all = frames.tables;
    all.push_back(machine.p2m.zero_frame());
    const std::uint64_t pages = kRamBytes >> kPageShift;
    for (std::uint64_t n = 0; n < pages; ++n) {
      const P2mEntry e = machine.p2m.lookup(PPN{n}).entry;
      if (e.state() == PageState::private_page) all.push_back(e.mpn());
    }
    return all;
  }
  void dump(JudgeMemory& memory) {
    for (const MPN frame : reachable()) memory.put(machine.window(), frame);
  }

  machine::test::TestMachine machine;
  conformance::RecordingFrames frames;
  std::unique_ptr<Mmu> mmu;

 private:
  class Listener final : public machine::WriteListener {
   public:
    explicit Listener(Mmu& mmu) : mmu_{mmu} {}
    void memory_written(PA pa, std::uint64_t length) override { mmu_.guest_wrote(pa, length); }

   private:
    Mmu& mmu_;
  };

  static constexpr std::uint64_t kRights[] = {0, 2, 4, 6};  // R/W, U/S

  void build() {
    context_.mode = mode_;
    context_.pse = true;
    context_.pge = true;
    context_.nxe = wide();
    context_.wp = true;
    context_.root = machine.new_table();
    cr3_ = context_.root;
    if (mode_ == PagingMode::long4) base_ = 0x1200'0000'0000;
    if (mode_ == PagingMode::pae) {
      // One directory for the second GiB, where everything is.
      const PA directory = context_.root;
      cr3_ = machine.new_table();
      context_.pdpte.at(1) = directory.value() | 1;
      machine.store<std::uint64_t>(cr3_ + 8, context_.pdpte.at(1));
    }
    build_stubs();
    std::uint64_t pa = kDataPa;
    const auto next = [&] { return PA{pa += kPageSize}; };
    for (const std::uint64_t rights : kRights) {
      for (const std::uint64_t marks : {0x000, 0x020, 0x060, 0x160}) {  // -, A, A+D, A+D+G
        map_page(next(), 1 | rights | marks);
        if (wide()) map_page(next(), 1 | rights | marks | 1ULL << 63);
      }
    }
    map_page(next(), 6);                                               // not present
    if (wide()) map_page(next(), 7 | 1ULL << 45);                      // reserved
    if (mode_ == PagingMode::long4) map_page(next(), 7 | 5ULL << 59);  // key 5
    if (mode_ == PagingMode::long4) map_page(next(), 7 | 0x60 | 5ULL << 59);
    const std::uint64_t large = wide() ? kLargePageSize : 2 * kLargePageSize;
    std::uint64_t n = 0;
    for (const std::uint64_t rights : kRights) {
      const PA at{kLargePa + n * large};
      fill_page(at + 3 * kPageSize);
      pages_.push_back(VA{kLarge + base_ + n * large + 3 * kPageSize});
      store_leaf(VA{kLarge + base_ + n * large}, at, 1 | 0x80 | rights, 2);
      ++n;
    }
  }

  void build_stubs() {
    // mov eax, [rbx]; call | mov [rbx], ecx; call | jmp rbx: the same bytes in every mode.
    machine.store<std::uint64_t>(PA{kStubPa}, 0x038BU | std::uint64_t{call_} << 16);
    machine.store<std::uint64_t>(PA{kStubPa + 64}, 0x0B89U | std::uint64_t{call_} << 16);
    machine.store<std::uint64_t>(PA{kStubPa + 128}, 0xE3FFU);
    store_leaf(VA{kSupervisorStub + base_}, PA{kStubPa}, 1, 1);
    store_leaf(VA{kUserStub + base_}, PA{kStubPa}, 5, 1);
  }
  void fill_page(PA pa) {
    machine.store<std::uint32_t>(pa, tag_of(pa));
    machine.store<std::uint32_t>(pa + kCodeOffset, call_);
  }
  VA add(std::uint64_t region, std::uint64_t offset, PA pa, std::uint64_t marks) {
    fill_page(pa);
    const VA va{region + base_ + offset};
    store_leaf(va, pa, marks, 1);
    pages_.push_back(va);
    return va;
  }
  void store_leaf(VA va, PA pa, std::uint64_t bits, unsigned level) {
    if (mode_ == PagingMode::i386) {
      const PA entry = machine.entry_address<machine::I386Format>(context_.root, va, level);
      machine.store(entry, static_cast<std::uint32_t>(pa.value() | bits));
    } else if (mode_ == PagingMode::pae) {
      const VA inside{va.value() & (kHugePageSize - 1)};
      const PA entry = machine.entry_address<machine::PaeFormat>(context_.root, inside, level);
      machine.store(entry, pa.value() | bits);
    } else {
      const PA entry = machine.entry_address<machine::Long4Format>(context_.root, va, level);
      machine.store(entry, pa.value() | bits);
    }
  }

 public:
  /// What the first word of the page at `pa` says.
  static std::uint32_t tag_of(PA pa) {
    return static_cast<std::uint32_t>(pa.value() >> 12) | 0xA0000000U;
  }

 private:
  PagingMode mode_;
  std::uint32_t call_;
  PagingContext context_;
  PA cr3_{};
  std::uint64_t base_ = 0;
  std::vector<VA> pages_;
  Listener listener_;
};

}  // namespace strata::judged
