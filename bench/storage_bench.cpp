// Disks over the page cache: what a request costs beside the system call that does the same.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "machine/machine_memory.hpp"
#include "storage/open_disk.hpp"

namespace {

using strata::storage::DiskOptions;
using strata::storage::Engine;
using strata::storage::Operation;

constexpr std::uint64_t kBytes = 64 * 1024 * 1024;

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "strata-bench-XXXXXX").string();
    path_ = mkdtemp(name.data());
    const std::vector<char> content(kBytes, 1);
    const strata::machine::FileDescriptor file{
        ::open(disk().c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)};
    if (::write(file.get(), content.data(), kBytes) != kBytes) std::abort();
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string disk() const { return path_ / "disk"; }
  [[nodiscard]] std::string overlay() const { return path_ / "overlay"; }

 private:
  std::filesystem::path path_;
};

class Counter final : public strata::storage::Completion {
 public:
  void completed(strata::storage::Status status) noexcept override {
    if (status != strata::storage::Status::ok) std::abort();
    left_.fetch_sub(1, std::memory_order_release);
    left_.notify_all();
  }
  void expect(int count) { left_.store(count, std::memory_order_relaxed); }
  void wait() {
    for (int left = left_.load(std::memory_order_acquire); left > 0;
         left = left_.load(std::memory_order_acquire)) {
      left_.wait(left);
    }
  }

 private:
  std::atomic<int> left_{0};
};

/// `queue` requests of `size` bytes at a time, one after the other through the disk.
void run_disk(benchmark::State& state, const DiskOptions& options, Operation operation) {
  auto disk = std::move(strata::storage::open_disk(options)).value();
  disk->start();
  const auto size = static_cast<std::uint64_t>(state.range(0));
  const auto queue = static_cast<int>(state.range(1));
  std::vector<char> bytes(size);
  const iovec buffer{bytes.data(), size};
  Counter done;
  std::uint64_t offset = 0;
  for (auto _ : state) {
    done.expect(queue);
    for (int i = 0; i < queue; ++i) {
      disk->submit(
          {.operation = operation, .offset = offset, .length = size, .buffers = {&buffer, 1}},
          done);
      offset = (offset + size) % kBytes;
    }
    disk->kick();
    done.wait();
  }
  disk->drain();
  state.SetLabel(std::string{disk->engine()});
  state.SetItemsProcessed(state.iterations() * queue);
  state.SetBytesProcessed(state.iterations() * queue * state.range(0));
}

void raw(benchmark::State& state, Engine engine, Operation operation) {
  const Folder folder;
  run_disk(state, {.path = folder.disk(), .engine = engine}, operation);
}

void overlay(benchmark::State& state, Engine engine, Operation operation) {
  const Folder folder;
  run_disk(state, {.path = folder.disk(), .overlay = folder.overlay(), .engine = engine},
           operation);
}

void plain_call(benchmark::State& state, Operation operation) {
  const Folder folder;
  const strata::machine::FileDescriptor file{::open(folder.disk().c_str(), O_RDWR | O_CLOEXEC)};
  const auto size = static_cast<std::size_t>(state.range(0));
  std::vector<char> bytes(size);
  std::uint64_t offset = 0;
  for (auto _ : state) {
    for (int i = 0; i < state.range(1); ++i) {
      const auto at = static_cast<off_t>(offset);
      const ssize_t n = operation == Operation::read ? ::pread(file.get(), bytes.data(), size, at)
                                                     : ::pwrite(file.get(), bytes.data(), size, at);
      if (n != static_cast<ssize_t>(size)) std::abort();
      offset = (offset + size) % kBytes;
    }
  }
  state.SetItemsProcessed(state.iterations() * state.range(1));
  state.SetBytesProcessed(state.iterations() * state.range(1) * state.range(0));
}

void sizes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"bytes", "queue"})
      ->Args({4096, 1})
      ->Args({4096, 32})
      ->Args({1 << 20, 1})
      ->Args({1 << 20, 8});
  bench->UseRealTime();
}

BENCHMARK_CAPTURE(plain_call, read, Operation::read)->Apply(sizes);
BENCHMARK_CAPTURE(raw, read_uring, Engine::asynchronous, Operation::read)->Apply(sizes);
BENCHMARK_CAPTURE(raw, read_synchronous, Engine::synchronous, Operation::read)->Apply(sizes);
BENCHMARK_CAPTURE(overlay, read_uring, Engine::asynchronous, Operation::read)->Apply(sizes);
BENCHMARK_CAPTURE(plain_call, write, Operation::write)->Apply(sizes);
BENCHMARK_CAPTURE(raw, write_uring, Engine::asynchronous, Operation::write)->Apply(sizes);
BENCHMARK_CAPTURE(raw, write_synchronous, Engine::synchronous, Operation::write)->Apply(sizes);
BENCHMARK_CAPTURE(overlay, write_uring, Engine::asynchronous, Operation::write)->Apply(sizes);

}  // namespace
