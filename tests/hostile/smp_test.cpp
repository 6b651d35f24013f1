// Two vCPUs that change tables, code and translations under each other, while the VMM's side
// changes memory too. Nothing here is deterministic: all that is asked is that it ends when it is
// told to, and stays in its memory.
#include <gtest/gtest.h>

#include "cases.hpp"
#include "invariants.hpp"

namespace strata::hostile {
namespace {

using namespace layout;
using machine::test::must;

constexpr std::uint64_t kWindow = 0x4000'0000;
constexpr unsigned kPages = 16;

/// Jumps through the window, in which every page is the code page or another copy of it, and
/// changes the immediates of what it jumps to and the entries that map it.
void build_storm(Guest& g, std::uint64_t leaves) {
  Code c{64};
  c.put({0x41, 0x81, 0xC4, 1, 0, 0, 0});        // add r12d, 1: the immediate changes
  c.put({0x44, 0x89, 0xE0, 0xC1, 0xE8, 0x03});  // mov eax, r12d; shr eax, 3
  c.put({0x83, 0xE0, kPages - 1, 0x89, 0xC6});  // and eax, 15; mov esi, eax
  c.put({0x48, 0x8B, 0x1C, 0xC5});              // mov rbx, [rax * 8 + leaves]
  c.number(leaves, 4);
  c.put({0x48, 0x81, 0xF3, 0, 0x20, 0, 0});  // xor rbx, 2 pages: the other copy
  c.put({0x48, 0x89, 0x1C, 0xC5});           // mov [rax * 8 + leaves], rbx
  c.number(leaves, 4);
  c.put({0xC1, 0xE6, 0x0C, 0x81, 0xC6});  // shl esi, 12; add esi, kWindow
  c.number(kWindow, 4);
  c.put({0x0F, 0x01, 0x3E});                    // invlpg [rsi]
  c.put({0xFE, 0x46, 0x03});                    // inc byte [rsi + 3]: that immediate
  c.put({0xF0, 0xFF, 0x86, 0, 0x08, 0, 0});     // lock inc dword [rsi + 0x800]
  c.put({0x41, 0xF6, 0xC4, 0x3F, 0x75, 0x06});  // test r12b, 0x3F; jnz over
  c.put({0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8});  // cr3 = cr3
  c.put({0xFF, 0xE6});                          // jmp rsi
  // Two copies whose addresses differ in one bit.
  for (const std::uint64_t page : {kData, kData + 0x2000}) g.put(page, c.bytes);
}

/// What devices, a balloon and migration do meanwhile.
void disturb(World& world, std::uint64_t leaves, const std::atomic<bool>& over) {
  for (unsigned n = 0; !over; ++n) {
    const std::uint64_t leaf = (kData + (n & 1) * 0x2000) | Guest::kAll;
    must(world.machine.guest.write(machine::kIdentitySpace, PA{leaves + n % kPages * 8},
                                   std::as_bytes(std::span{&leaf, 1})));
    const auto byte = static_cast<std::byte>(n);
    must(world.machine.guest.write(machine::kIdentitySpace, PA{kData + (n & 2) * 0x1000 + 3},
                                   std::span{&byte, 1}));
    Flush flush{world.machine.domain};
    const PpnRange range{page_of(PA{kData + 0x100000}), 4};
    static_cast<void>(world.machine.p2m.discard(range, flush).has_value());
    static_cast<void>(world.machine.p2m.log_dirty({page_of(PA{kData}), 4}, flush).has_value());
    flush.commit();
    std::this_thread::yield();
  }
}

class HostilePair : public testing::TestWithParam<conformance::Subject> {};

TEST_P(HostilePair, EndsWhenTold) {
  constexpr unsigned kCpus = 2;
  Guest g{64};
  const std::uint64_t leaves = g.entry(kWindow);
  build_storm(g, leaves);
  for (unsigned i = 0; i < kPages; ++i) g.map(kWindow + i * 4096, kData);
  World world{g, GetParam().backend};
  interp::VcpuGroup group{1 << 20};
  std::array<conformance::CountingTsc, kCpus> tsc;
  std::array<std::unique_ptr<interp::Core>, kCpus> cores;
  std::array<engine::Exit, kCpus> exits;
  for (unsigned id = 0; id < kCpus; ++id) {
    interp::CoreEnvironment e = world.environment();
    e.id = id;
    e.vcpus = kCpus;
    e.group = &group;
    e.tsc = &tsc.at(id);
    cores.at(id) = conformance::make_engine(GetParam().engine, e);
    world.cores.push_back(cores.at(id).get());
    g.state.rip = kWindow;
    g.state.gpr[cpu::R12] = id * 77;
    cores.at(id)->set_state(g.state);
  }
  std::atomic<bool> over{false};
  {
    std::thread device{[&] { disturb(world, leaves, over); }};
    std::array<std::thread, kCpus> threads;
    const Watchdog dog{std::chrono::milliseconds{300}, [&] {
                         for (const auto& core : cores) core->kick();
                       }};
    for (unsigned id = 0; id < kCpus; ++id) {
      threads.at(id) = std::thread{[&, id] { exits.at(id) = cores.at(id)->run(); }};
    }
    for (auto& thread : threads) thread.join();
    over = true;
    device.join();
  }
  for (unsigned id = 0; id < kCpus; ++id) {
    EXPECT_EQ(engine::name_of(exits.at(id).kind), "interrupted") << exits.at(id).reason;
    EXPECT_EQ(fuzz::broken_rule(cores.at(id)->state(), world.model), "");
    EXPECT_GT(cores.at(id)->position().instructions, 1000U);
  }
  EXPECT_EQ(world.damage(), "");
}

INSTANTIATE_TEST_SUITE_P(Subjects, HostilePair,
                         testing::ValuesIn(conformance::subjects(conformance::backends())),
                         [](const auto& instance) { return conformance::name_of(instance.param); });

}  // namespace
}  // namespace strata::hostile
