#include "network/user_link.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <poll.h>
#include <slirp/libslirp.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "network/dns_redirect.hpp"
#include "network/frame_ring.hpp"
#include "network/wakeup.hpp"

namespace strata::network {

namespace {

/// What a card can send before the thread has run, and what waits for room in the card. libslirp
/// sends again what is lost of TCP.
constexpr std::size_t kFramesOut = 256, kFramesIn = 128;
/// Ethernet, without FCS; shorter frames are padded as hardware does. libslirp looks at the fields
/// of some protocols before it looks at lengths.
constexpr std::size_t kLeastPadded = 60;
constexpr std::size_t kMtu = 1500;

in_addr network_address(std::uint8_t last) noexcept { return {htonl(10U << 24 | 2U << 8 | last)}; }

/// The first IPv4 name server of resolv.conf(5).
std::optional<in_addr> host_name_server() {
  std::ifstream file{"/etc/resolv.conf"};
  for (std::string line; std::getline(file, line);) {
    std::istringstream words{line};
    std::string key, value;
    in_addr address{};
    if (words >> key >> value && key == "nameserver" &&
        ::inet_pton(AF_INET, value.c_str(), &address) == 1) {
      return address;
    }
  }
  return std::nullopt;
}

std::int64_t now_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

short to_poll(int events) noexcept {
  unsigned result = 0;
  if ((events & SLIRP_POLL_IN) != 0) result |= POLLIN;
  if ((events & SLIRP_POLL_OUT) != 0) result |= POLLOUT;
  if ((events & SLIRP_POLL_PRI) != 0) result |= POLLPRI;
  return static_cast<short>(result);
}

int from_poll(short events) noexcept {
  int result = 0;
  if ((events & POLLIN) != 0) result |= SLIRP_POLL_IN;
  if ((events & POLLOUT) != 0) result |= SLIRP_POLL_OUT;
  if ((events & POLLPRI) != 0) result |= SLIRP_POLL_PRI;
  if ((events & POLLERR) != 0) result |= SLIRP_POLL_ERR;
  if ((events & POLLHUP) != 0) result |= SLIRP_POLL_HUP;
  return result;
}

/// A packet that libslirp 4.7 would put together from fragments, which it does not survive with
/// some that a guest can make. `frame` has been padded.
bool is_fragment(std::span<const std::byte> frame) noexcept {
  constexpr std::byte kDontFragment{0x40};
  return frame[12] == std::byte{0x08} && frame[13] == std::byte{0x00} &&
         ((frame[20] & ~kDontFragment) | frame[21]) != std::byte{0};
}

struct Cleanup {
  void operator()(Slirp* slirp) const noexcept { slirp_cleanup(slirp); }
};

/// One of libslirp's; it has none without IPv6, and asks for them all the same in some versions.
struct Timer {
  SlirpTimerCb expired;
  void* argument;
  std::optional<std::int64_t> at_ms;
};

}  // namespace

/// The thread and all that libslirp calls.
class UserLink::Loop {
 public:
  explicit Loop(bool restricted);
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;
  ~Loop();

  [[nodiscard]] Expected<void, LinkError> add(const Forward& forward);
  void start(Receiver& receiver);
  void send(std::span<const iovec> frame) noexcept;
  void wake() noexcept { wakeup_.signal(); }

 private:
  static const SlirpCb kCallbacks;
  static Loop& of(void* opaque) noexcept { return *static_cast<Loop*>(opaque); }
  void run();
  void wait();
  void run_timers();
  void take_frames();
  void deliver(std::span<std::byte> frame);
  void deliver_waiting();
  void* make_timer(SlirpTimerCb expired, void* argument);
  void end_timer(const void* timer);

  Wakeup wakeup_;
  std::atomic<bool> stop_{false};
  FrameRing out_{kFramesOut};
  // The thread's, once there is one.
  FrameRing in_{kFramesIn};
  Receiver* receiver_ = nullptr;
  DnsRedirect dns_;
  std::vector<std::unique_ptr<Timer>> timers_;
  std::vector<pollfd> fds_;
  std::unique_ptr<Slirp, Cleanup> slirp_;
  std::thread thread_;
};

const SlirpCb UserLink::Loop::kCallbacks{
    .send_packet = [](const void* frame, std::size_t length, void* opaque) -> ssize_t {
      std::array<std::byte, kMaxFrameBytes> copy;
      if (length > copy.size()) return -1;
      std::memcpy(copy.data(), frame, length);
      of(opaque).deliver(std::span{copy}.first(length));
      return static_cast<ssize_t>(length);
    },
    .guest_error = [](const char*, void*) {},  // a guest could fill the terminal with them
    .clock_get_ns = [](void*) { return now_ns(); },
    .timer_new = [](SlirpTimerCb expired, void* argument,
                    void* opaque) { return of(opaque).make_timer(expired, argument); },
    .timer_free = [](void* timer, void* opaque) { of(opaque).end_timer(timer); },
    .timer_mod = [](void* timer, std::int64_t at_ms,
                    void*) { static_cast<Timer*>(timer)->at_ms = at_ms; },
    .register_poll_fd = [](int, void*) {},  // each round asks for all descriptors
    .unregister_poll_fd = [](int, void*) {},
    .notify = [](void* opaque) { of(opaque).wake(); },
    .init_completed = nullptr,
    .timer_new_opaque = nullptr,
};

UserLink::Loop::Loop(bool restricted) : dns_{network_address(3), host_name_server()} {
  // GLib puts the time of day into its messages; the time zone is a file.
  ::tzset();
  SlirpConfig config{};
  config.version = 3;
  config.restricted = restricted ? 1 : 0;
  config.in_enabled = true;
  config.vnetwork = network_address(0);
  config.vnetmask = {htonl(0xFFFF'FF00)};
  config.vhost = network_address(2);
  config.vdhcp_start = network_address(15);
  config.vnameserver = network_address(3);
  config.if_mtu = kMtu;
  config.if_mru = kMtu;
  slirp_.reset(slirp_new(&config, &kCallbacks, this));
}

UserLink::Loop::~Loop() {
  stop_ = true;
  wake();
  if (thread_.joinable()) thread_.join();
}

Expected<void, LinkError> UserLink::Loop::add(const Forward& forward) {
  if (slirp_add_hostfwd(slirp_.get(), forward.udp ? 1 : 0, forward.host, forward.host_port,
                        forward.guest, forward.guest_port) == 0) {
    return {};
  }
  const int error = errno;
  std::array<char, INET_ADDRSTRLEN> address{};
  ::inet_ntop(AF_INET, &forward.host, address.data(), address.size());
  return Unexpected{LinkError{fmt::format("hostfwd: cannot listen on {}:{}: {}", address.data(),
                                          forward.host_port, std::strerror(error))}};
}

void UserLink::Loop::start(Receiver& receiver) {
  receiver_ = &receiver;
  thread_ = std::thread{[this] { run(); }};
}

void UserLink::Loop::send(std::span<const iovec> frame) noexcept {
  if (out_.push(frame) == FrameRing::Pushed::first) wake();
}

void UserLink::Loop::run() {
  while (!stop_) {
    wait();
    run_timers();
    deliver_waiting();
    take_frames();
  }
}

/// Sleeps until there is something to do, and lets libslirp do its part of it.
void UserLink::Loop::wait() {
  fds_.assign(1, {wakeup_.fd(), POLLIN, 0});
  std::uint32_t timeout_ms = 1000;
  slirp_pollfds_fill(
      slirp_.get(), &timeout_ms,
      [](int fd, int events, void* opaque) {
        auto& fds = of(opaque).fds_;
        fds.push_back({fd, to_poll(events), 0});
        return static_cast<int>(fds.size() - 1);
      },
      this);
  // While frames wait for the guest no more are made: nothing is read from sockets.
  const bool held = !in_.front().empty();
  const int ready = ::poll(fds_.data(), held ? 1 : fds_.size(), static_cast<int>(timeout_ms));
  if (fds_[0].revents != 0) wakeup_.clear();
  slirp_pollfds_poll(
      slirp_.get(), ready < 0 ? 1 : 0,
      [](int index, void* opaque) {
        return from_poll(of(opaque).fds_[static_cast<std::size_t>(index)].revents);
      },
      this);
}

void UserLink::Loop::run_timers() {
  const std::int64_t now_ms = now_ns() / 1'000'000;
  for (std::size_t i = 0; i < timers_.size(); ++i) {
    Timer& timer = *timers_[i];
    if (!timer.at_ms || *timer.at_ms > now_ms) continue;
    timer.at_ms.reset();
    timer.expired(timer.argument);
  }
}

/// Frames of the guest, no more of them at once than the ring holds.
void UserLink::Loop::take_frames() {
  for (std::size_t i = 0; i < kFramesOut; ++i) {
    const std::span<std::byte> frame = out_.front();
    if (frame.empty()) return;
    std::array<std::byte, kMaxFrameBytes> padded{};
    const std::size_t length = std::max(frame.size(), kLeastPadded);
    std::ranges::copy(frame, padded.begin());
    out_.pop();
    const std::span sent = std::span{padded}.first(length);
    if (is_fragment(sent) || !dns_.outgoing(sent)) continue;
    slirp_input(slirp_.get(), reinterpret_cast<const std::uint8_t*>(padded.data()),
                static_cast<int>(length));
  }
  wake();  // the one who pushed last found the ring not empty
}

void UserLink::Loop::deliver(std::span<std::byte> frame) {
  if (receiver_ == nullptr) return;
  dns_.incoming(frame);
  if (in_.front().empty() && receiver_->receive(frame)) return;
  const iovec whole{frame.data(), frame.size()};
  in_.push({&whole, 1});
}

void UserLink::Loop::deliver_waiting() {
  for (;;) {
    const std::span<std::byte> frame = in_.front();
    if (frame.empty() || !receiver_->receive(frame)) return;
    in_.pop();
  }
}

void* UserLink::Loop::make_timer(SlirpTimerCb expired, void* argument) {
  timers_.push_back(std::make_unique<Timer>(Timer{expired, argument, std::nullopt}));
  return timers_.back().get();
}

void UserLink::Loop::end_timer(const void* timer) {
  std::erase_if(timers_, [timer](const auto& one) { return one.get() == timer; });
}

UserLink::UserLink(std::unique_ptr<Loop> loop) : loop_{std::move(loop)} {}

UserLink::~UserLink() = default;

Expected<std::unique_ptr<UserLink>, LinkError> UserLink::open(const UserOptions& options) {
  auto loop = std::make_unique<Loop>(options.restricted);
  for (const Forward& forward : options.forwards) {
    if (const auto done = loop->add(forward); !done) return Unexpected{done.error()};
  }
  return std::unique_ptr<UserLink>{new UserLink{std::move(loop)}};
}

void UserLink::start(Receiver& receiver) { loop_->start(receiver); }

void UserLink::send(std::span<const iovec> frame) noexcept { loop_->send(frame); }

void UserLink::resume() noexcept { loop_->wake(); }

}  // namespace strata::network
