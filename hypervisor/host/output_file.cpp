#include "host/output_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace strata::host {

Expected<OutputFile, HostError> OutputFile::open(const std::string& path) {
  machine::FileDescriptor file{::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666)};
  if (file.valid()) return OutputFile{path, std::move(file)};
  return Unexpected{HostError{fmt::format("cannot write {}: {}", path, std::strerror(errno))}};
}

void OutputFile::restart() noexcept {
  // Only files have a length that could be cut.
  if (::ftruncate(file_.get(), 0) == 0) ::lseek(file_.get(), 0, SEEK_SET);
}

void OutputFile::write(std::span<const std::byte> bytes) noexcept {
  while (!bytes.empty() && !failed_) {
    const ssize_t n = ::write(file_.get(), bytes.data(), bytes.size());
    if (n > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    } else if (n == 0 || errno != EINTR) {
      failed_ = true;
    }
  }
}

bool OutputFile::finish() noexcept {
  // Some file systems say only now that the disk is full (close(2)).
  const int fd = file_.release();
  if (fd >= 0 && ::close(fd) != 0) failed_ = true;
  return !failed_;
}

}  // namespace strata::host
