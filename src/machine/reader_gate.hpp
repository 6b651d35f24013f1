// Lets lock-free readers walk tables whose frames somebody else may take out and free.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>

namespace strata::machine {

/// A grace period in the manner of sleepable RCU: readers count themselves in and out on one of a
/// few striped counters; synchronize() returns when every reader that might still see what the
/// caller unlinked has left. Readers never wait. Thread-safe.
class ReaderGate {
 public:
  class Section {
   public:
    explicit Section(ReaderGate& gate) noexcept : counter_{gate.enter()} {}
    Section(const Section&) = delete;
    Section& operator=(const Section&) = delete;
    ~Section() { counter_->fetch_sub(1, std::memory_order_release); }

   private:
    std::atomic<std::uint64_t>* counter_;
  };

  /// Waits for the readers there are now. Not from inside a Section.
  void synchronize() noexcept {
    const std::lock_guard guard{lock_};
    // Twice: a reader may have read the old phase and not have counted itself in yet when the first
    // flip drains. It then counts in the phase that the second flip drains.
    for (int flip = 0; flip < 2; ++flip) {
      const unsigned old = phase_.fetch_xor(1, std::memory_order_seq_cst);
      for (Stripe& stripe : stripes_) {
        while (stripe.readers[old].load(std::memory_order_seq_cst) != 0) std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr std::size_t kStripes = 16;
  struct alignas(128) Stripe {
    std::array<std::atomic<std::uint64_t>, 2> readers{};
  };

  std::atomic<std::uint64_t>* enter() noexcept {
    // Thread control blocks lie pages apart: their address tells threads apart without a registry.
    const auto self = reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
    const std::size_t stripe = (self * 0x9E3779B97F4A7C15ULL) >> 60;
    static_assert(kStripes == 16);
    auto& counter = stripes_[stripe].readers[phase_.load(std::memory_order_seq_cst)];
    counter.fetch_add(1, std::memory_order_seq_cst);
    return &counter;
  }

  std::array<Stripe, kStripes> stripes_{};
  std::atomic<unsigned> phase_{0};
  /// Serialises synchronize(). A leaf lock.
  std::mutex lock_;
};

}  // namespace strata::machine
