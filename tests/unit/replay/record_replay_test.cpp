// A little guest recorded and replayed: same state at the end, and one clear line when recording
// and guest do not go together.
#include <gtest/gtest.h>

#include "temporary_file.hpp"
#include "test_support.hpp"
#include "vmm/replay/machine_state.hpp"
#include "vmm/replay/player.hpp"
#include "vmm/replay/recorder.hpp"

namespace strata::replay {
namespace {

using interp::test::FakeInterrupts;
using interp::test::FakeTsc;
using interp::test::Machine;

/// Devices that give different answers each time, and random numbers likewise.
class Outside final : public vmm::ExitHandler,
                      public engine::RandomSource,
                      public devices::MemoryWriter {
 public:
  explicit Outside(Machine& machine) : machine_{machine} {}
  std::uint64_t port_read(VcpuId, std::uint16_t, unsigned) override {
    if (++reads % 4 == 0) {
      const std::array<std::byte, 3> data{std::byte(reads), std::byte{2}, std::byte{3}};
      (writer != nullptr ? *writer : *this).write(PA{Machine::kData + 0x100}, data);
    }
    return reads * 37;
  }
  void port_write(VcpuId, std::uint16_t, unsigned, std::uint64_t value) override { out += value; }
  std::uint64_t mmio_read(VcpuId, PA, unsigned) override { return ++reads; }
  void mmio_write(VcpuId, PA, unsigned, std::uint64_t) override {}
  std::optional<std::uint64_t> msr_read(VcpuId, std::uint32_t msr) override {
    return msr == 0x1B ? std::optional<std::uint64_t>{0xFEE00900} : std::nullopt;
  }
  bool msr_write(VcpuId, std::uint32_t, std::uint64_t) override { return true; }
  std::uint64_t hypercall(VcpuId, const cpu::VcpuState&) override { return 5; }
  std::optional<std::uint64_t> random(bool, unsigned) noexcept override {
    return ++draws * 0x1234567;
  }
  bool write(PA pa, std::span<const std::byte> bytes) override {
    std::memcpy(machine_.mmu.base() + pa.value(), bytes.data(), bytes.size());
    machine_.core->memory_written(pa, bytes.size());
    return true;
  }
  devices::MemoryWriter* writer = nullptr;
  std::uint64_t reads = 0, out = 0, draws = 0;

 private:
  Machine& machine_;
};

// L: rdtsc; add rbx, rax; rdrand rdx; xor rbx, rdx; in al, 0x10; add [rsi], al; out 0x11, al;
// push rcx; mov ecx, 0x1B; rdmsr; pop rcx; dec rcx; jnz L; hlt
constexpr std::initializer_list<std::uint8_t> kGuest{
    0x0F, 0x31, 0x48, 0x01, 0xC3, 0x48, 0x0F, 0xC7, 0xF2, 0x48, 0x31,
    0xD3, 0xE4, 0x10, 0x00, 0x06, 0xE6, 0x11, 0x51, 0xB9, 0x1B, 0x00,
    0x00, 0x00, 0x0F, 0x32, 0x59, 0x48, 0xFF, 0xC9, 0x75, 0xE0, 0xF4};

class RecordReplayTest : public ::testing::Test {
 protected:
  /// A machine whose core has these sources.
  void prepare(engine::InterruptSource& interrupts, engine::TscSource& tsc,
               engine::RandomSource& random, std::initializer_list<std::uint8_t> code) {
    interp::CoreEnvironment e = m_.core->env;
    m_.core.reset();
    e.interrupts = &interrupts;
    e.tsc = &tsc;
    e.random = &random;
    m_.core = std::make_unique<interp::Core>(e);
    std::memset(m_.mmu.base() + Machine::kData, 0, 0x1000);
    m_.write(Machine::kCode, std::vector<std::uint8_t>{code});
    cpu::VcpuState s = Machine::long_mode_state();
    s.gpr[cpu::RCX] = 20;
    s.gpr[cpu::RSI] = Machine::kData;
    m_.core->set_state(s);
    m_.core->set_instructions(0);
  }

  /// Runs the guest to its HLT.
  cpu::VcpuState record() {
    auto file = ChunkWriter::create(test::output(file_.path()), FileKind::recording);
    EXPECT_TRUE(file);
    FakeInterrupts interrupts;
    FakeTsc tsc;
    Outside outside{m_};
    EventWriter log{**file, 1};
    Recorder recorder{log, 1, tsc, outside};
    recorder.connect(outside, outside);
    outside.writer = &recorder;
    prepare(recorder.interrupts(0, interrupts), recorder, recorder, kGuest);
    recorder.connect(0, *m_.core);
    for (;;) {
      const engine::Exit e = m_.core->run();
      if (e.kind == engine::ExitKind::halt) break;
      if (e.kind == engine::ExitKind::port_read) {
        m_.core->complete(recorder.port_read(0, e.port, e.size));
      } else if (e.kind == engine::ExitKind::port_write) {
        recorder.port_write(0, e.port, e.size, e.data);
      } else if (e.kind == engine::ExitKind::msr_read) {
        m_.core->complete(*recorder.msr_read(0, e.msr));
        recorder.mark();
      }
    }
    recorder.end();
    (*file)->write_json(ChunkType::end, nlohmann::json::object());
    EXPECT_TRUE((*file)->finish());
    memory_ = m_.read<std::array<std::uint8_t, 0x1000>>(Machine::kData);
    return m_.core->state();
  }

  struct Replayed {
    Player::Stop stop = Player::Stop::error;
    std::string error;
    cpu::VcpuState state{};
  };
  Replayed replay(std::initializer_list<std::uint8_t> code,
                  std::optional<std::uint64_t> until = std::nullopt) {
    auto file = ChunkReader::open(file_.path(), FileKind::recording);
    EXPECT_TRUE(file);
    EventReader events{**file, 1};
    Outside outside{m_};  // only its memory is used
    Player player{events, 1, outside, 0};
    prepare(player.interrupts(0), player, player, code);
    player.connect(0, *m_.core);
    Replayed r;
    r.stop = player.run(until);
    if (r.stop == Player::Stop::reached) r.stop = player.run(std::nullopt);
    r.error = player.error();
    r.state = m_.core->state();
    // The sources end here.
    interp::CoreEnvironment e = m_.core->env;
    m_.core.reset();
    e.interrupts = &m_.interrupts;
    e.tsc = &m_.tsc;
    e.random = nullptr;
    m_.core = std::make_unique<interp::Core>(e);
    return r;
  }
  /// Copies the recording without its nth event of a kind.
  void drop(EventKind kind, unsigned nth) {
    const test::TemporaryFile copy;
    {
      auto in = ChunkReader::open(file_.path(), FileKind::recording);
      auto out = ChunkWriter::create(test::output(copy.path()), FileKind::recording);
      ASSERT_TRUE(in && out);
      EventReader reader{**in, 1};
      EventWriter writer{**out, 1};
      unsigned seen = 0;
      for (auto e = reader.front(); e; e = reader.front()) {
        if ((*e)->kind != kind || ++seen != nth) writer.write(**e);
        reader.pop();
      }
      writer.flush();
      (*out)->write_json(ChunkType::end, nlohmann::json::object());
      ASSERT_TRUE((*out)->finish());
    }
    file_.write(copy.read());
  }

  Machine m_;
  test::TemporaryFile file_;
  std::array<std::uint8_t, 0x1000> memory_{};
};

TEST_F(RecordReplayTest, TheReplayEndsWhereTheRecordingDid) {
  const cpu::VcpuState recorded = record();
  for (const std::uint64_t until : {0, 1, 7, 100, 1000}) {
    const Replayed r = replay(kGuest, until);
    ASSERT_EQ(r.stop, Player::Stop::end) << r.error;
    EXPECT_EQ(save_vcpu(r.state), save_vcpu(recorded));
    EXPECT_EQ((m_.read<std::array<std::uint8_t, 0x1000>>(Machine::kData)), memory_);
  }
  EXPECT_NE(memory_[0x101], 0) << "a device's write is part of it";
}

TEST_F(RecordReplayTest, AMissingEventIsADivergenceWhereItIs) {
  record();
  drop(EventKind::tsc, 3);
  const Replayed r = replay(kGuest);
  EXPECT_EQ(r.stop, Player::Stop::error);
  EXPECT_NE(r.error.find("diverged on vCPU 0 at instruction 26: got TSC read"), std::string::npos)
      << r.error;
  EXPECT_EQ(r.error.find('\n'), std::string::npos);
}

TEST_F(RecordReplayTest, AMissingDeviceWriteShowsInMemory) {
  record();
  drop(EventKind::memory, 1);
  const Replayed r = replay(kGuest);
  EXPECT_EQ(r.stop, Player::Stop::end) << r.error;
  // The next one came to the same place; the last is what counts.
  drop(EventKind::memory, 4);
  EXPECT_EQ(replay(kGuest).stop, Player::Stop::end);
  EXPECT_NE((m_.read<std::array<std::uint8_t, 0x1000>>(Machine::kData)), memory_);
}

TEST_F(RecordReplayTest, AnotherGuestDiverges) {
  record();
  // OUT to another port than recorded.
  const Replayed r = replay({0x0F, 0x31, 0x48, 0x01, 0xC3, 0x48, 0x0F, 0xC7, 0xF2, 0x48, 0x31, 0xD3,
                             0xE4, 0x10, 0x00, 0x06, 0xE6, 0x12, 0xF4});
  EXPECT_EQ(r.stop, Player::Stop::error);
  EXPECT_NE(r.error.find("got port write 0x12"), std::string::npos) << r.error;
  // A guest that halts where the recorded one went on.
  const Replayed halted = replay({0x90, 0xF4});
  EXPECT_EQ(halted.stop, Player::Stop::error);
  EXPECT_NE(halted.error.find("'halt'"), std::string::npos) << halted.error;
}

TEST(Positions, AreInOrder) {
  EXPECT_TRUE(before({1, 0}, {2, 0}));
  EXPECT_TRUE(before({1, 0}, {1, 9}));
  EXPECT_TRUE(before({1, 9}, {1, 8}));
  EXPECT_FALSE(before({1, 8}, {1, 9}));
  EXPECT_FALSE(before({1, 1}, {1, 1}));
  EXPECT_TRUE(before({1, 1}, {2, 5}));
}

}  // namespace
}  // namespace strata::replay
