#include "devices/virtio/block.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>
#include <utility>

#include "devices/device_state.hpp"

namespace strata::devices::virtio {

using storage::Operation;
using storage::Status;

namespace {

constexpr std::uint16_t kQueueSize = 256;
constexpr std::array<std::uint16_t, 1> kQueueSizes{kQueueSize};

// Feature bits (5.2.3).
constexpr std::uint64_t kSizeMax = 1U << 1, kSegMax = 1U << 2, kReadOnly = 1U << 5,
                        kBlockSize = 1U << 6, kFlush = 1U << 9, kDiscard = 1U << 13,
                        kWriteZeroes = 1U << 14;
// Requests and how they end (5.2.6).
enum Type : std::uint32_t {
  kIn = 0,
  kOut = 1,
  kFlushRequest = 4,
  kGetId = 8,
  kDiscardRequest = 11,
  kWriteZeroesRequest = 13
};
constexpr std::uint8_t kOk = 0, kIoError = 1, kUnsupported = 2;

/// Header and status byte take a descriptor each.
constexpr std::uint32_t kMostSegments = kQueueSize - 2, kMostSegmentBytes = 4U << 20;
constexpr std::uint32_t kMostRangeSectors = 1U << 21;
/// Of copies in flight, together.
constexpr std::uint64_t kMostCopied = 64U << 20;
constexpr std::uint64_t kMostSectors = ~0ULL / storage::kSectorBytes;

struct Header {
  std::uint32_t type = 0;
  std::uint32_t reserved = 0;
  std::uint64_t sector = 0;
};

/// struct virtio_blk_discard_write_zeroes.
struct Range {
  std::uint64_t sector = 0;
  std::uint32_t sectors = 0;
  std::uint32_t flags = 0;
};
constexpr std::uint32_t kUnmap = 1;

/// struct virtio_blk_config (5.2.4); fields of features that are not offered stay 0.
struct Config {
  std::uint64_t capacity = 0;
  std::uint32_t size_max = kMostSegmentBytes;
  std::uint32_t seg_max = kMostSegments;
  std::array<std::uint8_t, 4> geometry{};
  std::uint32_t blk_size = storage::kSectorBytes;
  std::array<std::uint8_t, 12> topology_and_cache{};
  std::uint32_t max_discard_sectors = 0;
  std::uint32_t max_discard_seg = 0;
  std::uint32_t discard_sector_alignment = 0;
  std::uint32_t max_write_zeroes_sectors = 0;
  std::uint32_t max_write_zeroes_seg = 0;
  std::array<std::uint8_t, 4> write_zeroes_may_unmap{};
};
static_assert(sizeof(Config) == 64 - 4 + 4);

template <class T>
bool read_object(const Chain& chain, machine::GuestMemory& memory, std::uint64_t offset, T& out) {
  return chain.read(memory, offset, std::as_writable_bytes(std::span{&out, 1}));
}

std::uint64_t features_of(const storage::Disk& disk) {
  std::uint64_t features = kSizeMax | kSegMax | kBlockSize | kFlush;
  if (disk.read_only()) return features | kReadOnly;
  features |= kWriteZeroes;
  return disk.discards() ? features | kDiscard : features;
}

std::uint8_t status_of(Status status) noexcept {
  if (status == Status::ok) return kOk;
  return status == Status::unsupported ? kUnsupported : kIoError;
}

}  // namespace

/// One chain on its way, and what it holds in place.
class Block::Request final : public storage::Completion {
 public:
  explicit Request(Block& owner) noexcept : owner_{owner} {}
  void completed(Status status) noexcept override;

  /// It has a header and room for a status.
  [[nodiscard]] bool whole() const noexcept {
    return chain.readable_bytes() >= sizeof(Header) && chain.writable_bytes() >= 1;
  }
  /// `then_flush`: the disk's cache is written as well before it is over.
  void submit(const storage::Request& request, bool then_flush);

  Chain chain;
  PinnedBuffers buffers;
  std::vector<std::byte> copy;  ///< instead of `buffers`, where those could not be held
  std::uint64_t written = 0;    ///< bytes of data that the driver will find if it goes well
  std::thread::id submitter;

 private:
  Block& owner_;
  bool then_flush_ = false;
};

void Block::Request::submit(const storage::Request& request, bool then_flush) {
  then_flush_ = then_flush;
  owner_.disk_->submit(request, *this);
}

void Block::Request::completed(Status status) noexcept {
  if (status == Status::ok && std::exchange(then_flush_, false)) {
    owner_.disk_->submit({.operation = Operation::flush}, *this);
    return;
  }
  owner_.finish(*this, status_of(status));
}

Block::Block(std::unique_ptr<storage::Disk> disk, std::string id)
    : disk_{std::move(disk)}, id_{std::move(id)}, features_{features_of(*disk_)} {
  Config config;
  config.capacity = disk_->bytes() / storage::kSectorBytes;
  if ((features_ & kDiscard) != 0) {
    config.max_discard_sectors = kMostRangeSectors;
    config.max_discard_seg = 1;
    config.discard_sector_alignment = 8;
  }
  if ((features_ & kWriteZeroes) != 0) {
    config.max_write_zeroes_sectors = kMostRangeSectors;
    config.max_write_zeroes_seg = 1;
    config.write_zeroes_may_unmap[0] = 1;
  }
  const auto bytes = std::as_bytes(std::span{&config, 1});
  config_.assign(bytes.begin(), bytes.end());
  for (unsigned i = 0; i < kQueueSize; ++i) {
    requests_.push_back(std::make_unique<Request>(*this));
    free_.push_back(requests_.back().get());
  }
}

Block::~Block() = default;

std::span<const std::uint16_t> Block::queue_sizes() const noexcept { return kQueueSizes; }

void Block::read_config(unsigned offset, std::span<std::byte> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = offset + i < config_.size() ? config_[offset + i] : std::byte{0};
  }
}

// ---- the device's life --------------------------------------------------------------------------

void Block::activate(Transport& transport, std::uint64_t features, std::span<Queue* const> queues) {
  transport_ = &transport;
  queue_ = queues[0];
  negotiated_ = features;
}

void Block::quiesce() {
  if (queue_ == nullptr) return;
  disk_->kick();
  disk_->drain();
  announce();
}

void Block::reset() {
  if (queue_ == nullptr) return;
  disk_->kick();
  disk_->drain();
  queue_ = nullptr;
  transport_ = nullptr;
  negotiated_ = 0;
  unannounced_ = false;
}

template <class Archive>
void Block::fields(Archive& a) {
  std::uint64_t bytes = disk_->bytes();
  bool read_only = disk_->read_only();
  a("bytes", bytes);
  a.require("bytes", bytes == disk_->bytes());
  a("read_only", read_only);
  a.require("read_only", read_only == disk_->read_only());
}

nlohmann::json Block::save() {
  StateWriter writer;
  fields(writer);
  return std::move(writer).take();
}

StateResult Block::load(const nlohmann::json& state) {
  StateReader reader{state, "disk"};
  fields(reader);
  return reader.result();
}

// ---- requests -----------------------------------------------------------------------------------

/// Null: more are in flight than a queue has entries, which no driver can ask for.
Block::Request* Block::take_request() {
  const std::lock_guard lock{mutex_};
  if (free_.empty()) return nullptr;
  Request* request = free_.back();
  free_.pop_back();
  return request;
}

void Block::give_back(Request& request) {
  const std::lock_guard lock{mutex_};
  free_.push_back(&request);
}

void Block::notify(unsigned /*index*/) {
  for (;;) {
    Request* request = take_request();
    const Queue::Popped popped =
        request == nullptr ? Queue::Popped::broken : queue_->pop(request->chain);
    if (popped != Queue::Popped::chain) {
      if (request != nullptr) give_back(*request);
      if (popped == Queue::Popped::broken) transport_->failed();
      break;
    }
    request->submitter = std::this_thread::get_id();
    request->written = 0;
    if (!begin(*request)) {
      give_back(*request);
      transport_->failed();
      break;
    }
  }
  disk_->kick();
  announce();
}

/// One interrupt for all that was pushed by threads inside notify().
void Block::announce() {
  if (unannounced_.exchange(false) && queue_->wants_interrupt()) transport_->used(0);
}

bool Block::begin(Request& request) {
  Header header;
  if (!request.whole() || !read_object(request.chain, queue_->memory(), 0, header)) return false;
  switch (header.type) {
    case kIn:
    case kOut:
      transfer(request, header.type == kIn, header.sector);
      return true;
    case kFlushRequest:
      request.submit({.operation = Operation::flush}, false);
      return true;
    case kGetId:
      answer_id(request);
      return true;
    case kDiscardRequest:
    case kWriteZeroesRequest:
      change_range(request, header.type == kDiscardRequest);
      return true;
    default:
      finish(request, kUnsupported);
      return true;
  }
}

/// Without FLUSH the driver takes a write that is over for one that lasts (5.2.6.2).
void Block::transfer(Request& request, bool in, std::uint64_t sector) {
  const Chain& chain = request.chain;
  const std::uint64_t length =
      in ? chain.writable_bytes() - 1 : chain.readable_bytes() - sizeof(Header);
  if (length > kMostBytes || sector > kMostSectors) return finish(request, kIoError);
  const Chain::Held held =
      in ? chain.pin_writable(queue_->memory(), 0, length, request.buffers)
         : chain.pin_readable(queue_->memory(), sizeof(Header), length, request.buffers);
  if (held == Chain::Held::no || (held == Chain::Held::busy && !copy(request, in, length))) {
    return finish(request, kIoError);
  }
  request.written = in ? length : 0;
  request.submit({.operation = in ? Operation::read : Operation::write,
                  .offset = sector * storage::kSectorBytes,
                  .length = length,
                  .buffers = request.buffers.vectors},
                 !in && (negotiated_ & kFlush) == 0);
}

/// The data goes by way of a copy: more buffers in one page, say, than it can have pins.
bool Block::copy(Request& request, bool in, std::uint64_t length) {
  request.buffers.clear();
  if (copied_.fetch_add(length) + length > kMostCopied) {
    copied_ -= length;
    return false;
  }
  request.copy.resize(length);
  request.buffers.vectors.push_back({request.copy.data(), request.copy.size()});
  return in || request.chain.read(queue_->memory(), sizeof(Header), request.copy);
}

void Block::change_range(Request& request, bool discard) {
  const std::uint64_t feature = discard ? kDiscard : kWriteZeroes;
  if ((negotiated_ & feature) == 0) return finish(request, kUnsupported);
  Range range;
  const Chain& chain = request.chain;
  if (chain.readable_bytes() != sizeof(Header) + sizeof(range) ||
      !read_object(chain, queue_->memory(), sizeof(Header), range)) {
    return finish(request, kIoError);
  }
  if ((range.flags & ~(discard ? 0 : kUnmap)) != 0) return finish(request, kUnsupported);
  if (range.sectors > kMostRangeSectors || range.sector > kMostSectors) {
    return finish(request, kIoError);
  }
  request.submit({.operation = discard ? Operation::discard : Operation::write_zeroes,
                  .offset = range.sector * storage::kSectorBytes,
                  .length = range.sectors * storage::kSectorBytes,
                  .unmap = (range.flags & kUnmap) != 0},
                 (negotiated_ & kFlush) == 0);
}

void Block::answer_id(Request& request) {
  std::array<std::byte, kIdBytes> answer{};
  std::memcpy(answer.data(), id_.data(), std::min(id_.size(), answer.size()));
  if (request.chain.writable_bytes() < kIdBytes + 1 ||
      !request.chain.write(queue_->memory(), 0, answer)) {
    return finish(request, kIoError);
  }
  request.written = kIdBytes;
  finish(request, kOk);
}

/// The status byte is the last the device writes (5.2.6); data before it.
void Block::finish(Request& request, std::uint8_t status) {
  const Chain& chain = request.chain;
  if (!request.copy.empty()) {
    if (status == kOk && request.written != 0 && !chain.write(queue_->memory(), 0, request.copy)) {
      status = kIoError;
    }
    copied_ -= request.copy.size();
    request.copy = {};
  }
  request.buffers.clear();  // the listeners hear of data that was read into guest memory
  const std::array<std::byte, 1> byte{std::byte{status}};
  if (!chain.write(queue_->memory(), chain.writable_bytes() - 1, byte)) transport_->failed();
  const std::uint64_t written = status == kOk ? request.written + 1 : 1;
  const std::uint16_t head = chain.head();
  const bool own = request.submitter == std::this_thread::get_id();
  give_back(request);
  queue_->push(head, static_cast<std::uint32_t>(written));
  unannounced_ = true;
  if (!own) announce();
}

}  // namespace strata::devices::virtio
