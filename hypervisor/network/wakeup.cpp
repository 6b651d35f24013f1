#include "network/wakeup.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

namespace strata::network {

Wakeup::Wakeup() : event_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)} {
  if (!event_.valid()) throw std::system_error{errno, std::generic_category(), "eventfd"};
}

void Wakeup::signal() noexcept {
  const std::uint64_t one = 1;
  // Fails only when the count is at its end, and then it is readable already.
  [[maybe_unused]] const ssize_t written = ::write(event_.get(), &one, sizeof one);
}

void Wakeup::clear() noexcept {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(event_.get(), &count, sizeof count);
}

}  // namespace strata::network
