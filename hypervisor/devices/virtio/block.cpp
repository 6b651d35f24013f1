#include "devices/virtio/block.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

namespace strata::devices::virtio {

namespace {

// Feature bits (5.2.3).
constexpr std::uint64_t kSegMax = 1ULL << 2, kReadOnly = 1ULL << 5, kBlockSize = 1ULL << 6,
                        kFlush = 1ULL << 9, kDiscard = 1ULL << 13, kWriteZeroes = 1ULL << 14;

// Request types and their ends (5.2.6).
constexpr std::uint32_t kIn = 0, kOut = 1, kFlushType = 4, kGetId = 8, kDiscardType = 11,
                        kWriteZeroesType = 13;
constexpr std::uint8_t kOk = 0, kIoError = 1, kUnsupported = 2;

constexpr std::size_t kHeaderBytes = 16;
/// Sectors of the longest discard or write of zeroes: 1 GiB.
constexpr std::uint32_t kMaxSectors = 1U << 21;
/// Parts of a request besides its header and status, which the driver is told.
constexpr std::uint32_t kMaxSegments = Block::kQueueSize - 2;

/// The configuration (5.2.4), up to write_zeroes_may_unmap.
struct Config {
  std::uint64_t capacity = 0;
  std::uint32_t size_max = 0, seg_max = kMaxSegments;
  std::uint32_t geometry = 0, block_size = 512;
  std::uint64_t topology = 0;
  std::uint8_t writeback = 0, unused0 = 0;
  std::uint16_t queues = 1;
  std::uint32_t discard_sectors = kMaxSectors, discard_segments = 1, discard_alignment = 8;
  std::uint32_t zero_sectors = kMaxSectors, zero_segments = 1;
  std::uint8_t zero_may_unmap = 1;
  std::array<std::uint8_t, 3> unused1{};
};
static_assert(sizeof(Config) <= 64 && offsetof(Config, zero_may_unmap) == 56);

/// A discard's or zeroing's range (5.2.6).
struct Range {
  std::uint64_t sector = 0;
  std::uint32_t sectors = 0, flags = 0;
};
static_assert(sizeof(Range) == 16);

struct Header {
  std::uint32_t type = 0, reserved = 0;
  std::uint64_t sector = 0;
};
static_assert(sizeof(Header) == kHeaderBytes);

std::uint64_t features_of(const storage::Disk& disk) {
  std::uint64_t bits = kSegMax | kBlockSize | kFlush;
  if (disk.read_only()) return bits | kReadOnly;
  bits |= kWriteZeroes;
  return disk.discards() ? bits | kDiscard : bits;
}

std::uint8_t status_of(storage::Status status) {
  switch (status) {
    case storage::Status::ok:
      return kOk;
    case storage::Status::unsupported:
      return kUnsupported;
    default:
      return kIoError;
  }
}

/// Bytes of a sector number; beyond every disk where that is more than 64 bits.
std::uint64_t offset_of(std::uint64_t sector) {
  return sector > ~0ULL / storage::kSectorBytes ? ~0ULL - storage::kSectorBytes + 1
                                                : sector * storage::kSectorBytes;
}

}  // namespace

/// One request from its buffer to its status byte.
class Block::Request final : public storage::Completion {
 public:
  Request(Block& owner, Chain chain) : owner_{owner}, chain_{std::move(chain)} {}
  void completed(storage::Status status) noexcept override {
    owner_.finish(*this, status_of(status));
  }

  /// Reads the header and makes what the disk is to do of it. A status: answered already.
  std::optional<std::uint8_t> prepare(machine::GuestMemory& memory, std::string_view serial) {
    const std::uint64_t writable = total_length(chain_.writable);
    Header header;
    const auto bytes = std::as_writable_bytes(std::span{&header, 1});
    if (copy_out(memory, chain_.readable, bytes) != kHeaderBytes) return kIoError;
    const auto in = slice(chain_.writable, 0, writable - 1);
    const auto out = slice(chain_.readable, kHeaderBytes, ~0ULL);
    to_disk.offset = offset_of(header.sector);
    switch (header.type) {
      case kIn:
        to_disk.operation = storage::Operation::read;
        written_ = static_cast<std::uint32_t>(writable - 1);
        return pin(memory, in, AccessKind::write);
      case kOut:
        to_disk.operation = storage::Operation::write;
        return pin(memory, out, AccessKind::read);
      case kFlushType:
        to_disk.operation = storage::Operation::flush;
        return std::nullopt;
      case kGetId:
        return identify(memory, in, serial);
      case kDiscardType:
      case kWriteZeroesType:
        return range(memory, out, header.type == kDiscardType);
      default:
        return kUnsupported;
    }
  }

  /// Lets the memory go, writes the status; how much was written, for the used ring.
  std::uint32_t conclude(machine::GuestMemory& memory, std::uint8_t status) {
    // Stores of a device are announced when their pins go.
    pins_.clear();
    for (const Bounce& b : bounces_) {
      const bool copied = !b.back || status != kOk || copy_in(memory, {&b.segment, 1}, b.bytes);
      if (!copied) status = kIoError;
    }
    const auto byte = static_cast<std::byte>(status);
    const auto last = slice(chain_.writable, total_length(chain_.writable) - 1, 1);
    (void)copy_in(memory, last, {&byte, 1});
    return status == kOk ? written_ + 1 : 1;
  }

  [[nodiscard]] std::uint16_t head() const noexcept { return chain_.head; }

  storage::Request to_disk{};
  std::list<Request>::iterator place{};  ///< in the owner's list

 private:
  std::optional<std::uint8_t> pin(machine::GuestMemory& memory, std::span<const Segment> segments,
                                  AccessKind kind) {
    for (const Segment& s : segments) {
      to_disk.length += s.length;
      auto pinned = memory.pin(machine::kIdentitySpace, s.address, s.length, kind);
      if (!pinned && pinned.error().kind == FaultKind::retry) {
        if (!bounce(memory, s, kind)) return kIoError;
        continue;
      }
      if (!pinned) return kIoError;
      for (const std::span<std::byte> chunk : pinned->chunks()) {
        buffers_.push_back({chunk.data(), chunk.size()});
      }
      pins_.push_back(std::move(*pinned));
    }
    to_disk.buffers = buffers_;
    return std::nullopt;
  }

  /// Goes through memory of our own: the page has as many pins as it can have (a page of zeroes
  /// that is written over and over), or is being moved.
  bool bounce(machine::GuestMemory& memory, const Segment& segment, AccessKind kind) {
    Bounce& b = bounces_.emplace_back();
    b.segment = segment;
    b.bytes.resize(segment.length);
    buffers_.push_back({b.bytes.data(), b.bytes.size()});
    b.back = kind == AccessKind::write;
    return b.back || copy_out(memory, {&segment, 1}, b.bytes) == segment.length;
  }

  std::uint8_t identify(machine::GuestMemory& memory, std::span<const Segment> in,
                        std::string_view serial) {
    std::array<std::byte, kSerialBytes> text{};
    std::memcpy(text.data(), serial.data(), std::min(serial.size(), text.size()));
    const auto copied = copy_in(memory, in, text);
    written_ = static_cast<std::uint32_t>(copied.value_or(0));
    return copied ? kOk : kIoError;
  }

  std::optional<std::uint8_t> range(machine::GuestMemory& memory, std::span<const Segment> out,
                                    bool discard) {
    Range r;
    const auto bytes = std::as_writable_bytes(std::span{&r, 1});
    if (total_length(out) != sizeof r || copy_out(memory, out, bytes) != sizeof r) return kIoError;
    // Unmap is the one flag, and a discard has none (5.2.6.2).
    const std::uint32_t known = discard ? 0 : 1;
    if ((r.flags & ~known) != 0) return kUnsupported;
    if (r.sectors > kMaxSectors) return kIoError;
    to_disk.operation = discard ? storage::Operation::discard : storage::Operation::write_zeroes;
    to_disk.offset = offset_of(r.sector);
    to_disk.length = std::uint64_t{r.sectors} * storage::kSectorBytes;
    to_disk.unmap = (r.flags & 1) != 0;
    return std::nullopt;
  }

  struct Bounce {
    Segment segment;
    std::vector<std::byte> bytes;
    bool back = false;  ///< to guest memory, once it was read from the disk
  };

  Block& owner_;
  const Chain chain_;
  std::vector<Bounce> bounces_;
  std::vector<machine::Pin> pins_;
  std::vector<iovec> buffers_;
  std::uint32_t written_ = 0;
};

Block::Block(storage::Disk& disk, std::string serial)
    : disk_{disk},
      serial_{std::move(serial)},
      traits_{.type = 2,
              .class_code = 0x010000,
              .features = features_of(disk),
              .queue_sizes = {kQueueSize}} {
  Config config;
  config.capacity = disk.bytes() / storage::kSectorBytes;
  std::memcpy(config_.data(), &config, sizeof config);
}

Block::~Block() { reset(); }

void Block::read_config(std::uint64_t offset, std::span<std::byte> out) {
  std::ranges::fill(out, std::byte{0});
  if (offset >= config_.size()) return;
  const auto n = std::min<std::size_t>(out.size(), config_.size() - offset);
  std::memcpy(out.data(), config_.data() + offset, n);
}

void Block::activate(Transport& transport, std::uint64_t /*features*/) {
  const std::lock_guard lock{mutex_};
  transport_ = &transport;
}

Block::Request* Block::next() {
  const std::lock_guard lock{mutex_};
  if (transport_ == nullptr || pausing_) return nullptr;
  auto chain = transport_->queue(0).pop();
  // A request without room for its status can not be answered at all (5.2.6).
  if (!chain || (*chain && total_length((*chain)->writable) == 0)) {
    transport_->needs_reset();
    return nullptr;
  }
  if (!*chain) return nullptr;
  requests_.emplace_front(*this, std::move(**chain));
  requests_.front().place = requests_.begin();
  return &requests_.front();
}

void Block::notify(unsigned /*queue*/) {
  {
    const std::lock_guard lock{mutex_};
    if (transport_ == nullptr) return;
    ++notifiers_;
  }
  while (Request* const request = next()) submit(*request);
  disk_.kick();
  const std::lock_guard lock{mutex_};
  if (--notifiers_ == 0 && transport_ != nullptr && std::exchange(interrupt_due_, false)) {
    if (transport_->queue(0).wants_interrupt()) transport_->interrupt(0);
  }
  if (requests_.empty() && notifiers_ == 0) quiet_.notify_all();
}

/// No lock is held: the disk may complete the request before this returns.
void Block::submit(Request& request) {
  machine::GuestMemory* memory = nullptr;
  {
    const std::lock_guard lock{mutex_};
    memory = &transport_->memory();
  }
  if (const auto status = request.prepare(*memory, serial_)) {
    finish(request, *status);
  } else {
    disk_.submit(request.to_disk, request);
  }
}

void Block::finish(Request& request, std::uint8_t status) {
  Requests done;  // destroyed without the lock
  const std::lock_guard lock{mutex_};
  give_back(request, status, done);
  if (notifiers_ == 0 && std::exchange(interrupt_due_, false)) {
    if (transport_->queue(0).wants_interrupt()) transport_->interrupt(0);
  }
  if (requests_.empty() && notifiers_ == 0) quiet_.notify_all();
}

/// A device that is reset waits for this: there is a transport while a request is listed.
void Block::give_back(Request& request, std::uint8_t status, Requests& done) {
  const std::uint32_t written = request.conclude(transport_->memory(), status);
  if (!transport_->queue(0).push(request.head(), written)) transport_->needs_reset();
  interrupt_due_ = true;
  done.splice(done.begin(), requests_, request.place);
}

void Block::wait_until_quiet(std::unique_lock<std::mutex>& lock) {
  pausing_ = true;
  quiet_.wait(lock, [this] { return requests_.empty() && notifiers_ == 0; });
  pausing_ = false;
}

void Block::quiesce() {
  std::unique_lock lock{mutex_};
  wait_until_quiet(lock);
}

void Block::reset() {
  std::unique_lock lock{mutex_};
  wait_until_quiet(lock);
  transport_ = nullptr;
  interrupt_due_ = false;
}

nlohmann::json Block::save() {
  return {{"bytes", disk_.bytes()}, {"read_only", disk_.read_only()}};
}

StateResult Block::load(const nlohmann::json& state) {
  if (state == save()) return {};
  return Unexpected{StateError{"virtio-blk: the disk is not of the size and kind that was saved"}};
}

}  // namespace strata::devices::virtio
