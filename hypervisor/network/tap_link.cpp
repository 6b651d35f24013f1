#include "network/tap_link.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>

#include "network/frame_ring.hpp"

namespace strata::network {

namespace {

std::string reason(int error, const std::string& interface) {
  switch (error) {
    case EPERM:
      return fmt::format(
          "not allowed; 'ip tuntap add {} mode tap user $USER' as root makes one "
          "for you",
          interface);
    case EBUSY:
      return "another program uses it";
    case EINVAL:
      return "not a TAP interface";
    default:
      return std::strerror(error);
  }
}

}  // namespace

Expected<std::unique_ptr<TapLink>, LinkError> TapLink::open(const std::string& interface) {
  const auto failed = [](std::string text) { return Unexpected{LinkError{std::move(text)}}; };
  // Attaching to a name that is not there would make an interface that ends with the process.
  if (::if_nametoindex(interface.c_str()) == 0) {
    return failed(
        fmt::format("tap={0}: the host has no such interface; 'ip tuntap add {0} mode "
                    "tap' makes one",
                    interface));
  }
  machine::FileDescriptor tap{::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK)};
  if (!tap.valid()) return failed(fmt::format("/dev/net/tun: {}", std::strerror(errno)));
  ifreq request{};
  interface.copy(request.ifr_name, IFNAMSIZ - 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  if (::ioctl(tap.get(), TUNSETIFF, &request) != 0) {
    return failed(fmt::format("tap={}: {}", interface, reason(errno, interface)));
  }
  return std::unique_ptr<TapLink>{new TapLink{std::move(tap)}};
}

TapLink::~TapLink() {
  stop_ = true;
  wakeup_.signal();
  if (thread_.joinable()) thread_.join();
}

void TapLink::start(Receiver& receiver) {
  thread_ = std::thread{[this, &receiver] { run(receiver); }};
}

/// A full queue of the host, or an interface that is down, drops the frame.
void TapLink::send(std::span<const iovec> frame) noexcept {
  const std::size_t length = length_of(frame);
  if (length < kMinFrameBytes || length > kMaxFrameBytes || frame.size() > IOV_MAX) return;
  [[maybe_unused]] const ssize_t written =
      ::writev(tap_.get(), frame.data(), static_cast<int>(frame.size()));
}

void TapLink::resume() noexcept { wakeup_.signal(); }

void TapLink::run(Receiver& receiver) {
  // One byte more than a frame may have: the host cuts off what does not fit.
  std::array<std::byte, kMaxFrameBytes + 1> frame{};
  std::size_t held = 0;  // bytes in `frame` that the receiver had no room for
  while (!stop_) {
    std::array<pollfd, 2> fds{{{wakeup_.fd(), POLLIN, 0}, {tap_.get(), POLLIN, 0}}};
    if (::poll(fds.data(), held == 0 ? 2 : 1, -1) < 0 && errno != EINTR) return;
    if (fds[0].revents != 0) wakeup_.clear();
    if ((fds[1].revents & (POLLERR | POLLHUP | POLLNVAL)) != 0) return;  // removed from the host
    if (held != 0 && !receiver.receive(std::span{frame}.first(held))) continue;
    held = 0;
    read_frames(receiver, frame, held);
  }
}

void TapLink::read_frames(Receiver& receiver, std::span<std::byte> frame, std::size_t& held) {
  constexpr unsigned kMostAtOnce = 64;
  for (unsigned i = 0; i < kMostAtOnce && !stop_; ++i) {
    const ssize_t got = ::read(tap_.get(), frame.data(), frame.size());
    if (got <= 0) return;
    const auto length = static_cast<std::size_t>(got);
    if (length < kMinFrameBytes || length > kMaxFrameBytes) continue;
    if (receiver.receive(frame.first(length))) continue;
    held = length;
    return;
  }
}

}  // namespace strata::network
