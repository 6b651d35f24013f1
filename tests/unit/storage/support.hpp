// Files that go away with the test, and requests that are waited for.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "storage/open_disk.hpp"

namespace strata::storage::test {

using Bytes = std::vector<std::uint8_t>;

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "strata-storage-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline Bytes read_file(const std::string& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

inline void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream out{path, std::ios::binary | std::ios::trunc};
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
}

inline Bytes random_bytes(std::uint64_t seed, std::size_t size) {
  std::mt19937_64 random{seed};
  Bytes bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

/// Hears of one request.
class Waiter final : public Completion {
 public:
  void completed(Status status) noexcept override {
    const std::lock_guard hold{lock_};
    status_ = status;
    ++times_;
    heard_.notify_all();
  }
  [[nodiscard]] Status wait() {
    std::unique_lock hold{lock_};
    heard_.wait(hold, [this] { return times_ > 0; });
    return status_;
  }
  [[nodiscard]] int times() {
    const std::lock_guard hold{lock_};
    return times_;
  }

 private:
  std::mutex lock_;
  std::condition_variable heard_;
  Status status_ = Status::ok;
  int times_ = 0;
};

inline Status carry_out(Disk& disk, const Request& request) {
  Waiter done;
  disk.submit(request, done);
  disk.kick();
  return done.wait();
}

inline Status transfer(Disk& disk, Operation operation, std::uint64_t offset, Bytes& bytes) {
  const iovec buffer{bytes.data(), bytes.size()};
  return carry_out(
      disk,
      {.operation = operation, .offset = offset, .length = bytes.size(), .buffers = {&buffer, 1}});
}

inline Status write(Disk& disk, std::uint64_t offset, Bytes bytes) {
  return transfer(disk, Operation::write, offset, bytes);
}

inline Bytes read(Disk& disk, std::uint64_t offset, std::size_t size) {
  Bytes bytes(size);
  if (transfer(disk, Operation::read, offset, bytes) != Status::ok) return {};
  return bytes;
}

inline Status flush(Disk& disk) { return carry_out(disk, {.operation = Operation::flush}); }

/// Ends the program if it cannot be opened.
inline std::unique_ptr<Disk> open_started(const DiskOptions& options) {
  std::unique_ptr<Disk> disk = std::move(open_disk(options)).value();
  disk->start();
  return disk;
}

}  // namespace strata::storage::test
