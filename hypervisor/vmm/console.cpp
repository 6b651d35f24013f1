#include "vmm/console.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

namespace strata::vmm {

namespace {

constexpr char kEscape = 0x01;  // Ctrl-A
constexpr std::string_view kEscapeHelp =
    "\r\nCtrl-A x  quit\r\nCtrl-A a  send Ctrl-A to the guest\r\nCtrl-A h  this help\r\n";

void write_all(int fd, const void* data, std::size_t size) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = ::write(fd, at, size);
    if (n > 0) {
      at += n;
      size -= static_cast<std::size_t>(n);
    } else if (errno == EAGAIN) {
      pollfd ready{.fd = fd, .events = POLLOUT, .revents = 0};
      if (::poll(&ready, 1, 1000) <= 0) return;
    } else if (errno != EINTR) {
      return;
    }
  }
}

}  // namespace

Expected<std::unique_ptr<Console>, ConfigError> Console::open(const std::string& target) {
  if (target == "stdio") return std::unique_ptr<Console>{new Console{STDOUT_FILENO, false, true}};
  if (target == "null") return std::unique_ptr<Console>{new Console{-1, false, false}};
  const int fd = ::open(target.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) {
    return Unexpected{ConfigError{
        fmt::format("--serial: cannot write {}: {}; use stdio, null or a file that can be written",
                    target, std::strerror(errno))}};
  }
  return std::unique_ptr<Console>{new Console{fd, true, false}};
}

Console::Console(int output, bool owned, bool input)
    : output_{output}, owned_{owned}, input_{input} {
  if (input_) wake_ = ::eventfd(0, EFD_CLOEXEC);
  terminal_ = input_ && ::isatty(STDIN_FILENO) == 1;
  winsize window{};
  if (input_ && ::ioctl(output_, TIOCGWINSZ, &window) == 0 && window.ws_col != 0 &&
      window.ws_row != 0) {
    size_ = {.columns = window.ws_col, .rows = window.ws_row};
  }
}

Console::~Console() {
  stop_input();
  if (saved_) ::tcsetattr(STDIN_FILENO, TCSADRAIN, &*saved_);
  if (wake_ >= 0) ::close(wake_);
  if (owned_) ::close(output_);
}

void Console::enter_raw_mode() {
  termios now{};
  if (!terminal_ || ::tcgetattr(STDIN_FILENO, &now) != 0) return;
  saved_ = now;
  ::cfmakeraw(&now);
  now.c_oflag |= OPOST;  // our own messages keep their line ends
  ::tcsetattr(STDIN_FILENO, TCSADRAIN, &now);
}

void Console::put(std::span<const std::uint8_t> bytes) {
  if (output_ >= 0) write_all(output_, bytes.data(), bytes.size());
}

void Console::start_input(devices::CharInput& guest, std::function<void()> quit) {
  if (!input_ || wake_ < 0) return;
  enter_raw_mode();
  guest.on_room([this] {
    const std::uint64_t one = 1;
    write_all(wake_, &one, sizeof one);
  });
  thread_ = std::thread{[this, &guest, quit = std::move(quit)] { input_loop(guest, quit); }};
}

void Console::stop_input() {
  if (!thread_.joinable()) return;
  stop_ = true;
  const std::uint64_t one = 1;
  write_all(wake_, &one, sizeof one);
  thread_.join();
}

void Console::input_loop(devices::CharInput& guest, const std::function<void()>& quit) {
  std::array<char, 512> buffer{};
  while (!stop_) {
    std::array<pollfd, 2> ready{pollfd{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0},
                                pollfd{.fd = wake_, .events = POLLIN, .revents = 0}};
    if (::poll(ready.data(), ready.size(), -1) < 0) continue;
    if (ready[1].revents != 0) {
      std::uint64_t count = 0;
      if (::read(wake_, &count, sizeof count) < 0) return;
      continue;
    }
    const ssize_t n = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) return;  // the guest runs on
    if (n < 0) continue;
    offer(guest, filter_escapes({buffer.data(), static_cast<std::size_t>(n)}, quit));
  }
}

std::string Console::filter_escapes(std::string_view bytes, const std::function<void()>& quit) {
  if (!terminal_) return std::string{bytes};
  std::string kept;
  for (const char c : bytes) {
    if (!escaped_) {
      if (c == kEscape) {
        escaped_ = true;
      } else {
        kept += c;
      }
      continue;
    }
    escaped_ = false;
    if (c == 'x' || c == 'X') quit();
    if (c == 'a' || c == kEscape) kept += kEscape;
    if (c == 'h' || c == '?') write_all(output_, kEscapeHelp.data(), kEscapeHelp.size());
  }
  return kept;
}

/// Hands everything over, waiting for room when the guest is slow to read.
void Console::offer(devices::CharInput& guest, std::string_view bytes) {
  while (!bytes.empty() && !stop_) {
    const std::span<const std::uint8_t> view{reinterpret_cast<const std::uint8_t*>(bytes.data()),
                                             bytes.size()};
    bytes.remove_prefix(guest.receive(view));
    if (bytes.empty()) return;
    std::uint64_t count = 0;
    if (::read(wake_, &count, sizeof count) < 0) return;
  }
}

}  // namespace strata::vmm
