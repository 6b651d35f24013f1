#include "vmm/replay/event.hpp"

#include <fmt/format.h>

#include <array>

namespace strata::replay {

namespace {

/// Which fields an event of a kind has.
struct Layout {
  bool size = false, flag = false, failed = false, address = false, value = false, bytes = false;
};
constexpr std::array<Layout, kEventKinds> kLayouts{{
    {.value = true},                                              // tsc
    {.size = true, .flag = true, .failed = true, .value = true},  // random
    {.value = true},                                              // cr8
    {.value = true},                                              // apic
    {.size = true, .address = true, .value = true},               // port_read
    {.size = true, .address = true, .value = true},               // port_write
    {.size = true, .address = true, .value = true},               // mmio_read
    {.size = true, .address = true, .value = true},               // mmio_write
    {.failed = true, .address = true, .value = true},             // msr_read
    {.failed = true, .address = true, .value = true},             // msr_write
    {.value = true},                                              // hypercall
    {.address = true, .bytes = true},                             // memory
    {.value = true},                                              // interrupt
    {},                                                           // nmi
    {.address = true, .bytes = true},                             // dma
    {},                                                           // init
    {.value = true},                                              // startup
    {.value = true},                                              // turn
    {},                                                           // end
}};

constexpr std::size_t kBufferBytes = 256U << 10;
constexpr std::size_t kLongestWrite = 1U << 20;
/// Events between two stops; a recorder makes stops far more often.
constexpr std::size_t kLongestQueue = 16U << 20;

// The kind's byte has room for these beside it.
constexpr std::uint8_t kKindMask = 0x1F, kInRep = 0x20, kFlag = 0x40, kFailed = 0x80;

void put(std::vector<std::byte>& out, std::uint64_t v) {
  while (v >= 0x80) {
    out.push_back(static_cast<std::byte>(v | 0x80));
    v >>= 7;
  }
  out.push_back(static_cast<std::byte>(v));
}

/// Small differences of either sign become small numbers.
constexpr std::uint64_t fold(std::uint64_t difference) noexcept {
  return difference << 1 ^ (0 - (difference >> 63));
}
constexpr std::uint64_t unfold(std::uint64_t v) noexcept { return v >> 1 ^ (0 - (v & 1)); }

}  // namespace

std::string_view name_of(EventKind kind) noexcept {
  constexpr std::array<std::string_view, kEventKinds> kNames{
      "TSC read",  "random number", "CR8 read",  "APIC bit of CPUID",
      "port read", "port write",    "MMIO read", "MMIO write",
      "MSR read",  "MSR write",     "hypercall", "memory",
      "interrupt", "NMI",           "DMA",       "INIT",
      "SIPI",      "turn",          "end"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::string describe(const Event& e) {
  const Layout& l = kLayouts[static_cast<std::size_t>(e.kind)];
  std::string text{name_of(e.kind)};
  if (l.address) text += fmt::format(" {:#x}", e.address);
  if (l.size) text += fmt::format(" of {} bytes", e.size);
  if (l.bytes) text += fmt::format(" of {} bytes", e.bytes.size());
  if (l.value) text += fmt::format(" value {:#x}", e.value);
  if (e.flag) text += " (seed)";
  if (e.failed) text += " failed";
  return text;
}

EventWriter::EventWriter(ChunkWriter& file, unsigned vcpus) : file_{file}, instructions_(vcpus, 0) {
  buffer_.reserve(kBufferBytes + 64);
}

void EventWriter::write(const Event& e) {
  const Layout& l = kLayouts[static_cast<std::size_t>(e.kind)];
  if (buffer_.size() + e.bytes.size() + 64 > kBufferBytes) flush();
  const bool in_rep = e.position.rep_remaining != 0;
  buffer_.push_back(static_cast<std::byte>(static_cast<std::uint8_t>(e.kind) |
                                           (in_rep ? kInRep : 0) | (e.flag ? kFlag : 0) |
                                           (e.failed ? kFailed : 0)));
  put(buffer_, e.position.instructions - instructions_[e.vcpu]);
  instructions_[e.vcpu] = e.position.instructions;
  if (in_rep) put(buffer_, e.position.rep_remaining);
  if (l.size) put(buffer_, e.size);
  if (l.address) put(buffer_, e.address);
  if (l.value) {
    const bool tsc = e.kind == EventKind::tsc;
    put(buffer_, tsc ? fold(e.value - tsc_) : e.value);
    if (tsc) tsc_ = e.value;
  }
  if (l.bytes) {
    put(buffer_, e.bytes.size());
    buffer_.insert(buffer_.end(), e.bytes.begin(), e.bytes.end());
  }
}

void EventWriter::flush() {
  if (!buffer_.empty()) file_.write(ChunkType::events, buffer_);
  buffer_.clear();
}

// ---- reading ------------------------------------------------------------------------------------

EventReader::EventReader(ChunkReader& file, unsigned vcpus)
    : file_{file}, instructions_(vcpus, 0) {}

std::optional<std::uint64_t> EventReader::byte() {
  if (at_ == buffer_.size()) return std::nullopt;
  return static_cast<std::uint64_t>(buffer_[at_++]);
}

std::optional<std::uint64_t> EventReader::number() {
  std::uint64_t v = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    const auto b = byte();
    if (!b || (shift == 63 && *b > 1)) return std::nullopt;
    v |= (*b & 0x7F) << shift;
    if ((*b & 0x80) == 0) return v;
  }
  return std::nullopt;
}

Result<void> EventReader::decode_one() {
  const auto damaged = [this] {
    return Unexpected{FileError{file_.path() + ": holds an event that is none"}};
  };
  const auto head = byte();
  if (!head || (*head & kKindMask) >= kEventKinds) return damaged();
  Event e;
  e.kind = static_cast<EventKind>(*head & kKindMask);
  e.flag = (*head & kFlag) != 0;
  e.failed = (*head & kFailed) != 0;
  e.vcpu = vcpu_;
  const Layout& l = kLayouts[static_cast<std::size_t>(e.kind)];
  std::optional<std::uint64_t> v = number();
  if (!v) return damaged();
  e.position.instructions = instructions_[vcpu_] += *v;
  if ((*head & kInRep) != 0) {
    if (v = number(); !v) return damaged();
    e.position.rep_remaining = *v;
  }
  if (l.size) {
    if (v = number(); !v || *v == 0 || *v > 8) return damaged();
    e.size = static_cast<std::uint8_t>(*v);
  }
  if (l.address) {
    if (v = number(); !v) return damaged();
    e.address = *v;
  }
  if (l.value) {
    if (v = number(); !v) return damaged();
    e.value = e.kind == EventKind::tsc ? (tsc_ += unfold(*v)) : *v;
  }
  if (l.bytes) {
    if (v = number(); !v || *v > kLongestWrite || *v > buffer_.size() - at_) return damaged();
    const auto from = buffer_.begin() + static_cast<std::ptrdiff_t>(at_);
    e.bytes.assign(from, from + static_cast<std::ptrdiff_t>(*v));
    at_ += *v;
  }
  if ((e.kind == EventKind::interrupt || e.kind == EventKind::startup) && e.value > 0xFF) {
    return damaged();
  }
  if (e.kind == EventKind::turn) {
    if (e.value >= instructions_.size()) return damaged();
    vcpu_ = static_cast<VcpuId>(e.value);
  }
  ended_ = e.kind == EventKind::end;
  if (between_instructions(e.kind)) stops_.push_back(e.position);
  queue_.push_back(std::move(e));
  return {};
}

/// Decodes one more event, from the next chunk if need be.
Result<void> EventReader::fill() {
  if (ended_ || queue_.size() >= kLongestQueue) {
    return Unexpected{FileError{file_.path() + ": holds events beyond its end"}};
  }
  if (at_ == buffer_.size()) {
    auto chunk = file_.next();
    if (!chunk) return Unexpected{chunk.error()};
    if (chunk->type != ChunkType::events) {
      return Unexpected{FileError{file_.path() + ": ends without an end"}};
    }
    buffer_ = std::move(chunk->bytes);
    at_ = 0;
  }
  return decode_one();
}

Result<const Event*> EventReader::front() {
  if (queue_.empty()) {
    if (const auto done = fill(); !done) return Unexpected{done.error()};
  }
  return &queue_.front();
}

Result<engine::VcpuPosition> EventReader::next_stop() {
  while (stops_.empty()) {
    if (const auto done = fill(); !done) return Unexpected{done.error()};
  }
  return stops_.front();
}

void EventReader::pop() {
  if (queue_.empty()) return;
  if (between_instructions(queue_.front().kind)) stops_.pop_front();
  queue_.pop_front();
  ++popped_;
}

Result<nlohmann::json> EventReader::end() {
  if (at_ != buffer_.size()) {
    return Unexpected{FileError{file_.path() + ": holds events beyond its end"}};
  }
  auto chunk = file_.next();
  if (!chunk) return Unexpected{chunk.error()};
  if (chunk->type != ChunkType::end) {
    return Unexpected{FileError{file_.path() + ": has no end"}};
  }
  return parse_cbor(chunk->bytes, file_.path());
}

}  // namespace strata::replay
