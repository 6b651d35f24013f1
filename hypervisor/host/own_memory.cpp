#include "host/own_memory.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <sstream>
#include <string>

namespace strata::host {

namespace {

machine::FileDescriptor open_to_read(const char* path) {
  return machine::FileDescriptor{::open(path, O_RDONLY | O_CLOEXEC)};
}

/// The whole file as it is now: /proc makes its content anew when read from the start.
std::string read_again(const machine::FileDescriptor& file) {
  std::string text;
  std::array<char, 16384> part;
  if (::lseek(file.get(), 0, SEEK_SET) != 0) return text;
  for (;;) {
    const ssize_t n = ::read(file.get(), part.data(), part.size());
    if (n > 0) {
      text.append(part.data(), static_cast<std::size_t>(n));
    } else if (n == 0 || errno != EINTR) {
      return text;
    }
  }
}

}  // namespace

OwnMemory::OwnMemory()
    : smaps_{open_to_read("/proc/self/smaps")}, status_{open_to_read("/proc/self/status")} {}

OwnMemory::Mappings OwnMemory::mappings(std::string_view guest_name) const {
  Mappings sums;
  std::istringstream smaps{read_again(smaps_)};
  std::string line;
  bool guest = false;
  bool binary = false;
  while (std::getline(smaps, line)) {
    // A mapping starts with "start-end perms offset dev inode [path]"; its fields have a colon.
    const auto first_space = line.find(' ');
    if (first_space != std::string::npos && line.find('-') < first_space &&
        line[first_space - 1] != ':') {
      guest = line.find(guest_name) != std::string::npos;
      binary = !guest && line.find(" /") != std::string::npos &&
               line.find("memfd:") == std::string::npos;
      continue;
    }
    if (line.rfind("Rss:", 0) != 0) continue;
    const std::uint64_t bytes = std::stoull(line.substr(4)) * 1024;
    sums.resident += bytes;
    if (guest) sums.guest += bytes;
    if (binary) sums.binary += bytes;
  }
  return sums;
}

std::uint64_t OwnMemory::page_table_bytes() const {
  constexpr std::string_view kKey = "VmPTE:";
  std::istringstream status{read_again(status_)};
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind(kKey, 0) == 0) return std::stoull(line.substr(kKey.size())) * 1024;
  }
  return 0;
}

}  // namespace strata::host
